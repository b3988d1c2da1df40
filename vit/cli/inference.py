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
from torch_max_backend.replacing import replacing
from vit.images import ImageError, image_size, read_image


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
    """(B, 3, H, W), see ``vit.images.read_image``.

    Raises:
        click.ClickException: a file that is no image, or a model that takes none.
    """
    try:
        size = image_size(spec.shape)
        images = [_read(file, size, mean, std) for file in files]
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    return torch.stack(images).to(spec.device, spec.dtype)


def _read(file: Path, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    try:
        return read_image(file, size, mean, std)
    except ImageError as error:
        raise ImageError(f"cannot read the image {file}: {error}") from None


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


def top_classes(logits: Tensor, files: Sequence[Path], count: int) -> list[dict[str, Any]]:
    """The likeliest classes of each image, of (B, classes)."""
    probabilities = logits.float().softmax(1)
    values, classes = probabilities.topk(min(count, logits.shape[1]), 1)
    return [
        {
            "image": str(file),
            "classes": [{"class": i, "probability": p} for i, p in zip(indices, row, strict=True)],
        }
        for file, indices, row in zip(files, classes.tolist(), values.tolist(), strict=True)
    ]


def check_features_file(path: Path) -> None:
    """Before anything runs, so that no result is lost.

    Raises:
        click.BadParameter: not a file that write_features writes.
    """
    if path.suffix not in (".safetensors", ".npz"):
        raise click.BadParameter(
            f"{path} ends in neither .safetensors nor .npz", param_hint="--output"
        )
    if not path.parent.is_dir():
        raise click.BadParameter(
            f"there is no folder {path.parent}; make it first", param_hint="--output"
        )


def write_features(features: Tensor, path: Path) -> None:
    """As .safetensors or .npz, under the name "features".

    Raises:
        click.ClickException: the file cannot be written.
    """
    from safetensors import SafetensorError

    try:
        with replacing(path) as new:
            if path.suffix == ".safetensors":
                from safetensors.torch import save_file

                save_file({"features": features.cpu().contiguous()}, new)
            else:
                import numpy as np

                with new.open("wb") as file:
                    np.savez(file, features=features.cpu().float().numpy())
    except (OSError, SafetensorError) as error:
        raise click.ClickException(f"--output {path}: {error}") from None
