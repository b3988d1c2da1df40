"""The table of lowerings: how a row is registered, checked and looked up.

Three ways to add an op, from the shortest: ``pointwise`` (an element-wise function),
``reduction`` (one axis at a time), ``lowering`` (a function whose signature is the ATen schema).
Users add theirs with :func:`register_lowering`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

import torch
from max.dtype import DType
from max.graph import DeviceRef, TensorValue, ops
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Node

from torch_max_backend.context import expected, expected_shape
from torch_max_backend.dtypes import to_max
from torch_max_backend.errors import RegistrationError
from torch_max_backend.ops.rounding import cast
from torch_max_backend.ops.shape import agree, drop_axes, normalize_dims
from torch_max_backend.promotion import (
    Promotion,
    accumulation_dtype,
    as_tensor,
    common_device,
    resolve,
)

Supports = Callable[[Node], str | None]


@dataclass(frozen=True)
class Lowering:
    """One row: the overload, its function, and what it refuses.

    ``supports(node)`` returns None when the node can be lowered, else the reason why not.
    """

    overload: OpOverload
    function: Callable[..., Any]
    supports: Supports | None = None


_TABLE: dict[OpOverload, Lowering] = {}


class _PacketView(Mapping[Any, Callable[..., Any]]):
    """Read view of the table by overload and, where it is unambiguous, by packet."""

    def __getitem__(self, key: Any) -> Callable[..., Any]:
        if isinstance(key, OpOverloadPacket):
            rows = [row for overload, row in _TABLE.items() if overload.overloadpacket is key]
            if len(rows) == 1:
                return rows[0].function
            raise KeyError(f"{key} has {len(rows)} lowered overloads; name one of them")
        return _TABLE[key].function

    def __iter__(self) -> Iterator[Any]:
        return iter(_TABLE)

    def __len__(self) -> int:
        return len(_TABLE)


MAPPING_TORCH_ATEN_TO_MAX: Mapping[Any, Callable[..., Any]] = _PacketView()


def find(target: Any) -> Lowering | None:
    """The row of an overload, or None."""
    return _TABLE.get(target)


def overloads() -> tuple[OpOverload, ...]:
    """Every overload in the table, in the order of registration."""
    return tuple(_TABLE)


def has_user_lowerings() -> bool:
    """Whether a lowering comes from outside of this package."""
    inside = f"{__package__}."
    return not all(row.function.__module__.startswith(inside) for row in _TABLE.values())


def _register(overload: Any, function: Callable[..., Any], supports: Supports | None) -> None:
    overload = _single_overload(overload)
    if overload in _TABLE:
        raise RegistrationError(f"{overload} is registered twice; a row is replaced only by name")
    _TABLE[overload] = Lowering(overload, function, supports)


def _single_overload(overload: Any) -> OpOverload:
    if isinstance(overload, OpOverloadPacket):
        names = overload.overloads()
        if len(names) != 1:
            raise RegistrationError(
                f"{overload} has the overloads {', '.join(names)}; register one of them"
            )
        overload = getattr(overload, names[0])
    if not isinstance(overload, OpOverload):
        raise RegistrationError(f"a lowering's key is an OpOverload; got {overload!r}")
    if overload._schema.is_mutable:
        packet = overload.overloadpacket
        functional = str(packet).removesuffix("_") if str(packet).endswith("_") else str(packet)
        raise RegistrationError(
            f"{overload} writes to its arguments; AOTAutograd hands the backend functional graphs, "
            f"register an overload of {functional} instead"
        )
    return overload


def _check_signature(overload: OpOverload, function: Callable[..., Any]) -> None:
    """Names, order, keyword-only marks and defaults are the schema's."""
    parameters = list(inspect.signature(function).parameters.values())
    arguments = overload._schema.arguments
    if [p.name for p in parameters] != [a.name for a in arguments]:
        raise RegistrationError(
            f"{function.__name__}({', '.join(p.name for p in parameters)}) does not fit {overload}:"
            f" its schema is {overload._schema}; take ({', '.join(a.name for a in arguments)})"
        )
    for parameter, argument in zip(parameters, arguments, strict=True):
        if argument.kwarg_only != (parameter.kind is parameter.KEYWORD_ONLY):
            raise RegistrationError(
                f"{function.__name__}: {argument.name} must "
                f"{'' if argument.kwarg_only else 'not '}be keyword-only as in {overload._schema}"
            )
        has_default = parameter.default is not parameter.empty
        if argument.has_default_value() != has_default or (
            has_default and _plain(parameter.default) != _plain(argument.default_value)
        ):
            raise RegistrationError(
                f"{function.__name__}: the default of {argument.name} differs from "
                f"{overload._schema}"
            )


