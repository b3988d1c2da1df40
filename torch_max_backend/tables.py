"""Imports the tables, which fills the registry."""

from torch_max_backend import aten_functions

__all__ = ["aten_functions"]
