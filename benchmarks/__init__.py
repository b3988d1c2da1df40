"""A script per published number."""
