"""The suite runs under pytest-forked: each test in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

TEST = """
import os

def test_process():
    assert os.getppid() == int(os.environ["RUNNER"])
"""
RUNNER = """
import os, pytest, sys
os.environ["RUNNER"] = str(os.getpid())
sys.exit(pytest.main(["-q", "--forked"]))
"""


def test_a_test_that_passes_passes_in_a_process_of_its_own(tmp_path: Path):
    (tmp_path / "test_process.py").write_text(TEST, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-c", RUNNER],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
    )
    assert run.returncode == 0, run.stdout
    assert "1 passed" in run.stdout
