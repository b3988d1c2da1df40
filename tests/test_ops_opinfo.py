"""The samples of PyTorch's own operator tests (OpInfo) for the ops of the table.

op_db takes seconds to import, so what is tested is listed here and the samples are made in the
batch; :func:`test_every_entry_is_listed` holds the list against op_db and the table.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from tests.harness import Case, comparison, grouped
from torch_max_backend.registry import overloads

LARGEST = 20_000  # elements of a sample

FLOATING = """
    acos addcdiv addcmul addmm addmm.decomposed addmv atanh baddbmm bmm cos cumsum einsum erf
    exp exp2 expm1 index_put lerp linalg.vector_norm log log10 log1p log2 log_softmax logit
    logsumexp mean mm mv native_group_norm native_layer_norm nn.functional.conv1d
    nn.functional.conv2d nn.functional.conv3d nn.functional.conv_transpose1d
    nn.functional.conv_transpose2d nn.functional.conv_transpose3d nn.functional.elu
    nn.functional.embedding nn.functional.gelu nn.functional.group_norm
    nn.functional.hardsigmoid nn.functional.hardswish nn.functional.layer_norm
    nn.functional.leaky_relu nn.functional.linear nn.functional.logsigmoid nn.functional.mish
    nn.functional.rms_norm nn.functional.silu nn.functional.softplus nn.functional.softsign
    nn.functional.tanhshrink norm outer reciprocal rsqrt sigmoid sin softmax sqrt std tan tanh
    true_divide var var.unbiased var_mean var_mean.unbiased xlogy
"""
NUMBERS = """
    abs add amax amin arange argmax argmin as_strided ceil clamp clamp_max clamp_min
    constant_pad_nd div.floor_rounding div.no_rounding_mode div.trunc_rounding floor
    floor_divide fmod full_like ge gt le lt max.binary max.reduction_no_dim
    max.reduction_with_dim maximum min.binary min.reduction_no_dim min.reduction_with_dim
    minimum mul neg nn.functional.hardtanh nn.functional.pad.constant nn.functional.relu
    nn.functional.relu6 pow prod remainder round rsub scalar_tensor scatter_add sign sort square
    sub sum topk tril triu trunc
"""
ONLY_HERE = """
    addcdiv addcmul bitwise_and bitwise_not bitwise_or bitwise_xor constant_pad_nd empty
    empty_like linalg.vector_norm logit native_group_norm native_layer_norm
    nn.functional.pad.constant nn.functional.softsign nn.functional.tanhshrink split_with_sizes
    true_divide xlogy
"""
"""Entries of which no other file has cases."""
BOOLS = "bitwise_and bitwise_not bitwise_or bitwise_xor"
ANYTHING = """
    all any cat chunk clone diagonal empty empty_like eq expand flip full gather index_select
    isinf isnan logical_and logical_not logical_or logical_xor masked_fill movedim narrow ne
    nonzero permute repeat roll scatter select select_scatter slice slice_scatter
    split_with_sizes squeeze squeeze.multiple stack tile unfold unsqueeze view where
"""


@cache
def entries() -> dict[str, Any]:
    """OpInfo entries by name and variant."""
    from torch.testing._internal.common_methods_invocations import op_db

    return {
        op.name + (f".{op.variant_test_name}" if op.variant_test_name else ""): op for op in op_db
    }


def sample(name: str, dtype: torch.dtype, place: float) -> tuple[Callable[..., Any], list[Any]]:
    """A function of the tensors of one of an entry's samples, and these tensors.

    Args:
        place: which of the samples, from 0 (the first) to below 1.
    """
    torch.manual_seed(zlib.crc32(name.encode()))
    op = entries()[name].op
    found = list(itertools.islice(_small(entries()[name].sample_inputs("cpu", dtype)), 40))
    leaves, spec = found[int(place * len(found))]
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def function(*values: Any) -> Any:
        filled = list(leaves)
        for i, value in zip(tensors, values, strict=True):
            filled[i] = value
        args, kwargs = tree_unflatten(filled, spec)
        return op(*args, **kwargs)

    return function, [leaves[i] for i in tensors]


def _small(found: Iterator[Any]) -> Iterator[tuple[list[Any], Any]]:
    for sample in found:
        leaves, spec = tree_flatten(((sample.input, *sample.args), sample.kwargs))
        if sum(x.numel() for x in leaves if isinstance(x, torch.Tensor)) <= LARGEST:
            yield leaves, spec


UNINITIALISED = ("empty", "empty_like")
UNLISTED = {
    "_native_batch_norm_legit": "its samples update running statistics in place",
    "as_strided.partial_views": "as_strided of a tensor that is not contiguous is refused",
    "bernoulli": "random; test_runtime.py compares the statistics",
    "bmm.triton_optimized": "the samples of bmm, for CUDA",
    "nn.functional.silu.complex": "MAX has no complex numbers",
    "nn.functional.unfold": "im2col; the operator unfold is the entry unfold",
    "rand_like": "random; test_runtime.py compares the statistics",
    "randn": "random; test_runtime.py compares the statistics",
    "randn_like": "random; test_runtime.py compares the statistics",
    "round.decimals_0": "round.decimals is not in the table",
    "round.decimals_3": "round.decimals is not in the table",
    "round.decimals_neg_3": "round.decimals is not in the table",
}
"""Entries of operators in the table whose samples are left out, and why."""


def cases() -> Iterator[Case]:
    for names, dtypes in [
        (FLOATING, [torch.float32, torch.bfloat16]),
        (NUMBERS, [torch.float32, torch.int64]),
        (BOOLS, [torch.bool]),
        (ANYTHING, [torch.float32, torch.bool]),
    ]:
        for i, name in enumerate(names.split()):
            turn = i % len(dtypes)  # each dtype takes other entries, and another sample
            dtype = dtypes[turn]
            kind = str(dtype).removeprefix("torch.")
            yield Case(
                f"{name}-{kind}",
                None,
                make=partial(sample, name, dtype, turn / len(dtypes)),
                scale="tensor",
                layout_only=name in UNINITIALISED,
                thorough=name not in ONLY_HERE.split(),
            )


CASES = grouped(list(cases()), 6)

test_opinfo = comparison(CASES)


def test_every_entry_is_listed() -> None:
    """No entry of an operator in the table is forgotten, and none is listed in vain."""
    listed = set(" ".join([FLOATING, NUMBERS, BOOLS, ANYTHING]).split())
    assert set(ONLY_HERE.split()) <= listed <= entries().keys()
    lowered = {str(overload.overloadpacket).split(".")[-1] for overload in overloads()}
    reached = {
        name
        for name, op in entries().items()
        if {op.aten_name, op.name.removeprefix("nn.functional.")} & lowered
    }
    assert reached - listed == UNLISTED.keys()
