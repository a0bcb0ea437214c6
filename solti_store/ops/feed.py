"""Read the change feed, and prune it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from solti_store.errors import FeedExpired, FeedUnavailable, Invalid, ModelError
from solti_store.model import ChangeKind, EventType, TaskChange, TaskId, TaskPhase, Timestamp
from solti_store.ops import arguments, rows
from solti_store.rules.feed_position import FeedPosition, Snapshot
from solti_store.sql import feed as sql

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from solti_store.model import Task, TaskQuery
    from solti_store.sql.driver import Row

__all__ = ["Changes", "changes", "renew", "token"]


@dataclass(frozen=True, slots=True)
class Changes:
    """A piece of the feed.

    Attributes:
        changes: What there is for the watcher, in order.
        token: Where the feed goes on.
        is_all: Whether that was all there was at the time.
    """

    changes: list[TaskChange]
    token: str
    is_all: bool


def token(conn: Connection) -> str | None:
    """The token of this statement's snapshot, or of the transaction's; None before `renew` of a restored database."""
    state = _state(conn)
    if not state.is_valid:
        return None
    return FeedPosition.of(state.epoch, Snapshot.parse(state.snapshot).up_to(state.newest)).encode()


def renew(conn: Connection) -> None:
    """Begin a new epoch of a database that was restored: what is in old tokens means nothing in it."""
    if not _state(conn).is_valid:
        sql.ENSURE.all(conn, {})
        sql.LOCK.all(conn, {})
        if not _state(conn).is_valid:
            sql.RENEW.all(conn, {})


def changes(conn: Connection, since: str, query: TaskQuery, *, limit: int) -> Changes:
    """What has come since a token, up to `limit` events: those that the watcher of `query` sees."""
    most = arguments.limit(limit)
    try:
        position = FeedPosition.decode(since)
    except (ValueError, TypeError):
        raise Invalid("invalid model: the token is damaged, or of another version", field="token") from None
    state = _state(conn)
    snapshot = Snapshot.parse(state.snapshot)
    if not state.is_valid or state.epoch != position.epoch or not position.is_of(snapshot):
        raise FeedExpired("the token is of another database, or of this one before it was restored or failed over")
    now = snapshot.up_to(state.newest)
    if position.within is None:
        position = position.look(now)
    if (look := position.next()) is None:
        return Changes([], position.done().encode(), is_all=True)
    given = {
        "after": look.after,
        "since": str(look.since),
        "ended": [str(xid) for xid in look.ended],
        "within": look.within,
        "limit": most,
    }
    found = sql.GO_ON.all(conn, given | {"first": look.first}) if look.first else sql.BEGIN.all(conn, given)
    if not found or not position.is_kept(pruned=found[0].pruned, pruned_xid=found[0].pruned_xid):
        raise FeedExpired("events that come after the token have been pruned")
    if not look.first:
        position = position.begun(found[0].first)
    events = [row for row in found if row.event is not None]
    seen: list[TaskChange] = []
    for row in events:
        position = position.read(row.event)
        if (kind := _kind(row, query)) is not None:
            seen.append(_change(row, kind, position.encode()))
    if len(events) == most:
        return Changes(seen, position.encode(), is_all=False)
    position = position.done()
    # All of its look. More has come since, if that was begun a while ago: a change's token goes on in its own.
    return Changes(seen, position.encode(), is_all=position.look(now).next() is None)


def _state(conn: Connection) -> Row:
    state = sql.FEED.one(conn, {})
    if state.is_standby:
        raise FeedUnavailable("a standby does not know which transactions go on: read the feed from the primary")
    return state


def _kind(row: Row, query: TaskQuery) -> ChangeKind | None:
    """What an event means to a watcher; None when it is of a task that is none of those watched."""
    after = row.type != "deleted" and _is_watched(query, row.event_phase, row.labels)
    before = row.phase_before is not None and _is_watched(
        query, row.phase_before, row.labels if row.labels_before is None else row.labels_before
    )
    match before, after:
        case False, True:
            return ChangeKind.ADDED
        case True, True:
            return ChangeKind.MODIFIED
        case True, False:
            return ChangeKind.DELETED
    return None


def _is_watched(query: TaskQuery, phase: str, labels: str | None) -> bool:
    if query.phases and TaskPhase(phase) not in query.phases:
        return False
    if not query.requirements:
        return True
    having: dict[str, Any] = {} if labels is None else json.loads(labels)
    return all(requirement.matches(having) for requirement in query.requirements)


def _change(row: Row, kind: ChangeKind, token: str) -> TaskChange:
    return TaskChange.model_construct(
        kind=kind,
        token=token,
        type=EventType(row.type),
        at=Timestamp.from_datetime(row.at),
        task_id=TaskId(row.id),
        seq=row.seq,
        resource_version=row.event_version,
        phase=TaskPhase(row.event_phase),
        phase_before=None if row.phase_before is None else TaskPhase(row.phase_before),
        attempt=row.event_attempt,
        detail=None if row.detail is None else json.loads(row.detail),
        task=None if row.spec is None else _task(row),
    )


def _task(row: Row) -> Task | None:
    try:
        return rows.task(row)
    except ModelError:
        # Of a spec that this version cannot read; the feed goes on.
        return None
