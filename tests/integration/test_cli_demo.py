"""The demo, small but whole: real processes, one of them killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli_run import COMMAND, environment, run_cli

from solti_store import TaskPhase, TaskStore

if TYPE_CHECKING:
    from collections.abc import Iterator


def start_demo(url: str, folder: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "demo", "--tasks", "40", *flags],
        env=environment(url, TMPDIR=str(folder)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers_of(folder: Path) -> Iterator[int]:
    """The living processes whose environment says that they belong to the demo of this folder."""
    for entry in Path("/proc").iterdir():
        try:
            if f"TMPDIR={folder}\0".encode() in (entry / "environ").read_bytes():
                yield int(entry.name)
        except (OSError, ValueError):
            continue


def until_killed(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    while line := process.stderr.readline():
        if "SIGKILL" in line:
            return
    raise AssertionError("the demo ended before it killed anybody")


def test_the_demo_ends_with_every_attempt_accounted_for(database_url: str, tmp_path: Path) -> None:
    done = run_cli("demo", "--tasks", "40", "-o", "json", url=database_url, env={"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    account: dict[str, Any] = json.loads(done.stdout)
    assert all(check["ok"] for check in account["checks"])
    # And by our own look at the books, which the demo's checks cannot colour.
    with TaskStore.open(database_url) as store:
        page = list(store.list())
        assert len(page) == 40
        phases = {phase: sum(task.phase is phase for task in page) for phase in TaskPhase}
        assert phases[TaskPhase.PENDING] == phases[TaskPhase.RUNNING] == 0
        assert (phases[TaskPhase.TIMEOUT], phases[TaskPhase.CANCELED]) == (2, 4)
        assert min(phases[TaskPhase.FAILED], phases[TaskPhase.EXHAUSTED]) >= 2
        runs = {task.id: store.runs(task.id) for task in page}
    for task in page:
        assert [run.attempt for run in runs[task.id]] == list(range(1, task.status.attempt + 1))
        assert all(run.finished_at is not None for run in runs[task.id])
    (killed,) = (worker["id"] for worker in account["workers"] if worker["killedAfterSeconds"] is not None)
    lost = [
        (task_id, run.attempt)
        for task_id, of_task in runs.items()
        for run in of_task
        if run.error == f"lease expired: agent {killed} stopped reporting"
    ]
    assert lost
    # Sorted: the account goes by the plan, the list by creation, and the task that replaces another comes later.
    assert sorted(lost) == sorted((rescue["id"], rescue["lost"]["attempt"]) for rescue in account["rescued"])
    assert all(rescue["again"]["agent"] != killed for rescue in account["rescued"])
    assert sum(len(of_task) > 1 for of_task in runs.values()) > len(lost)
    assert list(workers_of(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_tables_tell_what_happened_and_nothing_is_kept_if_so_wished(database_url: str, tmp_path: Path) -> None:
    with start_demo(database_url, tmp_path, "--no-keep", "--workers", "2") as process:
        out, err = process.communicate(timeout=90)
    assert process.returncode == 0, out + err
    for heading in ("How the tasks ended", "Who ran them", "Rescued attempts", "Checks"):
        assert f"\n{heading}\n" in out
    assert "SIGKILL at" in out
    assert "FAILED  every" not in out
    assert "40 of 40 final" in err
    assert "no live worker may run it: " in err
    assert "? queued behind " in err
    assert ", which replaces " in err
    assert "Try next" not in err
    with TaskStore.open(database_url) as store:
        assert len(store.list()) == 0


def test_ctrl_c_takes_the_workers_and_the_tasks_along(database_url: str, tmp_path: Path) -> None:
    with start_demo(database_url, tmp_path) as process:
        until_killed(process)
        assert len(list(workers_of(tmp_path))) >= 3
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    with TaskStore.open(database_url) as store:
        assert len(store.list()) == 0
    # What the killed worker had started goes on to its own end, a few seconds later.
    assert_gone(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_workers_do_not_outlive_a_demo_that_is_killed(database_url: str, tmp_path: Path) -> None:
    with start_demo(database_url, tmp_path) as process:
        until_killed(process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        # Only now the pipe: who still writes to it should not be what ends them.
        assert_gone(tmp_path)


def assert_gone(folder: Path) -> None:
    deadline = time.monotonic() + 20
    while left := list(workers_of(folder)):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
