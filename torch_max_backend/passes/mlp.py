"""The multilayer perceptron of a transformer's block as one kernel on CPU: a norm, a linear layer
with its activation, another linear layer, the residual connection. A kernel for each takes longer
where a model is small and rows are few."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from torch_max_backend.passes.residual_branch import (
    have_sizes,
    norm_of,
    replace,
    residual_branches,
    source_of,
)

ours = torch.ops.torch_max_backend


def fuse_mlp(gm: GraphModule) -> None:
    """Replaces x + layer(activated layer(norm(x))) where nothing else uses what is in between."""
    fused = False
    for branch in residual_branches(gm):
        hidden = source_of(branch.input)
        if hidden is None or hidden.target is not ours.linear_activation.default:
            continue
        input, weight, bias = hidden.args
        normalized = source_of(input)  # type: ignore[arg-type]
        norm = norm_of(normalized) if normalized is not None else None
        if norm is None or norm.x is not branch.x:
            continue
        columns, features = norm.x.meta["val"].shape[-1], hidden.meta["val"].shape[-1]
        if not have_sizes((weight, features, columns), (branch.weight, columns, features)):
            continue
        replace(
            gm,
            branch,
            ours.mlp.default,
            *(norm.x, norm.gain, norm.shift, norm.eps),
            *(weight, bias, branch.weight, branch.bias, branch.scale),
            activation=hidden.kwargs["activation"],
            centred=norm.centred,
        )
        fused = True
    if fused:
        gm.graph.eliminate_dead_code()
        gm.recompile()
