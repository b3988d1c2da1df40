"""Layer, RMS, group, batch and instance normalisation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from tests.harness import FLOATS, Case, comparison, grouped, in_turns, randn, short, strided


def normalisations() -> Iterator[Case]:
    for place, dtype in enumerate(FLOATS):
        x, weight, bias = (
            randn(3, 5, 48, dtype=dtype),
            randn(48, dtype=dtype),
            randn(48, dtype=dtype, seed="b"),
        )
        image = randn(2, 6, 5, 7, dtype=dtype)
        w, b = randn(6, dtype=dtype), randn(6, dtype=dtype, seed="b")
        mean, variance = (
            randn(6, dtype=dtype, seed="m"),
            randn(6, dtype=dtype, seed="v").abs() + 0.1,
        )
        far = x + 30  # a mean far from 0: variance as E[x^2] - E[x]^2 would cancel
        operations = [
            ("layer_norm", lambda x, w, b: F.layer_norm(x, (48,), w, b), x, weight, bias),
            ("layer_norm_plain", lambda x: F.layer_norm(x, (48,), eps=1e-6), x),
            ("layer_norm_weight", lambda x, w: F.layer_norm(x, (48,), w), x, weight),
            ("layer_norm_far", lambda x: F.layer_norm(x, (48,)), far),
            ("rms_norm", lambda x, w: F.rms_norm(x, (48,), w, 1e-6), x, weight),
            ("rms_norm_plain", lambda x: F.rms_norm(x, (48,)), x),
            ("group_norm", lambda x, w, b: F.group_norm(x, 3, w, b), image, w, b),
            ("group_norm_plain", lambda x: F.group_norm(x, 2), image),
            (
                "batch_norm",
                lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b),
                image,
                mean,
                variance,
                w,
                b,
            ),
            (
                "batch_norm_plain",
                lambda x, m, v: F.batch_norm(x, m, v, eps=1e-3),
                image,
                mean,
                variance,
            ),
            ("instance_norm", lambda x, w, b: F.instance_norm(x, weight=w, bias=b), image, w, b),
            ("normalize", lambda x: F.normalize(x, dim=-1), x),
        ]
        kernels = ("layer_norm", "rms_norm")  # our own, in every dtype
        turn = {name for name, *_ in in_turns(operations, place)}
        for name, function, *inputs in operations:
            if name in turn or name.startswith(kernels):
                yield Case(f"{name}-{short(dtype)}", function, inputs, scale="tensor")
    x = randn(3, 5, 4, 6)
    for name, function, *inputs in [
        (
            "layer_norm_two_axes",
            lambda x, w, b: F.layer_norm(x, (4, 6), w, b),
            x,
            randn(4, 6),
            randn(4, 6, seed="b"),
        ),
        ("layer_norm_all", lambda x: F.layer_norm(x, x.shape), x),
        ("rms_norm_two_axes", lambda x, w: F.rms_norm(x, (4, 6), w), x, randn(4, 6)),
        ("layer_norm_transposed", lambda x: F.layer_norm(x, (6,)), strided(x, "transposed")),
        ("layer_norm_sliced", lambda x: F.layer_norm(x, (6,)), strided(x, "sliced")),
        ("layer_norm_one", lambda x: F.layer_norm(x[..., :1], (1,)), x),
        ("layer_norm_constant", lambda x: F.layer_norm(torch.ones_like(x), (6,)), x),
        ("layer_norm_empty", lambda x: F.layer_norm(x[:0], (6,)), x),
        (
            "layer_norm_channels",
            lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (5,)).permute(0, 3, 1, 2),
            x,
        ),
        ("group_norm_2d", lambda x: F.group_norm(x[..., 0, 0], 1), x),
        ("group_norm_3d", lambda x, w: F.group_norm(x[..., 0], 5, w), x, randn(5)),
        (
            "batch_norm_1d",
            lambda x, m, v: F.batch_norm(x[..., 0, 0], m, v),
            x,
            randn(5),
            randn(5).abs() + 0.1,
        ),
        (
            "standardised",
            lambda x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6),
            x,
        ),
        ("l2_norm", lambda x: x / x.norm(dim=-1, keepdim=True), x),
        ("half_weights", lambda x, w: F.layer_norm(x.bfloat16(), (6,), w.bfloat16()), x, randn(6)),
    ]:
        yield Case(name, function, inputs, scale="tensor")
    for dtype in (torch.bfloat16, torch.float16):
        # a widened copy of what is joined beside the joined: MAX 26.6's own kernels mix them up
        for name, norm in {"layer_norm": F.layer_norm, "rms_norm": F.rms_norm}.items():
            yield Case(
                f"{name}_joined-{short(dtype)}",
                lambda x, y, norm=norm: (
                    norm((e := torch.cat([y, x.cumsum(1)], 1)).float(), (6,)).to(x.dtype),
                    norm(e, (6,)),
                    e + 1,
                ),
                [randn(2, 16, 6, dtype=dtype), randn(2, 1, 6, dtype=dtype)],
                scale="tensor",
            )
    odd = randn(3, 6)
    odd[0, 0], odd[1, 1] = float("nan"), float("inf")
    yield Case("layer_norm-nan", lambda x: F.layer_norm(x, (6,)), [odd], scale="tensor")
    yield Case("rms_norm-nan", lambda x: F.rms_norm(x, (6,)), [odd], scale="tensor")
    tiny = randn(3, 6) * 1e-12
    yield Case("layer_norm-tiny", lambda x: F.layer_norm(x, (6,)), [tiny], scale="tensor")


def symbolic() -> Iterator[Case]:
    for name, function, inputs, shape in [
        (
            "layer_norm",
            lambda x, w: F.layer_norm(x, (48,), w),
            [randn(3, 5, 48), randn(48)],
            (2, 9, 48),
        ),
        (
            "layer_norm_width",
            lambda x: F.layer_norm(x, x.shape[-1:]),
            [randn(3, 5, 48)],
            (2, 9, 31),
        ),
        (
            "rms_norm",
            lambda x, w: F.rms_norm(x, (48,), w),
            [randn(3, 5, 48), randn(48)],
            (2, 9, 48),
        ),
        (
            "group_norm",
            lambda x, w: F.group_norm(x, 3, w),
            [randn(2, 6, 5, 7), randn(6)],
            (3, 6, 8, 4),
        ),
        (
            "batch_norm",
            lambda x, m: F.batch_norm(x, m, m.abs() + 1),
            [randn(2, 6, 5, 7), randn(6)],
            (3, 6, 8, 4),
        ),
        ("normalize", lambda x: F.normalize(x, dim=1), [randn(3, 5, 48)], (2, 9, 31)),
    ]:
        inputs = [inputs[0], *(torch.nn.Parameter(x, requires_grad=False) for x in inputs[1:])]
        others = [[randn(*shape), *inputs[1:]]]
        yield Case(f"{name}-dynamic", function, inputs, dynamic=True, others=others, scale="tensor")


CASES = grouped([*normalisations(), *symbolic()], 8)

test_normalization = comparison(CASES)
