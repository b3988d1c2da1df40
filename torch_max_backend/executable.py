"""CompiledGraph: binds torch tensors to MAX buffers without copying, runs, unbinds.

A call costs little beside MAX's own: weights are bound once and re-checked by pointer, shape,
strides and dtype, so that ``load_state_dict``, ``.data =`` and ``resize_`` are seen; but
for weights that are held (a package's), which stay where they are.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Container, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from max.driver import Buffer
from max.engine import Model
from max.graph import DeviceRef
from torch.fx import GraphModule

from torch_max_backend import profiling
from torch_max_backend.bound_weights import BoundWeights
from torch_max_backend.errors import InputError
from torch_max_backend.frozen_part import FrozenPart
from torch_max_backend.memory_sharing import buffer_of, is_shareable, tensor_of
from torch_max_backend.signature import (
    ArgumentOutput,
    GraphSignature,
    NumberOutput,
    RepeatedOutput,
    TensorOutput,
)
from torch_max_backend.size_trees import number_function
from torch_max_backend.streams import StreamOrder
from torch_max_backend.threads import end_openmp_threads

log = logging.getLogger(__name__)
LONG_RUN = 2e-3
"""Seconds; PyTorch's workers, at rest, would slow a run by its own length, and are 1 ms to end."""


def execute_buffers(model: Model, buffers: list[Buffer]) -> list[Buffer]:
    """Runs a model on ready buffers.

    MAX's public ``Model.execute`` re-checks every input in Python, three times the cost for a
    model of 150 weights; this is the call behind it.
    """
    return model._execute_device_tensors(buffers)


