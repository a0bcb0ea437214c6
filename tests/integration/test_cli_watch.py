"""The command `watch`, and the token that `list` gives for it."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from cli_run import COMMAND, data_of, environment, run_cli
from support import spec

from solti_store import Bookmark, TaskChange, TaskStore

if TYPE_CHECKING:
    from pathlib import Path


def test_it_prints_changes_from_a_token_on(database_url: str) -> None:
    with TaskStore.open(database_url) as store:
        store.create("a", spec("a"))
        token = json.loads(data_of("list", "--token", "-o", "json", url=database_url))["token"]
        assert "what comes next: watch --from " in run_cli("list", "--token", url=database_url).stderr
        store.cancel("a")
        store.create("b", spec("b"))
        lines = data_of("watch", "--from", token, "--count", "2", url=database_url).splitlines()
        first, second = map(TaskChange.from_json, lines)
        assert (first.task_id, first.phase, first.task) == ("a", "canceled", store.get("a"))
        assert second.kind == "added"
        after = data_of("watch", "--from", first.token, "--count", "1", url=database_url)
        assert TaskChange.from_json(after) == second
        table = data_of(
            "watch", "--from", token, "--count", "1", "--phase", "canceled", "-o", "table", url=database_url
        )
        assert table.split()[1:] == ["added", "finished", "a", "attempt", "0", "pending", "→", "canceled"]
        bookmark = data_of("watch", "--from", second.token, "--bookmarks", "0.01", "--count", "1", url=database_url)
        assert Bookmark.from_json(bookmark).token


def test_it_waits_for_what_comes_and_ends_when_its_reader_does(database_url: str) -> None:
    with TaskStore.open(database_url) as store:
        watching = subprocess.Popen(
            [*COMMAND, "watch", "--bookmarks", "0.01"], env=environment(database_url), stdout=subprocess.PIPE, text=True
        )
        assert watching.stdout is not None
        Bookmark.from_json(watching.stdout.readline())
        store.create("a", spec("a"))
        while "taskId" not in (line := watching.stdout.readline()):
            assert line
        assert TaskChange.from_json(line).task_id == "a"
        watching.stdout.close()
        assert watching.wait(timeout=60) == 0


def test_what_cannot_be_is_refused(database_url: str, tmp_path: Path) -> None:
    for arguments, message, code in (
        (["--from", "x"], "the token is damaged", 2),
        (["--bookmarks", "0"], "--bookmarks must be more than 0", 2),
        (["-l", "a in"], "selector", 2),
        (["--phase", "done"], "unknown", 2),
    ):
        done = run_cli("watch", *arguments, url=database_url)
        assert (done.returncode, done.stdout) == (code, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
