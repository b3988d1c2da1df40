"""What the packages import is what ``pip install`` brings, without any extra."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch_max_backend", "vit")
STANDARD = sys.stdlib_module_names


def _names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def _imports(tree: ast.AST) -> Iterator[str]:
    """Top-level modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def _optional(tree: ast.AST) -> set[str]:
    """Modules whose absence is answered with what to do."""
    return {
        module
        for node in ast.walk(tree)
        if isinstance(node, ast.Try)
        and any(ast.unparse(handler.type or node) == "ImportError" for handler in node.handlers)
        for statement in node.body
        for module in _imports(statement)
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_dependencies(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = _names(project["dependencies"])
    installed |= _names(requires("max-core") or [])  # which brings Mojo
    distributions = packages_distributions()
    for file in (ROOT / package).rglob("*.py"):
        tree = ast.parse(file.read_text())
        for module in set(_imports(tree)) - _optional(tree) - {*PACKAGES, *STANDARD}:
            names = {canonicalize_name(name) for name in distributions.get(module, [])}
            assert names & installed, f"{file.relative_to(ROOT)} imports {module}: {names}"
