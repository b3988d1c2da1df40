"""Batched numerical comparison: many small cases, one MAX compile per test file.

A MAX compile costs 10 to 15 s whatever is in it, so a test file lists its cases as data::

    CASES = [Case("relu", torch.relu, [randn(3, 4)]), ...]
    test_case = comparison(CASES)

Every case is a pytest item of its own. The first item that runs traces all selected cases of its
file with ``torch.compile``, has the backend compile the graphs together as one MAX module, runs
them and keeps a verdict per case; the other items only read theirs. With ``-k`` only the selected
cases are compiled; xdist workers and forked tests share the verdicts through a folder.

A floating-point result is right when it is as close to a float64 reference as eager PyTorch is in
that dtype, times :data:`FACTOR`, plus a floor in units of the last place. Integers and bools are
equal; NaNs and infinities stand where eager has them; dtype, shape and strides are eager's.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import pickle
import shlex
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from torch_max_backend import compilation, generic_sizes, max_backend

FACTOR = 3.0
"""How much further off than eager a result may be: another order of summation or another
polynomial for exp moves the largest of some hundred errors by up to that much, a wrong formula or
an accumulation in half precision by more."""

FLOOR_ULPS = {torch.float64: 4.0, torch.float32: 4.0, torch.bfloat16: 1.0, torch.float16: 1.0}
"""What is allowed where eager happens to be exact: the usual accuracy of math libraries; half
precision is computed in float32 and rounded once, so one unit."""

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        id: unique in its file; names the op.
        function: takes the inputs, returns tensors, numbers or None in any nesting.
        inputs: tensors and other arguments; with ``dynamic``, nn.Parameters keep static sizes.
        make: makes (function, inputs) in the batch, where they are costly.
        dynamic: trace with symbolic sizes: True = every size, "batch" = the tensors' first ones,
            "generic" = every size, 1 included (see sizes.py).
        others: inputs of other sizes that the graph of ``inputs`` must serve without a recompile.
        scale: what errors are measured against: "element" (element-wise ops) or "tensor" (sums of
            many terms: the largest magnitude of the reference).
        group: cases of one group that are compiled alike share a graph; None = a graph of its own.
        signed_zero: zeros must have the sign of eager's or of the reference.
        reference: a function for the float64 reference, where ``function`` names a dtype; it gets
            the inputs in the precision that is then torch's default dtype.
        exact: results are moved, not computed: equal bit for bit, NaN aside.
        layout_only: random or uninitialised results: dtype, shape and strides are compared.
        frozen: compiled with ``options={"freeze": True}``.
        thorough: other cases cover nearly the same; only with ``--thorough``.
    """

    id: str
    function: Callable[..., Any] | None
    inputs: Sequence[Any] = ()
    dynamic: bool | Literal["batch", "generic"] = False
    others: Sequence[Sequence[Any]] = ()
    scale: str = "element"
    group: str | None = None
    signed_zero: bool = False
    reference: Callable[..., Any] | None = None
    exact: bool = False
    layout_only: bool = False
    frozen: bool = False
    thorough: bool = False
    make: Callable[[], tuple[Callable[..., Any], Sequence[Any]]] | None = None

    def made(self) -> Case:
        """The case with its function and inputs at hand."""
        if self.make is None:
            return self
        function, inputs = self.make()
        return replace(self, function=function, inputs=inputs, make=None)


def module_case(name: str, module: nn.Module, *inputs: Tensor, **settings: Any) -> Case:
    """A module at inference, in the dtype of its first input, beside itself in float64."""

    def reference(*args: Tensor) -> Any:
        return deepcopy(module).to(args[0].dtype)(*args)

    module = module.to(inputs[0].dtype).eval().requires_grad_(False)
    return Case(name, module, inputs, reference=reference, scale="tensor", **settings)


def in_turns(operations: Iterable[Any], place: int) -> list[Any]:
    """The operations that a dtype is tried on: all by the first, the others share them.

    A kernel takes MAX half a second to compile, so that not every operation can meet every dtype.
    """
    return [item for i, item in enumerate(operations) if place == 0 or (i + place) % 3 == 0]


