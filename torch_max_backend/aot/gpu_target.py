"""Code for a GPU that this machine need not have.

MAX's virtual devices are a mode of the whole process, so the compile has a process of its own; this
file is also the program that it runs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from max.graph import Module
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_map_only

from torch_max_backend import aten_functions  # noqa: F401  operators and their lowerings
from torch_max_backend.accelerators import this_gpu
from torch_max_backend.context import mlir_context
from torch_max_backend.cpu import cpu_target, making_code_for
from torch_max_backend.errors import CompileError, ExportError
from torch_max_backend.graph_builder import build_graph, check_supported
from torch_max_backend.graph_pickle import load_graph, save_graph
from torch_max_backend.options import MaxOptions
from torch_max_backend.passes import run_passes

GPU = torch.device("cuda", 0)
"""What PyTorch calls a GPU of NVIDIA and, in its builds for ROCm, of AMD."""
_APIS = {r"sm_\d+[af]?": "cuda", r"gfx[0-9a-f]+": "hip"}
_WITH_FEATURES = 90
"""From this architecture on MAX makes code with the features that only one generation has, and
calls an H100 "sm_90a"."""
_GRAPH, _EXECUTABLE = "graph.pickle", "program.mef"


def api_of(architecture: str) -> str:
    """ "cuda" for "sm_90", "hip" for "gfx942".

    Raises:
        ExportError: the name is neither's.
    """
    for pattern, api in _APIS.items():
        if re.fullmatch(pattern, architecture):
            return api
    raise ExportError(
        f"gpu={architecture!r}; it is an architecture of NVIDIA such as 'sm_90' or of AMD such as "
        "'gfx942'"
    )


def architecture_of(gpu: str) -> str:
    """MAX's name of a GPU's architecture: "sm_90a" for "sm_90", others as they are.

    Raises:
        ExportError: as ``api_of``.
    """
    number = gpu.removeprefix("sm_")
    plain = api_of(gpu) == "cuda" and number.isdigit()
    return f"{gpu}a" if plain and int(number) >= _WITH_FEATURES else gpu


def move_to_gpu(gm: GraphModule) -> None:
    """Changes a graph traced on the CPU to one of the GPU: its fake values and device arguments."""

    def move(value: FakeTensor) -> FakeTensor:
        with value.fake_mode:
            meta = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device="meta"
            )
            return FakeTensor(value.fake_mode, meta, GPU)

    for node in gm.graph.nodes:
        literal = node.op == "get_attr"  # real tensors of the module, placed by the lowering
        if "val" in node.meta and not literal:
            node.meta["val"] = tree_map_only(FakeTensor, move, node.meta["val"])
        node.args = tree_map_only(torch.device, lambda _: GPU, node.args)
        node.kwargs = tree_map_only(torch.device, lambda _: GPU, dict(node.kwargs))


def compile_for_gpu(gm: GraphModule, architecture: str) -> bytes:
    """MAX's executable of a graph of the GPU, before the passes; those are run on it.

    Raises:
        UnsupportedOpsError, LoweringError: see graph_builder.
        CompileError: MAX refused the graph, or has no such GPU.
    """
    graph = save_graph(gm, lambda _, key: key in ("val", "stack_trace"))
    run_passes(gm)
    _lower(gm)  # so that what is wrong with the model is said here
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / _GRAPH).write_bytes(graph)
        precision = torch.get_float32_matmul_precision()
        command = [sys.executable, "-m", __name__, architecture, cpu_target(), precision, folder]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        env = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        executable = Path(folder) / _EXECUTABLE
        # a process that fails has been seen to exit with 0, one that succeeds to abort at the end
        if not executable.exists():
            raise CompileError(
                f"MAX could not compile the model for {architecture} (exit status "
                f"{done.returncode}):\n{done.stderr[-4000:]}"
            )
        return executable.read_bytes()


@mlir_context()
def _lower(gm: GraphModule) -> None:
    check_supported(gm)
    build_graph(gm, Module(), "g0", MaxOptions())


def main(arguments: Sequence[str]) -> None:
    """The program of the other process."""
    architecture, cpu, precision, folder = arguments
    from max import driver

    torch.set_float32_matmul_precision(precision)
    driver.set_virtual_device_api(api_of(architecture))
    driver.set_virtual_device_target_arch(architecture)
    driver.set_virtual_device_count(1)

    from torch_max_backend.compilation import compile_ahead

    data = (Path(folder) / _GRAPH).read_bytes()
    gm = load_graph(data, FakeTensorMode(shape_env=ShapeEnv()))
    run_passes(gm)
    with making_code_for(cpu):
        executable = compile_ahead(gm, MaxOptions())
    written = Path(folder) / "written"
    written.write_bytes(executable)
    written.replace(Path(folder) / _EXECUTABLE)


def gpu_needed(architecture: str | None) -> dict[str, Any] | None:
    """What a package says of the GPU that it was made for, by name or this machine's."""
    if architecture is not None:
        return {"api": api_of(architecture), "architecture": architecture}
    return this_gpu()


if __name__ == "__main__":
    main(sys.argv[1:])
