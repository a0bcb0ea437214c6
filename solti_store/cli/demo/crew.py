"""The demo's worker processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from solti_store.cli.exits import UsageError
from solti_store.schema_name import SCHEMA_VARIABLE
from solti_store.url import URL_VARIABLE

if TYPE_CHECKING:
    from pathlib import Path

    from solti_store.cli.session import Session

__all__ = ["CONCURRENCY", "LEASE_S", "Crew", "CrewError", "Member"]

CONCURRENCY = 4
#: Short, so that the rescue is soon; long enough for a worker that waits for its turn on a busy laptop.
LEASE_S = 3
_READY_S = 60.0
_END_S = 15.0


class CrewError(UsageError):
    """A worker process did not do what workers do."""


@dataclass(slots=True)
class Member:
    """A worker process.

    Attributes:
        name: Its agent id.
        process: The process.
        log: What it says.
        killed_after_s: When it was killed, in seconds from the start of the work; None if it was not.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    killed_after_s: float | None = None

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


class Crew:
    """Worker processes that end with this context, and with this process, however that ends.

    Args:
        run: The name of this run of the demo; tasks select workers by it.
        size: How many.
        session: The database and the schema.
        folder: For the logs.
    """

    def __init__(self, run: str, size: int, session: Session, folder: Path) -> None:
        self._run = run
        self._size = size
        self._folder = folder
        # In the environment and not in the arguments, which everybody on the machine can read.
        self._env = {**os.environ, "NO_COLOR": "1"}
        for name, value in ((URL_VARIABLE, session.url), (SCHEMA_VARIABLE, session.schema)):
            self._env.pop(name, None)
            if value:
                self._env[name] = value
        self.members: list[Member] = []

    def __enter__(self) -> Self:
        try:
            for number in range(1, self._size + 1):
                self.members.append(self._start(number))
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _start(self, number: int) -> Member:
        name = f"demo-{self._run}-w{number}"
        log = self._folder / f"{name}.log"
        labels = ["--label", f"demo={self._run}", "--label", f"worker={number}"]
        limits = ["--lease", f"{LEASE_S}s", "--concurrency", str(CONCURRENCY)]
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - ourselves, with arguments made here
                [sys.executable, "-m", "solti_store.cli", "work", "--id", name, *labels, *limits, "--while-stdin"],
                # Its end tells the worker that the demo is gone, even if that was killed.
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=self._env,
                # A Ctrl-C is the demo's alone, which then ends its workers in good order.
                start_new_session=True,
            )
        return Member(name, process, log)

    def wait_ready(self) -> None:
        """Wait until every worker is about to claim.

        Raises:
            CrewError: One ended, or they take too long.
        """
        deadline = time.monotonic() + _READY_S
        for member in self.members:
            while b" is ready" not in member.log.read_bytes():
                self.check()
                if time.monotonic() > deadline:
                    raise CrewError(f"worker {member.name} is not ready after {_READY_S:.0f}s: {member.last_words()}")
                time.sleep(0.05)

    def check(self) -> None:
        """See that nobody ended who should not.

        Raises:
            CrewError: Somebody did.
        """
        for member in self.members:
            code = member.process.poll()
            if code is not None and member.killed_after_s is None:
                raise CrewError(f"worker {member.name} ended with code {code}: {member.last_words()}")

    def dismiss(self) -> None:
        """Let the living finish, and wait for that."""
        for member in self.members:
            _signal(member, signal.SIGTERM)
        deadline = time.monotonic() + _END_S
        for member in self.members:
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.process.wait(max(deadline - time.monotonic(), 0.0))

    def kill(self) -> None:
        """End whoever is left: asked to stop first, so that they take their own processes with them."""
        left = [member for member in self.members if member.process.poll() is None]
        for _ in range(2):  # once to drain, twice to stop
            for member in left:
                _signal(member, signal.SIGTERM)
            time.sleep(0.05 if left else 0)
        deadline = time.monotonic() + 3.0
        for member in left:
            try:
                member.process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()
        for member in self.members:
            if member.process.stdin is not None:
                member.process.stdin.close()


def _signal(member: Member, number: signal.Signals) -> None:
    if member.process.poll() is None:
        member.process.send_signal(number)
