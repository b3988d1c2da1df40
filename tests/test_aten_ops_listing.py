"""ressources/aten_ops.txt is what the installed torch has registered."""

import difflib

import pytest
import torch

from ressources.generate_aten_ops import COMMAND, CORE_MARK, LISTING, listing


def _lines() -> list[str]:
    return LISTING.read_text(encoding="utf-8").splitlines()


def _torch_version_of_listing() -> str:
    return _lines()[0].removeprefix("# torch ").partition(":")[0]


def test_listing_equals_torch():
    installed = torch.__version__.partition("+")[0]
    if installed != _torch_version_of_listing():
        pytest.skip(f"the listing is of torch {_torch_version_of_listing()}, this is {installed}")
    expected = listing().splitlines()
    difference = list(difflib.unified_diff(_lines(), expected, "aten_ops.txt", "torch", n=0))
    shown = "\n".join(difference[:20])
    assert not difference, f"{LISTING.name} is out of date; run `{COMMAND}`. Difference:\n{shown}"


def test_listing_is_of_the_pinned_torch():
    constraints = LISTING.parent.parent / "constraints.txt"
    assert f"torch=={_torch_version_of_listing()}" in constraints.read_text().splitlines()


def test_listing_is_sorted_and_small():
    schemas = [line for line in _lines() if not line.startswith("#")]
    assert schemas == sorted(schemas)
    assert len(schemas) == len(set(schemas))
    assert LISTING.stat().st_size < 1 << 20


def test_core_mark_is_torchs_tag():
    marked = {line for line in _lines() if line.endswith(CORE_MARK)}
    assert f"{torch.ops.aten.add.Tensor._schema}{CORE_MARK}" in marked
    assert f"{torch.ops.aten.add_.Tensor._schema}{CORE_MARK}" not in marked
