"""Files that are written beside their place and renamed."""

import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from torch_max_backend.replacing import replacing

DAY = 24 * 3600


def aged(path: Path, seconds: float) -> Path:
    past = time.time() - seconds
    os.utime(path, (past, past))
    return path


def test_the_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as new:
        new.write_text("new")
        assert path.read_text() == "old" and new.parent == tmp_path
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_what_safetensors_writes(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain", tmp_path / "a.safetensors"
    plain.touch()
    with replacing(path) as new:
        save_file({"a": torch.zeros(2)}, new)
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as new:
        new.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_writers_left_is_removed_after_a_day(tmp_path: Path) -> None:
    path, other = tmp_path / "a[1].max", tmp_path / ".b.max.0.tmp"
    folder = tmp_path / ".a[1].max.1.tmp"
    folder.mkdir()
    (folder / "weights").write_text("half")
    old, young = tmp_path / ".a[1].max.2.tmp", tmp_path / ".a[1].max.3.tmp"
    for file in (old, young, other):
        file.write_text("half")
    for left in (old, other, folder):
        aged(left, 1.1 * DAY)
    with replacing(path) as new:
        new.write_text("whole")
    assert set(tmp_path.iterdir()) == {path, young, other}
