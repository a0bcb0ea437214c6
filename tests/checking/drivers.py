"""Two ways to run the registry beside the model: its ops with a clock of ours, or a public store with its own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol

from checking.reference import Span
from sqlalchemy import Connection, text

from solti_store.ops import agents, claims, closing, listing, retention, rows, tasks

if TYPE_CHECKING:
    from solti_store import TaskStore

__all__ = ["MAX_SLOT_QUEUE", "Driver", "OpsDriver", "Seen", "StoreDriver", "micros"]

MAX_SLOT_QUEUE = 2

_RUN = "seq, attempt, phase, started_at, agent, agent_id"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_START = datetime(2031, 5, 6, 7, 8, 9, 123_456, tzinfo=UTC)


def micros(moment: datetime) -> int:
    """Microseconds since the epoch."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True)
class Seen:
    """All that there is to see.

    Attributes:
        tasks: Rows of both task tables, in order of seq.
        runs: By task and attempt.
        events: In the order in which they were written.
        agents: In order of seq.
    """

    tasks: list[Any]
    runs: list[Any]
    events: list[Any]
    agents: list[Any]


class Driver(Protocol):
    """Runs operations by the public store's names and arguments."""

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, Span]:
        """What the operation returned, or the error it raised, and when it took place."""
        ...

    def look(self) -> Seen: ...

    def advance(self, by: timedelta) -> None: ...

    def reset(self) -> None: ...


def _look(conn: Connection) -> Seen:
    def rows(statement: str) -> list[Any]:
        return list(conn.execute(text(statement)).all())

    return Seen(
        rows("SELECT s.*, t.id, t.created_at FROM solti.tasks t JOIN solti.task_status s USING (seq) ORDER BY t.seq"),
        # What goes on is in the status; what has ended is a run.
        rows(
            f"SELECT {_RUN}, finished_at, exit_code, error FROM solti.task_runs"
            f" UNION ALL SELECT {_RUN}, NULL, NULL, NULL FROM solti.task_status WHERE deadline IS NOT NULL"
            " ORDER BY seq, attempt"
        ),
        rows("SELECT seq, id, type, resource_version, phase, attempt FROM solti.task_events ORDER BY event"),
        rows("SELECT seq, id, state, expires_at FROM solti.agents ORDER BY seq"),
    )


_OPS = {
    name: module
    for module, names in {
        tasks: "create create_many enter get replace cancel delete runs",
        agents: "register heartbeat",
        claims: "claim held held_keys start",
        closing: "finish_untouched finish_free finish_many reap sign_off",
        retention: "prune",
    }.items()
    for name in names.split()
}


class OpsDriver:
    """The ops in one transaction that is rolled back in the end, at times that the driver chooses."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._now = _START

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, Span]:
        # Two operations never share a moment.
        self._now += timedelta(microseconds=1700)
        now = Span(micros(self._now), micros(self._now))
        if "expected_version" in kwargs:
            kwargs["expected"] = kwargs.pop("expected_version")
        try:
            if name == "list":
                return listing.list_page(self._conn, *args).page, now
            return self._as_the_store(name, *args, **kwargs), now
        except Exception as error:  # noqa: BLE001 - the machine judges it
            return error, now

    def _as_the_store(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "finish_many":
            return self._finish_many(*args)
        answer = self._run(name, *args, **kwargs)
        if name == "create" and answer is None:
            # It waits, or replaces.
            return self._run("enter", *args)
        if name == "claim":
            assert not answer.unreadable
            return answer.claims
        if name == "cancel":
            # Only who has committed reads it.
            return rows.task(answer[0])
        return answer[0] if name == "delete" else answer

    def _finish_many(self, results: Any) -> Any:
        finishing = closing.Finishing(results)
        for step in ("finish_untouched", "finish_free"):
            if left := finishing.left:
                finishing.decided(self._run(step, left))
        if left := finishing.left:
            finishing.decided(dict(enumerate(self._run("finish_many", left))))
        return finishing.answers

    def _run(self, name: str, *args: Any, **kwargs: Any) -> Any:
        # Looked up each time: a mutant may have taken its place.
        op = getattr(_OPS[name], name)
        if "now" in signature(op).parameters:
            kwargs["now"] = self._now
        if "max_slot_queue" in signature(op).parameters:
            kwargs["max_slot_queue"] = MAX_SLOT_QUEUE
        return op(self._conn, *args, **kwargs)

    def look(self) -> Seen:
        return _look(self._conn)

    def advance(self, by: timedelta) -> None:
        self._now += by

    def reset(self) -> None:
        self._conn.rollback()
        self._now = _START


class StoreDriver:
    """A public store on the database's clock, which cannot be moved: `advance` does nothing."""

    def __init__(self, store: TaskStore, conn: Connection) -> None:
        self._store = store
        self._conn = conn

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, Span]:
        before = self._clock()
        try:
            answer = getattr(self._store, name)(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the machine judges it
            answer = error
        return answer, Span(before, self._clock())

    def _clock(self) -> int:
        return micros(self._conn.execute(text("SELECT clock_timestamp()")).scalar_one())

    def look(self) -> Seen:
        return _look(self._conn)

    def advance(self, by: timedelta) -> None: ...

    def reset(self) -> None:
        for table in ("tasks", "task_events", "agents"):
            self._conn.execute(text(f"DELETE FROM solti.{table}"))
