"""The command line ``vit``."""
