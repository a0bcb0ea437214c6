"""Runs the command line as a process of its own, as its users do."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMAND = [sys.executable, "-m", "solti_store.cli"]


def environment(url: str | None = None, **more: str) -> dict[str, str]:
    """This process's environment, pointing at one database, and without what changes how output looks."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if name not in {"SOLTI_STORE_URL", "SOLTI_STORE_DEBUG", "NO_COLOR", "FORCE_COLOR", "COLUMNS"}
    }
    return plain | ({} if url is None else {"SOLTI_STORE_URL": url}) | more


def run_cli(
    *arguments: str, url: str | None = None, stdin: str | bytes = b"", env: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run it to its end; stdin is no terminal."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=environment(url, **env),
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=90,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def data_of(*arguments: str, url: str | None = None, stdin: str | bytes = b"", env: Mapping[str, str] = {}) -> str:
    """What it writes to stdout; it must succeed."""
    done = run_cli(*arguments, url=url, stdin=stdin, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout
