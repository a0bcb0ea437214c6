"""Run one attempt of a subprocess task, and say how it ended."""

from __future__ import annotations

import asyncio
import signal
from asyncio import FIRST_COMPLETED
from typing import TYPE_CHECKING

from solti_store.rules.outcome import Outcome
from solti_store.worker.commandline import arguments, environment
from solti_store.worker.process import Process

if TYPE_CHECKING:
    from solti_store.model import RunnerEnv, SubprocessSpec

__all__ = ["Control", "run_subprocess"]

_MAX_ERROR_CHARS = 1000
# Timers end long before a u64 of milliseconds does. Past ten years there is none; the store keeps the deadline.
_MAX_TIMER_S = 10 * 365 * 86_400.0


class Control:
    """How others stop an attempt. The first to ask decides what it is reported as."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.asked: asyncio.Future[Outcome] = loop.create_future()
        self.urgent: asyncio.Future[None] = loop.create_future()

    def stop(self, outcome: Outcome) -> None:
        """Terminate it, and report it so."""
        if not self.asked.done():
            self.asked.set_result(outcome)

    def kill(self, outcome: Outcome) -> None:
        """Kill it now, also if it is being terminated."""
        self.stop(outcome)
        if not self.urgent.done():
            self.urgent.set_result(None)


async def run_subprocess(
    spec: SubprocessSpec, control: Control, *, timeout_ms: int, env: RunnerEnv, grace_s: float
) -> Outcome:
    """Run a process to its end, and never leave anything of its group behind, not even when cancelled.

    Args:
        spec: What to run.
        control: How others stop it.
        timeout_ms: When to stop it, in milliseconds.
        env: The runner's variables, which win over the task's.
        grace_s: Seconds from SIGTERM to SIGKILL.
    """
    try:
        with arguments(spec.mode) as argv:
            process = Process(argv, cwd=spec.cwd, env=environment(spec.env, env))
            try:
                forced = await _supervise(process, control, timeout_ms, grace_s)
            finally:
                process.send(signal.SIGKILL)
                await asyncio.wait((process.ended,))
    except OSError as error:
        # Not fatal: another worker may have the program, or this one later.
        return Outcome.failed(_clean(f"cannot start: {_explained(error, spec.cwd)}"))
    except ValueError as error:
        return Outcome.failed(_clean(f"cannot start: {error}"))
    return forced or _natural(spec, process)


async def _supervise(process: Process, control: Control, timeout_ms: int, grace_s: float) -> Outcome | None:
    """Wait for the end, or bring it about; what to report then, None when the process ended by itself."""
    timeout_s = timeout_ms / 1000
    await asyncio.wait(
        (process.ended, control.asked),
        timeout=timeout_s if timeout_s <= _MAX_TIMER_S else None,
        return_when=FIRST_COMPLETED,
    )
    if process.ended.done():
        return None
    forced = control.asked.result() if control.asked.done() else Outcome.timed_out(timeout_ms)
    process.send(signal.SIGTERM)
    await asyncio.wait((process.ended, control.urgent), timeout=grace_s, return_when=FIRST_COMPLETED)
    process.send(signal.SIGKILL)
    await asyncio.wait((process.ended,))
    return forced


def _natural(spec: SubprocessSpec, process: Process) -> Outcome:
    code = process.ended.result()
    if code == 0 or (code > 0 and not spec.fail_on_non_zero):
        return Outcome.succeeded(code)
    said = _last_line(process.stderr) or _last_line(process.stdout)
    detail = f": {said}" if said else ""
    if code < 0:
        # No exit code: a process that was killed has none, and -9 would look like one.
        return Outcome.failed(f"killed by signal {_signal_name(-code)}{detail}")
    return Outcome.failed(f"exit code {code}{detail}", exit_code=code)


def _explained(error: OSError, cwd: str | None) -> str:
    what = "working directory " if cwd is not None and error.filename == cwd else ""
    where = "" if error.filename is None else f"{what}{str(error.filename)[:_MAX_ERROR_CHARS]!r}: "
    return f"{where}{error.strerror or error}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals between the first and the last have no name
        return str(number)


def _last_line(tail: bytes) -> str:
    """The last line that says anything; its end, if it is long."""
    lines = (line.strip() for line in reversed(tail.decode(errors="replace").splitlines()))
    return _clean(next((line for line in lines if line), ""))[-_MAX_ERROR_CHARS:]


def _clean(text: str) -> str:
    """Without what PostgreSQL cannot store (NUL, lone surrogates), nor what would play tricks on a terminal."""
    return "".join(char if char.isprintable() or char in "\t\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
