"""A command finishes its work even if its output pipe is closed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path
from tqdm import tqdm
from shopee_mlflow.console import TrainingProgress, fail, guard_output, say, show_log_messages
guard_output()
show_log_messages()
bar = tqdm(total=100, mininterval=0)
for number in range(100):
    say(f"epoch {number} " + "x" * 2000)
    bar.update(1)
    fail("an error")
    print("another library")
Path("done").write_text("100")
"""


def run(stdout: int, stderr: int, **env: str) -> int:
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(
        command, stdout=stdout, stderr=stderr, check=False, env={**os.environ, **env}
    ).returncode


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_a_closed_pipe_or_a_full_disk_ends_nothing(full: bool) -> None:
    if full and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    target = os.open("/dev/full", os.O_WRONLY) if full else closed_pipe()
    try:
        assert run(target, target) == 0
    finally:
        os.close(target)
    assert Path("done").read_text() == "100"


@pytest.mark.slow
def test_closed_streams_end_nothing() -> None:
    command = f"exec {sys.executable} -c '{PROGRAM}' >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
    assert Path("done").read_text() == "100"


@pytest.mark.slow
def test_characters_that_the_output_lacks_are_escaped() -> None:
    program = "from shopee_mlflow.console import guard_output, say; guard_output(); say('日本')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert done.stdout == b"\\u65e5\\u672c\n"
