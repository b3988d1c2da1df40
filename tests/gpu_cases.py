"""What is lowered for a GPU (test_gpu_targets.py) and run where there is one (test_gpu.py)."""

import torch
from torch import nn


def vit(dtype, **changes):
    """A ViT of one layer; heads are 64 wide, as in most published models.

    Every distinct matrix shape costs half a minute of compile, symbolic sizes in bfloat16 two
    minutes on sm_90, so they are few.
    """
    from vit import ViTConfig

    torch.manual_seed(0)
    config = ViTConfig(1, (8, 8), (32, 24), 1, 64, 64, 1, dtype=dtype, **changes)
    return config.instantiate().eval()


def randn(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype)


def integers(high, *shape):
    return torch.randint(0, high, shape)


def attend(q, k, v, **kw):
    return nn.functional.scaled_dot_product_attention(q, k, v, **kw)


QKV = [randn(2, 3, 5, 64) for _ in range(3)]
MODELS = {
    "rope, layernorm": {"pos_enc": "rope", "norm_type": "layernorm"},
    "learnable, rmsnorm": {"pos_enc": "learnable", "norm_type": "rmsnorm"},
    "fourier, tokens": {"pos_enc": "fourier", "num_cls_tokens": 1, "num_register_tokens": 2},
    "swiglu": {"pos_enc": "none", "activation": "swiglu", "qk_normalization": True},
}
FUNCTIONS = {
    "arange": (lambda x: x + torch.arange(x.shape[0], device=x.device), [randn(6)]),
    "as_strided": (lambda x: x.as_strided((2, 3), (1, 2)) * 2, [randn(6)]),
    "attention": (attend, QKV),
    "attention, causal": (lambda q, k, v: attend(q, k, v, is_causal=True), QKV),
    "attention, mask": (
        lambda q, k, v, m: attend(q, k, v, attn_mask=m),
        [*QKV, randn(5, 5) > 0],
    ),
    "attention, bias": (lambda q, k, v, m: attend(q, k, v, attn_mask=m), [*QKV, randn(5, 5)]),
    "attention, double": (attend, [x.double() for x in QKV]),
    "constant": (lambda x: x * torch.tensor([1.0, 2.0, 3.0], device=x.device), [randn(4, 3)]),
    "conv": (
        lambda x, w: nn.functional.conv2d(x, w, padding=1),
        [randn(1, 4, 8, 8), randn(2, 4, 3, 3)],
    ),
    "cumsum": (lambda x: x.cumsum(0), [randn(5, 3)]),
    "flip": (lambda x: x.flip(0, 1), [randn(4, 3)]),
    "full": (lambda x: torch.full_like(x, 2.5) + x.new_zeros(3), [randn(4, 3)]),
    "gather": (lambda x, i: x.gather(1, i), [randn(4, 6), integers(6, 4, 6)]),
    "group_norm": (lambda x: nn.functional.group_norm(x, 2), [randn(2, 4, 6, 6)]),
    "index": (lambda x, i: x[i] + x[:, i].sum(), [randn(4, 6), integers(4, 3)]),
    "index_put": (lambda x, i: x.index_put((i,), x[i] * 2), [randn(4, 6), integers(4, 3)]),
    "masked_fill": (lambda x: x.masked_fill(x > 0, -1.0), [randn(4, 3)]),
    "pad": (lambda x: nn.functional.pad(x, (1, 2), value=3.0), [randn(4, 3)]),
    "power": (lambda x: x.abs() ** 1.7 + x**2, [randn(4, 3)]),
    "random": (lambda x: x + torch.rand_like(x), [randn(4, 3)]),
    "reductions": (lambda x: (x.amax(1), x.argmax(1), x.var(1), x.mean()), [randn(4, 3)]),
    "resize": (
        lambda x: nn.functional.interpolate(x, size=(5, 7), mode="bicubic"),
        [randn(1, 2, 4, 4)],
    ),
    "roll": (lambda x: x.roll((1, -1), (0, 1)), [randn(4, 3)]),
    "scatter": (lambda x, i: x.scatter(1, i, 2.0), [randn(4, 6), integers(6, 4, 6)]),
    "select": (lambda x: x[-1] + x[:, 1:].sum(), [randn(4, 6)]),
    "slice_scatter": (lambda x: torch.slice_scatter(x, x[1:] * 2, 0, 1), [randn(4, 6)]),
    "softmax": (lambda x: x.softmax(-1) + x.log_softmax(0), [randn(4, 6)]),
    "sort": (lambda x: x.sort(-1), [randn(4, 6)]),
    "topk": (lambda x: x.topk(2), [randn(4, 6)]),
    "tril": (lambda x: x.tril() + x.triu(1), [randn(4, 4)]),
    "where": (lambda x: torch.where(x > 0, x, 0.0), [randn(4, 3)]),
}
STATIC_ONLY = {"as_strided", "conv", "group_norm", "sort", "topk"}
