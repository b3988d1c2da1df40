"""export: torch.export, then the compiler of torch.compile, then a package."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_flatten, tree_map_only, treespec_dumps

from torch_max_backend import __version__
from torch_max_backend.aot import package
from torch_max_backend.aot.call_spec import CallSpec
from torch_max_backend.aot.frozen_weights import freeze_weights
from torch_max_backend.aot.gpu_target import (
    api_of,
    architecture_of,
    compile_for_gpu,
    gpu_needed,
    move_to_gpu,
)
from torch_max_backend.aot.loaded import load, load_metadata_from_package
from torch_max_backend.aot.metadata import TensorSpec
from torch_max_backend.aot.symbol_names import renamed, symbol_names
from torch_max_backend.aot.weights import write_weights
from torch_max_backend.compilation import compile_ahead
from torch_max_backend.composites import replace_composites
from torch_max_backend.cpu import (
    NATIVE,
    cpu_levels,
    cpu_target,
    making_code_for,
    system,
    target_features,
)
from torch_max_backend.decompositions import export_decompositions
from torch_max_backend.dims import expression
from torch_max_backend.errors import ExportError, PackageError
from torch_max_backend.options import MaxOptions
from torch_max_backend.passes import run_passes
from torch_max_backend.replacing import replacing
from torch_max_backend.signature_reading import read_signature
from torch_max_backend.size_trees import to_tree
from torch_max_backend.sizes import generic_sizes

log = logging.getLogger(__name__)
_UNLIMITED = 1 << 62
_NAME = "model"


@dataclass(frozen=True)
class Export:
    """What ``export`` made.

    Args:
        path: the package.
        weights: the file of the weights where they lie beside it.
        tracing: the way that served: "dynamic", "static" or "static, strict=False".
        verified: with ``verify``, per output: shape, mean, min, max and the largest difference from
            eager PyTorch.
    """

    path: Path
    weights: Path | None
    tracing: str
    verified: list[dict[str, Any]] | None = None


def export(
    model: nn.Module | ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    path: str | Path,
    dynamic_shapes: Any = None,
    device: str | torch.device | None = None,
    cpu: str = NATIVE,
    gpu: str | None = None,
    weights: Literal["embedded", "beside"] = "embedded",
    freeze: bool = False,
    verify: bool = False,
    fallback: bool = False,
) -> Export:
    """Compiles a model ahead of time into one file.

    Args:
        model: a module in eval mode, or what ``torch.export.export`` or ``load`` returned.
        args, kwargs: example inputs; not needed for an exported program, but to verify it.
        dynamic_shapes: as in ``torch.export.export``. None: what the model's method
            ``default_dynamic_shapes()`` says (a ViT's: a batch of 1 to 32), static without one.
            "static": every size is that of the example.
        device: where model and inputs are moved before; None leaves them.
        cpu: the least processor that is to run it: "native" is one like this; "x86-64-v3" (AVX2)
            and "x86-64-v4" (AVX-512), or on ARM "generic", run on more machines and more slowly.
        gpu: an architecture such as "sm_90" or "gfx942" that this machine need not have. The model
            and the inputs are on the CPU; the package takes and returns tensors on "cuda".
        weights: inside the package, or in ``<path>.<checksum>.safetensors`` beside it.
        freeze: compute what depends on weights alone now, and pack the weights as products read
            them: faster on small batches, but ``load_constants`` refuses.
        verify: loads the package again and compares its results with eager PyTorch's.
        fallback: where torch.export fails, try static sizes, then strict=False.

    Raises:
        ExportError: torch.export fails, the file cannot be written, or the results differ.
        InputError: ``freeze`` for weights that were made under ``torch.inference_mode()``.
        UnsupportedOpsError, LoweringError, CompileError: as with torch.compile.
    """
    path = Path(path)
    if weights not in ("embedded", "beside"):
        raise ExportError(f"weights={weights!r}; it is 'embedded' or 'beside'")
    if not path.parent.is_dir():
        raise ExportError(f"there is no folder {path.parent}; make it first")
    kwargs = dict(kwargs or {})
    _check_target(cpu, gpu, device, freeze, verify)
    if gpu is not None:
        gpu = architecture_of(gpu)
    if device is not None:
        model, args, kwargs = _moved(model, args, kwargs, torch.device(device))
    if dynamic_shapes is None and hasattr(model, "default_dynamic_shapes"):
        dynamic_shapes = model.default_dynamic_shapes()  # type: ignore[operator]
    program, tracing = _traced(model, args, kwargs, dynamic_shapes, fallback)
    names = {}
    if isinstance(model, nn.Module) and tracing == "dynamic":
        names = symbol_names(program, model.forward, args, kwargs, dynamic_shapes)
    lowered = _lowered(program)
    gm = lowered.graph_module
    if gpu is not None:
        move_to_gpu(gm)
    spec, weights_by_name = _call_spec(lowered)
    constants = weights_by_name
    with making_code_for(cpu):
        if gpu is None:
            run_passes(gm)
            if freeze:
                spec, constants = freeze_weights(gm, spec, constants)
            executable = compile_ahead(gm, MaxOptions())
        else:
            executable = compile_for_gpu(gm, gpu)
        metadata = {
            **_metadata(model, lowered, spec, constants, tracing, names),
            **_state(lowered.state_dict, weights_by_name, constants),
            **_machine(gpu),
        }
    members: dict[str, bytes | Path] = {
        package.EXECUTABLE: executable,
        package.CALL_SPEC: package.to_text(spec.to_json()),
    }
    try:
        beside = _write(path, members, metadata, constants, weights == "beside")
    except (OSError, SafetensorError) as error:
        raise ExportError(f"cannot write {path}: {error}; nothing was changed there") from error
    log.info("exported %s to %s (%s)", metadata["model"], path, tracing)
    verified = _verify(path, model, args, kwargs) if verify else None
    return Export(path, beside, tracing, verified)


def _check_target(
    cpu: str, gpu: str | None, device: str | torch.device | None, freeze: bool, verify: bool
) -> None:
    names = [NATIVE, *cpu_levels()]
    if cpu not in names:
        raise ExportError(
            f"cpu={cpu!r}; on this machine it is one of {', '.join(map(repr, names))}"
        )
    if gpu is None:
        return
    api_of(gpu)
    if device is not None and torch.device(device).type != "cpu":
        raise ExportError(f"gpu={gpu!r} is for a model on the CPU; leave out device={device!r}")
    if freeze:
        raise ExportError(f"freeze=True computes on this machine; leave it out for gpu={gpu!r}")
    if verify:
        raise ExportError(f"verify=True would run the package, which gpu={gpu!r} need not do here")


def _machine(gpu: str | None) -> dict[str, Any]:
    """What the package asks of the machine that loads it."""
    return {
        "system": system(),
        "cpu": cpu_target(),
        "instruction_sets": sorted(target_features()),
        "gpu": gpu_needed(gpu),
    }


def _write(
    path: Path,
    members: dict[str, bytes | Path],
    metadata: dict[str, Any],
    constants: Mapping[str, torch.Tensor],
    separate: bool,
) -> Path | None:
    """Writes the package; returns the file of the weights where that lies beside it.

    Its name has their checksum: until the new package stands, an old one keeps the weights it had.
    """
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
    ) as folder:
        file = Path(folder) / package.WEIGHTS
        write_weights(constants, file)
        beside = None
        if separate:
            digest = _sha256(file)
            beside = path.with_name(f"{path.name}.{digest[:12]}.safetensors")
            metadata["weights_beside"] = {"file": beside.name, "sha256": digest}
            with replacing(beside) as new:
                file.replace(new)
        else:
            members[package.WEIGHTS] = file
        members[package.METADATA] = package.to_text(metadata)
        old = _weights_beside(path)
        try:
            package.write(path, _NAME, members)
        except BaseException:
            if beside is not None and beside != old:
                beside.unlink()
            raise
    if old is not None and old != beside:
        old.unlink(missing_ok=True)
    return beside


def _weights_beside(path: Path) -> Path | None:
    """The file of the weights of a package that is there already."""
    try:
        entry = load_metadata_from_package(path, _NAME).get("weights_beside")
    except PackageError:
        return None
    return None if entry is None else path.with_name(Path(entry["file"]).name)


def _moved(
    model: Any, args: Sequence[Any], kwargs: dict[str, Any], device: torch.device
) -> tuple[Any, Sequence[Any], dict[str, Any]]:
    if isinstance(model, ExportedProgram):
        raise ExportError("an exported program has its device; export the model again on another")
    args, kwargs = tree_map_only(torch.Tensor, lambda x: x.to(device), (tuple(args), kwargs))
    return model.to(device), args, kwargs


def _traced(
    model: nn.Module | ExportedProgram,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    fallback: bool,
) -> tuple[ExportedProgram, str]:
    """The program, and how it was traced."""
    if isinstance(model, ExportedProgram):
        return model, "dynamic" if model.range_constraints else "static"
    if model.training:
        raise ExportError(
            "the model is in training mode, whose dropout and batch statistics would be exported; "
            "call model.eval() first"
        )
    static = dynamic_shapes is None or dynamic_shapes == "static"
    ways = [("static", None, True), ("static, strict=False", None, False)]
    if not static:
        ways.insert(0, ("dynamic", dynamic_shapes, True))
    failures = []
    for name, shapes, strict in ways if fallback else ways[:1]:
        try:
            with generic_sizes(), torch.no_grad():
                program = torch.export.export(
                    model, tuple(args), kwargs, dynamic_shapes=shapes, strict=strict
                )
        except Exception as error:
            failures.append((name, error))
            log.warning("torch.export (%s) failed: %s", name, error)
        else:
            return program, name
    tried = "\n".join(f"  {name}: {type(error).__name__}: {error}" for name, error in failures)
    advice = "" if fallback else "; fallback=True tries static sizes and strict=False too"
    raise ExportError(f"torch.export cannot trace the model{advice}:\n{tried}") from failures[-1][1]


def _lowered(program: ExportedProgram) -> ExportedProgram:
    """The program in the operators that the compiler lowers."""
    replace_composites(program.graph_module)
    with generic_sizes(), torch.no_grad(), warnings.catch_warnings():
        # PyTorch 2.13 uses what it itself has deprecated
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        return program.run_decompositions(dict(export_decompositions()))


def _call_spec(program: ExportedProgram) -> tuple[CallSpec, dict[str, torch.Tensor]]:
    """How the program is called, and its weights, buffers and constants by name."""
    signature = program.graph_signature
    constants: dict[str, torch.Tensor] = {}
    places: dict[str, int] = {}
    inputs: list[int] = []
    fixed: dict[int, Any] = {}
    names: dict[str, int] = {}
    for place, entry in enumerate(signature.input_specs):
        if entry.kind == InputKind.USER_INPUT:
            if not hasattr(entry.arg, "value"):
                names[entry.arg.name] = len(inputs)
            else:
                fixed[len(inputs)] = entry.arg.value
            inputs.append(place)
        elif entry.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            assert entry.target is not None
            held = program.state_dict if entry.target in program.state_dict else program.constants
            constants[entry.target] = held[entry.target]
            places[entry.target] = place
        else:
            raise ExportError(f"{entry.arg.name}: a package cannot hold an input of {entry.kind}")
    outputs: list[int] = []
    mutated: dict[str, int] = {}
    mutated_inputs: dict[int, int] = {}
    for place, result in enumerate(signature.output_specs):
        if result.kind == OutputKind.USER_OUTPUT:
            outputs.append(place)
        elif result.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
            assert result.target is not None
            mutated[result.target] = place
        elif result.kind == OutputKind.USER_INPUT_MUTATION:
            assert result.target is not None
            mutated_inputs[names[result.target]] = place
        else:
            raise ExportError(f"{result.arg.name}: a package cannot hold a result of {result.kind}")
    spec = CallSpec(
        read_signature(program.graph_module),
        places,
        tuple(inputs),
        fixed,
        tuple(outputs),
        mutated,
        mutated_inputs,
        treespec_dumps(program.call_spec.in_spec),
        treespec_dumps(program.call_spec.out_spec),
    )
    return spec, constants


def _bound(limit: Any) -> int:
    """A limit of a symbol; torch writes infinity where there is none."""
    try:
        return max(-_UNLIMITED, min(_UNLIMITED, int(limit)))
    except (TypeError, OverflowError):
        return _UNLIMITED


def _metadata(
    model: nn.Module | ExportedProgram,
    program: ExportedProgram,
    spec: CallSpec,
    constants: Mapping[str, torch.Tensor],
    tracing: str,
    names: Mapping[str, str],
) -> dict[str, Any]:
    nodes = list(program.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    inputs = [
        _tensor_spec(placeholders[place].name, placeholders[place].meta["val"], names).to_json()
        for i, place in enumerate(spec.inputs)
        if i not in spec.fixed
    ]
    (results,) = nodes[-1].args
    outputs = [
        _tensor_spec(results[place].name, results[place].meta["val"], names).to_json()
        for place in spec.outputs
        if isinstance(results[place], torch.fx.Node)
        and isinstance(results[place].meta["val"], torch.Tensor)
    ]
    devices = {entry["device"] for entry in (*inputs, *outputs)}
    devices |= {placeholders[place].meta["val"].device.type for place in spec.constants.values()}
    devices = devices - {"cpu"} or {"cpu"}
    return {
        "model": type(model).__name__,
        "device": ", ".join(sorted(devices)),
        "versions": {
            "torch_max_backend": __version__,
            "torch": torch.__version__,
            "max": version("max"),
        },
        "tracing": tracing,
        "ranges": {
            names.get(symbol.name, symbol.name): [_bound(limits.lower), _bound(limits.upper)]
            for symbol, limits in program.range_constraints.items()
        },
        "inputs": inputs,
        "outputs": outputs,
        "constants": [
            {
                **_tensor_spec(name, placeholders[spec.constants[name]].meta["val"]).to_json(),
                "in_state_dict": name in program.state_dict,
            }
            for name in constants
        ],
    }


def _state(
    state: Mapping[str, torch.Tensor],
    used: Mapping[str, torch.Tensor],
    constants: Mapping[str, torch.Tensor],
) -> dict[str, Any]:
    """What becomes of the rest of a state dict, by name: further names of what the program uses,
    what it does not use, and what is frozen, in the package's constants no more."""
    aliases = _aliases(state, used)
    return {
        "aliases": aliases,
        "unused": [name for name in state if name not in used and name not in aliases],
        "frozen": [name for name in used if name not in constants],
    }


def _aliases(
    state: Mapping[str, torch.Tensor], constants: Mapping[str, torch.Tensor]
) -> dict[str, str]:
    """Further names of weights that a state dict has, as of tied ones."""
    places = {_place(tensor): name for name, tensor in constants.items() if tensor.numel()}
    return {
        name: places[_place(tensor)]
        for name, tensor in state.items()
        if name not in constants and _place(tensor) in places
    }


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _tensor_spec(
    name: str, tensor: torch.Tensor, names: Mapping[str, str] | None = None
) -> TensorSpec:
    shape = tuple(to_tree(renamed(expression(size), names or {})) for size in tensor.shape)
    return TensorSpec(name, tensor.dtype, shape, tensor.device.type)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(
    path: Path, model: nn.Module | ExportedProgram, args: Sequence[Any], kwargs: dict[str, Any]
) -> list[dict[str, Any]]:
    """Runs the package and eager PyTorch on the example."""
    run = model.module() if isinstance(model, ExportedProgram) else model
    with torch.no_grad():
        expected = tree_flatten(run(*args, **kwargs))[0]
    found = tree_flatten(load(path)(*args, **kwargs))[0]
    report = []
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if isinstance(theirs, torch.Tensor):
            report.append({"output": index, **_compared(path, index, ours, theirs)})
    return report


def _compared(path: Path, index: int, ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, Any]:
    if ours.shape != theirs.shape:
        raise ExportError(
            f"{path} was written, but output {index} has shape {list(ours.shape)}, in eager "
            f"PyTorch {list(theirs.shape)}"
        )
    if not theirs.numel():
        return {"shape": list(ours.shape)}
    a, b = ours.double(), theirs.double()
    error = (a - b).abs().max().item()
    allowed = 0.0
    if ours.dtype.is_floating_point:
        scale = max(1.0, b.abs().max().item())
        allowed = scale * _VERIFY_ULPS * torch.finfo(ours.dtype).eps
    if not error <= allowed:
        raise ExportError(
            f"{path} was written, but output {index} differs from eager PyTorch by {error:.3g}, "
            f"more than {allowed:.3g}"
        )
    return {
        "shape": list(ours.shape),
        "mean": a.mean().item(),
        "min": a.min().item(),
        "max": a.max().item(),
        "largest_error": error,
    }


_VERIFY_ULPS = 1024.0
"""Units in the last place of the largest number of an output: what a deep model loses."""
