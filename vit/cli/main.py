"""``vit``: configurations, packages and inference of Vision Transformers.

Exit codes: 0 = done, 1 = a configuration or a file cannot be used, 2 = wrong arguments.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import torch
from tabulate import tabulate

from torch_max_backend.cli.output import first_line, format_option, progress, show, working
from vit.cli.benchmark import benchmark
from vit.cli.parameters import FILE, Device, Shape, read_config
from vit.cli.with_head import WithHead
from vit.config import DTYPES


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="torch-max-backend")
def cli() -> None:
    """Vision Transformers on Modular's MAX.

    Completion: eval "$(_VIT_COMPLETE=bash_source vit)" in your shell's profile (zsh_source,
    fish_source).
    """


cli.add_command(benchmark)
dtype_option = click.option("--dtype", type=click.Choice(sorted(DTYPES)), help="Of the model.")


@cli.command()
@click.argument("config", type=FILE)
@format_option
def validate(config: Path, form: str) -> None:
    """Check a configuration; exit with 1 and name the failed rules where it is not valid.

    Example: vit validate vit.yaml
    """
    from vit.cli.summary import validate as check

    found = check(config)
    show(found, form, _validation_text)
    sys.exit(0 if found["valid"] else 1)


def _validation_text(found: dict[str, Any]) -> str:
    if found["valid"]:
        return f"{found['config_path']} is valid"
    return "\n".join(f"{found['config_path']}: {error}" for error in found["errors"])


@cli.command()
@click.argument("config", type=FILE)
@format_option
def summarize(config: Path, form: str) -> None:
    """Show the sizes of the model that a configuration makes.

    Example: vit summarize vit.yaml --format json
    """
    from vit.cli.summary import summarize as describe

    show(describe(read_config(config)), form, _summary_text)


def _summary_text(found: dict[str, Any]) -> str:
    rows: list[list[Any]] = []
    for section, content in found.items():
        entries = content.items() if isinstance(content, dict) else [(section, content)]
        for name, value in entries:
            shown = f"{value:,}" if isinstance(value, int) else value
            rows.append([section, name, f"{value:.3f}" if isinstance(value, float) else shown])
            section = ""
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


@cli.command()
@click.option("--config", type=FILE, required=True, help="YAML file of the model.")
@click.option("--weights", type=FILE, help="safetensors file; random weights without it.")
@click.option("--head", help="Of the configuration's heads; the tokens are the output without it.")
@click.option("--output", type=FILE, required=True, help="The package to write.")
@click.option("--shape", type=Shape(), help="Of the example; its batch may be any of 1 to 32.")
@click.option("--device", type=Device(), default="cpu", show_default=True)
@click.option("--cpu", default="native", show_default=True, help="The least processor to run it.")
@click.option("--gpu", help="A GPU that need not be here: sm_90, gfx942, ...")
@dtype_option
@click.option("--freeze", is_flag=True, help="Pack the weights: faster on small batches.")
@click.option("--verify", is_flag=True, help="Load it again and compare with eager PyTorch.")
@format_option
def export(
    config: Path,
    weights: Path | None,
    head: str | None,
    output: Path,
    shape: tuple[int, ...] | None,
    device: torch.device,
    cpu: str,
    gpu: str | None,
    dtype: str | None,
    freeze: bool,
    verify: bool,
    form: str,
) -> None:
    """Compile a model into one file.

    Example: vit export --config vit.yaml --weights vit.safetensors --output vit.max --verify
    """
    from torch_max_backend import MaxBackendError
    from torch_max_backend import export as export_package

    made = read_config(config)
    expected = (made.in_channels, *made.img_size)
    shape = shape or (2, *expected)
    if shape[1:] != expected:
        raise click.BadParameter(
            f"{config} makes a model of (B, {', '.join(map(str, expected))}), "
            f"{list(shape)} was given",
            param_hint="--shape",
        )
    torch.manual_seed(0)
    model = made.instantiate()
    if weights is None:
        progress("no --weights: the weights are random")
    else:
        _load_weights(model, weights)
    if dtype is not None:
        model = model.to(DTYPES[dtype])
    x = torch.randn(shape).to(model.cls_tokens.dtype)
    whole: torch.nn.Module = model
    if head is not None:
        try:
            whole = WithHead(model, head)
        except KeyError as error:
            raise click.BadParameter(str(error.args[0]), param_hint="--head") from None
    try:
        with working(f"compiling for {gpu or device}"):
            exported = export_package(
                whole.eval(),
                (x,),
                path=output,
                device=device,
                cpu=cpu,
                gpu=gpu,
                freeze=freeze,
                verify=verify,
            )
    except MaxBackendError as error:
        raise click.ClickException(str(error)) from None
    content = {
        "path": str(exported.path),
        "bytes": exported.path.stat().st_size,
        "tracing": exported.tracing,
        "verified": exported.verified,
    }
    show(content, form, _export_text)


def _load_weights(model: torch.nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise click.ClickException(f"--weights {path}: {' '.join(str(error).split())}") from None


def _export_text(content: dict[str, Any]) -> str:
    text = f"{content['path']}: {content['bytes'] / 2**20:.1f} MiB, {content['tracing']}"
    for entry in content["verified"] or []:
        text += f"\noutput {entry['output']} {entry['shape']}: largest error "
        text += f"{entry['largest_error']:.2e}"
    return text


@cli.command()
@click.option("--model", type=FILE, required=True, help="A package.")
@click.option("--config", type=FILE, help="Named in the advice where the package is missing.")
@click.option("--device", type=Device(), default=None, help="What the package must be for.")
@dtype_option
@click.option("--shape", type=Shape(), help="Of random input; the smallest without it.")
@click.option("--image", type=FILE, multiple=True, help="An image file; may be repeated.")
@click.option("--mean", type=(float, float, float), default=None, help="Of the channels.")
@click.option("--std", type=(float, float, float), default=None, help="Of the channels.")
@click.option("--top-k", type=click.IntRange(1), default=5, show_default=True, help="Classes.")
@click.option("--warmup", type=click.IntRange(0), default=3, show_default=True)
@click.option("--iterations", type=click.IntRange(1), default=10, show_default=True)
@click.option("--output", type=FILE, help="Write the features: .safetensors or .npz.")
@format_option
def infer(
    model: Path,
    config: Path | None,
    device: torch.device | None,
    dtype: str | None,
    shape: tuple[int, ...] | None,
    image: tuple[Path, ...],
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    top_k: int,
    warmup: int,
    iterations: int,
    output: Path | None,
    form: str,
) -> None:
    """Run a package on random input or on images, and time it.

    Prints the likeliest classes of each image where the model has a head that gives them.

    Example: vit infer --model vit.max --image cat.jpg --output cat.safetensors
    """
    from torch_max_backend import MaxBackendError, load
    from torch_max_backend.errors import PackageNotFoundError
    from vit.cli import inference
    from vit.images import MEAN, STD

    if image and shape:
        raise click.UsageError("--image and --shape exclude each other")
    if output is not None:
        inference.check_features_file(output)
    try:
        loaded = load(model, device=device)
        spec = loaded.input_specs[0]
        if dtype is not None and DTYPES[dtype] != spec.dtype:
            raise click.BadParameter(f"{model} takes {spec.dtype}", param_hint="--dtype")
        if image:
            x = inference.read_images(image, spec, mean or MEAN, std or STD)
        else:
            x = inference.random_input(spec, shape or loaded.example_inputs()[0].shape)
        with working(f"running on {tuple(x.shape)}"):
            features, content = inference.measure(loaded, x, warmup, iterations)
    except PackageNotFoundError:
        command = f"vit export --config {config or 'CONFIG.yaml'} --output {model}"
        raise click.ClickException(f"there is no {model}; make it with\n  {command}") from None
    except MaxBackendError as error:
        raise click.ClickException(first_line(error)) from None
    if image and features.ndim == 2:
        content["top"] = inference.top_classes(features, image, top_k)
    if output is not None:
        inference.write_features(features, output)
        content["features"] = str(output)
    show({"model": str(model), "device": str(loaded.device), **content}, form, _inference_text)


def _inference_text(content: dict[str, Any]) -> str:
    times = content["latency_ms"]
    rows = [
        ["input", content["input_shape"]],
        ["output", content["output_shape"]],
        ["latency (ms)", ", ".join(f"{name} {value:.2f}" for name, value in times.items())],
        ["images per second", f"{content['images_per_second']:.1f}"],
        ["peak memory (MiB)", f"{content['peak_memory_bytes'] / 2**20:.0f}"],
    ]
    for entry in content.get("top", []):
        likeliest = [f"{c['class']} ({c['probability']:.1%})" for c in entry["classes"]]
        rows.append([entry["image"], ", ".join(likeliest)])
    if "features" in content:
        rows.append(["features", content["features"]])
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def main() -> None:
    """The entry point of ``vit``."""
    cli(prog_name="vit")


if __name__ == "__main__":
    main()
