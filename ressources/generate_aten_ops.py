"""Writes ressources/aten_ops.txt: every ATen overload of the installed torch with its schema.

    python ressources/generate_aten_ops.py

Overloads are those of the dispatcher, which are the ones a graph can hold; the ones that only
TorchScript knows (lists, dicts, Python numbers) are left out.
"""

from __future__ import annotations

from pathlib import Path

import torch

LISTING = Path(__file__).with_name("aten_ops.txt")
COMMAND = "python ressources/generate_aten_ops.py"
CORE_MARK = "  # core"


def aten_overloads() -> list[torch._ops.OpOverload]:
    """Every overload the dispatcher has registered under aten."""
    overloads = []
    for qualified_name in torch._C._dispatch_get_all_op_names():
        namespace, _, name = qualified_name.partition("::")
        if namespace == "aten":
            packet, _, overload = name.partition(".")
            overloads.append(getattr(getattr(torch.ops.aten, packet), overload or "default"))
    return overloads


def listing() -> str:
    """The text of aten_ops.txt for the installed torch."""
    lines = sorted(
        f"{op._schema}{CORE_MARK if torch.Tag.core in op.tags else ''}" for op in aten_overloads()
    )
    core = sum(line.endswith(CORE_MARK) for line in lines)
    version = torch.__version__.partition("+")[0]
    header = [
        f"# torch {version}: {len(lines)} ATen overloads, {core} of them core; "
        "a line that ends in '# core' is one.",
        f"# Written by: {COMMAND}",
    ]
    return "\n".join([*header, *lines, ""])


if __name__ == "__main__":
    LISTING.write_text(listing(), encoding="utf-8")
    print(f"{LISTING.name}: {LISTING.stat().st_size / 1024:.0f} KiB")
