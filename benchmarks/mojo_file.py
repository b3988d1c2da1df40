"""Measurements that are written in Mojo, with the kernels of the project at hand."""

from pathlib import Path

from mojo.run import subprocess_run_mojo

from torch_max_backend.kernel_library import kernel_library


def output(source: Path) -> str:
    """What the program prints.

    Raises:
        subprocess.CalledProcessError: it does not compile, or fails.
    """
    command = ["run", "-I", str(kernel_library().parent), str(source)]
    return subprocess_run_mojo(command, capture_output=True, text=True, check=True).stdout
