"""Convolutions of 1 to 3 dimensions, pooling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tests.harness import FLOATS, Case, comparison, grouped, in_turns, randn, short, strided

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
SIZES = {1: (11,), 2: (9, 11), 3: (5, 6, 7)}


def _rows(embed: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Patches as the rows that a transformer takes."""
    return lambda *args: embed(*args).flatten(2).transpose(1, 2)


def _is_nearly_covered(rank: int, place: int) -> bool:
    """By the same option in two dimensions: one kernel computes all ranks."""
    return rank != 2 and place % 2 == 1


def convolutions() -> Iterator[Case]:
    for rank, function in CONV.items():
        plain: list[tuple[str, dict[str, Any], int]] = [
            ("plain", {}, 1),
            ("stride_padding", {"stride": 2, "padding": 1}, 1),
            ("dilation", {"dilation": 2, "padding": 2}, 1),
            ("groups", {"groups": 2, "padding": 1}, 2),
            ("depthwise", {"groups": 4, "padding": 1}, 4),
            ("same", {"padding": "same"}, 1),
            ("mixed", {"stride": (2, 1, 2)[:rank], "padding": (0, 2, 1)[:rank]}, 1),
        ]
        for i, (name, options, groups) in enumerate(plain):
            x = randn(2, 4, *SIZES[rank])
            weight = randn(6 if groups < 4 else 8, 4 // groups, *([3] * rank))
            bias = randn(weight.shape[0])
            yield Case(
                f"conv{rank}d-{name}",
                partial(function, **options),
                [x, weight, bias],
                scale="tensor",
                thorough=_is_nearly_covered(rank, i),
            )
        yield Case(
            f"conv{rank}d-no_bias",
            function,
            [randn(2, 4, *SIZES[rank]), weight[:, :1].expand(-1, 4, *([-1] * rank)).contiguous()],
            scale="tensor",
        )
        kernel = (2, 3, 2)[:rank]
        patches = [randn(2, 3, *[4 * k + 1 for k in kernel]), randn(5, 3, *kernel), randn(5)]
        yield Case(
            f"patch_embedding-{rank}d", partial(function, stride=kernel), patches, scale="tensor"
        )
        rows = _rows(partial(function, stride=kernel))
        yield Case(f"patch_rows-{rank}d", rows, patches, scale="tensor")
        one = [randn(2, 4, *SIZES[rank]), randn(5, 4, *([1] * rank))]
        yield Case(f"conv{rank}d-1x1", function, one, scale="tensor")
    for place, dtype in enumerate(FLOATS):
        x, weight, bias = (t.to(dtype) for t in (randn(2, 4, 9, 11), randn(6, 4, 3, 3), randn(6)))
        big = [randn(2, 3, 32, 32).to(dtype), randn(24, 3, 8, 8).to(dtype), randn(24).to(dtype)]
        rows = _rows(partial(F.conv2d, stride=8))
        up = [randn(2, 4, 5, 6).to(dtype), randn(4, 3, 2, 2).to(dtype)]
        operations = [
            ("conv2d", partial(F.conv2d, padding=1), x, weight, bias),
            ("patch_embedding", partial(F.conv2d, stride=8), *big),
            ("patch_rows-no_bias", rows, *big[:2]),
            ("unpatch", partial(F.conv_transpose2d, stride=2), *up),
        ]
        for name, function, *inputs in in_turns(operations, place):
            yield Case(f"{name}-{short(dtype)}", function, inputs, scale="tensor")
        yield Case(f"patch_rows-{short(dtype)}", rows, big, scale="tensor")
    large = [randn(3, 3, 66, 70), randn(5, 3, 4, 4)]  # so that all workers move it
    yield Case("patch_rows-large", _rows(partial(F.conv2d, stride=4)), large, scale="tensor")
    yield Case("conv2d-large", partial(F.conv2d, stride=3), large, scale="tensor")
    x, weight = strided(randn(2, 4, 9, 11), "transposed"), randn(6, 4, 3, 3)
    yield Case("conv2d-transposed_input", F.conv2d, [x, weight], scale="tensor")
    last = randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    yield Case("conv2d-channels_last", F.conv2d, [last, weight], scale="tensor")
    yield Case("conv2d-unbatched", F.conv2d, [randn(4, 9, 11), weight], scale="tensor")
    yield Case("conv2d-empty_batch", F.conv2d, [randn(0, 4, 9, 11), weight], scale="tensor")


def transposed() -> Iterator[Case]:
    for rank, function in TRANSPOSED.items():
        options: list[tuple[str, dict[str, Any], int]] = [
            ("plain", {}, 1),
            ("stride_padding", {"stride": 2, "padding": 1}, 1),
            ("output_padding", {"stride": 3, "padding": 1, "output_padding": 2}, 1),
            ("dilation", {"dilation": 2, "stride": 2, "padding": 3}, 1),
            ("groups", {"groups": 2, "stride": 2}, 2),
        ]
        for i, (name, keys, groups) in enumerate(options):
            x = randn(2, 4, *[n - 2 for n in SIZES[rank]])
            weight = randn(4, 6 // groups, *([3] * rank))
            yield Case(
                f"conv_transpose{rank}d-{name}",
                partial(function, **keys),
                [x, weight, randn(6)],
                scale="tensor",
                thorough=_is_nearly_covered(rank, i),
            )
        stride = (2, 3, 2)[:rank]
        yield Case(
            f"unpatch-{rank}d",
            partial(function, stride=stride),
            [randn(2, 4, *SIZES[rank]), randn(4, 3, *stride), randn(3)],
            scale="tensor",
        )


def symbolic() -> Iterator[Case]:
    for name, function, inputs, sizes in [
        (
            "conv2d",
            partial(F.conv2d, padding=1, stride=2),
            [randn(2, 4, 9, 11), randn(6, 4, 3, 3), randn(6)],
            (3, 4, 12, 8),
        ),
        (
            "conv2d_depthwise",
            partial(F.conv2d, padding=1, groups=4),
            [randn(2, 4, 9, 11), randn(4, 1, 3, 3)],
            (3, 4, 12, 8),
        ),
        ("conv1d", F.conv1d, [randn(2, 4, 11), randn(6, 4, 3), randn(6)], (3, 4, 17)),
        ("conv3d", F.conv3d, [randn(2, 4, 5, 6, 7), randn(6, 4, 2, 2, 2)], (3, 4, 4, 5, 8)),
        (
            "patch_embedding",
            partial(F.conv2d, stride=4),
            [randn(2, 3, 16, 20), randn(8, 3, 4, 4), randn(8)],
            (3, 3, 22, 13),
        ),
        (
            "patch_rows",
            _rows(partial(F.conv2d, stride=4)),
            [randn(2, 3, 16, 20), randn(8, 3, 4, 4), randn(8)],
            (3, 3, 22, 13),
        ),
        (
            "conv_transpose2d",
            partial(F.conv_transpose2d, stride=2, padding=1),
            [randn(2, 4, 5, 6), randn(4, 3, 3, 3)],
            (3, 4, 7, 4),
        ),
    ]:
        # as in a module, where sizes of parameters are static
        inputs = [inputs[0], *(torch.nn.Parameter(x, requires_grad=False) for x in inputs[1:])]
        others = [[randn(*sizes), *inputs[1:]]]
        yield Case(f"{name}-dynamic", function, inputs, dynamic=True, others=others, scale="tensor")


CASES = grouped([*convolutions(), *transposed(), *symbolic()], 6)

test_convolution = comparison(CASES)
