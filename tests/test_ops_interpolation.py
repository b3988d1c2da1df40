"""Resizing of images and of position grids."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.harness import FLOATS, Case, comparison, grouped, randn, short, strided
from torch_max_backend.composites import interpolate

MODES: list[tuple[str, dict[str, Any]]] = [
    (
        f"{mode}{'-corners' if corners else ''}{'-antialias' if antialias else ''}",
        {"mode": mode, "align_corners": corners, "antialias": antialias},
    )
    for mode in ("bilinear", "bicubic")
    for corners in (False, True)
    for antialias in (False, True)
]
SIZES = {
    "up": {"size": (14, 11)},
    "down": {"size": (4, 3)},
    "mixed": {"size": (5, 13)},
    "same": {"size": (9, 7)},
    "one": {"size": (1, 1)},
    "scale": {"scale_factor": 1.7},
    "scales": {"scale_factor": (0.6, 2.0)},
    "scale_recomputed": {"scale_factor": 0.45, "recompute_scale_factor": True},
}


@pytest.mark.parametrize("target", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("options", [options for _, options in MODES], ids=dict(MODES))
def test_matrices_resize_as_pytorch_does(options: dict, target: dict) -> None:
    """The two products that the backend puts in place of F.interpolate; needs no compile."""
    x = randn(2, 3, 9, 7, dtype=torch.float64)
    expected = F.interpolate(x, **options, **target)
    result = interpolate(x, **options, **target)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def images() -> Iterator[Case]:
    x = randn(2, 3, 9, 7)
    for i, ((name, options), (size, target)) in enumerate(zip(MODES, SIZES.items(), strict=True)):
        function = partial(F.interpolate, **options, **target)
        yield Case(f"{name}-{size}", function, [x], thorough=i % 3 == 1)
    for i, (size, target) in enumerate(SIZES.items()):
        for j, mode in enumerate(("nearest", "nearest-exact")):
            function = partial(F.interpolate, mode=mode, **target)
            yield Case(f"{mode}-{size}", function, [x], exact=True, thorough=(i + j) % 2 == 1)
    for dtype in FLOATS[1:]:
        y = randn(2, 3, 9, 7, dtype=dtype)
        function = partial(F.interpolate, mode="bicubic", size=(4, 3))
        yield Case(f"bicubic-down-{short(dtype)}", function, [y])
    z = strided(x, "transposed")
    yield Case("bicubic-transposed", partial(F.interpolate, mode="bicubic", size=(4, 3)), [z])
    yield Case("linear", partial(F.interpolate, mode="linear", size=5), [randn(2, 3, 9)])
    yield Case("nearest-1d", partial(F.interpolate, size=5), [randn(2, 3, 9)], exact=True)
    yield Case(
        "trilinear",
        partial(F.interpolate, mode="trilinear", size=(3, 5, 4)),
        [randn(1, 2, 4, 3, 6)],
    )
    yield Case(
        "nearest-3d", partial(F.interpolate, size=(3, 5, 4)), [randn(1, 2, 4, 3, 6)], exact=True
    )


def symbolic() -> Iterator[Case]:
    def positions(grid: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """A learnt (1, D, h, w) grid resized to an image's patches, as ViTs do it."""
        size = (image.shape[-2] // 4, image.shape[-1] // 4)
        out = F.interpolate(grid, size=size, mode="bicubic", antialias=False)
        return out.flatten(2).transpose(1, 2)

    grid = randn(1, 8, 5, 5)
    yield Case(
        "positions-dynamic",
        positions,
        [grid, randn(1, 3, 32, 24)],
        dynamic=True,
        others=[[grid, randn(1, 3, 20, 44)]],
    )
    for mode in ("bilinear", "bicubic", "nearest"):
        yield Case(
            f"{mode}-dynamic",
            partial(F.interpolate, scale_factor=2.0, mode=mode),
            [randn(2, 3, 9, 7)],
            dynamic=True,
            others=[[randn(3, 3, 4, 10)]],
            thorough=mode == "bilinear",
        )
        yield Case(
            f"{mode}-antialias-to-dynamic" if mode != "nearest" else f"{mode}-to-dynamic",
            partial(F.interpolate, size=(6, 5), mode=mode, antialias=mode != "nearest"),
            [randn(2, 3, 9, 7)],
            dynamic=True,
            others=[[randn(3, 3, 4, 10)]],
            thorough=mode == "bicubic",
        )


CASES = grouped(
    [Case(**{**case.__dict__, "scale": "tensor"}) for case in [*images(), *symbolic()]], 10
)

test_interpolation = comparison(CASES)