class CompiledGraph:
    """A boxed callable over the flat arguments of one AOTAutograd graph.

    Args:
        name: for logs and profiles.
        gm: the graph; kept until it is compiled, and for eager answers in background mode. None
            where it is compiled already.
        signature: how arguments and results are bound.
        weights: positions of arguments that stay the same from call to call (parameters, buffers).
        prepare: returns the MAX model, compiling if need be; None while a background compile runs.
        start: starts the background compile; called after each of eager's answers, so that the
            compiler does not take the processor from the first.
        frozen: what was taken out of the graph; its results are the graph's last arguments, and
            not the call's.
    """

    def __init__(
        self,
        name: str,
        gm: GraphModule | None,
        signature: GraphSignature,
        weights: Sequence[int],
        prepare: Callable[[], Model | None],
        start: Callable[[], None] = lambda: None,
        frozen: FrozenPart | None = None,
    ) -> None:
        self.name = name
        self.signature = signature
        self._boxed_call = True  # AOTAutograd hands the arguments over in one list
        self._eager: GraphModule | None = gm
        self._prepare = prepare
        self._start = start
        self._model: Model | None = None
        static = set(weights)
        self._frozen = frozen
        self._weights: list[tuple[int, int]] = []
        self._results: list[tuple[int, int]] = []
        self._inputs: list[tuple[int, int, str]] = []
        for slot, bound in enumerate(signature.inputs):
            if frozen is not None and bound.argument >= frozen.first:
                self._results.append((slot, bound.argument - frozen.first))
            elif bound.kind == "tensor" and bound.argument in static:
                self._weights.append((slot, bound.argument))
            else:
                self._inputs.append((slot, bound.argument, bound.kind))
        sources = frozen.sources if frozen is not None else []
        self._select_weights = _selection([*(place for _, place in self._weights), *sources])
        self._bound: BoundWeights | None = None
        self._devices = [_torch_device(b.type.device) for b in signature.inputs]
        self._unbind = _plan_outputs(signature)
        self._symbols = list(signature.symbols.values())
        self._checks = _plan_checks(signature)
        self._profile = profiling.enabled()
        self._streams: StreamOrder | None = None
        self._runs_long = False

    @property
    def model(self) -> Model:
        """The MAX model; compiles it if that has not happened."""
        model = self._model or self._load(wait=True)
        assert model is not None
        return model

    def _load(self, wait: bool = False) -> Model | None:
        model = self._prepare()
        while model is None and wait:
            self._start()
            time.sleep(0.05)
            model = self._prepare()
        if model is not None:
            if any(device.type != "cpu" for device in self._devices):
                self._streams = StreamOrder(model.devices)
            self._model, self._eager = model, None
        return model

    def hold_weights(self, args: Sequence[Any]) -> BoundWeights:
        """The weights among the arguments, bound; for calls that need not look whether they are
        still the same tensors in the same memory."""
        return self._bind_weights(self._select_weights(args))

    def __call__(self, args: list[Any], held: BoundWeights | None = None) -> list[Any]:
        model = self._model
        if model is None:
            eager = self._eager  # read first: another thread may switch to MAX meanwhile
            model = self._load()
            if model is None:
                assert eager is not None
                with torch.no_grad():
                    answer = list(eager(*args, *self._frozen_values(args)))
                self._start()
                return answer
        if self._profile:
            return self._timed_call(model, args, held)
        buffers, addresses = self._bind(args, held)
        results = self._run(model, buffers)
        return self._finish(results, args, addresses)

    def _timed_call(self, model: Model, args: list[Any], held: BoundWeights | None) -> list[Any]:
        times = [time.perf_counter()]
        buffers, addresses = self._bind(args, held)
        times.append(time.perf_counter())
        results = self._run(model, buffers)
        times.append(time.perf_counter())
        outputs = self._finish(results, args, addresses)
        times.append(time.perf_counter())
        for i, name in enumerate(("bind", "run", "unbind")):
            profiling.record(self.name, name, times[i], times[i + 1])
        return outputs

    def _run(self, model: Model, buffers: list[Buffer]) -> list[Buffer]:
        if self._streams is None:
            return self._run_on_cpu(model, buffers)
        self._streams.before_run()
        results = execute_buffers(model, buffers)
        self._streams.after_run()
        return results

    def _run_on_cpu(self, model: Model, buffers: list[Buffer]) -> list[Buffer]:
        if self._runs_long:
            end_openmp_threads()
        start = time.perf_counter()
        results = execute_buffers(model, buffers)
        self._runs_long = time.perf_counter() - start > LONG_RUN
        return results

    def _bind(
        self, args: list[Any], held: BoundWeights | None
    ) -> tuple[list[Buffer], Sequence[Container[int]]]:
        """Buffers over the arguments' memory, and the addresses at which tensors start."""
        bound = self._weights_bound_to(args) if held is None else held
        buffers = bound.buffers.copy()
        for slot in bound.copied:
            buffers[slot] = self._bind_tensor(slot, args[self.signature.inputs[slot].argument])
        starts = []
        for slot, position, kind in self._inputs:
            if kind == "tensor":
                starts.append(args[position].data_ptr())
                buffers[slot] = self._bind_tensor(slot, args[position])
            elif kind == "seed":
                buffers[slot] = _seed_buffer()
            else:
                buffers[slot] = _number_buffer(kind, args[position])
        return buffers, (bound.pointers, starts)

    def _weights_bound_to(self, args: list[Any]) -> BoundWeights:
        weights = self._select_weights(args)
        bound = self._bound
        if bound is None or not bound.are_valid_for(weights):
            bound = self._bound = self._bind_weights(weights)
        return bound

    def _bind_weights(self, weights: Sequence[torch.Tensor]) -> BoundWeights:
        buffers: list[Any] = [None] * len(self._devices)
        copied = []
        sources = weights[len(self._weights) :]
        for (slot, _), weight in zip(self._weights, weights, strict=False):
            if is_shareable(weight):
                buffers[slot] = self._bind_tensor(slot, weight)
            else:
                copied.append(slot)
        if self._frozen is not None:
            values = self._frozen.values(sources)
            for slot, place in self._results:
                buffers[slot] = self._bind_tensor(slot, values[place])
        release = partial(_release, weakref.ref(self))
        return BoundWeights(weights, buffers, copied, release, len(sources))

    def _frozen_values(self, args: list[Any]) -> list[torch.Tensor]:
        if self._frozen is None:
            return []
        return self._frozen.values([args[position] for position in self._frozen.sources])

    def _bind_tensor(self, slot: int, tensor: torch.Tensor) -> Buffer:
        device = self._devices[slot]
        if tensor.device != device:
            raise InputError(
                f"argument {self.signature.inputs[slot].argument} of {self.name} is on "
                f"{tensor.device}, the graph was compiled for {device}; move it there with "
                f".to({str(device)!r})"
            )
        return buffer_of(tensor)

    def _finish(
        self, results: list[Buffer], args: list[Any], addresses: Sequence[Container[int]]
    ) -> list[Any]:
        symbols = [args[i] if axis is None else args[i].shape[axis] for i, axis in self._symbols]
        if self.signature.computed:
            count = len(results) - len(self.signature.computed)
            symbols += [tensor_of(number).item() for number in results[count:]]
            for holds, message in self._checks:
                if not holds(*symbols):
                    raise RuntimeError(message)
        outputs: list[Any] = []
        index = 0
        for output, unbind in zip(self.signature.outputs, self._unbind, strict=True):
            if isinstance(output, TensorOutput):
                tensor = tensor_of(results[index])
                index += 1
                start = tensor.data_ptr()
                if any(start in starts for starts in addresses) and tensor.numel():
                    tensor = tensor.clone()  # the graph handed an input on: torch expects a copy
                outputs.append(tensor if unbind is None else unbind(tensor, symbols))
            elif isinstance(output, ArgumentOutput):
                outputs.append(args[output.argument])
            elif isinstance(output, RepeatedOutput):
                outputs.append(outputs[output.place])
            elif isinstance(output, NumberOutput):
                assert unbind is not None
                outputs.append(unbind(None, symbols))
            else:
                outputs.append(None)
        args.clear()
        return outputs


