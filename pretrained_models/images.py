"""Photographs in, a batch of pixels out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from pretrained_models.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def load_image(path: str | Path) -> Image.Image:
    """The image of a file, as RGB.

    Raises:
        UsageError: there is no such file, or Pillow cannot read it as an image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise UsageError(f"no such image: {path}") from None
    except IsADirectoryError:
        raise UsageError(f"a folder, not an image: {path}") from None
    except UnidentifiedImageError:
        raise UsageError(f"not an image that Pillow can read: {path}") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise UsageError(f"cannot read the image {path}: {error}") from None


def sample_photographs() -> list[tuple[str, Image.Image]]:
    """The two photographs that come with scikit-learn: a temple and a flower."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        raise UsageError(
            "without image files the demo needs scikit-learn's photographs: "
            "pip install 'torch-max-backend[demo]', or name image files"
        ) from None
    photographs = load_sample_images()
    names = [Path(name).name for name in photographs.filenames]
    return [
        (name, Image.fromarray(pixels))
        for name, pixels in zip(names, photographs.images, strict=True)
    ]


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Resizes the short side to 8/7 of size (256 for 224) and cuts the middle square out."""
    scale = size * 8 / 7 / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_pixels(
    image: Image.Image,
    size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> torch.Tensor:
    """(3, size, size) float32: cropped, scaled to [0, 1], normalised per channel."""
    pixels = torch.from_numpy(np.array(center_crop(image, size), dtype=np.float32) / 255)
    pixels = (pixels - torch.tensor(mean)) / torch.tensor(std)
    return pixels.permute(2, 0, 1).contiguous()


def to_batch(images: Sequence[Image.Image], size: int, batch_size: int) -> torch.Tensor:
    """(batch_size, 3, size, size): the images in turn, repeated when there are fewer."""
    pixels = [to_pixels(image, size) for image in images]
    return torch.stack([pixels[i % len(pixels)] for i in range(batch_size)])
