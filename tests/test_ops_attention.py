"""Scaled dot-product attention: masks, causality, groups, scales, widths, ranks, layouts, rotary
positions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tests.harness import FLOATS, Case, comparison, grouped, in_turns, randn, short
from vit.rope import apply_rope, rope_apply

attend = F.scaled_dot_product_attention


def qkv(*lead: int, l: int = 7, s: int = 9, e: int = 16, v: int = 16, dtype=torch.float32):
    return [
        randn(*lead, l, e, dtype=dtype, seed="q"),
        randn(*lead, s, e, dtype=dtype, seed="k"),
        randn(*lead, s, v, dtype=dtype, seed="v"),
    ]


def masks(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Bool masks keep at least the first key of every row; the last ones keep none in some rows."""
    keep = randn(2, 3, 7, 9, dtype=torch.bool, seed="mask")
    keep[..., 0] = True
    none = keep.clone()
    none[0, 1, 2], none[1, :, 4] = False, False
    bias = randn(2, 3, 7, 9, dtype=dtype, seed="bias")
    return {
        "bool": keep,
        "bool_keys": keep[:, :1, :1],
        "bool_2d": keep[0, 0],
        "bool_heads": keep[:1],
        "bool_empty_rows": none,
        "float": bias,
        "float_2d": bias[0, 0],
        "float_keys": bias[:, :1, :1],
        "float_infinite": bias.masked_fill(~keep, float("-inf")),
        "float_empty_rows": bias.masked_fill(~none, float("-inf")),
        "float_expanded": bias[:, :1].expand(2, 3, 7, 9),
    }


def dtypes() -> Iterator[Case]:
    for place, dtype in enumerate(FLOATS):
        inputs = qkv(2, 3, dtype=dtype)
        square = qkv(2, 3, s=7, dtype=dtype)
        yield Case(f"plain-{short(dtype)}", attend, inputs)
        yield Case(f"causal-{short(dtype)}", partial(attend, is_causal=True), square)
        for name, mask in in_turns(masks(dtype).items(), place):
            yield Case(f"mask_{name}-{short(dtype)}", attend, [*inputs, mask])
        grouped_keys = [square[0].repeat(1, 2, 1, 1), *square[1:]]
        yield Case(f"gqa-{short(dtype)}", partial(attend, enable_gqa=True), grouped_keys)


