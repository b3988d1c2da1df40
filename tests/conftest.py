"""What is selected and in which order, and the fixture of the comparisons; see harness.py."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests import harness
from torch_max_backend import compilation

LONGEST = [
    *["models_transformers", "ops_convolution", "models_vit", "ops_pointwise", "ops_reduction"],
    *["ops_indexing", "ops_interpolation", "ops_shape", "ops_attention", "ops_matmul"],
]
"""Test files whose compiles take minutes. They start first, lest one worker end long after the
other."""
_folder: pytest.StashKey[Path] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "also run the cases that others cover nearly"
    parser.addoption("--thorough", action="store_true", help=help)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--thorough"):
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    rank = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_configure(config: pytest.Config) -> None:
    """One folder of verdicts for all processes of this run: xdist workers, forked children."""
    worker = getattr(config, "workerinput", None)
    folder = worker["verdicts"] if worker else tempfile.mkdtemp(prefix="torch-max-backend-tests-")
    config.stash[_folder] = Path(folder)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["verdicts"] = str(node.config.stash[_folder])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for account in harness.accounts(config.stash[_folder]):
        terminalreporter.write_line(str(account))


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(config.stash[_folder], ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def own_program() -> None:
    """What other files traced and never ran is not compiled with the graphs of this one."""
    compilation._open.clear()


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> dict[str, str | None]:
    """What is wrong with each selected case of this file (None: nothing); one MAX compile."""
    cases = [
        item.callspec.params["case"]
        for item in request.session.items
        if getattr(item, "module", None) is request.module and "verdicts" in item.fixturenames
    ]
    return harness.shared_verdicts(request.config.stash[_folder], request.node.nodeid, cases)
