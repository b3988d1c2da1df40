"""The features of a folder of images, by several processes of Ray Data.

    pip install 'torch-max-backend[ray]'
    python -m pretrained_models.batch_inference vit.max photographs/ --output features --workers 2

Writes Parquet files with the columns path, features (the mean of the tokens, or the logits) and
error: an image that cannot be read has an error in the place of features and stops nothing.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

try:
    import pyarrow.parquet  # before MAX 26.6: imported after it, reading Parquet crashes
    import ray
except ImportError as error:
    raise SystemExit(f"{error}: pip install 'torch-max-backend[ray]'") from None

from pretrained_models.comparison import positive_int, progress
from pretrained_models.errors import UsageError, run_main
from torch_max_backend import MaxBackendError, load_metadata_from_package
from vit.images import ImageError, image_size, read_image

SUFFIXES = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif"]

SCHEMA = pyarrow.schema(
    {"path": "string", "features": pyarrow.list_(pyarrow.float32()), "error": "string"}
)
FILES_CPUS = 0.25
"""What a task that reads or writes files asks of Ray; the workers share the rest, and where tasks
found no share left, all would wait for each other."""


class Embedder:
    """A package in one of the processes; batches of files in, batches of features out."""

    def __init__(self, model: str, threads: int) -> None:
        import torch

        from torch_max_backend import load

        torch.set_num_threads(threads)
        self._torch = torch
        self._model = load(model)
        self._spec = self._model.input_specs[0]
        self._size = image_size(self._spec.shape)

    def __call__(self, batch: dict[str, Any]) -> pyarrow.Table:
        images, errors = [], []
        for data in batch["bytes"]:
            try:
                images.append(read_image(io.BytesIO(data), self._size))
                errors.append("")
            except ImageError as error:
                errors.append(str(error) or type(error).__name__)
        features = iter(self._features(images) if images else [])
        found = [[] if error else next(features) for error in errors]
        return pyarrow.table([list(batch["path"]), found, errors], schema=SCHEMA)

    def _features(self, images: list[Any]) -> list[list[float]]:
        x = self._torch.stack(images).to(self._spec.device, self._spec.dtype)
        outputs = self._model.run([x])
        result = next(out for out in outputs if isinstance(out, self._torch.Tensor)).float().cpu()
        return (result.mean(1) if result.ndim == 3 else result).tolist()


def embed(
    model: Path, folder: Path, output: Path, workers: int, batch_size: int
) -> tuple[int, int]:
    """Writes the features of all images below a folder; how many there are, and how many failed.

    Raises:
        UsageError: there is no image, or the output exists.
        PackageError: the model is no package that fits.
    """
    limits = load_metadata_from_package(model)
    image_size(limits["inputs"][0]["shape"])
    if not any(file.suffix[1:].lower() in SUFFIXES for file in folder.rglob("*")):
        raise UsageError(f"no image lies in {folder} (looked for {', '.join(SUFFIXES)})")
    if output.exists():
        raise UsageError(f"{output} is there already; remove it or name another --output")
    ray.init(ignore_reinit_error=True)  # the cluster of RAY_ADDRESS, else one on this machine
    cpus = ray.cluster_resources()["CPU"]
    files = ray.data.read_binary_files(
        str(folder.resolve()),
        include_paths=True,
        file_extensions=SUFFIXES,
        ray_remote_args={"num_cpus": FILES_CPUS},
    )
    features = files.map_batches(
        Embedder,
        fn_constructor_args=(str(model.resolve()), max(1, int(cpus // workers))),
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=(cpus - 2 * FILES_CPUS) / workers,
    )
    unfinished = output.with_name(f".{output.name}.unfinished")
    features.write_parquet(str(unfinished.resolve()), ray_remote_args={"num_cpus": FILES_CPUS})
    unfinished.replace(output)
    written = ray.data.read_parquet(str(output.resolve()))
    errors = [row["error"] for row in written.select_columns(["error"]).take_all()]
    return len(errors), sum(bool(error) for error in errors)


def main() -> int:
    parser = argparse.ArgumentParser(prog="batch_inference", description="Features of a folder")
    parser.add_argument("model", type=Path, help="what vit export wrote")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="a new folder of Parquet files")
    parser.add_argument("--workers", type=positive_int, default=2)
    parser.add_argument("--batch-size", type=positive_int, default=16)
    args = parser.parse_args()
    try:
        count, failed = embed(args.model, args.folder, args.output, args.workers, args.batch_size)
    except (MaxBackendError, ValueError) as error:
        raise UsageError(str(error)) from None
    progress(f"{count} images, {failed} of them unreadable; wrote {args.output}")
    return 0


if __name__ == "__main__":
    run_main(main)
