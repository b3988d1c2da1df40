"""What is done to an AOTAutograd graph before it is lowered: one pass a file, in this order."""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import GraphModule

from torch_max_backend.options import MaxOptions
from torch_max_backend.passes.constant_folding import fold_constants
from torch_max_backend.passes.few_queries import attend_to_inputs
from torch_max_backend.passes.gated_linear import fuse_gated_linear
from torch_max_backend.passes.linear_activation import fuse_linear_activation
from torch_max_backend.passes.mlp import fuse_mlp
from torch_max_backend.passes.nested_regions import inline_nested_regions
from torch_max_backend.passes.patch_embedding import keep_patches_in_rows
from torch_max_backend.passes.rotary_embedding import fuse_rotary_embedding
from torch_max_backend.passes.row_quantization import fuse_row_quantization
from torch_max_backend.passes.self_attention import fuse_self_attention
from torch_max_backend.passes.signed_int_mm import sign_int_mm
from torch_max_backend.passes.swish import fuse_swish
from torch_max_backend.passes.tensor_assertions import drop_tensor_assertions
from torch_max_backend.passes.unread_rows import drop_unread_rows
from torch_max_backend.passes.written_attention import fuse_written_attention

PASSES: tuple[Callable[[GraphModule], None], ...] = (
    inline_nested_regions,
    drop_tensor_assertions,
    fold_constants,
    fuse_written_attention,
    fuse_rotary_embedding,
    fuse_swish,
    drop_unread_rows,
    attend_to_inputs,
    fuse_gated_linear,
    fuse_linear_activation,
    fuse_mlp,
    fuse_self_attention,
    keep_patches_in_rows,
    fuse_row_quantization,
    sign_int_mm,
)


def run_passes(gm: GraphModule, settings: MaxOptions | None = None) -> None:
    """Changes the graph in place.

    Raises:
        MaxBackendError: see the passes.
    """
    composed = settings is not None and settings.attention == "composed"
    for rewrite in PASSES:
        if not (composed and rewrite is fuse_self_attention):
            rewrite(gm)