def seeded(name: str) -> torch.Generator:
    """A generator whose seed is a name: the same numbers in every run, others for every name."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: str = "", scale: float = 1.0):
    """Normal numbers that float32 holds exactly, in any dtype; integers are in [-9, 9], no zeros.

    Bools are coin flips.
    """
    generator = seeded(f"{seed}{shape}")
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) > 0.5
    if dtype.is_floating_point:
        return (torch.randn(shape, generator=generator) * scale).to(dtype)
    magnitude = torch.randint(1, 10, shape, generator=generator)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (magnitude if dtype == torch.uint8 else magnitude * sign).to(dtype)


def uniform(
    *shape: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32, seed=""
):
    """Uniform numbers in [low, high]."""
    numbers = torch.rand(shape, generator=seeded(f"{seed}{shape}")) * (high - low) + low
    return numbers.to(dtype)


def integers(*shape: int, low: int = 0, high: int, dtype: torch.dtype = torch.int64, seed=""):
    """Integers in [low, high)."""
    return torch.randint(low, high, shape, generator=seeded(f"{seed}{shape}")).to(dtype)


def strided(x: torch.Tensor, kind: str) -> torch.Tensor:
    """The same values in another layout: "transposed", "sliced" (gaps, an offset) or "expanded"."""
    if kind == "transposed":
        order = list(reversed(range(x.ndim)))
        return x.permute(order).contiguous().permute(order)
    if kind == "sliced":
        wide = x.new_zeros([2 * n + 1 for n in x.shape])
        window = wide[tuple(slice(1, None, 2) for _ in x.shape)]
        return window.copy_(x)
    if kind == "expanded":
        return x[:1].expand(x.shape)
    raise ValueError(kind)


def short(dtype: torch.dtype) -> str:
    """ "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def grouped(cases: Sequence[Case], size: int) -> list[Case]:
    """The cases with every ``size`` neighbours that are traced alike in one graph."""
    alike: dict[bool | str, int] = {}
    result = []
    for case in cases:
        count = alike[case.dynamic] = alike.get(case.dynamic, -1) + 1
        alone = case.group is not None or case.others
        result.append(case if alone else replace(case, group=f"{count // size}"))
    return result


def comparison(cases: Sequence[Case]) -> Callable[..., None]:
    """The parametrized test of a file's cases."""
    names = [case.id for case in cases]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"case ids must be unique: {sorted(twice)}"

    thorough = pytest.mark.thorough
    params = [pytest.param(case, marks=[thorough] if case.thorough else []) for case in cases]

    @pytest.mark.parametrize("case", params, ids=names)
    def test_case(case: Case, verdicts: dict[str, str | None], request: Any) -> None:
        verdict_test(case, verdicts, request)

    return test_case


def verdict_test(case: Case, verdicts: dict[str, str | None], request: Any) -> None:
    """Fails with what is wrong and the command that repeats the case alone."""
    verdict = verdicts[case.id]
    if verdict is not None:
        option = "--thorough " if case.thorough else ""
        repeat = f"pytest {option}{shlex.quote(request.node.nodeid)}"
        pytest.fail(f"{verdict}\nTo repeat: {repeat}", pytrace=False)


# ------------------------------------------------------------------------------------ tracing


class _Capture:
    """A backend that compiles lazily: while tracing, calls are answered by eager."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.live = False
        self.graphs = 0
        self.options = options

    def __call__(self, gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        if self.live:
            raise AssertionError("a recompile: one graph was to serve all these inputs")
        self.graphs += 1
        compiled = max_backend(gm, example_inputs, options=self.options)

        def run(*args: Any) -> Any:
            return compiled(*args) if self.live else gm(*args)

        return run


def _fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with a code object of its own: Dynamo keeps its caches per code object."""
    scope: dict[str, Any] = {"function": function}
    exec("def case(*args):\n    return function(*args)", scope)
    return scope["case"]


