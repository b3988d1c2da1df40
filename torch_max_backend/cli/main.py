"""``max-backend``: health of an installation, packages, operators, the compile cache.

Exit codes: 0 = done, 1 = a check failed or a file cannot be used, 2 = wrong arguments.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from torch_max_backend.cli.output import first_line, format_option, progress, show


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="torch-max-backend")
def cli() -> None:
    """PyTorch models on Modular's MAX.

    Completion: eval "$(_MAX_BACKEND_COMPLETE=bash_source max-backend)" in your shell's profile
    (zsh_source, fish_source).
    """


@cli.command()
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="A package to load and run once.",
)
@format_option
def check(model: Path | None, form: str) -> None:
    """Report whether this installation works; exit with 1 where it does not.

    Example: max-backend check --model vit.max --format json
    """
    from torch_max_backend.cli.health import report

    found = report(model, progress)
    show(found, form, _report_text)
    sys.exit(0 if found["ok"] else 1)


def _report_text(found: dict[str, Any]) -> str:
    lines = [f"{found['machine']}, Python {found['python']}"]
    for entry in found["checks"]:
        mark = "ok    " if entry["ok"] else "FAILED"
        lines.append(f"{mark} {entry['name']} ({entry['seconds']:.1f} s): {entry['detail']}")
        if entry["remedy"]:
            lines.append(f"       what to do: {entry['remedy']}")
    lines.append("everything works" if found["ok"] else "something does not work, see above")
    return "\n".join(lines)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@format_option
def info(file: Path, form: str) -> None:
    """Show what a package says of itself, without loading the model.

    Example: max-backend info vit.max
    """
    from torch_max_backend import PackageError, load_metadata_from_package

    try:
        metadata = load_metadata_from_package(file)
    except PackageError as error:
        raise click.ClickException(first_line(error)) from None
    show(metadata, form, _info_text)


def _info_text(metadata: dict[str, Any]) -> str:
    from torch_max_backend.aot.metadata import TensorSpec  # imports torch

    rows = [
        ["model", metadata["model"]],
        ["device", metadata["device"]],
        ["needs", _needs(metadata)],
        ["versions", ", ".join(f"{k} {v}" for k, v in metadata["versions"].items())],
        ["traced", metadata["tracing"]],
        ["weights", f"{len(metadata['constants'])} tensors, " + _where(metadata)],
    ]
    for kind in ("inputs", "outputs"):
        for entry in metadata[kind]:
            rows.append([kind[:-1], str(TensorSpec.from_json(entry))])
    for name, (low, high) in metadata["ranges"].items():
        rows.append(["range", f"{name}: {low} to {high}"])
    return tabulate(rows, tablefmt="plain")


def _needs(metadata: dict[str, Any]) -> str:
    gpu = metadata["gpu"] if metadata["device"] != "cpu" else None
    cpu = metadata["cpu"]
    return ", ".join(
        [
            metadata["system"],
            f"a CPU of {cpu}" if cpu != "native" else "a CPU like that which made it",
            *([f"a GPU of {gpu['architecture']}"] if gpu else []),
        ]
    )


def _where(metadata: dict[str, Any]) -> str:
    beside = metadata.get("weights_beside")
    place = "in the package" if beside is None else f"in {beside['file']} beside it"
    return f"{place}, frozen" if metadata.get("frozen") else place


@cli.command()
@format_option
def ops(form: str) -> None:
    """List the operators that can be compiled.

    Example: max-backend ops --format json
    """
    from torch_max_backend import MAPPING_TORCH_ATEN_TO_MAX

    names = sorted(str(overload) for overload in MAPPING_TORCH_ATEN_TO_MAX)
    show({"operators": names}, form, lambda found: "\n".join(found["operators"]))


@cli.group()
def cache() -> None:
    """The compile cache on disk."""


@cache.command("info")
@format_option
def cache_info(form: str) -> None:
    """Show the cache's folder and size.

    Example: max-backend cache info
    """
    from torch_max_backend import cache as disk_cache
    from torch_max_backend import flags

    entries, size = disk_cache.usage()
    content = {
        "folder": str(disk_cache.directory()),
        "programs": entries,
        "bytes": size,
        "limit_bytes": flags.cache_size_limit(),
    }
    show(content, form, lambda c: tabulate(c.items(), tablefmt="plain", disable_numparse=True))


@cache.command("clear")
@format_option
def cache_clear(form: str) -> None:
    """Remove every compiled program.

    Example: max-backend cache clear
    """
    from torch_max_backend import cache as disk_cache

    content = {"removed": disk_cache.clear()}
    show(content, form, lambda c: f"{c['removed']} programs removed")


def main() -> None:
    """The entry point of ``max-backend``."""
    cli(prog_name="max-backend")


if __name__ == "__main__":
    main()
