"""README.md names what exists: options, environment flags, make targets."""

import dataclasses
import re
from pathlib import Path

from torch_max_backend import MaxOptions, flags

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_options_are_those_of_max_options():
    table = dict(re.findall(r'^\| `"(\w+)"` \| `(.*?)` \|', README, re.MULTILINE))
    fields = dataclasses.fields(MaxOptions)
    expected = {
        f.name: f'"{f.default}"' if isinstance(f.default, str) else str(f.default) for f in fields
    }
    assert table == expected


def test_environment_flags_are_those_of_flags():
    named = set(re.findall(r"TORCH_MAX_BACKEND_[A-Z_]+", README))
    source = Path(flags.__file__).read_text(encoding="utf-8")
    assert named == set(re.findall(r"TORCH_MAX_BACKEND_[A-Z_]*[A-Z](?=[^A-Z_])", source))


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"^ +make (\w+)", README, re.MULTILINE)) == {"demo", "test"} <= targets
    assert "help" in targets


def test_ci_runs_the_test_command():
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert commands[-1] == "exec make test"
    assert not [line for line in commands[1:-1] if not re.match(r"#|set |cd ", line)]


def test_one_screen():
    assert len(README.splitlines()) <= 60
