"""Arguments that several commands of ``vit`` take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
import yaml

from vit import ViTConfig

FILE = click.Path(path_type=Path)


class Shape(click.ParamType):
    """Sizes with commas between, such as 8,3,224,224."""

    name = "B,C,H,W"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        try:
            sizes = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            self.fail(f"{value!r} is no list of sizes such as 8,3,224,224", param, ctx)
        return sizes


class Device(click.ParamType):
    """cpu, cuda, cuda:N, mps; in any case."""

    name = "DEVICE"

    def convert(self, value: Any, param: Any, ctx: Any) -> torch.device:
        try:
            device = torch.device(str(value).lower())
        except RuntimeError:
            self.fail(f"{value!r} is no device; use cpu, cuda, cuda:N or mps", param, ctx)
        if device.type != "cpu" and not torch.accelerator.is_available():
            self.fail(f"this machine has no {device.type} device", param, ctx)
        return device


def read_config(path: Path) -> ViTConfig:
    """Raises click.ClickException, one line, where it is no valid configuration."""
    try:
        return ViTConfig.from_yaml(path)
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise click.ClickException(f"{path}: {' '.join(str(error).split())}") from None
