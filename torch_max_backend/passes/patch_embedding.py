"""conv(x).flatten(2).transpose(1, 2) of patches that do not overlap, as rows of patches.

The product of patches and weights lies so already; turning it to (N, width, *grid) and back copies
it twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_max_backend.passes import operators  # noqa: F401  defines patch_embedding

aten = torch.ops.aten


def keep_patches_in_rows(gm: GraphModule) -> None:
    """Replaces such a convolution, its flattening and its transposition by one operator."""
    replaced = False
    for convolution in gm.graph.find_nodes(op="call_function", target=aten.convolution.default):
        flattened = _only_user(convolution, aten.view.default)
        turned = _only_user(flattened, aten.permute.default, aten.transpose.int)
        if flattened is None or turned is None or not is_patches(convolution):
            continue
        shape = convolution.meta["val"].shape
        if not _turns(turned) or list(flattened.meta["val"].shape[:2]) != list(shape[:2]):
            continue
        replaced = True
        with gm.graph.inserting_before(turned):
            node = gm.graph.call_function(
                torch.ops.torch_max_backend.patch_embedding.default, convolution.args[:3]
            )
        node.meta = {**convolution.meta, "val": turned.meta["val"], "grid": shape[2:]}
        turned.replace_all_uses_with(node)
        for old in (turned, flattened, convolution):
            gm.graph.erase_node(old)
    if replaced:
        gm.recompile()


def _only_user(node: Node | None, *targets: Any) -> Node | None:
    users = list(node.users) if node is not None else []
    return users[0] if len(users) == 1 and users[0].target in targets else None


def is_patches(convolution: Node) -> bool:
    """Whether its windows do not overlap: a product, whose filters need no turning."""
    arguments: Any = convolution.args
    _, weight, _, stride, padding, dilation, transposed, _, groups = arguments
    kernel = list(weight.meta["val"].shape[2:])
    steps = list(stride) * (len(kernel) if len(stride) == 1 else 1)
    plain = groups == 1 and not transposed and not any(padding) and set(dilation) == {1}
    return plain and steps == kernel


def _turns(node: Node) -> bool:
    """Whether the node swaps the last two of three axes."""
    if node.meta["val"].ndim != 3:
        return False
    arguments: Any = node.args
    if node.target is aten.permute.default:
        return [d % 3 for d in arguments[1]] == [0, 2, 1]
    return {d % 3 for d in arguments[1:3]} == {1, 2}
