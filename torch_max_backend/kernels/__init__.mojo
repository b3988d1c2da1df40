"""Kernels of torch_max_backend for CPUs, where MAX has none or a slower one."""

from .operators import *
