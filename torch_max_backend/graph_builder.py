"""FX graph -> max.graph.Graph: placeholders, constants, calls, outputs.

Every value's dtype and shape are compared with what torch's fake tensors say, and symbolic shapes
are rebound to the one form ``dims.to_dim`` gives, so that no wrong shape leaves the compiler.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from max.dtype import DType
from max.graph import DeviceRef, Dim, Graph, Module, TensorValue, ops
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from torch_max_backend import registry
from torch_max_backend.accelerators import to_device_ref
from torch_max_backend.context import building_with, lowering_of
from torch_max_backend.dims import (
    declare,
    dim_value,
    expression,
    named_sizes,
    static,
    to_dim,
    to_int_or_dim,
)
from torch_max_backend.dtypes import to_max
from torch_max_backend.errors import (
    LoweringError,
    MaxBackendError,
    UnsupportedOp,
    UnsupportedOpsError,
)
from torch_max_backend.kernel_library import kernel_library
from torch_max_backend.ops.constants import tensor_constant
from torch_max_backend.options import MaxOptions
from torch_max_backend.scalars import remembered_numbers
from torch_max_backend.signature import GraphSignature, TensorOutput
from torch_max_backend.signature_reading import never_negative, read_signature
from torch_max_backend.source_lines import source_of
from torch_max_backend.symbolic_scalars import evaluate

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)


def is_symbolic_scalar(node: Node) -> bool:
    """A node whose value is a size or a number: read from its meta, never lowered."""
    return isinstance(node.meta.get("val"), _SYMBOLIC)


def unsupported_ops(gm: GraphModule) -> list[UnsupportedOp]:
    """Every operator of the graph without a lowering, once each; needs no MAX graph."""
    reasons: dict[tuple[str, str], Node] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for node in gm.graph.nodes:
        reason = refusal(node)
        if reason is not None:
            reasons.setdefault((str(node.target), reason), node)
            counts[str(node.target), reason] += 1
    return [
        UnsupportedOp(target, reason, source_of(node), counts[target, reason])
        for (target, reason), node in reasons.items()
    ]


def refusal(node: Node) -> str | None:
    """Why this node cannot be lowered; None when it can."""
    if node.op in ("placeholder", "output", "get_attr") or is_symbolic_scalar(node):
        return None
    if node.target is operator.getitem or node.target in _ASSERTIONS:
        return None
    row = registry.find(node.target)
    if row is None:
        if isinstance(node.target, torch._ops.OpOverload):
            return "no lowering in the table (aten_functions.py) and no decomposition"
        return "not an ATen operator"
    return row.supports(node) if row.supports else None


_ASSERTIONS = {
    torch.ops.aten._assert_async.msg,
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten.sym_constrain_range.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
}


def check_supported(gm: GraphModule) -> None:
    """Raises UnsupportedOpsError listing every operator that cannot be lowered."""
    missing = unsupported_ops(gm)
    if missing:
        raise UnsupportedOpsError(missing)


def build_graph(
    gm: GraphModule, module: Module, name: str, options: MaxOptions
) -> tuple[Graph, GraphSignature]:
    """Adds the graph of ``gm`` to a MAX module.

    Raises:
        UnsupportedOpsError: operators without a lowering, all of them.
        LoweringError: a lowering failed or gave a wrong dtype or shape.
    """
    check_supported(gm)
    signature = read_signature(gm)
    with (
        building_with(options),
        remembered_numbers(),
        Graph(
            name,
            input_types=signature.input_types(),
            module=module,
            custom_extensions=[kernel_library()],
        ) as graph,
    ):
        graph.output(*_Builder(gm, signature, graph).run())
    return graph, signature


class _Builder:
    def __init__(self, gm: GraphModule, signature: GraphSignature, graph: Graph) -> None:
        self.gm = gm
        self.signature = signature
        self.values: dict[Node, Any] = {}
        self.scalars: dict[str, TensorValue] = {}
        self.inputs = [value.tensor for value in graph.inputs]

    def run(self) -> list[TensorValue]:
        """Lowers every node; returns the graph's outputs."""
        with named_sizes(self._symbol):
            self._bind_inputs()
            return self._lower()

    def _bind_inputs(self) -> None:
        for bound, value in zip(self.signature.inputs, self.inputs, strict=True):
            if bound.kind == "seed":
                ops.random.set_seed(value)
            if bound.symbol is not None:
                self.scalars[bound.symbol] = value
        for bound, value in zip(self.signature.inputs, self.inputs, strict=True):
            if bound.node is not None:
                shape = [to_dim(size) for size in bound.node.meta["val"].shape]
                self.values[bound.node] = _rebind(value, shape)

    def _lower(self) -> list[TensorValue]:
        for node in self.gm.graph.nodes:
            if node.op == "get_attr":
                self.values.setdefault(node, self._constant(node))
            elif node.target is torch.ops.aten._local_scalar_dense.default:
                self._read_number(node)
            elif node.op == "call_function" and not is_symbolic_scalar(node):
                self.values[node] = self._call(node)
        tensors = [
            output.arrange(self.values[output.node])
            for output in self.signature.outputs
            if isinstance(output, TensorOutput) and output.node is not None
        ]
        return tensors + [self._symbol(name) for name in self.signature.computed]

    def _read_number(self, node: Node) -> None:
        """``tensor.item()``: gives the symbol that torch made for it its value."""
        number = node.meta["val"]
        if not isinstance(number, torch.SymInt | torch.SymFloat | torch.SymBool):
            return  # torch knew it while tracing
        (symbol,) = number.node.expr.free_symbols
        dtype = DType.float64 if isinstance(number, torch.SymFloat) else DType.int64
        value = ops.cast(self.values[node.args[0]], dtype).to(DeviceRef.CPU())  # type: ignore[index]
        value = ops.reshape(value, [])
        if isinstance(number, torch.SymInt) and never_negative(number):
            declare(symbol.name, value)
        else:
            self.scalars[symbol.name] = value

    def _constant(self, node: Node) -> TensorValue:
        tensor = getattr(self.gm, str(node.target))
        # a folded constant of a device that this machine lacks is on the host
        device = node.meta["val"].device if "val" in node.meta else tensor.device
        return tensor_constant(tensor, to_device_ref(device))

    def _call(self, node: Node) -> Any:
        if node.target is operator.getitem:
            return self.values[node.args[0]][node.args[1]]  # type: ignore[index]
        if node.target in _ASSERTIONS:
            return None
        row = registry.find(node.target)
        assert row is not None, node.target
        try:
            args = [self._argument(arg) for arg in node.args]
            kwargs = {name: self._argument(arg) for name, arg in node.kwargs.items()}
            with lowering_of(node, self.values):
                result = row.function(*args, **kwargs)
            return _conform(result, node.meta.get("val"))
        except Exception as error:
            raise LoweringError(self._describe(node, error)) from error

    def _argument(self, arg: Any) -> Any:
        if isinstance(arg, list | tuple):
            return map_aggregate(arg, lambda each: self._resolve(each, self._size))
        return map_aggregate(arg, lambda each: self._resolve(each, self._integer))

    def _resolve(self, arg: Any, integer: Callable[[torch.SymInt], Any]) -> Any:
        if isinstance(arg, Node):
            if not is_symbolic_scalar(arg):
                return self.values[arg]
            arg = arg.meta["val"]
        if isinstance(arg, torch.SymInt):
            return integer(arg)
        if isinstance(arg, torch.SymFloat):
            return self._real(arg.node.expr)
        return arg

    def _integer(self, value: torch.SymInt) -> int | Dim | TensorValue:
        """A number by itself may be any expression."""
        try:
            return self._bound(value)
        except MaxBackendError:
            return self._real(expression(value))

    def _size(self, value: torch.SymInt) -> int | Dim | TensorValue:
        """The sizes, strides and paddings in a list are Dims, whatever the expression."""
        try:
            return self._bound(value)
        except MaxBackendError:
            return to_dim(value)

    def _bound(self, value: torch.SymInt) -> int | Dim | TensorValue:
        names = {symbol.name for symbol in expression(value).free_symbols}
        return (
            self._real(expression(value)) if names & self.scalars.keys() else to_int_or_dim(value)
        )

    def _real(self, expr: Any) -> TensorValue | float | int:
        """A symbolic number as a 0-d value: float64, or int64 where the expression is integral."""
        return evaluate(expr, self._symbol)

    def _symbol(self, name: str) -> TensorValue:
        return self.scalars[name] if name in self.scalars else dim_value(Dim(name))

    def _describe(self, node: Node, error: Exception) -> str:
        def show(arg: Any) -> Any:
            value = self.values.get(arg) if isinstance(arg, Node) else arg
            if isinstance(value, TensorValue):
                return f"{value.dtype.name}{_shown(value.shape)}"
            return arg.meta.get("val") if isinstance(arg, Node) else value

        args = ", ".join(
            [str(map_aggregate(arg, show)) for arg in node.args]
            + [f"{k}={map_aggregate(v, show)}" for k, v in node.kwargs.items()]
        )
        return (
            f"lowering {node.target} failed: {type(error).__name__}: {error}\n"
            f"  node:   {node.name}\n  inputs: {args}\n  source: {source_of(node)}"
        )


def _shown(shape: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _conform(result: Any, expected: Any) -> Any:
    """Checks results against torch's fake values and gives their shapes the canonical form."""
    if isinstance(expected, torch.Tensor):
        if not isinstance(result, TensorValue):
            raise MaxBackendError(f"the lowering returned {type(result).__name__}, not a tensor")
        if result.dtype != to_max(expected.dtype):
            raise MaxBackendError(
                f"the lowering gives dtype {result.dtype.name}, torch gives {expected.dtype}"
            )
        return _rebind(result, [to_dim(size) for size in expected.shape])
    if isinstance(expected, tuple | list):
        return [
            None if value is None or fake is None else _conform(value, fake)
            for value, fake in zip(result, expected, strict=True)
        ]
    return result


def _rebind(value: TensorValue, shape: Sequence[Dim]) -> TensorValue:
    have = list(value.shape)
    if have == list(shape):
        return value
    agree = len(have) == len(shape) and all(
        static(a) is None or static(b) is None or static(a) == static(b)
        for a, b in zip(have, shape, strict=False)
    )
    if not agree:
        raise MaxBackendError(f"the value has shape {_shown(have)}, torch says {_shown(shape)}")
    return ops.rebind(value, shape, "a size differs from what torch computed for it")