def _selection(positions: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Those items of a list; ``itemgetter`` gives the item itself where there is but one."""
    if len(positions) > 1:
        return itemgetter(*positions)
    return lambda args: [args[position] for position in positions]


def _release(reference: weakref.ref[CompiledGraph], _: Any) -> None:
    """Without a global name: weights that die as the interpreter ends come here, too."""
    graph = reference()
    if graph is not None:
        graph._bound = None


def _torch_device(ref: DeviceRef) -> torch.device:
    if ref.is_cpu():
        return torch.device("cpu")
    kind = "mps" if torch.backends.mps.is_available() else "cuda"
    return torch.device(kind, ref.id)


def _number_buffer(kind: str, value: int | float) -> Buffer:
    if kind == "size":
        return buffer_of(torch.empty(int(value), 0, dtype=torch.bool))
    dtype = torch.int64 if isinstance(value, int) else torch.float64
    return buffer_of(torch.tensor(value, dtype=dtype))


def _seed_buffer() -> Buffer:
    return buffer_of(torch.randint(0, 1 << 62, (1,)).view(torch.uint64))


Unbind = Callable[[torch.Tensor | None, Sequence[int]], Any]


def _plan_checks(signature: GraphSignature) -> list[tuple[Callable[..., Any], str]]:
    names = [*signature.symbols, *signature.computed]
    return [(number_function(check.condition, names), check.message) for check in signature.checks]


def _plan_outputs(signature: GraphSignature) -> list[Unbind | None]:
    names = [*signature.symbols, *signature.computed]
    plan: list[Unbind | None] = []
    for output in signature.outputs:
        if isinstance(output, TensorOutput):
            plan.append(_restride(output, names))
        elif isinstance(output, NumberOutput):
            plan.append(_number(number_function(output.value, names)))
        else:
            plan.append(None)
    return plan


def _number(function: Callable[..., Any]) -> Unbind:
    return lambda _, symbols: function(*symbols)


def _restride(output: TensorOutput, names: Sequence[str]) -> Unbind | None:
    """How a dense result becomes the tensor eager returns: its axes, expansions and strides."""
    if output.order is None:
        return _copy_into_strides(output, names)
    if list(output.order) == sorted(output.order) and not output.expanded:
        return None
    inverse = sorted(range(len(output.order)), key=output.order.__getitem__)
    sizes = {axis: number_function(output.shape[axis], names) for axis in output.expanded}

    def view(tensor: torch.Tensor | None, symbols: Sequence[int]) -> torch.Tensor:
        assert tensor is not None
        tensor = tensor.permute(inverse)
        if not sizes:
            return tensor
        return tensor.expand([sizes[i](*symbols) if i in sizes else -1 for i in range(tensor.ndim)])

    return view


def _copy_into_strides(output: TensorOutput, names: Sequence[str]) -> Unbind:
    sizes, strides = (
        [number_function(value, names) for value in values]
        for values in (output.shape, output.stride)
    )
    offset = number_function(output.offset, names)

    def copy(tensor: torch.Tensor | None, symbols: Sequence[int]) -> torch.Tensor:
        assert tensor is not None
        shape, stride = ([value(*symbols) for value in values] for values in (sizes, strides))
        start = offset(*symbols)
        extent = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        memory = tensor.new_empty(start + (extent if tensor.numel() else 0))
        memory.as_strided(tensor.shape, stride, start).copy_(tensor)
        return memory.as_strided(shape, stride, start)

    return copy
