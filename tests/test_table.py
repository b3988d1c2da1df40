"""The contracts of the table: order, keys, signatures, docstrings, what registration refuses."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch._ops import OpOverload

from torch_max_backend import MAPPING_TORCH_ATEN_TO_MAX, register_lowering, registry, tables
from torch_max_backend.errors import RegistrationError

aten = torch.ops.aten
TABLES = sorted(Path(tables.__file__).parent.glob("aten_*.py"))


def row_names(source: str) -> list[str]:
    """The first overload of every row, in the order of the source."""
    names = []
    for statement in ast.parse(source).body:
        calls = []
        if isinstance(statement, ast.Assign):
            calls = [statement.value]
        elif isinstance(statement, ast.FunctionDef):
            calls = list(statement.decorator_list)
        for call in calls:
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Name)
                and call.func.id in ("pointwise", "reduction", "lowering")
            ):
                key = call.args[0]
                first = key.elts[0] if isinstance(key, ast.Tuple) else key
                names.append(ast.unparse(first).removeprefix("torch.ops."))
    return names


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_table_is_sorted(path: Path) -> None:
    names = row_names(path.read_text())
    assert names, "no rows were found"
    ordered = sorted(names, key=lambda name: name.split("."))
    misplaced = [
        f"{name} belongs before {previous}"
        for previous, name in zip(names, names[1:], strict=False)
        if name.split(".") < previous.split(".")
    ]
    assert names == ordered, f"{path.name} is A-Z by overload name: {'; '.join(misplaced)}"


def test_sortedness_is_seen_in_rows_of_every_kind() -> None:
    source = """
b = pointwise((aten.b.default, aten.a.default), f)
@lowering(aten.a.default)
def aten_a(): ...
c = reduction(aten.c.dim, g)
other = 3
"""
    assert row_names(source) == ["aten.b.default", "aten.a.default", "aten.c.dim"]


def rows() -> list[OpOverload]:
    return list(registry.overloads())


@pytest.mark.parametrize("overload", rows(), ids=str)
def test_first_line_of_the_docstring_is_the_schema(overload: OpOverload) -> None:
    row = registry.find(overload)
    assert row is not None
    document = (row.function.__doc__ or "").strip().splitlines()[0]
    same_function = [key for key in rows() if MAPPING_TORCH_ATEN_TO_MAX[key] is row.function]
    schemas = [str(key._schema) for key in same_function]
    assert document in schemas or document in [s.split("::", 1)[1] for s in schemas]


def test_rows_are_functional_overloads() -> None:
    assert len(rows()) > 100
    assert not [key for key in rows() if key._schema.is_mutable]


def test_the_mapping_is_a_read_view() -> None:
    assert isinstance(MAPPING_TORCH_ATEN_TO_MAX, Mapping)
    assert aten.add.Tensor in MAPPING_TORCH_ATEN_TO_MAX
    assert len(MAPPING_TORCH_ATEN_TO_MAX) == len(list(MAPPING_TORCH_ATEN_TO_MAX)) == len(rows())
    assert callable(MAPPING_TORCH_ATEN_TO_MAX[aten.exp])  # one overload: the packet names it
    with pytest.raises(KeyError, match="name one of them"):
        MAPPING_TORCH_ATEN_TO_MAX[aten.add]
    with pytest.raises(TypeError):
        MAPPING_TORCH_ATEN_TO_MAX[aten.add.Tensor] = None  # type: ignore[index]
    assert aten.fft_fft.default not in MAPPING_TORCH_ATEN_TO_MAX


# -------------------------------------------------------------- what registration refuses

UNUSED = aten.sinc.default


def test_a_duplicate_is_refused() -> None:
    def exp(self):
        return self

    with pytest.raises(RegistrationError, match="aten.exp.default is registered twice"):
        registry.lowering(aten.exp.default)(exp)
    with pytest.raises(RegistrationError, match="registered twice"):
        registry.pointwise(aten.exp.default, exp)


def test_a_packet_of_several_overloads_is_refused() -> None:
    def add(self, other, *, alpha=1):
        return self

    with pytest.raises(RegistrationError, match=r"aten.add has the overloads Tensor, Scalar"):
        registry.lowering(aten.add)(add)


@pytest.mark.parametrize("key", [torch.sin, "aten.sin", aten, None])
def test_other_keys_are_refused(key: object) -> None:
    with pytest.raises(RegistrationError, match="key is an OpOverload"):
        registry.lowering(key)(lambda x: x)


@pytest.mark.parametrize(
    "overload, functional",
    [
        (aten.relu_.default, "aten.relu"),
        (aten.add.out, "aten.add"),
        (aten.index_put_.default, "aten.index_put"),
        (aten._fused_adamw_.default, "aten._fused_adamw"),
    ],
    ids=str,
)
def test_writing_overloads_are_refused_with_the_functional_name(
    overload: OpOverload, functional: str
) -> None:
    with pytest.raises(RegistrationError, match=f"register an overload of {functional} instead"):
        registry.lowering(overload)(lambda x: x)


def test_signatures_are_the_schemas() -> None:
    def names(x):  # the schema says self
        return x

    def default(self, dim=1, keepdim=False):
        return self

    def keyword(self, dim, dtype=None):
        return self

    with pytest.raises(RegistrationError, match=r"names\(x\) does not fit aten.sinc.default"):
        registry.lowering(UNUSED)(names)
    with pytest.raises(RegistrationError, match="the default of dim differs"):
        registry.lowering(aten.nanmedian.dim)(lambda self, dim=1, keepdim=False: self)
    with pytest.raises(RegistrationError, match="dtype must be keyword-only"):
        registry.lowering(aten.cumprod.default)(keyword)
    assert registry.find(UNUSED) is None


# ------------------------------------------------------------------------ register_lowering


@pytest.fixture
def table():
    """The table, put back as it was."""
    before = dict(registry._TABLE)
    yield registry._TABLE
    registry._TABLE.clear()
    registry._TABLE.update(before)


def test_register_lowering_adds_and_replaces(table: dict) -> None:
    @register_lowering(UNUSED)
    def sinc(self):
        return self

    assert MAPPING_TORCH_ATEN_TO_MAX[UNUSED] is sinc
    with pytest.raises(RegistrationError, match="registered twice"):
        register_lowering(UNUSED)(sinc)

    @register_lowering(UNUSED, replace=True, supports=lambda node: "no")
    def other(self):
        return self

    assert MAPPING_TORCH_ATEN_TO_MAX[UNUSED] is other
    row = registry.find(UNUSED)
    assert row is not None and row.supports is not None and row.supports(None) == "no"  # type: ignore[arg-type]


def test_a_failed_replacement_keeps_the_row(table: dict) -> None:
    before = registry.find(aten.exp.default)
    with pytest.raises(RegistrationError, match="does not fit"):
        register_lowering(aten.exp.default, replace=True)(lambda wrong: wrong)
    assert registry.find(aten.exp.default) is before


def test_calls_are_checked_by_beartype() -> None:
    with pytest.raises(Exception, match="beartype|violates type hint"):
        MAPPING_TORCH_ATEN_TO_MAX[aten.permute.default]("no tensor", [0])


def test_custom_operators_can_be_registered(table: dict) -> None:
    with torch.library._scoped_library("table_test", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        key = torch.ops.table_test.twice.default

        @register_lowering(key)
        def twice(x):
            return x + x

        assert MAPPING_TORCH_ATEN_TO_MAX[key] is twice
