"""ViTConfig: fields, what it refuses, YAML."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import yaml

import vit
from vit import (
    AttentivePoolHeadConfig,
    HeadConfig,
    TransposedConv2dHeadConfig,
    UpsampleHeadConfig,
    ViTConfig,
)

HEADS = {
    "cls": HeadConfig(out_features=10, dropout=0.25),
    "pool": AttentivePoolHeadConfig(out_features=7, num_queries=3),
    "seg": TransposedConv2dHeadConfig(out_features=2, stride=4),
    "up": UpsampleHeadConfig(out_features=2, hidden_features=[8, 4], num_upsample_stages=3),
}

FIELDS_AND_DEFAULTS = {
    "in_channels": dataclasses.MISSING,
    "patch_size": dataclasses.MISSING,
    "img_size": dataclasses.MISSING,
    "depth": dataclasses.MISSING,
    "hidden_size": dataclasses.MISSING,
    "ffn_hidden_size": dataclasses.MISSING,
    "num_attention_heads": dataclasses.MISSING,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "attention_bias": True,
    "mlp_bias": True,
    "activation": "srelu",
    "drop_path_rate": 0.0,
    "num_register_tokens": 0,
    "num_cls_tokens": 0,
    "pos_enc": "rope",
    "layer_scale": None,
    "glu_limit": None,
    "glu_extra_bias": None,
    "rope_normalize_coords": "separate",
    "rope_base": 100,
    "rope_shift_coords": None,
    "rope_jitter_coords": None,
    "rope_rescale_coords": None,
    "mlp_requires_grad": True,
    "self_attention_requires_grad": True,
    "activation_checkpointing": False,
    "dtype": torch.bfloat16,
    "norm_type": "rmsnorm",
    "qk_normalization": False,
    "patch_embed_normalization": False,
    "heads": dataclasses.MISSING,
}


def test_fields_order_and_defaults():
    assert {f.name: f.default for f in dataclasses.fields(ViTConfig)} == FIELDS_AND_DEFAULTS
    assert [f.name for f in dataclasses.fields(ViTConfig)] == list(FIELDS_AND_DEFAULTS)
    assert ViTConfig(3, (16, 16), (32, 32), 1, 32, 32, 2).heads == {}


def test_frozen(make_config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_config().depth = 3


def test_version_is_that_of_the_project():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.*)"$', text, re.M).group(1) == vit.__version__


def test_exports():
    assert set(vit.__all__) >= {
        "AttentivePool",
        "AttentivePoolHead",
        "Head",
        "TransposedConv2dHead",
        "UpsampleHead",
        "ViT",
        "ViTFeatures",
        "register_head_constructors",
        "register_vit_constructors",
    }
    assert all(hasattr(vit, name) for name in vit.__all__)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_attention_heads": 3},
            r"hidden_size \(32\) must be divisible by num_attention_heads",
        ),
        ({"norm_type": "batchnorm"}, "Unsupported norm_type: batchnorm"),
        (
            {"hidden_size": 33, "num_attention_heads": 3, "pos_enc": "fourier"},
            r"hidden_size \(33\) must be even when using Fourier positional encoding",
        ),
        ({"activation": "tanh"}, "Unsupported activation: tanh"),
        ({"pos_enc": "sinus"}, "Unsupported pos_enc: sinus"),
        ({"rope_normalize_coords": "mean"}, "Unsupported rope_normalize_coords"),
        ({"img_size": (32, 32, 32)}, "differ in their dimensions"),
        ({"img_size": (32, 4)}, "smaller than patch_size"),
        ({"patch_size": (8,), "img_size": (32,)}, "patch_size must be 2 or 3 positive ints"),
        ({"patch_size": (8, 0)}, "patch_size must be"),
        ({"patch_size": 8}, "patch_size must be"),
        ({"hidden_dropout": 1.0}, r"hidden_dropout must be a number in \[0, 1\), got 1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout must be"),
        ({"drop_path_rate": 1}, "drop_path_rate must be"),
        ({"hidden_size": 0}, "hidden_size must be a positive int"),
        ({"depth": -1}, "depth must be an int that is not negative"),
        ({"depth": 2.0}, "depth must be an int"),
        ({"num_cls_tokens": True}, "num_cls_tokens must be an int"),
        ({"layer_scale": "1e-5"}, "layer_scale must be a number or None, got '1e-5'"),
        ({"rope_jitter_coords": 0.0}, "rope_jitter_coords must be a positive number or None"),
        ({"dtype": torch.int8}, "dtype must be a torch.dtype of floats"),
        ({"heads": {"a": {"out_features": 3}}}, "must be a head config such as HeadConfig"),
        ({"heads": [HeadConfig()]}, "heads must be a dict"),
    ],
)
def test_wrong_values(make_config, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_legal_values(make_config):
    make_config(depth=0)
    make_config(img_size=[33, 50])
    make_config(hidden_size=33, num_attention_heads=3, pos_enc="learnable")


def test_yaml_round_trip(make_config):
    config = make_config(
        heads=HEADS, dtype=torch.float16, img_size=[32, 40], layer_scale=1e-5, glu_limit=7.0
    )
    text = config.to_yaml()
    assert "dtype: float16" in text
    assert "!!python/object:vit.head.AttentivePoolHeadConfig" in text
    loaded = ViTConfig.from_yaml(text)
    assert loaded == config
    assert type(loaded.patch_size) is tuple
    assert type(loaded.img_size) is list
    assert loaded.heads["up"].hidden_features == [8, 4]


def test_yaml_from_files(make_config, tmp_path):
    config = make_config(heads=HEADS)
    path = tmp_path / "model.yaml"
    path.write_text(config.to_yaml())
    assert ViTConfig.from_yaml(path) == config
    assert ViTConfig.from_yaml(str(path)) == config
    other = tmp_path / "model.txt"
    other.write_text(config.to_yaml())
    assert ViTConfig.from_yaml(other) == config


@pytest.mark.parametrize("as_path", [Path, str])
def test_yaml_missing_file(tmp_path, as_path):
    with pytest.raises(FileNotFoundError, match="File not found: .*none.yaml"):
        ViTConfig.from_yaml(as_path(tmp_path / "none.yaml"))


def test_yaml_text_that_is_no_mapping():
    for text in ("model.yml", "- 1\n- 2", ""):
        with pytest.raises(ValueError, match="a mapping of ViTConfig fields"):
            ViTConfig.from_yaml(text)


def test_yaml_unknown_dtype(make_config):
    with pytest.raises(ValueError, match="Unknown dtype: float8"):
        ViTConfig.from_yaml(make_config().to_yaml().replace("float32", "float8"))


def test_yaml_numbers_without_a_dot(make_config):
    text = make_config().to_yaml().replace("layer_scale: null", "layer_scale: 1e-5")
    assert ViTConfig.from_yaml(text).layer_scale == 1e-5


@pytest.mark.parametrize("loader", [yaml.SafeLoader, yaml.FullLoader, yaml.UnsafeLoader])
@pytest.mark.parametrize("module", ["vit", "vit.vit"])
def test_tags_on_every_loader(loader, module):
    text = f"""!!python/object:{module}.ViTConfig
