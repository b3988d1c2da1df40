"""What ``vit infer`` measures, on random input or on images."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from torch_max_backend.aot.loaded import MaxCompiledModel
from torch_max_backend.aot.metadata import TensorSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels of ImageNet's photographs, as (red, green, blue) in [0, 1]."""


def random_input(spec: TensorSpec, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers.

    Raises:
        click.BadParameter: another rank than the model's.
    """
    if len(shape) != len(spec.shape):
        raise click.BadParameter(
            f"the model takes {list(spec.shape)}, {list(shape)} was given", param_hint="--shape"
        )
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tuple(shape), generator=generator).to(spec.device, spec.dtype)


def read_images(
    files: Sequence[Path], spec: TensorSpec, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """PNG, JPEG and what else Pillow reads: the shorter side resized to the model's, the centre cut
    out, channels normalised; (B, 3, H, W).

    Raises:
        click.ClickException: a file that is no image, or a model that takes none.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    sizes = spec.shape[2:]
    if len(sizes) != 2 or spec.shape[1] != 3 or not all(isinstance(n, int) for n in sizes):
        raise click.ClickException(f"the model takes {list(spec.shape)}, not images of one size")
    height, width = (int(n) for n in sizes)  # type: ignore[arg-type]
    images = []
    for file in files:
        try:
            with Image.open(file) as opened:
                image = ImageOps.fit(
                    ImageOps.exif_transpose(opened).convert("RGB"),
                    (width, height),
                    Image.Resampling.BICUBIC,
                )
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise click.ClickException(f"cannot read the image {file}: {error}") from None
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        images.append(pixels.reshape(height, width, 3).permute(2, 0, 1).float() / 255)
    x = (torch.stack(images) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    return x.to(spec.device, spec.dtype)


def measure(
    model: MaxCompiledModel, x: Tensor, warmup: int, iterations: int
) -> tuple[Tensor, dict[str, Any]]:
    """The first result and the times of some calls."""
    arguments = model.example_inputs()
    arguments[0] = x
    for _ in range(warmup):
        model.run(arguments)
    results = [model.infer_flat(arguments) for _ in range(iterations)]
    times = sorted(result.latency_ms for result in results)
    output = next(out for out in results[0].outputs if isinstance(out, Tensor))
    return output, {
        "input_shape": list(x.shape),
        "output_shape": list(output.shape),
        "latency_ms": {
            "mean": statistics.fmean(times),
            "std": statistics.stdev(times) if len(times) > 1 else 0.0,
            "min": times[0],
            "max": times[-1],
            "p50": _quantile(times, 0.50),
            "p95": _quantile(times, 0.95),
        },
        "peak_memory_bytes": max(result.memory_bytes for result in results),
        "images_per_second": 1e3 * len(x) / statistics.fmean(times),
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def write_features(features: Tensor, path: Path) -> None:
    """As .safetensors or .npz, under the name "features".

    Raises:
        click.BadParameter: another suffix.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({"features": features.cpu().contiguous()}, path)
    elif path.suffix == ".npz":
        import numpy as np

        np.savez(path, features=features.cpu().float().numpy())
    else:
        raise click.BadParameter(f"{path} ends in neither .safetensors nor .npz")
