"""The ways of running a model that are compared. Each runs in a process of its own.

A contestant is prepared once (compiled into its cache, exported to a file) and then loaded in a
fresh process, so that what is timed there is a start from what is on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import (
    INT8,
    Case,
    images_in_precision,
    in_precision,
    make_input,
    make_model,
)

Run = Callable[[Tensor], Tensor]
OWN_QUANTISATION = "it quantises by a tool of its own, not as torchao does"


class LeftOut(Exception):
    """A contestant that does not take part in a case, and why."""


@dataclass(frozen=True)
class Contestant:
    """How to prepare a case in a folder, and how to load what was prepared."""

    load: Callable[[Case, Path], Run]
    prepare: Callable[[Case, Path], None]


class _OnFloat32Images(torch.nn.Module):
    """A model that casts its images itself, as those of ONNX Runtime and OpenVINO do."""

    def __init__(self, model: torch.nn.Module, case: Case) -> None:
        super().__init__()
        self.model = model
        self.case = case

    def forward(self, x: Tensor) -> Tensor:
        return self.model(images_in_precision(x, self.case))


def torch_model(case: Case) -> torch.nn.Module:
    """The model in the case's precision; takes float32 images."""
    if case.dtype == INT8:
        _needs("torchao")
    return _OnFloat32Images(in_precision(make_model(case), case), case).eval()


def _compiled(**settings: Any) -> Contestant:
    def load(case: Case, folder: Path) -> Run:
        run = torch_model(case)
        return _without_grad(torch.compile(run, fullgraph=True, dynamic=False, **settings))

    def prepare(case: Case, folder: Path) -> None:
        load(case, folder)(make_input(case))

    return Contestant(load, prepare)


def _without_grad(run: Run) -> Run:
    def call(x: Tensor) -> Tensor:
        with torch.no_grad():
            return run(x)

    return call


def _eager() -> Contestant:
    return Contestant(
        load=lambda case, folder: _without_grad(torch_model(case)),
        prepare=lambda case, folder: None,
    )


def _inductor(mode: str | None) -> Contestant:
    options = {"freezing": True, "max_autotune": True} if mode else {}
    return _compiled(backend="inductor", options=options)


def _package() -> Contestant:
    """Ahead of time and with its weights packed, as what ONNX Runtime and OpenVINO load is."""

    def prepare(case: Case, folder: Path) -> None:
        from torch_max_backend import export

        export(torch_model(case), (make_input(case),), path=folder / "model.max", freeze=True)

    def load(case: Case, folder: Path) -> Run:
        from torch_max_backend import load

        return load(folder / "model.max")

    return Contestant(load, prepare)


def _onnxruntime() -> Contestant:
    def prepare(case: Case, folder: Path) -> None:
        if case.dtype == "bfloat16":
            raise LeftOut("ONNX Runtime's CPU provider has no bfloat16 kernels")
        if case.dtype == INT8:
            raise LeftOut(OWN_QUANTISATION)
        _needs("onnxruntime", "onnxscript")
        arguments = (make_input(case),)
        with torch.no_grad():
            torch.onnx.export(
                make_model(case), arguments, str(folder / "model.onnx"), dynamo=True, verbose=False
            )

    def load(case: Case, folder: Path) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(
            folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        (name,) = [value.name for value in session.get_inputs()]
        return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    return Contestant(load, prepare)


def _openvino() -> Contestant:
    def prepare(case: Case, folder: Path) -> None:
        _needs("openvino")
        if case.dtype == INT8:
            raise LeftOut(OWN_QUANTISATION)
        import openvino

        x = make_input(case)
        program = torch.export.export(make_model(case), (x,))
        model = openvino.convert_model(program, example_input=x, input=list(x.shape))
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)

    def load(case: Case, folder: Path) -> Run:
        import openvino

        precision = {"float32": "f32", "bfloat16": "bf16"}[case.dtype]
        compiled = openvino.Core().compile_model(
            folder / "model.xml",
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": precision,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            },
        )
        return lambda x: torch.from_numpy(compiled(x.numpy())[0])

    return Contestant(load, prepare)


def _needs(*packages: str) -> None:
    from importlib.util import find_spec

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise LeftOut(f"not installed: {', '.join(missing)} (pip install -e '.[bench]')")


CONTESTANTS: dict[str, Contestant] = {
    "eager": _eager(),
    "inductor": _inductor(None),
    "inductor-max-autotune": _inductor("max-autotune"),
    "onnxruntime": _onnxruntime(),
    "openvino": _openvino(),
    "max": _compiled(backend="max"),
    "max-freeze": _compiled(backend="max", options={"freeze": True}),
    "max-package": _package(),
}
