"""Migrations and the private server from the command line; databases that are not there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cli_run import COMMAND, data_of, environment, run_cli

from solti_store.sql.revision import HEAD

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_a_server_of_your_own_is_migrated_only_when_told(empty_database_url: str) -> None:
    url = empty_database_url
    refused = run_cli("list", url=url)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (5, "", 1)
    assert "run `solti-store db upgrade`" in refused.stderr
    current = run_cli("db", "current", url=url)
    assert (current.returncode, current.stdout) == (5, "none\n")
    assert data_of("db", "upgrade", url=url) == f"{HEAD}\n"
    assert data_of("db", "upgrade", url=url) == f"{HEAD}\n"
    document = json.loads(data_of("db", "current", "-o", "json", url=url))
    assert (document["fits"], document["revision"], document["head"]) == (True, HEAD, HEAD)
    assert data_of("list", "-o", "name", url=url) == ""
    unknown = run_cli("db", "upgrade", "nonsense", url=url)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (5, 1)
    assert data_of("db", "downgrade", "base", "-y", url=url) == "none\n"
    assert run_cli("get", "x", url=url).returncode == 5


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://u:secret@127.0.0.1:1/x", "the database cannot be reached"),
        ("mysql://u:secret@h/x", "a database URL starts with postgresql://"),
        ("::secret::", "the database URL is malformed"),
    ],
)
def test_a_database_that_is_not_there_is_one_line_without_the_password(url: str, message: str) -> None:
    for arguments in (["get", "x"], ["db", "current"], ["db", "upgrade"], ["work", "--until-idle"]):
        done = run_cli(*arguments, url=url)
        assert (done.returncode, done.stdout) == (5, "")
        assert done.stderr.startswith(f"error: {message}")
        assert done.stderr.count("\n") == 1
        assert "secret" not in done.stderr


def test_ctrl_c_ends_a_command_that_waits_with_code_130(database_url: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, "submit", "-f", "-"],
        env=environment(database_url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        # More than a pipe holds: once this is written, the command reads its document, and waits for the end of it.
        assert process.stdin is not None
        process.stdin.write(b" " * 1_000_000)
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.fixture
def private() -> Iterator[dict[str, str]]:
    # Not tmp_path: pytest closes the folders above it (mode 0700), and root's server is another user.
    folder = Path(tempfile.mkdtemp(prefix="sc-", dir="/tmp"))
    folder.chmod(0o711)
    env = {"SOLTI_STORE_DATA": str(folder / "data")}
    yield env
    run_cli("db", "stop", env=env)
    shutil.rmtree(folder)


def test_without_a_url_there_is_a_private_server_started_and_migrated_on_demand(private: dict[str, str]) -> None:
    assert data_of("db", "status", "-o", "name", env=private) == "stopped\n"
    # An empty variable is no URL.
    assert data_of("submit", "a", "-o", "name", "--", "true", env={**private, "SOLTI_STORE_URL": ""}) == "a\n"
    assert data_of("get", "a", "-o", "name", env=private) == "a\n"
    status = json.loads(data_of("db", "status", "-o", "json", env=private))
    assert (status["state"], status["dataRoot"]) == ("ready", private["SOLTI_STORE_DATA"])
    os.kill(status["pid"], 0)
    assert data_of("db", "current", env=private) == f"{HEAD}\n"
    assert run_cli("work", "--until-idle", env=private).returncode == 0
    assert json.loads(data_of("get", "a", "-o", "json", env=private))["status"]["phase"] == "succeeded"
    assert run_cli("db", "stop", env=private).stderr == "stopped the private server\n"
    assert run_cli("db", "stop", env=private).stderr == "the private server was not running\n"
    verbose = run_cli("-v", "list", "-o", "name", env=private)
    assert verbose.stdout == "a\n"
    assert "the private PostgreSQL server runs as process" in verbose.stderr