def variations() -> Iterator[Case]:
    table: list[tuple[str, Any, list[torch.Tensor]]] = [
        ("scale", partial(attend, scale=0.3), qkv(2, 3)),
        ("scale_one", partial(attend, scale=1.0), qkv(2, 3)),
        ("scale_negative", partial(attend, scale=-0.3), qkv(2, 3)),
        ("scale_zero", partial(attend, scale=0.0), qkv(2, 3, s=19)),
        (
            "scale_negative_mask",
            partial(attend, scale=-1.0),
            [*qkv(2, 3), masks(torch.float32)["float"]],
        ),
        ("causal_wide", partial(attend, is_causal=True), qkv(2, 3)),
        ("causal_tall", partial(attend, is_causal=True), qkv(2, 3, l=9, s=5)),
        ("value_width", attend, qkv(2, 3, v=24)),
        ("value_width_mask", attend, [*qkv(2, 3, v=5), masks(torch.float32)["bool"]]),
        ("width_1", attend, qkv(2, 3, e=1, v=1)),
        ("width_5", attend, qkv(2, 3, e=5, v=5)),
        ("width_64", attend, qkv(2, 3, l=33, s=33, e=64, v=64)),
        ("width_80", attend, qkv(1, 2, l=17, s=17, e=80, v=80)),
        ("width_128", attend, qkv(1, 2, e=128, v=128)),
        ("length_1", attend, qkv(2, 3, l=1)),
        ("keys_1", attend, qkv(2, 3, s=1)),
        ("length_197", attend, qkv(1, 2, l=197, s=197, e=32, v=32)),
        ("length_197_causal", partial(attend, is_causal=True), qkv(1, 1, l=197, s=197)),
        ("rank_2", attend, qkv()),
        ("rank_3", attend, qkv(4)),
        ("rank_5", attend, qkv(2, 2, 3)),
        ("rank_3_mask", attend, [*qkv(3), masks(torch.float32)["bool"][0]]),
        ("rank_5_mask", attend, [*qkv(2, 2, 3), masks(torch.float32)["bool"]]),
        ("rank_3_causal", partial(attend, is_causal=True), qkv(4, s=7)),
        ("broadcast_batch", attend, [*qkv(1, 3)[:1], *qkv(2, 3)[1:]]),
        ("broadcast_keys", attend, [*qkv(2, 3)[:1], *qkv(1, 1)[1:]]),
        ("empty_batch", attend, qkv(0, 3)),
        ("no_queries", attend, qkv(2, 3, l=0)),
        ("gqa_one_head", partial(attend, enable_gqa=True), [qkv(2, 4)[0], *qkv(2, 1)[1:]]),
        (
            "gqa_causal",
            partial(attend, enable_gqa=True, is_causal=True),
            [qkv(2, 6)[0], *qkv(2, 2, s=7)[1:]],
        ),
        (
            "gqa_mask",
            partial(attend, enable_gqa=True),
            [qkv(2, 6)[0], *qkv(2, 2)[1:], masks(torch.float32)["bool_keys"]],
        ),
        ("gqa_rank_3", partial(attend, enable_gqa=True), [qkv(6)[0], *qkv(2)[1:]]),
    ]
    in_half = ("value_width", "width_5", "length_197", "length_197_causal", "gqa_causal")
    for name, function, inputs in table:
        yield Case(name, function, inputs)
        if name in in_half:
            yield Case(f"{name}-bfloat16", function, [x.bfloat16() for x in inputs])
    large = [x * 30 for x in qkv(2, 3)]  # softmax saturates
    yield Case("large_scores", attend, large)
    huge = [x * 1e5 for x in qkv(2, 3)]  # the largest is to stay exactly 0 away from itself
    yield Case("huge_scores", partial(attend, scale=0.3), huge)
    odd = qkv(2, 3)
    odd[2][0, 0, 0, 0] = float("nan")  # in a query, PyTorch's kernel for float32 loses it
    yield Case("nan", attend, odd)


def layouts() -> Iterator[Case]:
    heads_last = [x.transpose(1, 2).contiguous() for x in qkv(2, 3)]

    def from_heads_last(q, k, v):
        return attend(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2).flatten(2)

    def from_packed(x):  # (B, L, 3 * H * E), as timm and vit project it
        q, k, v = x.unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4).unbind(0)
        return attend(q, k, v).transpose(1, 2).reshape(2, 7, 48)

    yield Case("heads_last", from_heads_last, heads_last)
    yield Case("packed", from_packed, [randn(2, 7, 144)])
    yield Case("packed-bfloat16", from_packed, [randn(2, 7, 144, dtype=torch.bfloat16)])
    yield Case("transposed_inputs", attend, [x.transpose(1, 2) for x in heads_last])
    yield Case("sliced_inputs", attend, [x[:, 1:, ::2, 4:12] for x in qkv(2, 3, l=8, s=12)])


def written() -> Iterator[Case]:
    """softmax(q @ k^T * scale + mask) @ v; see passes/written_attention.py."""

    def by_hand(q, k, v, mask=None):
        scores = (q * 0.25) @ k.mT
        return (scores if mask is None else scores + mask).softmax(-1) @ v

    def from_packed(x, mask):
        q, k, v = x.unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4).unbind(0)
        return by_hand(q, k, v, mask).transpose(1, 2).reshape(2, 7, 48)

    minus = torch.where(randn(1, 1, 7, 9, dtype=torch.bool), 0.0, -math.inf)
    minus[..., 3, :] = -math.inf  # no key: NaN, as softmax gives
    for dtype in (torch.float32, torch.bfloat16):
        inputs = qkv(2, 3, dtype=dtype)
        yield Case(f"written-{short(dtype)}", by_hand, inputs)
        yield Case(f"written-mask-{short(dtype)}", by_hand, [*inputs, minus.to(dtype)])
    lowest = torch.full((2, 1, 7, 9), torch.finfo(torch.float32).min)
    yield Case("written-lowest", by_hand, [*qkv(2, 3), lowest])
    yield Case("written-packed", from_packed, [randn(2, 7, 144), randn(3, 7, 7)])
    yield Case(
        "written-dynamic",
        by_hand,
        [*qkv(2, 3), randn(7, 9)],
        dynamic=True,
        others=[[*qkv(4, 5, l=12, s=3), randn(12, 3)]],
    )


