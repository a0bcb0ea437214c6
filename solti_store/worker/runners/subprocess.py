"""Run one attempt of a subprocess task, and say how it ended."""

from __future__ import annotations

import asyncio
import signal
from asyncio import FIRST_COMPLETED
from typing import TYPE_CHECKING, Final

from solti_store.model import Subprocess
from solti_store.rules.outcome import Outcome
from solti_store.worker.commandline import arguments, environment
from solti_store.worker.process import Process
from solti_store.worker.runners.base import kind_of, until_over
from solti_store.worker.runners.text import MAX_ERROR_CHARS, clean, last_line, tail_text

if TYPE_CHECKING:
    from solti_store.model import KindName
    from solti_store.ops.rows import Claim
    from solti_store.worker.runners.base import Control, Terms

__all__ = ["SubprocessRunner", "cannot_start", "natural_end", "supervise", "with_output"]


class SubprocessRunner:
    """Runs subprocess tasks as process groups, and never leaves anything of a group behind."""

    kind: Final[KindName] = "subprocess"

    async def run(self, claim: Claim, control: Control, terms: Terms) -> Outcome:
        """Run a process to its end; see `Runner.run`."""
        spec = kind_of(claim, Subprocess).spec
        try:
            with arguments(spec.mode) as argv:
                process = Process(argv, cwd=spec.cwd, env=environment(spec.env, terms.env), keep=terms.output_tail)
                forced = await supervise(process, control, terms, claim)
        except (OSError, ValueError) as error:
            return cannot_start(error, spec.cwd)
        return with_output(forced or natural_end(process, any_code=not spec.fail_on_non_zero), process, terms)


async def supervise(process: Process, control: Control, terms: Terms, claim: Claim) -> Outcome | None:
    """Wait for the end, or bring it about; what to report then, None when the process ended by itself.

    The process has ended when this returns, also when it is cancelled.
    """
    try:
        forced = await until_over(process.ended, control, terms, claim)
        if forced is not None:
            process.send(signal.SIGTERM)
            await asyncio.wait((process.ended, control.urgent), timeout=terms.grace_s, return_when=FIRST_COMPLETED)
        return forced
    finally:
        process.send(signal.SIGKILL)
        await asyncio.wait((process.ended,))


def natural_end(process: Process, *, any_code: bool = False) -> Outcome:
    """How a process that ended by itself fared.

    Args:
        process: The process.
        any_code: Whether every exit code is a success.
    """
    code = process.ended.result()
    if code == 0 or (code > 0 and any_code):
        return Outcome.succeeded(code)
    said = last_line(process.stderr) or last_line(process.stdout)
    detail = f": {said}" if said else ""
    if code < 0:
        # No exit code: a process that was killed has none, and -9 would look like one.
        return Outcome.failed(f"killed by signal {_signal_name(-code)}{detail}")
    return Outcome.failed(f"exit code {code}{detail}", exit_code=code)


def with_output(outcome: Outcome, process: Process, terms: Terms) -> Outcome:
    """The outcome with the end of what the process wrote."""
    return outcome.with_output(
        tail_text(process.stdout, terms.output_tail), tail_text(process.stderr, terms.output_tail)
    )


def cannot_start(error: OSError | ValueError, cwd: str | None = None) -> Outcome:
    """A process could not be started. Not fatal: another worker may have the program, or this one later."""
    if not isinstance(error, OSError):
        return Outcome.failed(clean(f"cannot start: {error}"))
    what = "working directory " if cwd is not None and error.filename == cwd else ""
    where = "" if error.filename is None else f"{what}{str(error.filename)[:MAX_ERROR_CHARS]!r}: "
    return Outcome.failed(clean(f"cannot start: {where}{error.strerror or error}"))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals between the first and the last have no name
        return str(number)
