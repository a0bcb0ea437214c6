"""What the events cost who writes them, how fast they are read, and how late they are seen.

Beside the store as it is, one whose statements write no events, in another database of the same server, block by block
in turn. It exists only here: the events are cut out of the statements' text while a block runs.
"""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from unittest.mock import patch

from benchmarks.arena import Arena, arena, specs
from benchmarks.lab import Lab, Series, Work, say
from benchmarks.measure import compare
from solti_store import Outcome
from solti_store.model import Slot
from solti_store.sql import claims, closing, tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from solti_store import TaskSpec

__all__ = ["WORKS"]

BATCH = 100
POLLS_MS = (10, 500)
_PIECES = 20
_DAY = timedelta(days=1)

_WRITING = (
    tasks.INSERT,
    tasks.INSERT_MANY,
    tasks.INSERT_JUDGED,
    claims.CLAIM,
    claims.CLAIM_BY_ROUTE,
    closing.CLOSE_UNTOUCHED,
)
_EVENT = re.compile(r",\s*\nevent AS \n\(INSERT INTO solti\.task_events .*?\)(?=\n SELECT)", re.DOTALL)


@contextmanager
def no_events() -> Iterator[None]:
    """The statements without their events."""
    with ExitStack() as stack:
        for statement in _WRITING:
            text, found = _EVENT.subn("", statement.text)
            if found != 1:
                raise RuntimeError(f"{found} events in {statement.text}")
            stack.enter_context(patch.object(statement, "text", text))
        yield


class Field:
    """A database that has tasks of its own.

    Args:
        arena: The database.
        writes: Whether with events.
    """

    def __init__(self, arena: Arena, *, writes: bool) -> None:
        self.store = arena.store
        self._writes = writes
        self._numbers = itertools.count()
        arena.fill(0)
        self._agent = arena.store.register("benchmark", lease=_DAY)

    def made(self, count: int) -> list[tuple[str, TaskSpec]]:
        """Tasks in slots of their own, not created yet."""
        names = [f"t-{next(self._numbers)}" for _ in range(count)]
        return [(name, spec.replace(slot=Slot(name))) for name, spec in zip(names, specs(count), strict=True)]

    def creations(self, operations: int) -> Callable[[], object]:
        """So many, one by one."""
        made = self.made(operations)

        def run() -> None:
            for name, spec in made:
                self.store.create(name, spec)

        return self._as_it_writes(run)

    def cycles(self, operations: int) -> Callable[[], object]:
        """Batches, claimed and finished."""
        self.store.create_many(self.made(operations * BATCH))

        def run() -> None:
            for _ in range(operations):
                claimed = self.store.claim(self._agent, limit=BATCH)
                self.store.finish_many([(claim, Outcome.succeeded(0)) for claim in claimed])

        return self._as_it_writes(run)

    def _as_it_writes(self, run: Callable[[], object]) -> Callable[[], object]:
        def without() -> None:
            with no_events():
                run()

        return run if self._writes else without


class Beside:
    """An operation with events, and without."""

    baseline = "a store that writes no events"
    extra = ""
    blocks = 3

    def __init__(
        self,
        name: str,
        ours: Callable[[int], Callable[[], object]],
        bare: Callable[[int], Callable[[], object]],
        *,
        operations: int,
        tasks: int,
    ) -> None:
        self.name = name
        self.ours = ours
        self.bare = bare
        self.operations = operations
        self.tasks = tasks


def feed(lab: Lab) -> Iterator[Series]:
    """The cost, the rate of a reader, and the lag."""
    rounds = lab.sizes.rounds
    with arena(lab.server) as first, arena(lab.server) as second:
        fields = Field(first, writes=True), Field(second, writes=False)
        token = fields[0].store.token()
        for case in (
            Beside("create", *(field.creations for field in fields), operations=50, tasks=1),
            Beside("claim + finish, 100 at once", *(field.cycles for field in fields), operations=10, tasks=BATCH),
        ):
            say(f"events, {case.name}")
            result = compare(case, rounds=2 * rounds + 1, once=rounds == 1)
            for lane, side in (("with events", result.ours), ("without", result.bare)):
                yield Series(f"feed, {case.name}", lane, "µs", [one.wall * 1e6 for one in side], less=True)
        say("events, read")
        read = [_read(fields[0], token) for _ in range(rounds)]
        yield Series("feed, read from the beginning", "in pieces of 1000", "events/s", read)
        for poll in POLLS_MS:
            say(f"feed, lag at {poll} ms")
            lag = list(_lag(fields[0], poll, lab.sizes.waits))
            yield Series("feed, create to seen", f"watch, poll of {poll} ms", "ms", lag, less=True)


def _read(field: Field, token: str) -> float:
    """How many events a second a reader finds from a token on."""
    began, count = time.perf_counter(), 0
    for _ in range(_PIECES):
        found = field.store.changes(token)
        count += len(found.changes)
        token = found.token
        if found.is_all:
            break
    return count / (time.perf_counter() - began)


def _lag(field: Field, poll: int, waits: int) -> Iterator[float]:
    """From the call that creates until a watch, in another thread, has it: both commits are in it."""
    seen: list[float] = []
    news = threading.Semaphore(0)
    wanted = max(min(2 * waits, 8_000 // poll), 1)
    since = field.store.token()

    def watch() -> None:
        for _ in itertools.islice(field.store.watch(since=since, poll=timedelta(milliseconds=poll)), wanted):
            seen.append(time.perf_counter())
            news.release()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    dice = random.Random(7)  # noqa: S311 - when tasks are created
    for number, (name, spec) in enumerate(field.made(wanted)):
        time.sleep(0.02 + dice.uniform(1.2, 2.4) * poll / 1000)
        began = time.perf_counter()
        field.store.create(name, spec)
        if not news.acquire(timeout=60):
            raise RuntimeError("a change was not seen within a minute")
        yield (seen[number] - began) * 1e3
    watcher.join()


WORKS = (Work("feed", "events: what they cost, how fast they are read, how late they are seen", feed),)
