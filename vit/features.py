"""The output of a ViT."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class ViTFeatures:
    """Tokens of a ViT, stored as one (B, T, D) tensor in the order cls, register, visual.

    The properties are views of it. ``tokenized_size`` is the grid of the visual tokens, None if
    some were dropped. Passes through `torch.compile` and `torch.export` as an output.
    """

    def __init__(
        self,
        dense_features: Tensor,
        num_register_tokens: int,
        num_cls_tokens: int,
        tokenized_size: tuple[int, ...] | None = None,
    ):
        self._dense_features = dense_features
        self._num_register_tokens = num_register_tokens
        self._num_cls_tokens = num_cls_tokens
        self._tokenized_size = tokenized_size if tokenized_size is None else tuple(tokenized_size)

    @classmethod
    def from_separate_features(
        cls,
        cls_tokens: Tensor,
        register_tokens: Tensor,
        visual_tokens: Tensor,
        tokenized_size: tuple[int, ...] | None = None,
    ) -> "ViTFeatures":
        """(B, n_cls, D), (B, n_register, D), (B, L, D) -> features."""
        dense = torch.cat([cls_tokens, register_tokens, visual_tokens], dim=1)  # (B, T, D)
        return cls(dense, register_tokens.shape[1], cls_tokens.shape[1], tokenized_size)

    @property
    def dense_features(self) -> Tensor:
        return self._dense_features  # (B, T, D)

    @property
    def num_register_tokens(self) -> int:
        return self._num_register_tokens

    @property
    def num_cls_tokens(self) -> int:
        return self._num_cls_tokens

    @property
    def tokenized_size(self) -> tuple[int, ...] | None:
        return self._tokenized_size

    @property
    def cls_tokens(self) -> Tensor:
        return self._dense_features[:, : self._num_cls_tokens]  # (B, n_cls, D)

    @property
    def register_tokens(self) -> Tensor:
        start = self._num_cls_tokens
        return self._dense_features[:, start : start + self._num_register_tokens]  # (B, n_reg, D)

    @property
    def visual_tokens(self) -> Tensor:
        return self._dense_features[:, self._num_cls_tokens + self._num_register_tokens :]

    @property
    def visual_tokens_as_grid(self) -> Tensor:
        """(B, H, W, C), or (B, D, H, W, C) for a volume. ValueError without a tokenized_size."""
        if self._tokenized_size is None:
            raise ValueError(
                "tokenized_size is not set: a mask dropped tokens, or the size was not given"
            )
        return self.visual_tokens.unflatten(1, self._tokenized_size)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> "ViTFeatures":
        """Features with ``fn(dense_features)`` in place of the tensor."""
        return ViTFeatures(
            fn(self._dense_features),
            self._num_register_tokens,
            self._num_cls_tokens,
            self._tokenized_size,
        )

    def __iter__(self) -> Iterator[Tensor]:
        yield self.cls_tokens
        yield self.register_tokens
        yield self.visual_tokens

    def __repr__(self) -> str:
        shapes = (tuple(x.shape) for x in self)
        names = ("cls_tokens", "register_tokens", "visual_tokens")
        return f"ViTFeatures({', '.join(f'{n}={s}' for n, s in zip(names, shapes, strict=True))})"


def _flatten(features: ViTFeatures) -> tuple[list[Any], tuple[Any, ...]]:
    size = features.tokenized_size
    counts = (features.num_register_tokens, features.num_cls_tokens)
    # While tracing the size may be symbolic: a value of the graph, not a constant of it.
    tracing = torch.compiler.is_compiling() or any(isinstance(s, torch.SymInt) for s in size or ())
    if size is not None and tracing:
        return [features.dense_features, *size], (*counts, "traced")
    return [features.dense_features], (*counts, size)


def _unflatten(values: Any, context: Any) -> ViTFeatures:
    dense, *traced_size = values
    num_register_tokens, num_cls_tokens, size = context
    if size == "traced":
        size = traced_size
    return ViTFeatures(dense, num_register_tokens, num_cls_tokens, size)


def _flatten_with_keys(features: ViTFeatures) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    values, context = _flatten(features)
    keys: list[Any] = [pytree.GetAttrKey("dense_features")]
    keys += [pytree.SequenceKey(i) for i in range(len(values) - 1)]
    return list(zip(keys, values, strict=True)), context


pytree.register_pytree_node(
    ViTFeatures,
    _flatten,
    _unflatten,
    serialized_type_name="vit.ViTFeatures",
    to_dumpable_context=list,
    from_dumpable_context=lambda c: tuple(tuple(x) if isinstance(x, list) else x for x in c),
    flatten_with_keys_fn=_flatten_with_keys,
)
