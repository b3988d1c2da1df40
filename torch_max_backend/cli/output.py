"""What commands print: data on stdout, as text or JSON; one line on stderr for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

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


@contextmanager
def working(message: str) -> Iterator[None]:
    """While something long runs: on a terminal a spinner and the time it has taken, else a line."""
    console = Console(stderr=True)
    if not console.is_terminal:
        progress(f"{message} ...")
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        bar.add_task(message, total=None)
        yield


def first_line(error: BaseException) -> str:
    """An error as one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
