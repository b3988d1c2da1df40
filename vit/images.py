"""Image files as what a Vision Transformer takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels of ImageNet's photographs, as (red, green, blue) in [0, 1]."""


class ImageError(ValueError):
    """A file is no image that can be read."""


def read_image(
    file: str | Path | BinaryIO,
    size: tuple[int, int],
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Tensor:
    """PNG, JPEG and what else Pillow reads as (3, H, W) float32.

    Turned upright as its Exif entry says, resized until it covers ``size`` = (H, W), the centre cut
    out, scaled to [0, 1], normalised per channel.

    Raises:
        ImageError: it cannot be read, or has more pixels than Pillow thinks safe.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    height, width = size
    try:
        with Image.open(file) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
            image = ImageOps.fit(upright, (width, height), Image.Resampling.BICUBIC)
    except UnidentifiedImageError:
        raise ImageError("no format that Pillow knows") from None
    # Pillow's readers raise many kinds of errors on damaged files
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ImageError(str(error)) from error
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    x = pixels.reshape(height, width, 3).permute(2, 0, 1).float() / 255
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def image_size(shape: Sequence[object]) -> tuple[int, int]:
    """(H, W) of a model's input (B, 3, H, W), as a package's input specification says it.

    Raises:
        ValueError: the model takes no images, or images of any size.
    """
    if len(shape) != 4 or shape[1] != 3 or not all(isinstance(n, int) for n in shape[2:]):
        raise ValueError(f"the model takes {list(shape)}, not images of one size")
    return int(shape[2]), int(shape[3])  # type: ignore[call-overload]
