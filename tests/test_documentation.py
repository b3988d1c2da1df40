"""README.md and docs/ name what exists: options, environment flags, make targets, commands."""

import dataclasses
import re
import shlex
from pathlib import Path

import click
import pytest

from torch_max_backend import MaxOptions, flags
from torch_max_backend.cli.main import cli as max_backend
from vit import HeadConfig, ViTConfig
from vit.cli.main import cli as vit

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = (ROOT / "docs" / "packages.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    ((?:vit|max-backend) .*)$", PACKAGES, re.MULTILINE)


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


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_have_the_options_that_the_documentation_gives_them(line):
    program, name, *arguments = shlex.split(line, comments=True)
    command = {"vit": vit, "max-backend": max_backend}[program].commands[name]
    command.make_parser(click.Context(command)).parse_args(arguments)  # NoSuchOption


def test_the_example_configuration_is_a_vit_s16():
    config = ViTConfig.from_yaml(ROOT / "docs" / "vit-s16.yaml")
    assert (config.depth, config.hidden_size, config.patch_size) == (12, 384, [16, 16])
    assert config.heads == {"classes": HeadConfig(out_features=1000)}
    assert "docs/vit-s16.yaml" in PACKAGES
