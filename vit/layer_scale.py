"""LayerScale (CaiT, arXiv 2103.17239)."""

import torch
from torch import Tensor, nn


class LayerScale(nn.Module):
    """Multiplies each channel by a learned ``gamma``: (..., D) -> (..., D)."""

    def __init__(
        self,
        dim: int,
        init_value: float = 1e-5,
        inplace: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.init_value = init_value
        self.inplace = inplace
        self.gamma = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma, self.init_value)

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.gamma) if self.inplace else x * self.gamma

    def extra_repr(self) -> str:
        return f"{self.gamma.shape[0]}, init_value={self.init_value}, inplace={self.inplace}"
