"""The configuration of a ViT."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import yaml

from vit.head import AnyHeadConfig
from vit.helpers import ACTIVATIONS
from vit.norm import NORM_TYPE_CHOICES, NormType
from vit.rope import NORMALIZATIONS, RopeNormalization
from vit.yaml_tags import ConfigDumper, ConfigLoader, register_class

if TYPE_CHECKING:
    from vit.vit import ViT

PosEnc = Literal["fourier", "learnable", "none", "rope"]
POS_ENC_CHOICES: tuple[PosEnc, ...] = get_args(PosEnc)

DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, Sequence) and len(value) in (2, 3) and all(_is_int(v, 1) for v in value)
    )


def _is_int(value: Any, minimum: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= minimum


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


# (what is expected, its test, fields)
RULES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "a positive int",
        lambda v: _is_int(v, 1),
        ("in_channels", "hidden_size", "ffn_hidden_size", "num_attention_heads"),
    ),
    (
        "an int that is not negative",
        lambda v: _is_int(v, 0),
        ("depth", "num_register_tokens", "num_cls_tokens"),
    ),
    ("2 or 3 positive ints", _is_size, ("patch_size", "img_size")),
    (
        "a number in [0, 1)",
        lambda v: _is_number(v) and 0 <= v < 1,
        ("hidden_dropout", "attention_dropout", "drop_path_rate"),
    ),
    ("a positive number", lambda v: _is_number(v) and v > 0, ("rope_base",)),
    (
        "a positive number or None",
        lambda v: v is None or (_is_number(v) and v > 0),
        ("glu_limit", "rope_jitter_coords", "rope_rescale_coords"),
    ),
    (
        "a number or None",
        lambda v: v is None or _is_number(v),
        ("layer_scale", "glu_extra_bias", "rope_shift_coords"),
    ),
    ("a torch.dtype of floats", lambda v: v in DTYPES.values(), ("dtype",)),
)

CHOICES: dict[str, Sequence[str]] = {
    "norm_type": NORM_TYPE_CHOICES,
    "activation": tuple(ACTIVATIONS),
    "pos_enc": POS_ENC_CHOICES,
    "rope_normalize_coords": tuple(NORMALIZATIONS),
}


@dataclass(frozen=True)
class ViTConfig:
    """What a `ViT` is made of. Raises ValueError for values that cannot work.

    ``patch_size`` and ``img_size`` have 2 (images) or 3 (volumes) elements; an image that is not a
    multiple of the patch loses the rest. ``glu_limit`` and ``glu_extra_bias`` act in gated MLPs
    only.
    """

    in_channels: int
    patch_size: Sequence[int]
    img_size: Sequence[int]
    depth: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    attention_bias: bool = True
    mlp_bias: bool = True
    activation: str = "srelu"
    drop_path_rate: float = 0.0
    num_register_tokens: int = 0
    num_cls_tokens: int = 0
    pos_enc: PosEnc = "rope"
    layer_scale: float | None = None
    glu_limit: float | None = None
    glu_extra_bias: float | None = None
    rope_normalize_coords: RopeNormalization = "separate"
    rope_base: float = 100
    rope_shift_coords: float | None = None
    rope_jitter_coords: float | None = None
    rope_rescale_coords: float | None = None
    mlp_requires_grad: bool = True
    self_attention_requires_grad: bool = True
    activation_checkpointing: bool = False
    dtype: torch.dtype = torch.bfloat16
    norm_type: NormType = "rmsnorm"
    qk_normalization: bool = False
    patch_embed_normalization: bool = False
    heads: Mapping[str, AnyHeadConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for expected, test, names in RULES:
            for name in names:
                if not test(getattr(self, name)):
                    raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"Unsupported {name}: {getattr(self, name)}. Choose one of {tuple(choices)}."
                )
        D, N = self.hidden_size, self.num_attention_heads
        if D % N != 0:
            raise ValueError(f"hidden_size ({D}) must be divisible by num_attention_heads ({N})")
        if self.pos_enc == "fourier" and D % 2 != 0:
            raise ValueError(
                f"hidden_size ({D}) must be even when using Fourier positional encoding"
            )
        patch, image = self.patch_size, self.img_size
        if len(patch) != len(image):
            raise ValueError(f"patch_size {patch} and img_size {image} differ in their dimensions")
        if any(i < p for i, p in zip(image, patch, strict=True)):
            raise ValueError(f"img_size {image} is smaller than patch_size {patch}")
        self._check_heads()

    def _check_heads(self) -> None:
        if not isinstance(self.heads, Mapping):
            raise ValueError(f"heads must be a dict name -> head config, got {self.heads!r}")
        for name, head in self.heads.items():
            if not callable(getattr(head, "instantiate", None)):
                raise ValueError(
                    f"heads[{name!r}] must be a head config such as HeadConfig "
                    f"(in YAML: !!python/object:vit.head.HeadConfig), got {head!r}"
                )

    def instantiate(self, device: torch.device | str | None = None) -> "ViT":
        """A new `ViT` with random weights; device "meta" allocates nothing."""
        from vit.vit import ViT

        return ViT(self, device=device)

    @classmethod
    def from_yaml(cls, path: str | Path) -> "ViTConfig":
        """Read a file (a Path, or a str that ends in ".yaml") or YAML text (any other str).

        Raises FileNotFoundError for a missing file, ValueError for a wrong value, yaml.YAMLError
        for text that is not YAML or has a tag other than those of this package: no code is run.
        """
        text = str(path)
        if isinstance(path, Path) or text.endswith(".yaml"):
            if not Path(path).is_file():
                raise FileNotFoundError(f"File not found: {path}")
            text = Path(path).read_text(encoding="utf-8")
        loaded = yaml.load(text, Loader=ConfigLoader)
        if isinstance(loaded, cls):
            return loaded
        if not isinstance(loaded, dict):
            raise ValueError(
                "Expected YAML text of a mapping of ViTConfig fields, or a path ending in .yaml, "
                f"got {path!r}"
            )
        return _build(**loaded)

    def to_yaml(self) -> str:
        """YAML text that `from_yaml` reads back to an equal configuration.

        Raises yaml.representer.RepresenterError for a head configuration of an unknown class.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["heads"] = dict(self.heads)
        values["dtype"] = str(self.dtype).removeprefix("torch.")
        return yaml.dump(values, Dumper=ConfigDumper, sort_keys=False)


def _build(**values: Any) -> ViTConfig:
    """A configuration from YAML values, where the dtype is a bare name."""
    dtype = values.get("dtype")
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ValueError(f"Unknown dtype: {dtype}. Choose one of {sorted(DTYPES)}.")
        values["dtype"] = DTYPES[dtype]
    return ViTConfig(**values)


def register_vit_constructors() -> None:
    """Read ViTConfig from YAML, tags ``python/object:vit.vit.ViTConfig`` and ``:vit.ViTConfig``."""
    register_class(ViTConfig, ("vit.vit", "vit"), _build)


register_vit_constructors()
