"""Ops that move data and compute nothing, and those that make tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from tests.harness import Case, comparison, grouped, in_turns, randn, short, strided


def window_partition(x: torch.Tensor, size: int) -> torch.Tensor:
    """(B, H, W, C) -> (B * windows, size * size, C), as in Swin."""
    b, h, w, c = x.shape
    x = x.view(b, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)


MOVES = {
    "view": lambda x: x.view(8, -1),
    "reshape": lambda x: x.transpose(0, 1).reshape(6, 32),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(-1, (2, 4)),
    "permute": lambda x: x.permute(2, 0, 1),
    "permute_dense": lambda x: x.permute(2, 0, 1).contiguous(),
    "transpose": lambda x: x.transpose(-1, 0),
    "mT": lambda x: x.mT,
    "movedim": lambda x: x.movedim(0, 2),
    "expand": lambda x: x[:1].expand(5, 6, 8),
    "expand_new": lambda x: x.expand(3, -1, -1, -1),
    "expand_add": lambda x: x[:, :1].expand(4, 6, 8) + 1,
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "squeeze": lambda x: x[:1].squeeze(0),
    "squeeze_all": lambda x: x[:1, :, :1].squeeze(),
    "select": lambda x: x.select(1, 2),
    "select_negative": lambda x: x[:, -2],
    "slice": lambda x: x[1:3, ::2, -5:-1],
    "slice_step": lambda x: x[:, 1::3, 2:7:2],
    "slice_beyond": lambda x: x[:, 4:100],
    "slice_empty": lambda x: x[:, 5:2],
    "narrow": lambda x: x.narrow(1, 2, 3),
    "split": lambda x: x.split(4, 1),
    "split_sizes": lambda x: x.split([1, 2, 3], 1),
    "chunk": lambda x: x.chunk(3, -1),
    "unbind": lambda x: x.unbind(1),
    "tensor_split": lambda x: x.tensor_split([1, 4], 1),
    "cat": lambda x: torch.cat([x, x[:, 2:], x[:, :1]], 1),
    "cat_last": lambda x: torch.cat([x[..., 4:], x[..., :4]], -1),
    "cat_one": lambda x: torch.cat([x], 0),
    "stack": lambda x: torch.stack([x, x.flip(0)], 1),
    "flip": lambda x: x.flip(0, 2),
    "roll": lambda x: x.roll((1, -3), (0, 2)),
    "roll_flat": lambda x: x.roll(5),
    "rot90": lambda x: x.rot90(1, (1, 2)),
    "repeat": lambda x: x.repeat(2, 1, 3, 1),
    "tile": lambda x: x.tile(2, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(3, 1),
    "tril": lambda x: x.tril(),
    "triu": lambda x: x.triu(2),
    "tril_negative": lambda x: x.tril(-2),
    "diagonal": lambda x: x.diagonal(0, 1, 2),
    "unfold": lambda x: x.unfold(1, 3, 2),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3)),
    "pad_cut": lambda x: F.pad(x, (-1, 2, 1, -2), value=5),
    "pad_none": lambda x: F.pad(x, (0, 0)),
    "window_partition": lambda x: window_partition(x[None, :, :4, :], 2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "as_strided": lambda x: x.as_strided((3, 4), (8, 2), 5),
    "select_scatter": lambda x: x.select_scatter(x[:, 0] * 0, 1, 3),
    "select_scatter_last": lambda x: x.select_scatter(x[..., 0], 2, -1),
    "slice_scatter": lambda x: x.slice_scatter(x[:, :2], 1, 1, 5, 2),
    "slice_scatter_before": lambda x: x.slice_scatter(x[:, 1:3], 1, -100, 2),
    "assign": lambda x: _assigned(x),
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.contiguous(),
    "detach": lambda x: x.detach(),
    "to_same": lambda x: x.to(x.dtype),
    "atleast": lambda x: torch.atleast_3d(x[0, 0]),
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x, x[0, 0]),
    "meshgrid": lambda x: torch.meshgrid(x[0, 0], x[0, :, 0], indexing="ij"),
    "hstack": lambda x: torch.hstack([x, x]),
    "swapaxes": lambda x: x.swapaxes(0, 1).flatten(),
}
FIXED = [
    *["view", "reshape", "expand", "expand_add", "as_strided", "unflatten", "window_partition"],
    *["pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "assign", "diagonal"],
    *["chunk", "unbind", "split", "split_sizes"],  # the number of results is a size's
]
"""Moves that fit one shape only."""
LAYOUT_MOVES = ("permute", "reshape", "flip", "cat", "clone", "contiguous", "roll", "slice")
"""Moves of inputs that are not contiguous."""
PADDINGS = {
    "reflect": lambda x: F.pad(x, (2, 1, 1, 3), mode="reflect"),
    "replicate": lambda x: F.pad(x, (2, 1, 1, 3), mode="replicate"),
    "circular": lambda x: F.pad(x, (2, 1, 1, 3), mode="circular"),
}


def _assigned(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 1] = 3
    y[1:3, ::2] = x[1:3, 1::2]
    return y


def moves() -> Iterator[Case]:
    others = (torch.bfloat16, torch.int64, torch.bool)
    for i, (name, function) in enumerate(MOVES.items()):
        arithmetic = name in ("expand_add", "select_scatter")
        dtypes = [torch.bfloat16 if arithmetic else others[i % 3]]
        if name in FIXED:
            dtypes.append(torch.float32)  # symbolic tries the others in it
        for dtype in dtypes:
            x = randn(4, 6, 8, dtype=dtype)
            nearly = name not in FIXED and dtype != torch.bool  # symbolic tries it
            yield Case(f"{name}-{short(dtype)}", function, [x], exact=True, thorough=nearly)
    for place, kind in enumerate(("transposed", "sliced", "expanded")):
        x = strided(randn(4, 6, 8), kind)
        for name in in_turns(LAYOUT_MOVES, place):
            yield Case(f"{name}-{kind}", MOVES[name], [x], exact=True)
    for name, function in PADDINGS.items():
        yield Case(f"pad_{name}", function, [randn(2, 3, 5, 6)], exact=True)
    for place, dtype in enumerate((torch.float64, torch.float16, torch.int32, torch.uint8)):
        x = randn(4, 6, 8, dtype=dtype)
        for name in in_turns(("permute_dense", "cat", "pad", "tril"), place + 1):
            yield Case(f"{name}-{short(dtype)}", MOVES[name], [x], exact=True)


def symbolic() -> Iterator[Case]:
    x, y = randn(4, 6, 8), randn(5, 7, 9)
    for name, function in MOVES.items():
        if name not in FIXED:
            yield Case(f"{name}-dynamic", function, [x], dynamic=True, others=[[y]], exact=True)
    for name, function in {
        "view": lambda x: x.view(x.shape[0] * x.shape[1], -1),
        "reshape": lambda x: x.transpose(0, 1).reshape(x.shape[1], -1),
        "patches": lambda x: x.view(x.shape[0], x.shape[1] // 2, 2, -1).transpose(1, 2).flatten(2),
        "expand": lambda x: x[:1].expand(x.shape[2], -1, -1),
        "chunk": lambda x: x.chunk(2, 1),
        "slice_half": lambda x: x[..., : x.shape[-1] // 2],
        "rotate_half": lambda x: torch.cat(
            [-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1
        ),
        "arange": lambda x: torch.arange(x.shape[1]) + x.shape[2],
        "zeros": lambda x: torch.zeros(x.shape[2], x.shape[0]),
        "full": lambda x: torch.full((x.shape[1], 2), x.shape[0]),
        "size_scaled": lambda x: x * x.shape[0],
        "size_root": lambda x: x * x.shape[-1] ** -0.5,
        "mask": lambda x: torch.ones(x.shape[1], x.shape[2]).tril(),
        "pad_one": lambda x: F.pad(x, (1, 1)),
        "numel": lambda x: (x + 1, x.numel(), x.shape[0] * 2),
        "windows": lambda x: x.unfold(2, 3, 1),
    }.items():
        # the size of the last axis is even in both: rotate_half asks for it
        yield Case(
            f"{name}-symbolic",
            function,
            [randn(4, 6, 8)],
            dynamic=True,
            others=[[randn(5, 10, 12)], [randn(2, 4, 6)]],
            exact=name != "size_root",
        )

    yield Case(
        "size_quotients-symbolic",  # 49 * (1 / 49) is less than 1
        lambda x: (x * int(x.shape[0] / 49), x * (x.shape[0] // 49), x / (x.shape[0] / 49)),
        [randn(49, 2)],
        dynamic=True,
        others=[[randn(98, 3)], [randn(97, 4)]],
    )


def factories() -> Iterator[Case]:
    for name, function in {
        "arange": lambda x: torch.arange(7) + x.long(),
        "arange_step": lambda x: torch.arange(3, 20, 4) + x.long()[:5],
        "arange_negative": lambda x: torch.arange(9, -3, -2),
        "arange_float": lambda x: torch.arange(0.0, 1.0, 0.15),
        "arange_bfloat16": lambda x: torch.arange(300, dtype=torch.bfloat16),
        "arange_empty": lambda x: torch.arange(0),
        "linspace": lambda x: torch.linspace(-1, 1, 9),
        "linspace_one": lambda x: torch.linspace(2, 5, 1),
        "zeros": lambda x: torch.zeros(2, 3),
        "ones_like": lambda x: torch.ones_like(x, dtype=torch.float64),
        "full": lambda x: torch.full((2, 3), 1.7),
        "full_bool": lambda x: torch.full((2,), True),
        "full_inf": lambda x: torch.full((2, 2), float("-inf"), dtype=torch.float16),
        "full_like": lambda x: torch.full_like(x, 3, dtype=torch.int16),
        "new_zeros": lambda x: x.new_zeros(4),
        "eye": lambda x: torch.eye(4, 6),
        "tensor": lambda x: torch.tensor([1.5, 2.5, -3.0]) + x[:3],
        "tensor_0d": lambda x: x * torch.tensor(0.5),
        "scalar_tensor": lambda x: torch.scalar_tensor(2.5),
        "one_hot": lambda x: F.one_hot(x.long().abs() % 5, 5),
    }.items():
        yield Case(name, function, [randn(7)], scale="tensor")


def edges() -> Iterator[Case]:
    empty, scalar = randn(0, 3), randn()
    for name, function in {
        "cat": lambda x: torch.cat([x, x]),
        "cat_legacy": lambda x: torch.cat([torch.zeros(0), torch.ones(2, 3)]),
        "permute": lambda x: x.permute(1, 0),
        "reshape": lambda x: x.reshape(3, 0, 2),
        "pad": lambda x: F.pad(x, (0, 0, 1, 1), value=2.0),
        "repeat": lambda x: x.repeat(2, 2),
        "flip": lambda x: x.flip(0),
        "roll": lambda x: x.roll(1, 0),
        "slice": lambda x: x[:, 1:],
        "tril": lambda x: x.tril(),
        "expand": lambda x: x.unsqueeze(0).expand(2, 0, 3),
    }.items():
        yield Case(f"{name}-empty", function, [empty], exact=True)
    for name, function in {
        "view": lambda x: x.view(1, 1),
        "expand": lambda x: x.expand(3),
        "stack": lambda x: torch.stack([x, x * 2]),
        "repeat": lambda x: x.repeat(3),
        "squeeze": lambda x: x.squeeze(),
        "unsqueeze": lambda x: x.unsqueeze(0),
        "flip": lambda x: x.flip(()),
        "clone": lambda x: x.clone(),
    }.items():
        yield Case(f"{name}-0d", function, [scalar], exact=True)
    yield Case(
        "cat-promotes",
        lambda x, y: torch.cat([x, y, x > 0]),
        [randn(3, dtype=torch.bfloat16), randn(2, dtype=torch.int64)],
        exact=True,
    )
    yield Case(
        "stack-promotes",
        lambda x, y: torch.stack([x, y]),
        [randn(3, dtype=torch.int32), randn(3)],
        exact=True,
    )
    yield Case("results", lambda x: (x, None, 3, 2.5, {"a": x + 1}, [x * 2]), [randn(3)])


CASES = grouped([*moves(), *symbolic(), *factories(), *edges()], 12)

test_shape = comparison(CASES)