def rotary() -> Iterator[Case]:
    """Queries and keys with rotary positions; see passes/rotary_embedding.py."""

    def angles(*shape: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        return [table.to(dtype) for table in (randn(*shape).sin(), randn(*shape).cos())]

    def both(q, k, v, sin, cos, *mask, causal=False):
        q, k = rope_apply(q, sin, cos), rope_apply(k, sin, cos)
        return attend(q, k, v, *mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])

    def queries(q, k, v, sin, cos):
        return attend(rope_apply(q, sin, cos), k, v)

    def keys(q, k, v, sin, cos):
        return attend(q, rope_apply(k, sin, cos), v)

    def values(q, k, v, sin, cos):
        return attend(rope_apply(q, sin, cos), k, rope_apply(v, sin, cos))

    def each(q, k, v, *tables):
        return attend(rope_apply(q, *tables[:2]), rope_apply(k, *tables[2:]), v)

    def last_tokens(q, k, v, sin, cos):
        rope = torch.stack([sin, cos])
        return attend(apply_rope(q, rope), apply_rope(k, rope), v)

    def from_packed(x, sin, cos):  # (B, L, 3 * H * E)
        q, k, v = x.unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4).unbind(0)
        return both(q, k, v, sin, cos).transpose(1, 2).flatten(2)

    def written(q, k, v, sin, cos):
        scores = rope_apply(q, sin, cos) @ rope_apply(k, sin, cos).mT * 0.25
        return scores.softmax(-1) @ v

    def returned(q, k, v, sin, cos):
        last = apply_rope(k, torch.stack([sin, cos])[:, 2:])
        return both(q, k, v, sin, cos), rope_apply(q, sin, cos), last

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        square = qkv(2, 3, s=7, dtype=dtype)
        yield Case(f"rotary-{short(dtype)}", both, [*square, *angles(7, 16, dtype=dtype)])
        few = angles(5, 16, dtype=dtype)
        yield Case(f"rotary-last_tokens-{short(dtype)}", last_tokens, [*square, *few])
    square = qkv(2, 3, s=7)
    table: list[tuple[str, Any, list[torch.Tensor]]] = [
        (
            "last_tokens_in_float32",
            last_tokens,
            [*map(torch.Tensor.bfloat16, square), *angles(5, 16)],
        ),
        ("queries", queries, [*qkv(2, 3), *angles(7, 16)]),
        ("keys", keys, [*qkv(2, 3), *angles(9, 16)]),
        ("values", values, [*square, *angles(7, 16)]),
        ("each", each, [*qkv(2, 3), *angles(7, 16), *angles(2, 1, 9, 16)]),
        ("of_a_batch", both, [*square, *angles(2, 1, 7, 16)]),
        ("of_a_head", both, [*square, *angles(3, 7, 16)]),
        ("of_a_batch_and_head", both, [*square, *angles(2, 3, 7, 16)]),
        ("mask", both, [*square, *angles(7, 16), randn(2, 1, 7, 7, dtype=torch.bool)]),
        ("causal", partial(both, causal=True), [*square, *angles(7, 16)]),
        ("gqa", both, [qkv(2, 6)[0], *qkv(2, 2, s=7)[1:], *angles(7, 16)]),
        ("width_2", both, [*qkv(2, 3, s=7, e=2), *angles(7, 2)]),
        ("width_42", both, [*qkv(2, 3, s=7, e=42), *angles(7, 42)]),
        ("length_197", both, [*qkv(1, 2, l=197, s=197, e=64, v=64), *angles(197, 64)]),
        ("packed", from_packed, [randn(2, 7, 144), *angles(7, 16)]),
        ("written", written, [*square, *angles(7, 16)]),
        ("returned", returned, [*square, *angles(7, 16)]),
        ("sliced", both, [*(x[:, 1:, ::2, 4:12] for x in qkv(2, 4, l=13, s=13)), *angles(7, 8)]),
    ]
    for name, function, inputs in table:
        yield Case(f"rotary-{name}", function, inputs)
        if name in ("length_197", "width_42", "mask"):
            half = [x if x.dtype == torch.bool else x.bfloat16() for x in inputs]
            yield Case(f"rotary-{name}-bfloat16", function, half)
    yield Case(
        "rotary-dynamic",
        from_packed,
        [randn(2, 7, 144), *angles(7, 16)],
        dynamic=True,
        others=[[randn(3, 12, 144), *angles(12, 16)]],
    )