class _Traced:
    """Cases that share one graph, compiled but not run."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = cases = [case.made() for case in cases]
        self.backend = _Capture({"freeze": cases[0].frozen})
        self.arguments = [list(case.inputs) for case in cases]
        self.slots: list[list[int]] = []
        self.flat = self._share(self.arguments)
        function = cases[0].function if len(cases) == 1 else self._joined
        if len(cases) == 1:
            self.flat = self.arguments[0]
        dynamic = cases[0].dynamic
        self.compiled = torch.compile(
            _fresh(function),
            backend=self.backend,
            fullgraph=True,
            dynamic=None if dynamic == "batch" else bool(dynamic),
        )
        arguments = list(map(_copy, self.flat))
        for argument in arguments if dynamic == "batch" else ():
            torch._dynamo.mark_dynamic(argument, 0)
        tracing = generic_sizes() if dynamic == "generic" else contextlib.nullcontext()
        with torch.no_grad(), tracing:
            self.compiled(*arguments)

    def _share(self, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        """All arguments in one list, each tensor once; remembers which case takes which."""
        flat: list[Any] = []
        places: dict[int, int] = {}
        for args in arguments:
            slots = []
            for arg in args:
                if id(arg) not in places:
                    places[id(arg)] = len(flat)
                    flat.append(arg)
                slots.append(places[id(arg)])
            self.slots.append(slots)
        return flat

    def _joined(self, *flat: Any) -> list[Any]:
        return [
            case.function(*[flat[slot] for slot in slots])
            for case, slots in zip(self.cases, self.slots, strict=True)
        ]

    def verdicts(self) -> dict[str, str | None]:
        self.backend.live = True
        with torch.no_grad():
            results = self.compiled(*map(_copy, self.flat))
        if len(self.cases) == 1:
            results = [results]
        found: dict[str, str | None] = {}
        for case, args, result in zip(self.cases, self.arguments, results, strict=True):
            found[case.id] = _guarded(_compare, case, args, result)
        for case in self.cases:
            for args in case.others:
                if found[case.id] is None:
                    found[case.id] = _guarded(self._again, case, list(args))
        return found

    def _again(self, case: Case, args: list[Any]) -> str | None:
        assert len(self.cases) == 1, "cases with other sizes stand alone"
        with torch.no_grad():
            return _compare(case, args, self.compiled(*map(_copy, args)))


def _copy(value: Any) -> Any:
    """A tensor of the same values and strides in memory of its own."""
    if not isinstance(value, torch.Tensor):
        return value
    if isinstance(value, torch.nn.Parameter):
        return torch.nn.Parameter(_copy(value.detach()), requires_grad=False)
    if value.numel() == 0:
        return value.clone()
    extent = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
    memory = value.as_strided((extent,), (1,)).clone()
    return memory.as_strided(value.shape, value.stride())


def _guarded(function: Callable[..., str | None], *args: Any) -> str | None:
    try:
        return function(*args)
    except Exception:
        return traceback.format_exc(limit=-6)


@dataclass
class Account:
    """What a batch came to, for the summary line."""

    file: str
    cases: int = 0
    graphs: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def __str__(self) -> str:
        times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return f"{self.file}: {self.cases} cases in {self.graphs} graphs: {times}"


def run_batch(file: str, cases: Sequence[Case]) -> tuple[dict[str, str | None], Account]:
    """Traces, compiles and compares cases: None per case, or what is wrong with it."""
    account = Account(file, len(cases))
    compilation._open.clear()  # what other tests traced and never ran stays out of this program
    groups: dict[Any, list[Case]] = {}
    for case in cases:
        key = (case.group, case.dynamic, case.frozen) if case.group and not case.others else case.id
        groups.setdefault(key, []).append(case)
    found: dict[str, str | None] = {}
    singles: list[list[Case]] = []
    for round_ in (list(groups.values()), singles):
        traced: list[_Traced] = []
        with account.phase("trace"):
            for members in round_:
                one = _attempt(lambda m=members: _Traced(m), members, found, singles)
                if one is not None:
                    traced.append(one)
        account.graphs += len(traced)
        with account.phase("compile and compare"):
            for one in traced:
                result = _attempt(one.verdicts, one.cases, found, singles)
                found.update(result or {})
        torch._dynamo.reset()
    return found, account


def _attempt(
    function: Callable[[], Any],
    cases: Sequence[Case],
    found: dict[str, str | None],
    singles: list[list[Case]],
) -> Any:
    """A graph that fails is tried again case by case, so that the failure is one op's."""
    try:
        return function()
    except Exception:
        if len(cases) > 1:
            singles.extend([case] for case in cases)
        else:
            found[cases[0].id] = traceback.format_exc(limit=-4)
        return None


# ----------------------------------------------------------------------------------- verdicts


def shared_verdicts(folder: Path, file: str, cases: Sequence[Case]) -> dict[str, str | None]:
    """The verdicts of a file: computed by the first process that asks, read by the others."""
    path = folder / f"{zlib.crc32(file.encode()):08x}.verdicts"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            written = path.with_suffix(".new")
            written.write_bytes(pickle.dumps(run_batch(file, cases)))
            written.replace(path)
        return pickle.loads(path.read_bytes())[0]


def accounts(folder: Path) -> list[Account]:
    """What the batches of this run came to."""
    return [pickle.loads(path.read_bytes())[1] for path in sorted(folder.glob("*.verdicts"))]


# --------------------------------------------------------------------------------- comparison


def _compare(case: Case, args: Sequence[Any], result: Any) -> str | None:
    with torch.no_grad():
        expected = case.function(*map(_copy, args))
    got, got_spec = tree_flatten(result)
    want, want_spec = tree_flatten(expected)
    if got_spec != want_spec:
        return f"the results have the structure {got_spec}, eager's {want_spec}"
    precise = _reference(case, args, want)
    rough = _reference(case, args, want, torch.float32) if _has_float64(want) else None
    for place, (a, b) in enumerate(zip(got, want, strict=True)):
        where = f"result {place}: " if len(want) > 1 else ""
        if not isinstance(b, torch.Tensor):
            if type(a) is not type(b) or (a != b and not (a != a and b != b)):
                return f"{where}{a!r}, eager has {b!r}"
            continue
        fault = _layout_fault(a, b)
        if fault is None and not case.layout_only:
            fault = _value_fault(case, a, b, precise and precise[place], rough and rough[place])
        if fault is not None:
            return where + fault
    return None


