"""The pass that drops assertions of dtypes: what it takes and what it leaves. No compile."""

from __future__ import annotations

import torch

from torch_max_backend.passes.tensor_assertions import drop_tensor_assertions

METADATA = torch.ops.aten._assert_tensor_metadata.default
SCALAR = torch.ops.aten._assert_scalar.default


class Cast(torch.nn.Module):
    def forward(self, x, size):
        count = size.item()
        torch._check(count > 1)
        return (x * 2).to(torch.float32) + count


def test_assertions_of_dtypes_go_and_those_of_values_stay():
    program = torch.export.export(Cast(), (torch.randn(3), torch.tensor(5)))
    gm = program.run_decompositions({}).graph_module
    kept = len(gm.graph.find_nodes(op="call_function", target=SCALAR))
    assert kept and gm.graph.find_nodes(op="call_function", target=METADATA)
    drop_tensor_assertions(gm)
    assert not gm.graph.find_nodes(op="call_function", target=METADATA)
    assert len(gm.graph.find_nodes(op="call_function", target=SCALAR)) == kept