def _plain(default: Any) -> Any:
    return list(default) if isinstance(default, list | tuple) else default


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations checked by beartype.

    The check is made at the first call: a process whose graphs are in the cache makes none, and
    importing beartype and making them all is a fifth of a second.
    """

    @cache
    def check() -> Callable[..., Any]:
        from beartype import beartype

        return beartype(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return check()(*args, **kwargs)

    return call


def lowering(
    *keys: Any, supports: Supports | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function whose signature is the schema of each key; beartype checks its calls.

    Raises:
        RegistrationError: a key is no functional OpOverload, is taken, or the signature differs.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        checked = _checked(function)
        for key in keys:
            _check_signature(_single_overload(key), function)
            _register(key, checked, supports)
        return checked

    return register


def register_lowering(
    overload: Any, *, supports: Supports | None = None, replace: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds a lowering of your own, custom Mojo kernels included.

    The function takes ``max.graph.TensorValue`` operands under the names of the overload's schema
    and returns the result(s); it runs while a graph is being built. ``replace=True`` takes over an
    overload that is in the table already. Graphs compiled before keep the old one.

    Raises:
        RegistrationError: as for the table's own rows.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        key = _single_overload(overload)
        _check_signature(key, function)
        previous = _TABLE.pop(key, None) if replace else None
        try:
            return lowering(key, supports=supports)(function)
        except Exception:
            if previous is not None:
                _TABLE[key] = previous
            raise

    return register


def _bind(overload: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by schema name, defaults filled in."""
    schema = overload._schema.arguments
    bound = {argument.name: value for argument, value in zip(schema, args, strict=False)}
    bound.update(kwargs)
    for argument in schema:
        if argument.name not in bound and argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def pointwise(
    keys: Any,
    body: Callable[..., TensorValue],
    *,
    promotion: Promotion = Promotion.DEFAULT,
    operands: Sequence[str] | None = None,
    supports: Supports | None = None,
) -> Callable[..., TensorValue]:
    """Registers an element-wise op.

    ``body`` gets the operands positionally, promoted, on one device and with half precision
    widened to float32, then the other arguments of the schema by name where they differ from its
    defaults. Operands are the Tensor arguments and a Scalar called ``other`` unless given.
    """
    result = None
    for key in keys if isinstance(keys, tuple) else (keys,):
        result = _pointwise(_single_overload(key), body, promotion, operands, supports)
    assert result is not None
    return result


def _pointwise(
    overload: OpOverload,
    body: Callable[..., TensorValue],
    promotion: Promotion,
    operands: Sequence[str] | None,
    supports: Supports | None,
) -> Callable[..., TensorValue]:
    schema = overload._schema
    tensor_type = torch._C.TensorType.get()
    names = operands or [
        argument.name
        for argument in schema.arguments
        if argument.type.isSubtypeOf(torch._C.OptionalType(tensor_type)) or argument.name == "other"
    ]
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}

    def lower(*args: Any, **kwargs: Any) -> TensorValue:
        bound = _bind(overload, args, kwargs)
        values = [bound.pop(name) for name in names]
        rest = {k: v for k, v in bound.items() if k not in defaults or v != defaults[k]}
        present = [value for value in values if value is not None]
        if promotion is Promotion.NONE:
            return body(*values, **rest)
        compute, result = resolve(present, promotion)
        device = common_device(present)
        unique = {id(v): _operand(v, compute, device) for v in present}  # x == x stays such
        ready = [v if v is None else unique[id(v)] for v in values]
        out = body(*ready, **rest)
        return cast(out, result)

    lower.__name__ = schema.name.replace("::", "_")
    lower.__doc__ = str(schema)
    _register(overload, lower, supports)
    return lower


def _operand(value: Any, dtype: DType, device: DeviceRef) -> TensorValue:
    """An operand in the dtype and on the device of the computation, its sizes the result's."""
    out = as_tensor(value, dtype, device)
    return agree(out, expected_shape()) if out.rank else out


def reduction(
    keys: Any,
    body: Callable[[TensorValue, int], TensorValue],
    *,
    promotion: Promotion = Promotion.DEFAULT,
) -> Callable[..., TensorValue]:
    """Registers a reduction over ``dim`` (None or empty = all), with ``keepdim`` and ``dtype``.

    ``body(x, axis)`` reduces one axis and keeps it with size 1; half precision is accumulated in
    float32. The input is cast to ``dtype`` first when the schema has one and it is given.
    """
    result = None
    for key in keys if isinstance(keys, tuple) else (keys,):
        result = _reduction(_single_overload(key), body, promotion)
    assert result is not None
    return result


def _reduction(
    overload: OpOverload,
    body: Callable[[TensorValue, int], TensorValue],
    promotion: Promotion,
) -> Callable[..., TensorValue]:
    def lower(*args: Any, **kwargs: Any) -> TensorValue:
        bound = _bind(overload, args, kwargs)
        x = bound["self"]
        dims = normalize_dims(bound.get("dim"), x.rank)
        compute, result = resolve([x], promotion)
        if bound.get("dtype") is not None:
            result = to_max(bound["dtype"])
            compute = accumulation_dtype(result)
        if promotion is Promotion.ALWAYS_BOOL:
            result = to_max(expected().dtype)  # all and any of uint8 are uint8
        out = as_tensor(x, DType.bool if promotion is Promotion.ALWAYS_BOOL else compute, x.device)
        for dim in dims:
            out = body(out, dim)
        if out.dtype != result:
            out = ops.cast(out, result)
        return out if bound.get("keepdim", False) else drop_axes(out, dims)

    lower.__name__ = overload._schema.name.replace("::", "_")
    lower.__doc__ = str(overload._schema)
    _register(overload, lower, None)
    return lower
