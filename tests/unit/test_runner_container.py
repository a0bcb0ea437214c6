"""One attempt of a container task.

With a stand-in for the engine's command line (`engine_stand_in.py`): a program named docker that records how it is
called and runs a process in place of a container. So this tests our side of the contract with the command line, and
not that docker keeps its own. With SOLTI_STORE_TEST_CONTAINER, the name of an image that has `sh`, the tests that look
at no record are run with the machine's real engine too.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from workers import HOURS_MS, PATIENCE_S, claim_of, eventually, run_attempt, terms

from solti_store.model import Container, RunnerEnv, TaskPhase
from solti_store.rules.outcome import Outcome
from solti_store.worker import ContainerRunner, Control, RunnerUnavailable
from solti_store.worker.runners.container import invocation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

STAND_IN = Path(__file__).parent.parent / "engine_stand_in.py"
IMAGE_VARIABLE = "SOLTI_STORE_TEST_CONTAINER"


# --- how the command line is called ---------------------------------------------------------------


def argv_of(kind: Container, **variables: str) -> list[str]:
    call = invocation("docker", kind.spec, name="n", variables=variables, own={"PATH": "/bin"})
    assert call.argv[:5] == ["docker", "run", "--rm", "--name", "n"]
    return call.argv[5:]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Container.image("i"), ["--", "i"]),
        (Container.image("i", "a", "-b", ""), ["--", "i", "a", "-b", ""]),
        (Container.image("i", "a", command=("sh", "-c")), ["--entrypoint=sh", "--", "i", "-c", "a"]),
        (Container.image("i", command=("-x",)), ["--entrypoint=-x", "--", "i"]),
        (Container.image("i", "a", command=()), ["--entrypoint=", "--", "i", "a"]),
        (Container.image("--privileged", "i"), ["--", "--privileged", "i"]),
    ],
)
def test_arguments(kind: Container, expected: list[str]) -> None:
    assert argv_of(kind) == expected


def test_values_are_not_on_the_command_line() -> None:
    call = invocation(
        "docker", Container.image("i").spec, name="n", variables={"KEY": "secret\nkey"}, options=["-q"], own={"A": "b"}
    )
    assert call.argv == ["docker", "run", "--rm", "--name", "n", "-q", "--env", "KEY", "--", "i"]
    assert call.env == {"A": "b", "KEY": "secret\nkey"}


@pytest.mark.parametrize(
    "name",
    [
        "DOCKER_HOST",
        "LD_PRELOAD",
        "PATH",
        "HOME",
        "https_proxy",
        "CONTAINER_HOST",
        "CONTAINERS_CONF",
        "GODEBUG",
        "MINE",
    ],
)
def test_what_the_command_line_would_heed_does_not_reach_it(name: str) -> None:
    own = {"MINE": "own"}
    call = invocation("docker", Container.image("i").spec, name="n", variables={name: "x y"}, own=own)
    assert call.argv[5:] == ["--env", f"{name}=x y", "--", "i"]
    assert call.env == own


@pytest.mark.parametrize(
    "name", ["GOOGLE_API_KEY", "USER_TOKEN", "CONTAINER_SECRET", "PATH_TO", "AWS_SECRET_ACCESS_KEY"]
)
def test_what_only_looks_like_it_stays_off_the_command_line(name: str) -> None:
    assert argv_of(Container.image("i"), **{name: "secret"}) == ["--env", name, "--", "i"]


@pytest.mark.parametrize("name", ["", "A=B"])
def test_what_cannot_be_a_variable_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        argv_of(Container.image("i"), **{name: "x"})


# --- runs ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Engine:
    program: str
    image: str
    folder: Path

    def containers(self) -> list[str]:
        words = [self.program, "ps", "-aq", "--filter", "name=^solti-"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    (folder / "bin").mkdir()
    program = folder / "bin" / "docker"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {STAND_IN} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(folder))
    return Engine(str(program), "bb", folder)


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    return stand_in(tmp_path, monkeypatch)


@pytest.fixture(params=["stand-in", *(["real"] if IMAGE_VARIABLE in os.environ else [])])
def engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    if request.param == "stand-in":
        return stand_in(tmp_path, monkeypatch)
    program = shutil.which("docker") or shutil.which("podman")
    assert program is not None
    return Engine(program, os.environ[IMAGE_VARIABLE], tmp_path)


def run(
    kind: Container,
    meanwhile: Callable[[Control], Awaitable[None]] | None = None,
    *,
    timeout_ms: int = HOURS_MS,
    grace_s: float = PATIENCE_S,
    env: RunnerEnv = RunnerEnv(),
    output_tail: int = 4096,
) -> Outcome:
    under = terms(timeout_ms, grace_s=grace_s, env=env, output_tail=output_tail)
    runner = ContainerRunner(options=["--network=none"])
    return run_attempt(runner, claim_of(kind, timeout_ms), meanwhile, under)


def shell(engine: Engine, text: str, env: dict[str, str] | None = None) -> Container:
    return Container.image(engine.image, text, command=("sh", "-c"), env=env or {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", Outcome.succeeded(0)),
        ("exit 3", Outcome.failed("exit code 3", exit_code=3)),
        ("echo out; echo why >&2; exit 3", Outcome.failed("exit code 3: why", exit_code=3)),
    ],
)
def test_how_a_container_ends_is_how_the_attempt_ends(text: str, expected: Outcome, engine: Engine) -> None:
    assert run(shell(engine, text), output_tail=0) == expected
    assert engine.containers() == []


def test_variables_and_output(engine: Engine) -> None:
    text = 'printf "%s|" "$A" "$B" "$LD_X" "$WORKERS_OWN"; echo err >&2'
    kind = shell(engine, text, {"A": "task", "B": "b\n\"c' ", "LD_X": "x"})
    os.environ["WORKERS_OWN"] = "own"
    try:
        outcome = run(kind, env=RunnerEnv({"A": "runner"}))
    finally:
        del os.environ["WORKERS_OWN"]
    assert (outcome.stdout, outcome.stderr) == ("runner|b\n\"c' |x||", "err\n")


@pytest.mark.parametrize(
    ("make", "code", "says"),
    [
        (lambda _: Container.image("--privileged", "bb"), 125, "invalid reference format"),
        (lambda image: Container.image(image, command=()), 125, "o command specified"),
        (lambda image: Container.image(image, command=("no-such-program",)), 127, "file not found in $PATH"),
        (lambda image: Container.image(image, command=("/bin",)), 126, "permission denied"),
    ],
)
def test_what_cannot_start_fails_and_says_why(
    make: Callable[[str], Container], code: int, says: str, engine: Engine
) -> None:
    outcome = run(make(engine.image))
    assert (outcome.phase, outcome.exit_code, outcome.fatal) == (TaskPhase.FAILED, code, False)
    assert outcome.error is not None
    assert outcome.error.startswith("cannot start: ")
    assert says in outcome.error
    assert engine.containers() == []


READY = "echo ready; "
# How long they sleep is how they are found among this machine's processes, in a container or not.
SECONDS = f"0.1{os.getpid()}"
DEAF = READY + f'trap "" TERM; while :; do sleep {SECONDS}; done'
POLITE = READY + f'trap "echo bye; exit 0" TERM; while :; do sleep {SECONDS}; done'


def is_deaf_or_polite() -> bool:
    return any(process.info["cmdline"] == ["sleep", SECONDS] for process in psutil.process_iter(["cmdline"]))


@pytest.mark.parametrize(
    ("text", "grace_s", "said"),
    [pytest.param(POLITE, 30.0, "ready\nbye\n", id="polite"), pytest.param(DEAF, 0.1, "ready\n", id="deaf")],
)
@pytest.mark.parametrize("how", ["stop", "timeout"])
def test_a_container_is_stopped_by_its_engine(how: str, text: str, grace_s: float, said: str, engine: Engine) -> None:
    async def stop(control: Control) -> None:
        await eventually(engine.containers)
        await eventually(is_deaf_or_polite, "the trap")
        if how == "stop":
            control.stop(Outcome.canceled())

    timeout_ms = 3000 if how == "timeout" else HOURS_MS
    outcome = run(shell(engine, text), stop, grace_s=grace_s, timeout_ms=timeout_ms)
    assert outcome.replace(stdout=None) == (Outcome.timed_out(3000) if how == "timeout" else Outcome.canceled())
    assert outcome.stdout == said
    assert engine.containers() == []


def test_an_urgent_end_does_not_wait_for_the_grace(engine: Engine) -> None:
    async def kill(control: Control) -> None:
        await eventually(engine.containers)
        control.stop(Outcome.canceled())
        await asyncio.sleep(0)
        control.kill(Outcome.failed("lost"))

    assert run(shell(engine, DEAF), kill, grace_s=1e6, output_tail=0) == Outcome.canceled()
    assert engine.containers() == []


def test_a_cancelled_runner_leaves_no_container_behind(engine: Engine) -> None:
    async def scenario() -> None:
        claim = claim_of(shell(engine, DEAF))
        running = asyncio.create_task(ContainerRunner().run(claim, Control(), terms(grace_s=1e6)))
        await eventually(engine.containers)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert engine.containers() == []

    asyncio.run(scenario())


def test_a_command_line_that_dies_leaves_no_container_behind(recording: Engine) -> None:
    async def kill(_control: Control) -> None:
        await eventually(recording.containers)
        (client,) = psutil.Process().children()
        client.kill()

    outcome = run(shell(recording, DEAF), kill, output_tail=0)
    assert outcome == Outcome.failed("killed by signal SIGKILL: ready")
    assert recording.containers() == []


@pytest.mark.parametrize("grace_s", [0.5, 1e6])
def test_what_has_not_begun_is_stopped_too(grace_s: float, recording: Engine) -> None:
    async def stop(control: Control) -> None:
        await eventually((recording.folder / "calls").exists)
        control.stop(Outcome.canceled())
        if grace_s > 1:
            # Once it has been asked in vain.
            await eventually(lambda: any(call[0] == "stop" for call in recording.calls()))
            (recording.folder / "pulled").touch()

    kind = Container.image("slow:1", 'trap "exit 0" TERM; while :; do sleep 0.1; done', command=("sh", "-c"))
    assert run(kind, stop, grace_s=grace_s) == Outcome.canceled()
    assert recording.containers() == []


def test_names_are_of_one_attempt_alone(recording: Engine) -> None:
    for _ in range(2):
        assert run(Container.image("bb")).stdout == "hello\n"
    names = [call[call.index("--name") + 1] for call in recording.calls() if call[0] == "run"]
    removed = [call[-1] for call in recording.calls() if call[0] == "rm"]
    assert removed == names
    assert len(set(names)) == 2
    assert all(name.startswith("solti-7-2-") for name in names)


def test_the_first_engine_that_is_there_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunnerUnavailable, match="container tasks need docker or podman"):
        ContainerRunner()
    with pytest.raises(RunnerUnavailable, match="container tasks need nerdctl"):
        ContainerRunner("nerdctl")
    for name in ("podman", "docker"):
        (tmp_path / name).touch(mode=0o755)
        assert ContainerRunner()._engine == str(tmp_path / name)