def symbolic() -> Iterator[Case]:
    table: list[tuple[str, Any, list[torch.Tensor], list[torch.Tensor]]] = [
        ("plain", attend, qkv(2, 3), qkv(4, 5, l=12, s=3)),
        ("causal", partial(attend, is_causal=True), qkv(2, 3, s=7), qkv(4, 5, l=12, s=12)),
        (
            "mask",
            attend,
            [*qkv(2, 3), masks(torch.float32)["bool"]],
            [*qkv(3, 4, l=5, s=6), randn(3, 4, 5, 6, dtype=torch.bool)],
        ),
        ("rank_3", attend, qkv(4), qkv(5, l=3, s=4)),
    ]
    for name, function, inputs, others in table:
        for dtype in (torch.float32, torch.bfloat16):
            kinds = [
                [x.to(dtype) if x.is_floating_point() else x for x in y] for y in (inputs, others)
            ]
            yield Case(
                f"{name}-dynamic-{short(dtype)}", function, kinds[0], dynamic=True, others=kinds[1:]
            )


def modules() -> Iterator[Case]:
    """The operators of nn.MultiheadAttention and nn.TransformerEncoderLayer at inference."""
    hidden = torch.zeros(3, 7, dtype=torch.bool)
    hidden[0, 5:] = hidden[2, 1:3] = True
    causal = torch.ones(7, 7, dtype=torch.bool).triu(1)
    table: dict[str, tuple[torch.Tensor | None, int | None]] = {
        "plain": (None, None),
        "causal": (causal, 0),
        "padded": (hidden, 1),
        "infinite": (torch.where(hidden, -math.inf, 0.0), 1),
        "both": (causal | hidden[:, None, None].expand(3, 2, 7, 7), 2),
    }
    sizes = [(48, 16), (48,), (16, 16), (16,), *[(16,)] * 4, (32, 16), (32,), (16, 32), (16,)]
    for name, (mask, kind) in table.items():
        for dtype in (torch.float32, torch.bfloat16) if name == "plain" else (torch.float32,):
            x = randn(3, 7, 16, dtype=dtype)
            weights = [
                randn(*size, dtype=dtype, seed=f"{place}", scale=0.3)
                for place, size in enumerate(sizes)
            ]
            for gelu, norm_first in ((True, True), (False, False)):
                yield Case(
                    f"encoder_layer-{name}-{gelu}-{norm_first}-{short(dtype)}",
                    partial(encoder_layer, gelu, norm_first, kind),
                    [x, mask, *weights],
                    thorough=name not in ("plain", "both"),
                )
            for needed, average in ((True, True), (True, False), (False, False)):
                yield Case(
                    f"multi_head-{name}-{needed}-{average}-{short(dtype)}",
                    partial(multi_head, needed, average, kind),
                    [x, x, x, mask, *weights[:4]],
                    thorough=average if name == "padded" else not average,
                )
    others = [randn(3, 7, 16, seed=name) for name in "qkv"]
    weights = [randn(*size, seed=f"{place}", scale=0.3) for place, size in enumerate(sizes[:4])]
    function = partial(multi_head, False, False, None)
    yield Case("multi_head-three_inputs", function, [*others, None, *weights])


