"""A Vision Transformer of `transformers` on an image file: MAX beside eager PyTorch.

    python -m pretrained_models.run_vit IMAGE [--model NAME_OR_FOLDER] [--random-weights]

Prints the five likeliest labels and the timings of both; exits with status 1 when MAX's numbers
disagree with eager PyTorch in float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tabulate import tabulate
from torch import nn

from pretrained_models.comparison import (
    CRITERION,
    EAGER,
    Result,
    compare,
    machine_note,
    positive_int,
    progress,
    randomise_,
    results_table,
    use_threads,
)
from pretrained_models.errors import UsageError, run_main
from pretrained_models.images import load_image

DEFAULT_MODEL = "google/vit-base-patch16-224"
RANDOM_WEIGHTS = "RANDOM WEIGHTS: the labels mean nothing"
SEED = 0


def hub_problem(name: str) -> str | None:
    """Why the hub cannot give a model; None when it can.

    Asked first because `transformers` retries for minutes, file by file.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().model_info(name, timeout=10)
    except HFValidationError:
        return f"no such folder, and not a name of a hub model: {name}"
    except HfHubHTTPError as error:
        return f"the hub does not give {name}: {str(error).splitlines()[0]}"
    except Exception as error:  # the HTTP client's own, whose module depends on the hub's version
        return f"the hub cannot be reached for {name}: {str(error).splitlines()[0]}"
    return None


def is_local(name: str) -> bool:
    """Whether a model is a folder or in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    return Path(name).is_dir() or isinstance(try_to_load_from_cache(name, "config.json"), str)


def pretrained(name: str) -> tuple[nn.Module, Any]:
    """The model and its image processor, from a folder, the hub's cache or the hub.

    Raises:
        UsageError: it cannot be had, or is not an image classifier.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    local = is_local(name)
    problem = None if local else hub_problem(name)
    if problem:
        raise UsageError(
            f"{problem}. Name a local folder with --model, or use --random-weights to run the "
            "architecture without trained weights"
        )
    try:
        model = AutoModelForImageClassification.from_pretrained(
            name, local_files_only=local, dtype=torch.float32
        )
        processor = AutoImageProcessor.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UsageError(f"{name} cannot be used as an image classifier: {first_line}") from None
    return model, processor


def random_model(name: str | None) -> tuple[nn.Module, Any]:
    """A model with seeded random weights: of a local folder's config.json, or a ViT-B/16."""
    from transformers import AutoConfig, AutoModelForImageClassification
    from transformers.models.vit import ViTConfig, ViTImageProcessorPil

    if name is None:
        config = ViTConfig(num_labels=1000)
    else:
        if not is_local(name) and (problem := hub_problem(name)):
            raise UsageError(f"{problem}. Without --model, --random-weights runs a ViT-B/16")
        try:
            config = AutoConfig.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{name} has no configuration of a model: {str(error).strip().splitlines()[0]}"
            ) from None
    try:
        model = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise UsageError(
            f"{name} is not an image classifier: {str(error).strip().splitlines()[0]}"
        ) from None
    randomise_(model, SEED)
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return model, ViTImageProcessorPil(size={"height": height, "width": width})


def choose_model(name: str | None, random_weights: bool) -> tuple[nn.Module, Any, str]:
    """The model, its image processor, and a caption that says where its weights come from.

    A model that was named is used or is an error; the default one, offline, gives way to random
    weights, and the caption says so.
    """
    if not random_weights and name is None and not is_local(DEFAULT_MODEL):
        problem = hub_problem(DEFAULT_MODEL)
        if problem:
            progress(problem)
            random_weights = True
    if random_weights:
        of = name or "a ViT-B/16 of transformers"
        progress(f"{RANDOM_WEIGHTS} ({of}, seed {SEED})")
        return *random_model(name), f"{of}, {RANDOM_WEIGHTS} (seed {SEED})"
    name = name or DEFAULT_MODEL
    return *pretrained(name), name


def top_labels(logits: torch.Tensor, labels: dict[int, str], count: int) -> list[tuple[str, float]]:
    """The likeliest labels of one image with their probabilities."""
    probabilities, indices = logits.float().softmax(-1).topk(min(count, logits.shape[-1]))
    return [
        (labels.get(int(i), str(int(i))), float(p))
        for p, i in zip(probabilities, indices, strict=True)
    ]


def labels_table(results: Sequence[Result], labels: dict[int, str], count: int = 5) -> str:
    """Rank by rank the labels of every backend."""
    columns = [
        top_labels(result.output[0], labels, count)
        for result in results
        if result.output is not None
    ]
    rows = [
        [rank + 1, *(cell for label, p in ranks for cell in (label, f"{p:.4f}"))]
        for rank, ranks in enumerate(zip(*columns, strict=True))
    ]
    headers = [h for r in results if r.output is not None for h in (f"{r.backend}: label", "p")]
    return tabulate(rows, ["", *headers], disable_numparse=True)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run_vit", description="A Vision Transformer of transformers on an image, through MAX"
    )
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--model", help=f"hub name or local folder (default: {DEFAULT_MODEL})")
    parser.add_argument(
        "--random-weights", action="store_true", help="seeded weights; needs no network"
    )
    parser.add_argument(
        "--iterations", type=positive_int, default=10, help="rounds that are timed (%(default)s)"
    )
    parser.add_argument("--threads", type=positive_int, help="cores to use (default: all)")
    return parser.parse_args(arguments)


def pixels_of(image: Image.Image, processor: Any) -> torch.Tensor:
    """(1, 3, H, W) as the model's own image processor makes it."""
    return processor(image, return_tensors="pt")["pixel_values"]


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    use_threads(args.threads)
    image = load_image(args.image)
    try:
        from transformers.utils import logging
    except ImportError:
        raise UsageError(
            "run_vit needs transformers: pip install 'torch-max-backend[transformers]'"
        ) from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    model, processor, caption = choose_model(args.model, args.random_weights)
    model.eval()
    note = machine_note()
    labels: dict[int, str] = model.config.id2label  # type: ignore[union-attr, assignment]
    results = compare(
        type(model).__name__,
        model,
        pixels_of(image, processor),
        backends=[EAGER, "max"],
        iterations=args.iterations,
        select=lambda output: output.logits,
    )
    print(f"Image: {args.image}. Model: {caption}.\n{note}\n")
    print(labels_table(results, labels))
    print(f"\n{results_table({type(model).__name__: results})}\n\n{CRITERION}")
    if not all(result.agrees for result in results):
        print("The numbers of MAX disagree with eager PyTorch.")
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
