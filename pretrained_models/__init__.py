"""Scripts that run real architectures through the backend, beside eager PyTorch."""
