"""Brings the label index up to date, a bounded step at a time.

Writers do not touch the index: a task carries the number of the transaction that set its labels, and the index says up
to which transaction it knows. What it does not know yet, a listing looks at itself. So a step may come late, be
repeated or be lost with its process, and no answer is wrong for it.

A segment is always rebuilt whole, from its tasks as they are: what is not known before a step is known after it, or
is still counted as not known.
"""

from __future__ import annotations

import json
from itertools import groupby
from operator import attrgetter
from random import random
from typing import TYPE_CHECKING, Final

from solti_store.rules.postings import encode, postings
from solti_store.sql import label_index as sql

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from solti_store.sql.driver import Row

__all__ = ["SEGMENTS_MAX", "step", "sweep"]

#: What one step rebuilds, 35 ms each, unless one transaction set labels in more of them.
SEGMENTS_MAX: Final = 8

# A listing looks at every task that is not known (2 µs each), a step rebuilds 4096 for any that it finds in a segment.
# So a step waits until there are many, or not so few and close together.
_MANY: Final = sql.FRESH_MAX // 2
_SOME: Final = 1024
_DENSE: Final = 64
# How many of the steps that have nothing to do sweep instead. Random, so that there is no state to keep.
_SWEEPS: Final = 1 / 20


def step(conn: Connection, *, eager: bool = False, segments_max: int | None = None) -> bool:
    """Bring some of what the index does not know into it, if it is worth the effort; whether there is more to be done.

    Does nothing when somebody else is at it. Must run in a READ COMMITTED transaction of its own: what that sets
    itself would count as known before it is done with it.

    Args:
        conn: The connection.
        eager: Whether any task that is not known is worth the effort.
        segments_max: Leave a transaction that set labels in more segments than this to another step.
    """
    if not eager and _is_well(conn):
        if random() < _SWEEPS:  # noqa: S311 - no secret
            sweep(conn)
        return False
    held = sql.LOCK.one_or_none(conn, {})
    if held is None:
        return bool(sql.RESTORE.all(conn, {}))
    if sql.RENUMBER.all(conn, {}):
        return True
    if not held.valid:
        for statement in sql.CLEAR:
            statement.all(conn, {})
    # Its snapshot comes before those of the rebuilding, so what is rebuilt is this or newer.
    unknown = sql.UNKNOWN.all(conn, {})
    if not unknown or not (eager or not held.valid or _is_worthwhile(unknown)):
        return False
    segments, limit = _chosen(conn, unknown)
    if segments_max is not None and len(segments) > segments_max:
        return False
    _rebuild(conn, segments)
    _advance(conn, unknown[0], limit)
    # Past the snapshot nothing can be known: a restored task that RENUMBER found locked waits for the next time.
    horizon: int = unknown[0].snapshot_xmax
    return limit is not None and limit < horizon


def sweep(conn: Connection) -> None:
    """Rebuild some segments of which much has been deleted; a few are looked at each time, so call it now and then."""
    if sql.LOCK.one_or_none(conn, {}) is not None:
        _rebuild(conn, {row.segment for row in sql.SPARSE.all(conn, {})})


def _is_well(conn: Connection) -> bool:
    # Without the lock, whose row every look would write.
    state = sql.FRESH.one(conn, {})
    return state.valid and len(state.seqs) < _SOME


def _is_worthwhile(unknown: list[Row]) -> bool:
    tasks: int = sum(row.tasks for row in unknown)
    segments = {row.segment for row in unknown}
    return tasks >= _MANY or (tasks >= _SOME and tasks >= _DENSE * len(segments))


def _chosen(conn: Connection, unknown: list[Row]) -> tuple[set[int], int | None]:
    """The segments to rebuild, and the first transaction that is left for the next step."""
    segments: set[int] = set()
    complete = sum(row.tasks for row in unknown if row.xid >= row.horizon) <= sql.STEP_ROWS
    for xid, rows in groupby(unknown, key=attrgetter("xid")):
        more = {row.segment for row in rows}
        cut = not complete and xid == unknown[-1].xid
        # Those that were open before are never put off: the horizon would go back to them.
        if xid >= unknown[0].horizon and segments and (cut or len(segments | more) > SEGMENTS_MAX):
            return segments, xid
        if cut:
            # A single transaction set the labels of more tasks than a step takes: it cannot be known by half.
            return segments | {row.segment for row in sql.SEGMENTS_OF.all(conn, {"xid": str(xid)})}, xid + 1
        segments |= more
    return segments, None


def _advance(conn: Connection, snapshot: Row, limit: int | None) -> None:
    horizon = snapshot.snapshot_xmax if limit is None else min(limit, snapshot.snapshot_xmax)
    still_open = [str(xid) for xid in snapshot.snapshot_xip if xid < horizon]
    sql.ADVANCE.all(conn, {"horizon": str(horizon), "open": still_open})


def _rebuild(conn: Connection, segments: set[int]) -> None:
    for segment in sorted(segments):
        rows = sql.SEGMENT_LABELS.all(conn, {"segment": segment})
        if not rows:
            sql.DROP_SEGMENT.all(conn, {"segment": segment})
            continue
        found = postings((row.member, _labels(row.labels)) for row in rows)
        sql.REPLACE_SEGMENT.all(
            conn,
            {
                "segment": segment,
                "everyone": encode([row.member for row in rows]),
                "created_from": min(row.created_at for row in rows),
                "created_to": max(row.created_at for row in rows),
                "terms": [posting.term for posting in found],
                "numbers": [posting.number for posting in found],
                "members": [posting.members for posting in found],
            },
        )


def _labels(document: str) -> dict[str, str]:
    # A spec written by hand may have labels that are no strings: no selector's value matches them.
    return {key: value if isinstance(value, str) else "" for key, value in json.loads(document).items()}