in_channels: 3
patch_size: [8, 8]
img_size: [32, 32]
depth: 1
hidden_size: 32
ffn_hidden_size: 32
num_attention_heads: 2
dtype: float64
heads:
  a: !!python/object:vit.HeadConfig {{out_features: 3}}
  b: !!python/object:vit.head.HeadConfig {{out_features: 4}}
  c: !!python/object:vit.AttentivePoolHeadConfig {{num_queries: 2}}
  d: !!python/object:vit.TransposedConv2dHeadConfig {{stride: 3}}
  e: !!python/object:vit.head.UpsampleHeadConfig {{hidden_features: [5]}}
"""
    config = yaml.load(text, Loader=loader)
    assert type(config) is ViTConfig
    assert config.dtype == torch.float64
    assert config.heads == {
        "a": HeadConfig(out_features=3),
        "b": HeadConfig(out_features=4),
        "c": AttentivePoolHeadConfig(num_queries=2),
        "d": TransposedConv2dHeadConfig(stride=3),
        "e": UpsampleHeadConfig(hidden_features=[5]),
    }
    assert ViTConfig.from_yaml(text) == config


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir ['{path}']",
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{path}']]",
        "!!python/object/new:os.mkdir ['{path}']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/object:vit.vit.ViT {{}}",
        "!!python/object:vit.head.Head {{in_features: 1, out_features: 1}}",
    ],
)
def test_hostile_yaml(make_config, tmp_path, value):
    path = tmp_path / "made"
    hostile = value.format(path=path)
    for text in (
        hostile,
        make_config().to_yaml().replace("heads: {}", f"heads:\n  a: {hostile}"),
        make_config().to_yaml().replace("depth: 2", f"depth: {hostile}"),
        f"!!python/object:vit.vit.ViTConfig\nin_channels: {hostile}",
    ):
        assert hostile in text
        with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
            ViTConfig.from_yaml(text)
    assert not path.exists()


def test_to_yaml_of_an_unknown_head(make_config):
    class Mine:
        def instantiate(self, backbone_config, device=None, dtype=None):
            raise NotImplementedError

    with pytest.raises(yaml.representer.RepresenterError):
        make_config(heads={"mine": Mine()}).to_yaml()