def _has_float64(values: Sequence[Any]) -> bool:
    return any(isinstance(v, torch.Tensor) and v.dtype == torch.float64 for v in values)


def _reference(
    case: Case, args: Sequence[Any], want: Sequence[Any], dtype: torch.dtype = torch.float64
) -> list[Any] | None:
    """Eager's results for the same numbers in another float dtype."""
    if case.exact or not any(isinstance(w, torch.Tensor) and w.is_floating_point() for w in want):
        return None

    def convert(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else _copy(value)

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # what integer operands promote to
    try:
        with torch.no_grad():
            return tree_flatten((case.reference or case.function)(*tree_map(convert, list(args))))[
                0
            ]
    finally:
        torch.set_default_dtype(before)


def _layout_fault(a: Any, b: torch.Tensor) -> str | None:
    if not isinstance(a, torch.Tensor):
        return f"{type(a).__name__}, eager has a tensor"
    if a.dtype != b.dtype:
        return f"dtype {a.dtype}, eager has {b.dtype}"
    if a.shape != b.shape:
        return f"shape {tuple(a.shape)}, eager has {tuple(b.shape)}"
    matter = [i for i, n in enumerate(b.shape) if n > 1] if b.numel() else []
    if [a.stride(i) for i in matter] != [b.stride(i) for i in matter]:
        return f"strides {a.stride()}, eager has {b.stride()} (shape {tuple(b.shape)})"
    return None


def _value_fault(
    case: Case, a: torch.Tensor, b: torch.Tensor, precise: Any, rough: Any
) -> str | None:
    if not b.is_floating_point():
        return _differing("values differ", a != b, a, b)
    infinite = (a.isinf() | b.isinf()) & ~b.isnan()
    fault = _differing("NaNs differ", a.isnan() != b.isnan(), a, b) or _differing(
        "infinities differ", infinite & (a != b), a, b
    )
    if fault is None and (case.signed_zero or case.exact):
        other_sign = (a == 0) & (b == 0) & (a.signbit() != b.signbit())
        if precise is not None:  # eager's own sign of gelu(-10) depends on the processor
            other_sign &= a.signbit() != precise.signbit()
        fault = _differing("signs of zeros differ", other_sign, a, b)
    if fault is not None:
        return fault
    finite = b.isfinite()
    if case.exact:
        return _differing("values differ", (a != b) & finite, a, b)
    precise = precise.to(torch.float64)
    finite &= precise.isfinite()
    if not finite.any():
        return None
    scale = _ulp(precise, b.dtype)
    if case.scale == "tensor":
        scale = torch.where(finite, scale, 0.0).max().expand(scale.shape)
    zero = torch.zeros((), dtype=torch.float64)
    distance = (a.double() - precise).abs()
    # MAX computes with denormals flushed to zero, half precision in float32
    flushed = torch.finfo(torch.promote_types(b.dtype, torch.float32)).tiny
    error = torch.where(finite & (distance > flushed), distance / scale, zero)
    if b.dtype == torch.float64:
        # the reference has the same precision; float32's error stands in for eager's
        ulp32 = scale * (torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps)
        eager = (rough.double() - precise).abs() / ulp32
    else:
        eager = (b.double() - precise).abs() / scale
    eager = torch.where(finite & eager.isfinite(), eager, zero)
    allowed = FACTOR * eager.max() + FLOOR_ULPS[b.dtype]
    if (error <= allowed).all():
        return None
    worst = int(error.argmax())
    return _differing(
        f"error {error.max():.3g} ulp at element {worst}, eager's largest {eager.max():.3g}, "
        f"allowed {allowed:.3g}; float64 has {precise.flatten()[worst]:.9g}",
        error > allowed,
        a,
        b,
    )


def _ulp(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The spacing of ``dtype`` at x, as float64."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(x.abs().clamp(min=info.tiny, max=info.max))
    return torch.ldexp(torch.full_like(x, info.eps), exponent - 1)


def _differing(what: str, mask: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> str | None:
    if not mask.any():
        return None
    places = mask.flatten().nonzero().flatten()[:5].tolist()
    shown = [f"[{p}] {a.flatten()[p].item()!r}, eager {b.flatten()[p].item()!r}" for p in places]
    count = int(mask.sum())
    return f"{what} at {count} of {math.prod(mask.shape)}: " + "; ".join(shown)
