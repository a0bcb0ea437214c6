"""One attempt of a subprocess task, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from workers import HOURS_MS, PATIENCE_S, WAIT, claim_of, eventually, is_alive, run_attempt, shell, terms, written

from solti_store.model import RunnerEnv, Runtime, Subprocess, TaskPhase
from solti_store.rules.outcome import Outcome
from solti_store.worker import Control, SubprocessRunner
from solti_store.worker.process import Process

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def run(
    kind: Subprocess,
    meanwhile: Callable[[Control], Awaitable[None]] | None = None,
    *,
    timeout_ms: int = HOURS_MS,
    grace_s: float = PATIENCE_S,
    env: RunnerEnv = RunnerEnv(),
) -> Outcome:
    return run_attempt(
        SubprocessRunner(),
        claim_of(kind, timeout_ms),
        meanwhile,
        # Without output: what is compared is how it ended.
        terms(timeout_ms, grace_s=grace_s, env=env, output_tail=0),
    )


SHOW_ARGS = "import json, sys; json.dump(sys.argv, open(sys.argv[1], 'w'))"


LONG = SHOW_ARGS + "\n#" + "x" * 2_000_000
OWN_PYTHON = Runtime.custom("python3", "-c")


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda args: Subprocess.command("python3", "-c", SHOW_ARGS, *args), id="command"),
        pytest.param(lambda args: Subprocess.script(Runtime.PYTHON, SHOW_ARGS, *args), id="script"),
        pytest.param(lambda args: Subprocess.script(OWN_PYTHON, SHOW_ARGS, *args), id="custom"),
        pytest.param(lambda args: Subprocess.script(Runtime.PYTHON, LONG, *args), id="long script"),
        pytest.param(lambda args: Subprocess.script(OWN_PYTHON, LONG, *args), id="long custom"),
    ],
)
def test_python_gets_its_arguments(make: Callable[[list[str]], Subprocess], tmp_path: Path) -> None:
    file = tmp_path / "args"
    args = [str(file), "-x", "a b", "", "é"]
    assert run(make(args)) == Outcome.succeeded(0)
    name, *rest = json.loads(file.read_text())
    assert rest == args
    assert name == "-c" or not os.path.lexists(name)  # the file of a long script is gone by now


@pytest.mark.parametrize("padding", [pytest.param("", id="short"), pytest.param("\n#" + "x" * 2_000_000, id="long")])
def test_bash_gets_its_arguments(padding: str, tmp_path: Path) -> None:
    file = tmp_path / "args"
    text = 'printf "%s|" "$#" "$@" > "$1"' + padding
    assert run(Subprocess.script(Runtime.BASH, text, str(file), "-x", "a b", "")) == Outcome.succeeded(0)
    assert file.read_text() == f"4|{file}|-x|a b||"


def test_cwd_environment_and_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "worker")
    text = 'cat > input; printf "%s %s %s %s" "$PWD" "$A" "$B" "$C" > out'
    kind = Subprocess.script(Runtime.BASH, text, env={"B": "task", "C": "task"}, cwd=str(tmp_path))
    assert run(kind, env=RunnerEnv({"C": "runner"})) == Outcome.succeeded(0)
    assert written(tmp_path / "out") == f"{tmp_path} worker task runner"
    assert (tmp_path / "input").read_bytes() == b""


@pytest.mark.parametrize(
    ("text", "fail_on_non_zero", "expected"),
    [
        ("exit 0", True, Outcome.succeeded(0)),
        ("exit 3", False, Outcome.succeeded(3)),
        ("exit 3", True, Outcome.failed("exit code 3", exit_code=3)),
        ("echo first >&2; echo ' last ' >&2; echo >&2; exit 3", True, Outcome.failed("exit code 3: last", exit_code=3)),
        ("echo out; exit 3", True, Outcome.failed("exit code 3: out", exit_code=3)),
        ("echo out; echo err >&2; exit 255", True, Outcome.failed("exit code 255: err", exit_code=255)),
        ("kill -9 $$", True, Outcome.failed("killed by signal SIGKILL")),
        ("kill -9 $$", False, Outcome.failed("killed by signal SIGKILL")),
        ("echo why >&2; kill -SEGV $$", True, Outcome.failed("killed by signal SIGSEGV: why")),
        ("kill -35 $$", True, Outcome.failed("killed by signal 35")),
    ],
)
def test_how_a_process_ends_is_how_the_attempt_ends(text: str, fail_on_non_zero: bool, expected: Outcome) -> None:
    assert run(Subprocess.script(Runtime.BASH, text, fail_on_non_zero=fail_on_non_zero)) == expected


def test_what_postgresql_cannot_store_is_replaced() -> None:
    outcome = run(Subprocess.script(Runtime.BASH, r"printf 'a\0b\xff\x1b[1m\xc3\xa9\n' >&2; exit 1"))
    assert outcome == Outcome.failed("exit code 1: a\ufffdb\ufffd\ufffd[1mé", exit_code=1)


def test_the_end_of_a_long_line_is_kept() -> None:
    outcome = run(Subprocess.script(Runtime.PYTHON, "import sys; sys.exit('x' * 1_000_000 + 'the end')"))
    assert outcome.error is not None
    assert outcome.error.endswith("x" * 900 + "the end")
    assert len(outcome.error) < 1100


def test_a_chatty_process_is_never_blocked() -> None:
    text = "head -c 5000000 /dev/zero; head -c 5000000 /dev/zero >&2; echo done >&2; exit 1"
    outcome = run(Subprocess.script(Runtime.BASH, text))
    assert outcome.error is not None
    assert outcome.error.endswith("done")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(
            lambda _: Subprocess.command("no-such-program"),
            "'no-such-program': No such file or directory",
            id="program",
        ),
        pytest.param(
            lambda folder: Subprocess.command("true", cwd=f"{folder}/no"),
            "working directory '{}/no': No such file",
            id="cwd",
        ),
        pytest.param(lambda folder: Subprocess.command(str(folder)), "'{}': Permission denied", id="permission"),
        pytest.param(lambda _: Subprocess.command("true", "x" * 200_000), "Argument list too long", id="argument"),
        pytest.param(lambda _: Subprocess.command("true", env={"A=B": ""}), "illegal environment variable", id="env"),
    ],
)
def test_what_cannot_start_fails_and_says_why(make: Callable[[Path], Subprocess], says: str, tmp_path: Path) -> None:
    outcome = run(make(tmp_path))
    assert (outcome.phase, outcome.exit_code, outcome.fatal) == (TaskPhase.FAILED, None, False)
    assert outcome.error is not None
    assert outcome.error.startswith("cannot start: ")
    assert says.format(tmp_path) in outcome.error


# --- being stopped ------------------------------------------------------------------------------

FAMILY = WAIT + 'trap "" TERM; sleep 1000 & echo $! > "$1"; echo $$ > "$2"; wait; while :; do sleep 1000; done'


def family(tmp_path: Path) -> tuple[Subprocess, Callable[[], list[int]]]:
    """A process and its child, both deaf to SIGTERM, and their pids once they run."""
    files = tmp_path / "child", tmp_path / "leader"
    kind = Subprocess.script(Runtime.BASH, FAMILY, *map(str, files))
    return kind, lambda: [int(text) for file in files if (text := written(file))]


async def gone(pids: list[int]) -> None:
    assert len(pids) == 2
    await eventually(lambda: not any(map(is_alive, pids)), "the end of the whole group")


@pytest.mark.parametrize("pidfd", ["as it is", "no such call", "forbidden"])
def test_a_timeout_ends_the_whole_group(pidfd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if pidfd == "no such call":
        monkeypatch.delattr(os, "pidfd_open")
    elif pidfd == "forbidden":

        def forbidden(_pid: int) -> int:
            raise PermissionError

        monkeypatch.setattr(os, "pidfd_open", forbidden)
    kind, pids = family(tmp_path)

    async def seen(_control: Control) -> None:
        await eventually(lambda: len(pids()) == 2)

    # The processes are there long before the timeout on any machine that runs the test at all.
    assert run(kind, seen, timeout_ms=3000, grace_s=0.1) == Outcome.timed_out(3000)
    asyncio.run(gone(pids()))


def test_a_process_may_use_the_grace_to_clean_up(tmp_path: Path) -> None:
    ready, bye = tmp_path / "ready", tmp_path / "bye"
    kind = shell('trap "echo bye > $2; exit 0" TERM; touch "$1"; wait_for "$3"', ready, bye, tmp_path / "never")

    async def cancel(control: Control) -> None:
        await eventually(ready.exists)
        control.stop(Outcome.canceled())
        control.stop(Outcome.failed("too late to say so"))

    assert run(kind, cancel) == Outcome.canceled()
    assert written(bye) == "bye"


def test_an_urgent_end_does_not_wait_for_the_grace(tmp_path: Path) -> None:
    kind, pids = family(tmp_path)

    async def cancel(control: Control) -> None:
        await eventually(lambda: len(pids()) == 2)
        control.stop(Outcome.canceled())
        await asyncio.sleep(0)
        control.kill(Outcome.failed("lost"))

    assert run(kind, cancel, grace_s=1e6) == Outcome.canceled()
    asyncio.run(gone(pids()))


def test_a_timeout_of_half_a_billion_years_is_no_timer() -> None:
    assert run(Subprocess.command("true"), timeout_ms=2**64 - 1) == Outcome.succeeded(0)


def test_a_timeout_of_a_millisecond_is_reported_as_such(tmp_path: Path) -> None:
    assert run(shell('wait_for "$1"', tmp_path / "never"), timeout_ms=1) == Outcome.timed_out(1)


def test_a_cancelled_runner_leaves_nothing_behind(tmp_path: Path) -> None:
    kind, pids = family(tmp_path)

    async def scenario() -> None:
        task = asyncio.create_task(SubprocessRunner().run(claim_of(kind), Control(), terms(HOURS_MS, grace_s=1e6)))
        await eventually(lambda: len(pids()) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone(pids())

    asyncio.run(scenario())


def test_what_the_leader_leaves_in_its_group_ends_with_it(tmp_path: Path) -> None:
    child = tmp_path / "child"
    kind = Subprocess.script(Runtime.BASH, 'sleep 1000 & echo $! > "$1"; exit 0', str(child))
    assert run(kind) == Outcome.succeeded(0)
    asyncio.run(eventually(lambda: not is_alive(int(written(child))), "the end of the child"))


def test_who_left_the_group_cannot_hold_the_attempt_up(tmp_path: Path) -> None:
    child = tmp_path / "child"
    text = 'setsid bash -c "echo \\$\\$ > $1; exec yes" & while [ ! -s "$1" ]; do sleep 0.01; done; exit 5'
    outcome = run(Subprocess.script(Runtime.BASH, text, str(child)))
    pid = int(written(child))
    try:
        assert outcome.exit_code == 5
    finally:
        if is_alive(pid):  # it may have died of its closed pipe
            os.kill(pid, signal.SIGKILL)


def test_an_ended_process_is_never_signalled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        process = Process(["true"], cwd=None, env=dict(os.environ))
        await asyncio.wait((process.ended,))

        def innocent(_pgid: int, _number: int) -> None:
            raise AssertionError

        monkeypatch.setattr(os, "killpg", innocent)
        process.send(signal.SIGKILL)
        monkeypatch.undo()

    asyncio.run(scenario())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_stays_open() -> None:
    async def scenario() -> tuple[int, int]:
        async def once(program: str) -> None:
            kind = Subprocess.command(program)
            await SubprocessRunner().run(claim_of(kind), Control(), terms(HOURS_MS, grace_s=1))

        await once("true")
        before = open_files()
        for _ in range(5):
            await once("true")
            await once("no-such-program")
        return before, open_files()

    before, after = asyncio.run(scenario())
    assert before == after
