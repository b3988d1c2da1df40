"""What MAX fuses in a transformer's graph, read from the compiled model's list of kernels."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_max_backend import pipeline, warm_start
from torch_max_backend.executable import CompiledGraph
from vit.rope import rope_apply


class Block(nn.Module):
    """Patches, then attentions, PyTorch's module for it, and an MLP, pre-normalised both ways. The
    attentions share queries, so that they are no kernel with what is around them."""

    def __init__(self, width: int = 48, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.module = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(
        self, images: torch.Tensor, mask: torch.Tensor, *angles: torch.Tensor
    ) -> torch.Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        q, k, v = (t.reshape(split).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        plain = F.scaled_dot_product_attention(q, k, v)
        rotated = F.scaled_dot_product_attention(*(rope_apply(x, *angles) for x in (q, k)), v)
        masked = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        attended = (plain + rotated + masked).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(attended)
        y = self.norm1(x)
        x = x + self.module(y, y, y, need_weights=False)[0]
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


@pytest.fixture(scope="module")
def kernels() -> list[list[str]]:
    """The MAX operators of each fused kernel, in order."""
    torch._dynamo.reset()
    graphs: list[CompiledGraph] = []
    original = pipeline.compile_graph

    def record(*args, **kwargs) -> CompiledGraph:  # type: ignore[no-untyped-def]
        graphs.append(original(*args, **kwargs))
        return graphs[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "compile_graph", record)
        patch.setattr(warm_start, "find", lambda key: None)  # traced in every process
        model = Block().eval()
        compiled = torch.compile(model, backend="max", fullgraph=True)
        inputs = [torch.randn(2, 3, 32, 32), torch.rand(16, 16) > 0.3]
        inputs += [torch.rand(16, 16).sin(), torch.rand(16, 16).cos()]
        with torch.no_grad():
            torch.testing.assert_close(compiled(*inputs), model(*inputs))
    (graph,) = graphs
    summaries = [str(kernel) for kernel in graph.model.kernel_summaries]
    pattern = r"(?<![a-z.])mo\.[\w.]+|torch_max_backend\.\w+"
    found = [re.findall(pattern, text) for text in summaries]
    return [names for names in found if names]


def _with(kernels: list[list[str]], name: str) -> list[list[str]]:
    return [names for names in kernels if any(name in operator for operator in names)]


def test_attention_is_one_kernel(kernels: list[list[str]]) -> None:
    assert len(_with(kernels, "torch_max_backend.attention")) == 4
    assert not _with(kernels, "softmax")
    assert not _with(kernels, "batch_matmul")


def test_attention_rotates_queries_and_keys(kernels: list[list[str]]) -> None:
    assert not _with(kernels, "mo.neg")
    assert not _with(kernels, "concat")


def test_bias_and_residual_join_their_matmul(kernels: list[list[str]]) -> None:
    assert not _with(kernels, "mo.matmul")
    matmuls = [names for names in kernels if "torch_max_backend.linear" in names]
    assert len(matmuls) == 5  # patches, qkv, out, two of the module
    assert all("mo.add" in names for names in matmuls)


def test_an_mlp_is_one_kernel(kernels: list[list[str]]) -> None:
    assert _with(kernels, "torch_max_backend.mlp") == [["torch_max_backend.mlp"]]
    assert not _with(kernels, "gelu")
    assert not _with(kernels, "biased_linear")


def test_patch_embedding_is_a_matmul(kernels: list[list[str]]) -> None:
    assert not _with(kernels, "conv")


def test_a_graph_begins_with_a_kernel_of_this_project(kernels: list[list[str]]) -> None:
    """With MAX's own copy the thread that calls would sleep twice: kernels/permutation.mojo."""
    assert kernels[0] == ["torch_max_backend.permute"]


def test_norms_are_kernels_without_their_statistics(kernels: list[list[str]]) -> None:
    assert len(_with(kernels, "torch_max_backend.layer_norm")) == 2
    assert not _with(kernels, "rms_norm")  # in the MLP
    assert not _with(kernels, "reduce.mean")


def test_weights_are_read_as_they_lie(kernels: list[list[str]]) -> None:
    """Weights, queries, keys and values go in as they are.

    What is moved: patches to (batch, width, length), the sum of the attentions.
    """
    assert len(_with(kernels, "torch_max_backend.permute")) == 1  # the image to patches
    moved = [names for names in kernels if names[-1] in ("mo.transpose", "mo.slice", "mo.split")]
    assert len(moved) <= 2, moved
