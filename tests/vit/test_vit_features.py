"""The features that a model returns, their parts and their pytree."""

import pytest
import torch
from torch.utils import _pytree as pytree

from vit import ViTFeatures


@pytest.fixture
def dense():
    return torch.randn(2, 3 + 12, 8)


@pytest.fixture
def features(dense):
    return ViTFeatures(dense, 2, 1, (4, 3))


def test_parts(features, dense):
    assert features.dense_features is dense
    assert (features.num_register_tokens, features.num_cls_tokens) == (2, 1)
    assert torch.equal(features.cls_tokens, dense[:, :1])
    assert torch.equal(features.register_tokens, dense[:, 1:3])
    assert torch.equal(features.visual_tokens, dense[:, 3:])
    assert [torch.equal(a, b) for a, b in zip(features, dense.split([1, 2, 12], 1), strict=True)]
    cls, register, visual = features
    assert torch.equal(torch.cat([cls, register, visual], 1), dense)


def test_repr(features):
    assert repr(features) == (
        "ViTFeatures(cls_tokens=(2, 1, 8), register_tokens=(2, 2, 8), visual_tokens=(2, 12, 8))"
    )


def test_grid(features, dense):
    grid = features.visual_tokens_as_grid
    assert grid.shape == (2, 4, 3, 8)
    assert torch.equal(grid[:, 1, 2], dense[:, 3 + 5])
    volume = ViTFeatures(dense, 2, 1, [2, 2, 3])
    assert volume.tokenized_size == (2, 2, 3)
    assert volume.visual_tokens_as_grid.shape == (2, 2, 2, 3, 8)
    assert ViTFeatures(dense, 2, 1).tokenized_size is None
    with pytest.raises(ValueError, match="tokenized_size is not set"):
        _ = ViTFeatures(dense, 2, 1).visual_tokens_as_grid


def test_no_prefix_tokens(dense):
    f = ViTFeatures(dense, 0, 0)
    assert f.cls_tokens.shape == f.register_tokens.shape == (2, 0, 8)
    assert torch.equal(f.visual_tokens, dense)


def test_apply(features, dense):
    g = features.apply(lambda x: x.double() * 2)
    assert torch.equal(g.dense_features, dense.double() * 2)
    assert (g.num_register_tokens, g.num_cls_tokens, g.tokenized_size) == (2, 1, (4, 3))
    assert features.dense_features is dense


def test_from_separate_features(features):
    g = ViTFeatures.from_separate_features(*features, tokenized_size=(4, 3))
    assert torch.equal(g.dense_features, features.dense_features)
    assert (g.num_register_tokens, g.num_cls_tokens, g.tokenized_size) == (2, 1, (4, 3))


def test_pytree(features):
    leaves, spec = pytree.tree_flatten(features)
    assert len(leaves) == 1
    assert leaves[0] is features.dense_features
    again = pytree.tree_unflatten(leaves, pytree.treespec_loads(pytree.treespec_dumps(spec)))
    assert isinstance(again, ViTFeatures)
    assert (again.num_register_tokens, again.num_cls_tokens, again.tokenized_size) == (2, 1, (4, 3))
    doubled = pytree.tree_map(lambda x: x * 2, {"a": features})["a"]
    assert torch.equal(doubled.cls_tokens, features.cls_tokens * 2)
    [(path, _)], _ = pytree.tree_flatten_with_path(features)
    assert pytree.keystr(path) == ".dense_features"


def test_function_transforms(features):
    def scaled(x):
        return ViTFeatures(x, 2, 1, (4, 3)).apply(torch.sin)

    out = torch.func.vmap(scaled)(features.dense_features[None])
    assert torch.equal(out.dense_features[0], features.dense_features.sin())
