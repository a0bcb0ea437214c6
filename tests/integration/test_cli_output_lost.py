"""What becomes of a command whose output goes nowhere: to a full disk, or a reader that has gone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cli_run import COMMAND, environment

COMMANDS = [
    ["--version"],
    ["--help"],
    ["report"],
    ["report", "agents", "-o", "csv"],
    ["report", "agents", "-o", "png"],
    ["db", "current"],
    ["list", "-o", "json"],
    ["watch", "--bookmarks", "0.1", "--count", "1"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_full_disk_is_one_line_and_code_1(database_url: str, command: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, *command],
            env=environment(database_url),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: cannot write the output: No space left on device\n"


def test_nobody_can_be_told_of_a_full_disk(database_url: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "db", "current"], env=environment(database_url), stdout=full, stderr=full, check=False
        )
    assert done.returncode == 1


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_reader_that_has_gone_is_no_fault(database_url: str, command: list[str]) -> None:
    process = subprocess.Popen(
        [*COMMAND, *command], env=environment(database_url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 0)
    process.stderr.close()
