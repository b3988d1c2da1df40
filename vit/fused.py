"""A norm followed by a linear layer or by an MLP."""

from typing import Any

import torch
from torch import Tensor, nn

from vit.dropout import Dropout
from vit.helpers import get_activation, get_activation_module, is_glu
from vit.initialization import init_linear
from vit.norm import DEFAULT_EPS, NormType, make_norm
from vit.quantization import quantize_linears

__all__ = ["NormLinear", "NormMLP", "get_activation", "get_activation_module"]


class NormLinear(nn.Module):
    """norm, dropout, linear: (..., in) -> (..., out)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        eps: float = 1e-5,
        dropout: float = 0.0,
        quantization_config: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        norm_type: NormType = "rmsnorm",
    ):
        super().__init__()
        self.norm = make_norm(
            in_features, norm_type, eps or DEFAULT_EPS, device=device, dtype=dtype
        )
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        self.reset_parameters()
        self.apply_quantization(quantization_config)

    def reset_parameters(self) -> None:
        self.norm.reset_parameters()
        init_linear(self.linear)

    def apply_quantization(self, quantization_config: Any) -> None:
        quantize_linears(self, quantization_config, ("linear",))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)  # (..., in)
        return self.linear(self.dropout(x))  # (..., out)


class NormMLP(nn.Module):
    """norm, fc1, activation, dropout, fc2, dropout: (..., D) -> (..., D).

    An activation that ends in "glu" makes the MLP gated (arXiv 2002.05202): fc1 is twice as wide,
    its first half is the linear branch, its second half the gate. Then ``limit`` clamps the linear
    branch to [-limit, limit] and the gate to at most limit, and ``extra_bias`` is added to the
    linear branch; other activations use neither. Raises ValueError for an unknown activation or
    norm.
    """

    def __init__(
        self,
        hidden_size: int,
        ffn_hidden_size: int,
        bias: bool = True,
        activation: str = "gelu",
        eps: float = 1e-5,
        dropout: float = 0.1,
        limit: float | None = None,
        extra_bias: float | None = None,
        quantization_config: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        norm_type: NormType = "rmsnorm",
    ):
        super().__init__()
        self.activation = get_activation(activation)
        self.gated = is_glu(activation)
        self.limit = limit
        self.extra_bias = extra_bias
        fc1_size = 2 * ffn_hidden_size if self.gated else ffn_hidden_size
        self.norm = make_norm(
            hidden_size, norm_type, eps or DEFAULT_EPS, device=device, dtype=dtype
        )
        self.fc1 = nn.Linear(hidden_size, fc1_size, bias, device=device, dtype=dtype)
        self.fc2 = nn.Linear(ffn_hidden_size, hidden_size, bias, device=device, dtype=dtype)
        self.dropout = Dropout(dropout)
        self.reset_parameters()
        self.apply_quantization(quantization_config)

    def reset_parameters(self) -> None:
        self.norm.reset_parameters()
        init_linear(self.fc1)
        init_linear(self.fc2)

    def apply_quantization(self, quantization_config: Any) -> None:
        quantize_linears(self, quantization_config, ("fc1", "fc2"))

    def _gate(self, x: Tensor) -> Tensor:
        linear, gate = x.chunk(2, dim=-1)  # (..., F), (..., F)
        if self.limit is not None:
            linear = linear.clamp(min=-self.limit, max=self.limit)
            gate = gate.clamp(max=self.limit)
        if self.extra_bias is not None:
            linear = linear + self.extra_bias
        return self.activation(gate) * linear  # (..., F)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(self.norm(x))  # (..., F), gated: (..., 2F)
        x = self._gate(x) if self.gated else self.activation(x)  # (..., F)
        x = self.fc2(self.dropout(x))  # (..., D)
        return self.dropout(x)
