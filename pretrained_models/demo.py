"""Photographs through two Vision Transformers: eager PyTorch, Inductor and MAX side by side.

    python -m pretrained_models.demo [--weights vit.safetensors] [IMAGE ...]

Prints first call, later calls, speed and largest error of each; exits with status 1 when a
compiled model's numbers disagree with eager PyTorch in float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pretrained_models.comparison import (
    CRITERION,
    Result,
    compare,
    machine_note,
    parse_backends,
    positive_int,
    progress,
    randomise_,
    results_table,
    use_threads,
)
from pretrained_models.errors import UsageError, run_main
from pretrained_models.images import load_image, sample_photographs, to_batch

DEFAULT_BATCH = 8
IMAGE_SIZE = 224
SEED = 0


def small_vit() -> nn.Module:
    """ViT-S/16 of `vit` in float32, without dropout."""
    from vit import ViTConfig

    return ViTConfig(
        in_channels=3,
        patch_size=(16, 16),
        img_size=(IMAGE_SIZE, IMAGE_SIZE),
        depth=12,
        hidden_size=384,
        ffn_hidden_size=1536,
        num_attention_heads=6,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation="gelu",
        num_cls_tokens=1,
        pos_enc="learnable",
        dtype=torch.float32,
        norm_type="layernorm",
    ).instantiate()


def small_transformers_vit() -> nn.Module:
    """ViT-S/16 of `transformers` with a classification head."""
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=384,
            num_hidden_layers=12,
            num_attention_heads=6,
            intermediate_size=1536,
            image_size=IMAGE_SIZE,
            num_labels=1000,
        )
    )


def load_weights_(model: nn.Module, path: Path) -> None:
    """Loads a safetensors file whose keys are the model's own.

    Raises:
        UsageError: no such file, not safetensors, or other keys or shapes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except FileNotFoundError:
        raise UsageError(f"no such weights file: {path}") from None
    except (SafetensorError, OSError) as error:
        raise UsageError(f"cannot read {path} as safetensors: {error}") from None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if given != expected:
        wrong = sorted(dict(given.items() ^ expected.items()))
        shown = ", ".join(
            f"{name} ({_shape(given, name)} in the file, {_shape(expected, name)} in the model)"
            for name in wrong[:3]
        )
        raise UsageError(f"{path} is not a ViT-S/16 of `vit`: {len(wrong)} keys differ: {shown}")
    model.load_state_dict(state)


def _shape(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return str(shapes[name]) if name in shapes else "missing"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="demo", description="Photographs through two Vision Transformers: eager, Inductor, MAX"
    )
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="image files (default: scikit-learn's two)"
    )
    parser.add_argument(
        "--weights", type=Path, help="safetensors for the `vit` model (default: seeded values)"
    )
    parser.add_argument("--backends", default="eager,inductor,max", help="default: %(default)s")
    parser.add_argument(
        "--batch-size", type=positive_int, help="default: 8, or the number of images"
    )
    parser.add_argument(
        "--iterations", type=positive_int, default=10, help="rounds that are timed (%(default)s)"
    )
    parser.add_argument("--threads", type=positive_int, help="cores to use (default: all)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    use_threads(args.threads)
    backends = parse_backends(args.backends)
    named = [(path, load_image(path)) for path in args.images] or sample_photographs()
    batch_size = args.batch_size or max(DEFAULT_BATCH, len(named))
    if len(named) > batch_size:
        progress(f"only the first {batch_size} of {len(named)} images fit --batch-size")
        named = named[:batch_size]
    models: dict[str, tuple[nn.Module, Any]] = {
        "vit ViT-S/16": (small_vit(), lambda features: features.dense_features),
        "transformers ViT-S/16": (small_transformers_vit(), lambda output: output.logits),
    }
    for model, _ in models.values():
        randomise_(model.eval(), SEED)
    origin = f"seeded random values (seed {SEED})"
    weights = dict.fromkeys(models, origin)
    if args.weights:
        load_weights_(models["vit ViT-S/16"][0], args.weights)
        weights["vit ViT-S/16"] = str(args.weights)
    for name, source in weights.items():
        progress(f"{name}: weights: {source}")

    inputs = to_batch([image for _, image in named], IMAGE_SIZE, batch_size)
    note = machine_note()
    results: dict[str, list[Result]] = {}
    for name, (model, select) in models.items():
        results[name] = compare(
            name, model, inputs, backends=backends, iterations=args.iterations, select=select
        )

    print(f"Photographs: {', '.join(name for name, _ in named)}; batch {tuple(inputs.shape)}.")
    print(note)
    print("Weights: " + "; ".join(f"{name}: {source}" for name, source in weights.items()) + ".\n")
    print(results_table(results))
    print(f"\n{CRITERION}")
    disagreeing = [f"{n}: {r.backend}" for n, rs in results.items() for r in rs if not r.agrees]
    if disagreeing:
        print(f"The numbers disagree: {', '.join(disagreeing)}.")
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
