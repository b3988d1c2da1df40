"""Ahead of time: export a model once, load and run it without its code or a compiler."""
