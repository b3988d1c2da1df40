"""A ViT and one of its heads as one model of images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.export import Dim

from vit import ViT
from vit.head import AttentivePoolHead, Head


class WithHead(nn.Module):
    """(B, C, *image) -> what the head makes of the tokens.

    A linear head gets the first cls token, or the mean of the visual tokens where there is none; a
    pooling head all visual tokens; any other head their grid, (B, D, h, w).

    Raises:
        KeyError: the ViT has no head of that name.
    """

    def __init__(self, vit: ViT, name: str) -> None:
        super().__init__()
        self.head = vit.get_head(name)
        self.vit = vit

    def forward(self, x: Tensor) -> Tensor:
        features = self.vit(x)
        if isinstance(self.head, Head):
            tokens = features.cls_tokens
            return self.head(tokens[:, 0] if tokens.shape[1] else features.visual_tokens.mean(1))
        if isinstance(self.head, AttentivePoolHead):
            return self.head(features.visual_tokens)
        return self.head(features.visual_tokens_as_grid.movedim(-1, 1))

    def default_dynamic_shapes(self) -> tuple[dict[int, Dim]]:
        return self.vit.default_dynamic_shapes()
