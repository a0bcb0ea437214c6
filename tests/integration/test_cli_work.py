"""The worker from the command line."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import wasmtime
from cli_run import COMMAND, data_of, environment, run_cli

from solti_store import Subprocess, TaskPhase, TaskSpec, TaskStore, Wasm
from solti_store.cli.work import default_agent_id
from solti_store.model import AgentId, Labels, RunnerSelector, Slot, Timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def spec(slot: str, script: str, **labels: str) -> TaskSpec:
    selector = RunnerSelector(match_labels=Labels(labels)) if labels else None
    kind = Subprocess.command("sh", "-c", script)
    return TaskSpec(slot=Slot(slot), kind=kind, timeout=Timeout(60_000), runner_selector=selector)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def start_worker(url: str, *flags: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*COMMAND, "work", *flags],
        env=environment(url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            # Else a test that fails waits for it.
            process.kill()


def test_it_runs_what_is_due_for_its_labels_and_tells(database_url: str) -> None:
    with TaskStore.open(database_url) as store:
        store.create("good", spec("good", '[ "$GREETING" = hi ]'))
        store.create("bad", spec("bad", "echo oh >&2; exit 3"))
        store.create("mine", spec("mine", "true", gpu="yes"))
        store.create("other", spec("other", "true", gpu="no"))
        flags = ["--id", "w1", "--label", "gpu=yes", "--env", "GREETING=hi", "-c", "2", "--lease", "10s"]
        done = run_cli("work", *flags, "--until-idle", url=database_url)
        assert (done.returncode, done.stdout) == (0, "")
        lines = done.stderr.splitlines()
        assert lines[0] == "worker w1 is ready"
        assert lines[-1] == "worker w1 ends: 2 succeeded, 1 failed"
        told = {tuple(line.split()[1:3]) for line in lines[1:-1]}
        assert told == {
            *(("started", name) for name in ("good", "bad", "mine")),
            ("succeeded", "good"),
            ("failed", "bad"),
            ("succeeded", "mine"),
        }
        assert any(line.endswith("attempt 1: exit code 3: oh") for line in lines)
        assert store.runs("good")[0].agent == "w1"
        assert store.get("other").phase is TaskPhase.PENDING
    quiet = run_cli("work", "-q", "--until-idle", "--id", "w2", url=database_url)
    assert quiet.stderr == "worker w2 is ready\nworker w2 ends: nothing to do\n"


def until_it_drains(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    assert any("finishing what runs; once more to stop it" in line for line in process.stderr)


def test_the_first_signal_lets_it_finish(database_url: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    # One place, which is taken: with another one free, a claim could be on its way when the signal comes.
    with TaskStore.open(database_url) as store, start_worker(database_url, "-c", "1") as process:
        store.create("runs", spec("runs", f"until [ -e {go} ]; do sleep 0.01; done"))
        until(lambda: store.get("runs").phase is TaskPhase.RUNNING)
        process.send_signal(signal.SIGTERM)
        until_it_drains(process)
        store.create("late", spec("late", "true"))
        go.touch()
        process.communicate(timeout=30)
        assert process.returncode == 0
        assert store.get("runs").phase is TaskPhase.SUCCEEDED
        assert store.get("late").phase is TaskPhase.PENDING


def test_the_second_signal_stops_what_runs(database_url: str) -> None:
    with TaskStore.open(database_url) as store, start_worker(database_url) as process:
        store.create("runs", spec("runs", "exec sleep 60"))
        until(lambda: store.get("runs").phase is TaskPhase.RUNNING)
        process.send_signal(signal.SIGINT)
        until_it_drains(process)  # two of a kind at once are one signal
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130
        assert store.get("runs").phase is TaskPhase.FAILED


def test_a_worker_of_the_demo_ends_with_it(database_url: str) -> None:
    with TaskStore.open(database_url) as store, start_worker(database_url, "--while-stdin") as process:
        store.create("runs", spec("runs", "exec sleep 60"))
        until(lambda: store.get("runs").phase is TaskPhase.RUNNING)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=30) == 130
        assert store.get("runs").phase is TaskPhase.FAILED


def test_it_runs_the_kinds_it_is_told_to_and_keeps_their_output(database_url: str, tmp_path: Path) -> None:
    module = tmp_path / "module.wasm"
    module.write_bytes(bytes(wasmtime.wat2wasm('(module (func (export "_start") unreachable))')))
    with TaskStore.open(database_url) as store:
        store.create("sub", spec("sub", "echo 12345"))
        store.create("wasm", TaskSpec.builder("wasm", Wasm.module(str(module)), 60_000).build())
        flags = ["-q", "--until-idle", "--kinds", "wasm, subprocess", "--prefetch", "3", "--output-tail", "4"]
        done = run_cli("work", *flags, "--id", "w", url=database_url)
        assert done.stderr.splitlines()[-1] == "worker w ends: 1 succeeded, 1 failed"
        assert [agent.kinds for agent in store.agents(closed=True)] == [("subprocess", "wasm")]
        assert store.runs("sub")[0].stdout == "345\n"
        assert store.get("wasm").status.error == "wasm trap: wasm `unreachable` instruction executed"


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--kinds", "embedded"], 2, "--kinds: embedded tasks are functions of a Python program"),
        (["--kinds", "subprocess,magic"], 2, "--kinds: expected some of subprocess, container, wasm, got 'magic'"),
        (["--kinds", ""], 2, "--kinds: expected some of"),
        (["--output-tail", "65537"], 2, "--output-tail"),
        (["-c", "999", "--prefetch", "2"], 2, "prefetch must be from 0 to 1000 less the concurrency, got 2"),
        (["--kinds", "container"], 1, "container tasks need docker or podman, which is not in the PATH"),
    ],
)
def test_what_it_cannot_do_is_one_line(database_url: str, flags: list[str], code: int, says: str) -> None:
    done = run_cli("work", *flags, url=database_url, env={"PATH": "/nowhere"})
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert says in done.stderr


def test_a_worker_without_a_name_gets_a_legal_one() -> None:
    assert AgentId(default_agent_id()) == default_agent_id()


def test_a_bad_name_is_one_line(database_url: str) -> None:
    done = run_cli("work", "--id", "a b", url=database_url)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: invalid model: agent_id contains forbidden byte")
    assert data_of("list", "-o", "name", url=database_url) == ""
