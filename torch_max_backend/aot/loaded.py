"""load: a package as a callable. Needs no model code, no Dynamo and no compiler."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten, treespec_loads

from torch_max_backend.aot import package
from torch_max_backend.aot.call_spec import CallSpec
from torch_max_backend.aot.metadata import TensorSpec
from torch_max_backend.aot.weights import read_weights
from torch_max_backend.bound_weights import BoundWeights
from torch_max_backend.cpu import cpu_features, system
from torch_max_backend.errors import (
    ConstantsError,
    DamagedPackageError,
    PackageCpuError,
    PackageDeviceError,
    PackageInputError,
    PackageNotFoundError,
    PackageVersionError,
)
from torch_max_backend.executable import CompiledGraph
from torch_max_backend.session import load_model
from torch_max_backend.size_trees import evaluate

_MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError)


@dataclass(frozen=True)
class InferenceResult:
    """One timed call.

    Args:
        outputs: what the call returned.
        latency_ms: milliseconds, the device synchronised before and after.
        memory_bytes: the most that the process had resident so far; on a GPU, allocated.
    """

    outputs: Any
    latency_ms: float
    memory_bytes: int


def load_metadata_from_package(
    path: str | os.PathLike[str], model_name: str = "model"
) -> dict[str, Any]:
    """What a package says of itself, without loading the model.

    Raises:
        PackageNotFoundError, NotAPackageError, DamagedPackageError, PackageVersionError.
    """
    return package.Package(path, model_name).json(package.METADATA)


def load(
    path: str | os.PathLike[str],
    *,
    model_name: str = "model",
    device: str | torch.device | None = None,
    num_runners: int = 1,
    single_threaded: bool = False,
) -> MaxCompiledModel:
    """Loads what ``export`` wrote. The weights are mapped from the file, not read.

    Args:
        device: the kind of device that is expected; None takes the package's.
        num_runners: how many threads may call at once; further ones wait.
        single_threaded: take no lock at all; the caller sees to it that calls do not overlap.

    Raises:
        PackageError: one of its kinds, see errors.py; nothing was run.
    """
    if num_runners < 1:
        raise ValueError(f"num_runners is {num_runners}; it is at least 1")
    opened = package.Package(path, model_name)
    metadata = opened.json(package.METADATA)
    try:
        _check_fits(opened.path, metadata, device)
        spec = CallSpec.from_json(opened.json(package.CALL_SPEC))
        constants = _constants(opened, metadata)
        model = MaxCompiledModel(
            opened, metadata, spec, constants, None if single_threaded else num_runners
        )
    except _MALFORMED as error:
        raise DamagedPackageError(
            f"{opened.path} contradicts itself: {type(error).__name__}: {error}; export it again"
        ) from error
    return model


def _check_fits(path: Path, metadata: Mapping[str, Any], device: str | torch.device | None) -> None:
    """Whether this machine can run the package, before MAX sees it."""
    made = metadata["versions"]["max"]
    if made != version("max"):
        raise PackageVersionError(
            f"{path} was made with MAX {made}, here is {version('max')}; export the model again or "
            f"install max=={made}"
        )
    kind = metadata["device"]
    if device is not None and torch.device(device).type != kind:
        raise PackageDeviceError(
            f"{path} was made for {kind!r}, not for {str(device)!r}; export it for that device"
        )
    if kind != "cpu" and not torch.accelerator.is_available():
        raise PackageDeviceError(f"{path} needs a {kind} device, and this machine has none")
    from torch_max_backend.accelerators import this_gpu

    if kind != "cpu" and metadata["gpu"] != this_gpu():
        raise PackageDeviceError(
            f"{path} was made for the GPU {metadata['gpu']}, here is {this_gpu()}; export it with "
            "gpu= this architecture, or on this machine"
        )
    if metadata["system"] != system():
        raise PackageCpuError(
            f"{path} was made for {metadata['system']}, this is {system()}; export it on this "
            "machine"
        )
    missing = set(metadata["instruction_sets"]) - set(cpu_features().split())
    if missing:
        raise PackageCpuError(
            f"{path} was made for a processor with {', '.join(sorted(missing))}, which this one "
            "lacks; export it on this machine, or for an older processor with cpu='x86-64-v3'"
        )


def _constants(opened: package.Package, metadata: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    beside = metadata.get("weights_beside")
    data = opened.member(package.WEIGHTS) if beside is None else _beside(opened.path, beside)
    stored = read_weights(data, opened.path)
    constants = {}
    for entry in metadata["constants"]:
        spec = TensorSpec.from_json(entry)
        tensor = stored[spec.name]
        if tensor.dtype != spec.dtype or list(tensor.shape) != list(spec.shape):
            raise ValueError(f"the weight {spec.name} is not what the metadata say")
        constants[spec.name] = tensor if spec.device == "cpu" else tensor.to(spec.device)
    return constants


def _beside(path: Path, entry: Mapping[str, Any]) -> memoryview:
    """The mapped file of the weights; a name without a folder, beside the package."""
    name = str(entry["file"])
    if Path(name).name != name:
        raise ValueError(f"weights in {name!r}, which is not beside the package")
    where = path.with_name(name)
    try:
        data = package.mapped(where)
    except OSError as error:
        raise PackageNotFoundError(
            f"{path} keeps its weights in {where}, which cannot be read ({error}); put that file "
            "beside the package"
        ) from error
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise DamagedPackageError(
            f"{where} does not hold the weights of {path}: the checksum differs; copy both again"
        )
    return memoryview(data)


class _Held(NamedTuple):
    """A package's weights. They stay where they are in memory, so that calls need not check them;
    they are replaced as a whole, since a call in another thread may be using them."""

    constants: dict[str, torch.Tensor]
    arguments: list[Any]
    """of the graph, the constants in their places"""
    bound: BoundWeights


class MaxCompiledModel:
    """A loaded model. Calls take and return what the exported model did, pytrees included."""

    def __init__(
        self,
        opened: package.Package,
        metadata: dict[str, Any],
        spec: CallSpec,
        constants: dict[str, torch.Tensor],
        runners: int | None,
    ) -> None:
        self.path = opened.path
        self._metadata = metadata
        self._spec = spec
        self._gate: Any = (
            contextlib.nullcontext() if runners is None else threading.BoundedSemaphore(runners)
        )
        self._input_specs = [TensorSpec.from_json(entry) for entry in metadata["inputs"]]
        self._output_specs = [TensorSpec.from_json(entry) for entry in metadata["outputs"]]
        self._ranges = {
            str(name): (int(low), int(high)) for name, (low, high) in metadata["ranges"].items()
        }
        self._in_tree: TreeSpec | None = None
        self._out_tree: TreeSpec | None = None
        tensors = [i for i in range(len(spec.inputs)) if i not in spec.fixed]
        self._specs_by_place = dict(zip(tensors, self._input_specs, strict=True))
        executable = bytes(opened.member(package.EXECUTABLE))
        self._graph = CompiledGraph(
            self.path.name,
            None,
            spec.signature,
            list(spec.constants.values()),
            lambda: load_model(executable),
        )
        try:
            model = self._graph.model
        except Exception as error:
            raise DamagedPackageError(
                f"MAX does not take the executable in {self.path}: {error}"
            ) from error
        counts = (len(model.input_metadata), len(model.output_metadata))
        expected = (len(spec.signature.inputs), spec.signature.results())
        if counts != expected:
            raise ValueError(
                f"the executable has {counts[0]} inputs and {counts[1]} outputs, the call spec "
                f"{expected[0]} and {expected[1]}"
            )
        self._held = self._hold(constants)

    def _hold(self, constants: dict[str, torch.Tensor]) -> _Held:
        spec = self._spec
        arguments: list[Any] = [None] * (
            1 + max([*spec.inputs, *spec.constants.values()], default=-1)
        )
        for name, position in spec.constants.items():
            arguments[position] = constants[name]
        return _Held(constants, arguments, self._graph.hold_weights(arguments))

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        return torch.device(self._metadata["device"].split(",")[0])

    @property
    def input_specs(self) -> list[TensorSpec]:
        return list(self._input_specs)

    @property
    def output_specs(self) -> list[TensorSpec]:
        return list(self._output_specs)

    def get_metadata(self) -> dict[str, str]:
        """Every entry as a string; JSON where it is more than a word."""
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in self._metadata.items()
        }

    def get_call_spec(self) -> list[str]:
        """The pytrees of inputs and of outputs, as torch's ``treespec_dumps`` writes them."""
        return [self._spec.in_tree, self._spec.out_tree]

    def get_constant_fqns(self) -> list[str]:
        """The names of weights, buffers and constants; of what was computed of them, ``frozen.0``
        and so on, in a package that was exported with ``freeze=True``."""
        return list(self._held.constants)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model.

        Raises:
            PackageInputError: other arguments, dtypes, devices or shapes than it was exported for.
        """
        if self._in_tree is None:
            self._in_tree = self._tree(self._spec.in_tree)
            self._out_tree = self._tree(self._spec.out_tree)
        inputs, tree = tree_flatten((args, kwargs))
        if tree != self._in_tree:
            raise PackageInputError(
                f"{self.path.name} takes (args, kwargs) of the form {self._in_tree}, this call has "
                f"{tree}"
            )
        assert self._out_tree is not None
        return tree_unflatten(self.run(inputs), self._out_tree)

    def _tree(self, text: str) -> TreeSpec:
        try:
            return treespec_loads(text)
        except NotImplementedError as error:
            raise PackageInputError(
                f"{self.path.name} takes or returns a type that only its own module knows: {error} "
                "Import that module first, or call run(), which takes and returns flat lists"
            ) from error

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Calls the model on flat inputs; returns flat outputs."""
        return self.boxed_run(list(inputs))

    def boxed_run(self, inputs: list[Any]) -> list[Any]:
        """``run`` that takes the list over: it is empty afterwards, so that what nothing else holds
        is freed."""
        self._check(inputs)
        spec = self._spec
        changed = [(inputs[i], place) for i, place in spec.mutated_inputs.items()]
        with self._gate:
            held = self._held
            arguments = held.arguments.copy()
            for position, value in zip(spec.inputs, inputs, strict=True):
                arguments[position] = value
            inputs.clear()
            results = self._graph(arguments, held.bound)
            for name, place in spec.mutated.items():
                held.constants[name].copy_(results[place])
            for tensor, place in changed:
                tensor.copy_(results[place])
        return [results[place] for place in spec.outputs]

    def example_inputs(self) -> list[Any]:
        """Flat inputs that ``run`` takes: random, of the smallest sizes that were exported."""
        symbols = {name: max(low, 1) for name, (low, _) in self._ranges.items()}
        inputs: list[Any] = []
        for place in range(len(self._spec.inputs)):
            if place in self._spec.fixed:
                inputs.append(self._spec.fixed[place])
                continue
            spec = self._specs_by_place[place]
            shape = [evaluate(size, symbols) for size in spec.shape]
            if spec.dtype.is_floating_point:
                inputs.append(torch.randn(shape).to(spec.device, spec.dtype))
            else:
                inputs.append(torch.zeros(shape, dtype=spec.dtype, device=spec.device))
        return inputs

    def infer(self, *args: Any, **kwargs: Any) -> InferenceResult:
        """One call, timed."""
        return self._timed(lambda: self(*args, **kwargs))

    def infer_flat(self, inputs: Sequence[Any]) -> InferenceResult:
        """One ``run``, timed."""
        return self._timed(lambda: self.run(inputs))

    def _timed(self, call: Callable[[], Any]) -> InferenceResult:
        on_gpu = self.device.type != "cpu"
        if on_gpu:
            torch.accelerator.synchronize()
        start = time.perf_counter()
        outputs = call()
        if on_gpu:
            torch.accelerator.synchronize()
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if on_gpu:
            memory = torch.accelerator.max_memory_allocated()
        return InferenceResult(outputs, seconds * 1e3, memory)

    def load_constants(
        self, mapping: Mapping[str, torch.Tensor], *, check_full_update: bool = True
    ) -> None:
        """New weights without a compile: they are copied.

        Args:
            mapping: by the names of ``get_constant_fqns``; a state dict of the model serves (what
                the program does not use of it is passed over).
            check_full_update: whether every parameter and persistent buffer must be there.

        Raises:
            ConstantsError: unknown, missing or mis-shaped names, all of them, or a package that was
                exported with ``freeze=True``; nothing is changed.
        """
        if self._metadata.get("frozen"):
            raise ConstantsError(
                f"{self.path.name} was exported with freeze=True and has what was computed of its "
                "weights in their place; export it again with the new ones, or without freeze"
            )
        aliases, unused = self._metadata["aliases"], self._metadata["unused"]
        tied = {aliases[name]: value for name, value in mapping.items() if name in aliases}
        passed_over = {*aliases, *unused}
        mapping = tied | {name: value for name, value in mapping.items() if name not in passed_over}
        constants = self._held.constants
        faults = [f"unknown: {name}" for name in mapping if name not in constants]
        if check_full_update:
            faults += [
                f"missing: {entry['name']}"
                for entry in self._metadata["constants"]
                if entry["in_state_dict"] and entry["name"] not in mapping
            ]
        for name, old in constants.items():
            new = mapping.get(name)
            if new is not None and (new.shape != old.shape or new.dtype != old.dtype):
                faults.append(
                    f"{name}: {old.dtype} {list(old.shape)} is needed, "
                    f"{new.dtype} {list(new.shape)} was given"
                )
        if faults:
            raise ConstantsError(f"constants of {self.path.name}:\n  " + "\n  ".join(faults))
        # beside the old ones: a call that is under way in another thread keeps those
        copies = {
            name: new.detach().to(
                constants[name].device, copy=True, memory_format=torch.contiguous_format
            )
            for name, new in mapping.items()
        }
        self._held = self._hold(constants | copies)

    def _check(self, inputs: Sequence[Any]) -> None:
        spec = self._spec
        if len(inputs) != len(spec.inputs):
            raise PackageInputError(
                f"{self.path.name} takes {len(spec.inputs)} inputs, {len(inputs)} were given"
            )
        for place, value in spec.fixed.items():
            if inputs[place] != value:
                raise PackageInputError(
                    f"input {place} of {self.path.name} was exported as {value!r}, "
                    f"{inputs[place]!r} was given"
                )
        symbols: dict[str, int] = {}
        for place, expected in self._specs_by_place.items():
            self._check_tensor(place, expected, inputs[place], symbols)
        for place, expected in self._specs_by_place.items():
            self._check_sizes(place, expected, inputs[place], symbols)

    def _check_tensor(
        self, place: int, expected: TensorSpec, found: Any, symbols: dict[str, int]
    ) -> None:
        if not isinstance(found, torch.Tensor):
            raise self._wrong(place, expected, f"{type(found).__name__} was given")
        if found.dtype != expected.dtype:
            raise self._wrong(place, expected, f"a tensor of {found.dtype} was given")
        if found.device.type != expected.device:
            raise self._wrong(
                place, expected, f"it is on {found.device}; move it with .to({expected.device!r})"
            )
        if found.ndim != len(expected.shape):
            raise self._wrong(place, expected, f"a tensor of shape {list(found.shape)} was given")
        for size, given in zip(expected.shape, found.shape, strict=True):
            if isinstance(size, str):
                symbols.setdefault(size, given)

    def _check_sizes(
        self, place: int, expected: TensorSpec, found: torch.Tensor, symbols: dict[str, int]
    ) -> None:
        for axis, (size, given) in enumerate(zip(expected.shape, found.shape, strict=True)):
            wanted = evaluate(size, symbols)
            if given != wanted:
                raise self._wrong(
                    place, expected, f"axis {axis} has {given} elements, {wanted} are needed"
                )
            if isinstance(size, str):
                low, high = self._ranges.get(size, (0, given))
                if not low <= given <= high:
                    raise self._wrong(
                        place, expected, f"axis {axis} has {given} elements, not {low} to {high}"
                    )

    def _wrong(self, place: int, expected: TensorSpec, what: str) -> PackageInputError:
        return PackageInputError(f"input {place} of {self.path.name} is {expected}; {what}")
