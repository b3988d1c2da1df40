"""The command line ``max-backend``."""
