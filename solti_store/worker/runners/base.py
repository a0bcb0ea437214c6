"""What a runner is, and what all of them share: how an attempt is stopped, and how long it may take."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from solti_store.errors import SoltiStoreError
from solti_store.model import Container, Subprocess, Wasm
from solti_store.rules.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from solti_store.model import KindName, RunnerEnv
    from solti_store.ops.rows import Claim

__all__ = ["DEFAULT_OUTPUT_TAIL", "Control", "Runner", "RunnerUnavailable", "Terms", "kind_of", "until_over"]

K = TypeVar("K", Subprocess, Container, Wasm)

DEFAULT_OUTPUT_TAIL = 4096

# Timers end long before a u64 of milliseconds does. Past ten years there is none; the store keeps the deadline.
_MAX_TIMER_S = 10 * 365 * 86_400.0


class RunnerUnavailable(SoltiStoreError):
    """This machine lacks what the runner needs; the message says what."""


class Control:
    """How others stop an attempt. The first to ask decides what it is reported as.

    Attributes:
        outcome: What to report once the attempt is to be stopped; None until somebody asks for it.
        remains: What of the attempt could not be ended, and goes on after its report; None if nothing.
    """

    __slots__ = ("_asked", "_is_urgent", "_loop", "_urgent", "_wakes", "outcome", "remains")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.outcome: Outcome | None = None
        self.remains: Future[None] | None = None
        self._is_urgent = False
        # Made when they are asked for: most attempts come to an end of their own, and nobody looks.
        self._asked: asyncio.Future[Outcome] | None = None
        self._urgent: asyncio.Future[None] | None = None
        self._wakes: Callable[[], object] | None = None

    @property
    def asked(self) -> asyncio.Future[Outcome]:
        """Done once the attempt is to be stopped, with what to report then."""
        if self._asked is None:
            self._asked = self._loop.create_future()
            if self.outcome is not None:
                self._asked.set_result(self.outcome)
        return self._asked

    @property
    def urgent(self) -> asyncio.Future[None]:
        """Done once it is to be killed, without a grace."""
        if self._urgent is None:
            self._urgent = self._loop.create_future()
            if self._is_urgent:
                self._urgent.set_result(None)
        return self._urgent

    def stop(self, outcome: Outcome) -> None:
        """Terminate it, and report it so."""
        if self.outcome is None:
            self.outcome = outcome
            if self._asked is not None and not self._asked.done():
                self._asked.set_result(outcome)
            if self._wakes is not None:
                self._wakes()

    def kill(self, outcome: Outcome) -> None:
        """Kill it now, also if it is being terminated."""
        self.stop(outcome)
        self._is_urgent = True
        if self._urgent is not None and not self._urgent.done():
            self._urgent.set_result(None)

    def abandon(self, remains: Future[None]) -> None:
        """Say, before the outcome is returned, that something goes on: it takes up its place until this is done."""
        self.remains = remains

    async def wait(self, awaited: asyncio.Future[Any], seconds: float) -> None:
        """Wait for something, until the attempt is to be stopped or the time is up. One caller at a time.

        `asyncio.wait` does the same for any number of futures, at twice the cost.

        Raises:
            RuntimeError: Somebody waits already.
        """
        if awaited.done() or self.outcome is not None:
            return
        if self._wakes is not None:
            raise RuntimeError("somebody waits for this attempt already")
        over: asyncio.Future[None] = self._loop.create_future()

        def wake(_: object = None) -> None:
            if not over.done():
                over.set_result(None)

        timer = self._loop.call_later(max(seconds, 0.0), wake) if seconds <= _MAX_TIMER_S else None
        awaited.add_done_callback(wake)
        self._wakes = wake
        try:
            await over
        finally:
            self._wakes = None
            awaited.remove_done_callback(wake)
            if timer is not None:
                timer.cancel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Under what terms the worker wants an attempt run.

    Attributes:
        left_s: Seconds until its timeout. Less than the spec says if the attempt has waited in the worker.
        grace_s: Seconds from being asked to end to being killed.
        env: The runner's variables, which win over the task's.
        output_tail: How many bytes of each output stream to keep, from the end.
    """

    left_s: float
    grace_s: float
    env: RunnerEnv
    output_tail: int


class Runner(Protocol):
    """Runs the attempts of one kind of task; one object serves all of them at once."""

    @property
    def kind(self) -> KindName:
        """The kind it runs."""
        ...

    async def run(self, claim: Claim, control: Control, terms: Terms) -> Outcome:
        """Run one attempt to its end.

        It ends the attempt when `control` or the timeout says so, and also when this call is cancelled, and leaves
        nothing of it behind; if it cannot, it says so with `Control.abandon`. An exception out of here is a fault of
        the runner, not of the task.

        Args:
            claim: What to run; its spec is of this runner's kind.
            control: How others stop it.
            terms: How long it may take, and what is kept of it.

        Returns:
            How it ended.
        """
        ...


def kind_of(claim: Claim, kind: type[K]) -> K:
    """What the claim's spec says to run; the worker gives a runner no other kind than its own."""
    found = claim.spec.kind
    if not isinstance(found, kind):
        raise TypeError(f"a task of the kind {found.name}")
    return found


async def until_over(ended: asyncio.Future[Any], control: Control, terms: Terms, claim: Claim) -> Outcome | None:
    """Wait for the end or a reason to bring it about; what to report then, None when it ended by itself."""
    await control.wait(ended, terms.left_s)
    if ended.done():
        return None
    return control.outcome or Outcome.timed_out(claim.spec.timeout)