def functions() -> Iterator[Case]:
    """What nn.MultiheadAttention calls else."""
    weights = [
        randn(*size, seed=f"{place}", scale=0.3)
        for place, size in enumerate([(48, 16), (48,), (16, 16), (16,)])
    ]
    x, keys = randn(7, 3, 16), randn(9, 3, 16)
    hidden = torch.zeros(3, 7, dtype=torch.bool)
    hidden[0, 5:] = hidden[2, 1:3] = True
    causal = torch.ones(7, 7, dtype=torch.bool).triu(1)
    bias, biases = randn(7, 7, seed="bias"), randn(6, 7, 7, seed="biases")
    table: dict[str, dict[str, Any]] = {
        "self": {},
        "hint": {"attn_mask": causal, "is_causal": True},
        "hint_padded": {"attn_mask": causal, "is_causal": True, "key_padding_mask": hidden},
        "bool": {"attn_mask": causal},
        "float": {"attn_mask": bias},
        "heads": {"attn_mask": biases},
        "padded": {"key_padding_mask": hidden},
        "both": {"attn_mask": causal, "key_padding_mask": hidden},
        "float_and_bool": {"attn_mask": bias, "key_padding_mask": hidden},
        "bool_and_float": {"attn_mask": causal, "key_padding_mask": randn(3, 7, seed="keys")},
    }
    for name, settings in table.items():
        arguments = list(settings.values())
        function = partial(forward, list(settings), False)
        yield Case(
            f"forward-{name}",
            function,
            [x, x, x, *weights, *arguments],
            thorough=name in ("self", "bool", "float", "padded"),
        )
    function = partial(forward, [], False)
    half = [tensor.bfloat16() for tensor in (x, x, x, *weights)]
    yield Case("forward-bfloat16", function, half)
    yield Case("forward-three_inputs", function, [x, keys, randn(9, 3, 16, seed="v"), *weights])
    yield Case(
        "forward-without_bias", function, [x, keys, keys, weights[0], None, weights[2], None]
    )
    yield Case("forward-one_image", function, [x[:, 0], x[:, 0], x[:, 0], *weights])
    yield Case("forward-weights", partial(forward, [], True), [x, x, x, *weights])
    yield Case(
        "forward-dynamic",
        function,
        [x, keys, keys, *weights],
        dynamic=True,
        others=[[randn(5, 4, 16), *[randn(11, 4, 16)] * 2, *weights]],
    )


def forward(names, needed, q, k, v, weight, bias, out_weight, out_bias, *arguments):
    out, found = F.multi_head_attention_forward(
        *(q, k, v, 16, 2, weight, bias, None, None, False, 0.0, out_weight, out_bias),
        need_weights=needed,
        **dict(zip(names, arguments, strict=True)),
    )
    return (out, found) if needed else out


def encoder_layer(gelu, norm_first, kind, x, mask, *weights):
    return torch._transformer_encoder_layer_fwd(
        x, 16, 2, *weights[:4], gelu, norm_first, 1e-5, *weights[4:], mask, kind
    )


def multi_head(needed, average, kind, q, k, v, mask, *weights):
    out, found = torch._native_multi_head_attention(
        q, k, v, 16, 2, *weights, mask, needed, average, kind
    )
    return (out, found) if needed else out


CASES = grouped(
    [
        Case(**{**case.__dict__, "scale": "tensor"})
        for case in [
            *dtypes(),
            *variations(),
            *layouts(),
            *written(),
            *rotary(),
            *modules(),
            *functions(),
            *symbolic(),
        ]
    ],
    6,
)

test_attention = comparison(CASES)
