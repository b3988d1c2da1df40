"""What commands print: data on stdout, as text or JSON; one line on stderr for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How the result is printed on stdout.",
)


def show(content: Any, form: str, text: Callable[[Any], str]) -> None:
    """Prints ``content`` as JSON or as ``text`` writes it."""
    click.echo(json.dumps(content, indent=2) if form == "json" else text(content))


def progress(message: str) -> None:
    """A line on stderr."""
    click.echo(message, err=True)


def first_line(error: BaseException) -> str:
    """An error as one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
