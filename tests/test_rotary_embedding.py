"""The pass that finds rotary position embeddings: where it does, and where not. No compile; the
numbers are compared in test_ops_attention.py and test_models_vit.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.tracing import trace
from vit import ViT, ViTConfig
from vit.rope import apply_rope, rope_apply, rope_rotate_half

FOUND = torch.ops.torch_max_backend.rotary_embedding.default
BATCH, HEADS, LENGTH, WIDTH = 2, 3, 6, 8


def found(function, *args, **kwargs):
    return trace(function, *args, **kwargs).graph.find_nodes(op="call_function", target=FOUND)


def operands(dtype=torch.float32):
    """x, sin and cos."""
    table = [torch.randn(LENGTH, WIDTH, dtype=dtype) for _ in range(2)]
    return [torch.randn(BATCH, HEADS, LENGTH, WIDTH, dtype=dtype), *table]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dynamic", [False, True])
def test_every_block_of_a_vit(dynamic, dtype):
    config = ViTConfig(3, [4, 4], [16, 16], 2, 32, 24, 2, num_cls_tokens=1, dtype=dtype)
    images = torch.randn(2, 3, 16, 16, dtype=dtype)
    gm = trace(ViT(config).eval(), images, dynamic=dynamic)
    nodes = gm.graph.find_nodes(op="call_function", target=FOUND)
    assert [node.args[3] for node in nodes] == [0] * 4
    assert not gm.graph.find_nodes(op="call_function", target=torch.ops.aten.neg.default)


def sliced(x, sin, cos):
    """As GPT-NeoX and Llama write it."""
    half = x.shape[-1] // 2
    return cos * x + sin * torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def of_every_batch(x, sin, cos):
    return rope_apply(x, *(table.expand(BATCH, 1, LENGTH, WIDTH) * 2 for table in (sin, cos)))


def heads_last(x, sin, cos):
    """Queries as they lie behind a projection."""
    x = x.transpose(1, 2).flatten(2) * 2
    return rope_apply(x.unflatten(2, (HEADS, WIDTH)).transpose(1, 2), sin, cos)


@pytest.mark.parametrize("function", [rope_apply, sliced, of_every_batch, heads_last])
def test_other_ways_to_write_it(function):
    assert len(found(function, *operands())) == 1


def wide(x, sin, cos):
    return rope_apply(x.float(), sin.float(), cos.float()).to(x.dtype)


def test_casts_around_it_are_part_of_it():
    gm = trace(wide, *operands(torch.bfloat16))
    (node,) = gm.graph.find_nodes(op="call_function", target=FOUND)
    assert node.args[0].meta["val"].dtype == node.meta["val"].dtype == torch.bfloat16


def last_tokens(x, sin, cos):
    return apply_rope(x, torch.stack([sin, cos])[:, 2:])


def last_tokens_in_float32(x, sin, cos):
    return apply_rope(x, torch.stack([sin, cos])[:, 2:].float())


def split_tokens(x, sin, cos):
    """As DINOv3 in transformers."""
    first, rest = x.split((2, LENGTH - 2), dim=-2)
    return torch.cat((first, rope_apply(rest, sin[2:], cos[2:])), dim=-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", [last_tokens, last_tokens_in_float32, split_tokens])
def test_the_last_tokens(function, dtype):
    gm = trace(function, *operands(dtype))
    (node,) = gm.graph.find_nodes(op="call_function", target=FOUND)
    assert node.args[3] == 2
    assert node.meta["val"].shape == (BATCH, HEADS, LENGTH, WIDTH)


@pytest.mark.parametrize("function", [rope_apply, sliced, heads_last, split_tokens])
def test_the_eager_answer_of_background_mode_is_the_same(function):
    inputs = operands()
    inputs[0] = inputs[0].transpose(1, 2).contiguous().transpose(1, 2)
    gm = trace(lambda x, sin, cos: function(x + 0, sin + 0, cos + 0), *inputs)
    assert gm.graph.find_nodes(op="call_function", target=FOUND)
    got, expected = gm(*inputs)[0], function(*inputs)
    torch.testing.assert_close(got, expected)
    assert got.stride() == expected.stride()


def interleaved(x, sin, cos):
    pairs = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * cos + pairs * sin


def thirds(x, sin, cos):
    x = F.pad(x, (0, 1))
    return x * F.pad(cos, (0, 1)) + torch.cat([-x[..., 3:], x[..., :3]], -1) * F.pad(sin, (0, 1))


ELSEWHERE = {
    "not turned": lambda x, sin, cos: x * cos + torch.cat([-x[..., :4], x[..., 4:]], -1) * sin,
    "not negated": lambda x, sin, cos: x * cos + torch.cat([x[..., 4:], x[..., :4]], -1) * sin,
    "the other way": lambda x, sin, cos: x * cos + torch.cat([x[..., 4:], -x[..., :4]], -1) * sin,
    "both negated": lambda x, sin, cos: -rope_rotate_half(x) * sin + x * cos,
    "halves of something else": lambda x, sin, cos: x * cos + rope_rotate_half(x + 1) * sin,
    "parts of other sizes": thirds,
    "pairs beside each other": interleaved,
    "along another axis": lambda x, sin, cos: (
        x * cos + torch.cat([-x[:, :, 3:], x[:, :, :3]], -2) * sin
    ),
    "summed the other way": lambda x, sin, cos: rope_rotate_half(x) * sin + x * cos,
    "subtracted": lambda x, sin, cos: x * cos - rope_rotate_half(x) * sin,
    "scaled": lambda x, sin, cos: torch.add(x * cos, rope_rotate_half(x) * sin, alpha=2),
    "one angle for all rows": lambda x, sin, cos: rope_apply(x, sin[0], cos[0]),
    "tables of other shapes": lambda x, sin, cos: rope_apply(x, sin, cos[None, None, :1] * 1),
    "three axes": lambda x, sin, cos: rope_apply(x[0], sin, cos),
    "float64": lambda x, sin, cos: rope_apply(x.double(), sin.double(), cos.double()),
    "tables in float64": lambda x, sin, cos: rope_apply(x, sin.double(), cos.double()),
    "tables that widen": lambda x, sin, cos: rope_apply(x.bfloat16(), sin, cos),
}


@pytest.mark.parametrize("why", ELSEWHERE)
def test_others_are_left_alone(why):
    assert not found(ELSEWHERE[why], *operands())


def test_rows_of_a_width_that_only_a_run_tells():
    assert not found(rope_apply, *operands(), dynamic=True)


def test_rotated_on_gpu_as_written():
    assert not found(rope_apply, *operands(), on_gpu=True)


def narrowing(x, sin, cos):
    return rope_apply(x.bfloat16(), sin.bfloat16(), cos.bfloat16()).to(x.dtype)


def test_a_cast_that_loses_digits_stays():
    (node,) = found(narrowing, *operands())
    assert node.args[0].meta["val"].dtype == node.meta["val"].dtype == torch.bfloat16


FIRST_TOKENS_ELSEWHERE = {
    "of other queries": lambda x, sin, cos: torch.cat(
        [x[:, :, :2] * 2, rope_apply(x[:, :, 2:], sin[2:], cos[2:])], 2
    ),
    "not those before": lambda x, sin, cos: torch.cat(
        [x[:, :, 1:3], rope_apply(x[:, :, 2:], sin[2:], cos[2:])], 2
    ),
    "rotated tokens first": lambda x, sin, cos: torch.cat(
        [rope_apply(x[:, :, :4], sin[:4], cos[:4]), x[:, :, 4:]], 2
    ),
    "with others after": lambda x, sin, cos: torch.cat(
        [x[:, :, :2], rope_apply(x[:, :, 2:5], sin[2:5], cos[2:5]), x[:, :, 5:]], 2
    ),
    "not all that are left": lambda x, sin, cos: torch.cat(
        [x[:, :, :2], rope_apply(x[:, :, 2:5], sin[2:5], cos[2:5])], 2
    ),
    "beside each other": lambda x, sin, cos: torch.cat(
        [x[:, :, 2:], rope_apply(x[:, :, 2:], sin[2:], cos[2:])], 3
    ),
    "used twice": lambda x, sin, cos: (
        torch.cat([x[:, :, :2], y := rope_apply(x[:, :, 2:], sin[2:], cos[2:])], 2),
        y,
    ),
}


@pytest.mark.parametrize("why", FIRST_TOKENS_ELSEWHERE)
def test_other_joined_tokens_stay_joined(why):
    (node,) = found(FIRST_TOKENS_ELSEWHERE[why], *operands())
    assert node.args[3] == 0
