"""Where a listing looks for tasks: streams of candidates, each in order and read a bounded piece at a time.

A candidate may meet the query; what meets it is a candidate of every stream that the query has.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

from solti_store.rules.postings import SEGMENT_BITS, SEGMENT_SIZE, condition, decode, meeting, offsets
from solti_store.sql import label_index as sql
from solti_store.sql import pages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from sqlalchemy import Connection

    from solti_store.model import LabelRequirement
    from solti_store.ops.cursor import Position
    from solti_store.rules.postings import Condition, Lookup

__all__ = ["Candidates", "Collected", "LabelIndex", "Piece", "Segments", "Walk"]

_EVERYONE: Final = (1 << SEGMENT_SIZE) - 1
# A window of segments is read at once: one, then eight times more each time, while they hold too few candidates.
_WINDOW_GROWTH: Final = 8
_WINDOW_MAX: Final = 4096
# Conditions of more lookups than this are looked up after the others, where these leave anything.
_FEW_LOOKUPS: Final = 8


@dataclass(frozen=True, slots=True)
class Piece:
    """Some candidates of a stream.

    Attributes:
        seqs: The tasks.
        is_last: Whether there are no more.
        until: In order of the last change: the last candidate's place.
    """

    seqs: list[int]
    is_last: bool
    until: tuple[datetime, int] | None = None


class Candidates(Protocol):
    """A stream of candidates in order."""

    def read(self, conn: Connection, budget: int) -> Piece:
        """The next candidates, about `budget` of them at the most."""


class Walk:
    """Candidates from one index.

    Args:
        by: Which index.
        parameters: What it is searched for.
        after: Where to begin.
        descending: Whether to go down from there.
        end_at: By the last change: where to end.
    """

    def __init__(
        self,
        by: pages.Walk,
        parameters: dict[str, Any],
        *,
        after: Position,
        descending: bool,
        end_at: datetime | None = None,
    ) -> None:
        self._by = by
        self._statement = pages.walk(by, descending=descending)
        self._parameters = parameters | {"after_at": after.updated_at, "after_seq": after.seq, "end_at": end_at}

    def read(self, conn: Connection, budget: int) -> Piece:
        """The next candidates, `budget` of them at the most."""
        rows = self._statement.all(conn, {**self._parameters, "limit": budget})
        is_last = len(rows) < budget
        until = None
        if rows:
            self._parameters["after_seq"] = rows[-1].seq
            if self._by == "updated":
                self._parameters["after_at"] = rows[-1].updated_at
                # Of the last piece there is no end: what was changed since and moved back is still to be seen.
                until = None if is_last else (rows[-1].updated_at, rows[-1].seq)
        return Piece([row.seq for row in rows], is_last, until)


class Collected:
    """All candidates of a stream at once, or none: for one in another order than the listing's.

    Args:
        candidates: The stream.
    """

    def __init__(self, candidates: Candidates) -> None:
        self._candidates = candidates
        self._seqs: list[int] = []

    def read(self, conn: Connection, budget: int) -> Piece:
        """All candidates, if the stream ends within the budget; nothing while it does not."""
        piece = self._candidates.read(conn, budget)
        self._seqs += piece.seqs
        return Piece(self._seqs if piece.is_last else [], piece.is_last)


@dataclass(frozen=True, slots=True)
class LabelIndex:
    """What the label index says of itself.

    Attributes:
        is_usable: Whether candidates can be taken from it.
        lags: Whether it should be brought up to date soon, and can be from here.
        fresh: The tasks whose labels it does not know: by segment, as a set.
        last_segment: The last segment with a task, known or not.
    """

    is_usable: bool
    lags: bool
    fresh: dict[int, int]
    last_segment: int

    @classmethod
    def read(cls, conn: Connection) -> LabelIndex:
        """Before any postings are read: afterwards, what left the fresh ones in between would be in neither."""
        row = sql.FRESH.one(conn, {})
        fresh: defaultdict[int, int] = defaultdict(int)
        for seq in row.seqs:
            fresh[seq >> SEGMENT_BITS] |= 1 << (seq & (SEGMENT_SIZE - 1))
        return cls(
            is_usable=row.valid and len(row.seqs) <= sql.FRESH_MAX,
            lags=row.writable and (not row.valid or len(row.seqs) > sql.FRESH_MAX // 2),
            fresh=dict(fresh),
            last_segment=max(row.last_segment or 0, max(fresh, default=0)),
        )


class Segments:
    """Candidates from the label index, in order of creation.

    Args:
        index: What it says of itself.
        requirements: The selector's.
        after_seq: Where to begin.
        descending: Whether to go down from there.
        created: Since when, and before when, a task must have been created; None is open.
    """

    def __init__(
        self,
        index: LabelIndex,
        requirements: Iterable[LabelRequirement],
        *,
        after_seq: int,
        descending: bool,
        created: tuple[datetime | None, datetime | None],
    ) -> None:
        self._index = index
        self._after_seq = after_seq
        self._descending = descending
        self._created = created
        conditions = [condition(requirement) for requirement in requirements]
        cheap = [one for one in conditions if not _is_dear(one)]
        # Each stage looks only where the one before has left something; cheap ones cost one round trip together.
        self._stages = [stage for stage in (cheap, *([one] for one in conditions if _is_dear(one))) if stage]
        # Without any condition that names the tasks that meet it, one has to start from all there are.
        self._needs_everyone = created != (None, None) or all(one.negative for one in conditions)
        self._window = 1
        first = after_seq >> SEGMENT_BITS
        self._next: int | None = min(first, index.last_segment) if descending else first
        self._found: Iterator[int] = iter(())

    def read(self, conn: Connection, budget: int) -> Piece:
        """The next candidates, `budget` of them at the most."""
        seqs: list[int] = []
        while True:
            seqs += islice(self._found, budget - len(seqs))
            if len(seqs) == budget:
                return Piece(seqs, is_last=False)
            if not self._advance(conn):
                return Piece(seqs, is_last=True)

    def count(self, conn: Connection) -> int:
        """How many candidates are still to come, without making any."""
        result = 0
        while (found := self._next_window(conn)) is not None:
            result += sum(bits.bit_count() for bits in found.values())
        return result

    def _advance(self, conn: Connection) -> bool:
        found = self._next_window(conn)
        if found is None:
            return False
        self._found = self._seqs(found)
        return True

    def _seqs(self, found: dict[int, int]) -> Iterator[int]:
        for segment in sorted(found, reverse=self._descending):
            first = segment << SEGMENT_BITS
            for offset in offsets(found[segment], descending=self._descending):
                seq = first + offset
                if seq < self._after_seq if self._descending else seq > self._after_seq:
                    yield seq

    def _next_window(self, conn: Connection) -> dict[int, int] | None:
        start = self._next
        if start is None or not 0 <= start <= self._index.last_segment:
            return None
        if self._descending:
            first, last = max(start - self._window + 1, 0), start
            self._next = first - 1
        else:
            first, last = start, min(start + self._window - 1, self._index.last_segment)
            self._next = last + 1
        self._window = min(self._window * _WINDOW_GROWTH, _WINDOW_MAX)
        found = self._meeting(conn, first, last)
        for segment, fresh in self._index.fresh.items():
            if first <= segment <= last:
                found[segment] = found.get(segment, 0) | fresh
        return found

    def _meeting(self, conn: Connection, first: int, last: int) -> dict[int, int]:
        window = {"first_segment": first, "last_segment": last}
        if self._needs_everyone:
            since, before = self._created
            rows = sql.SEGMENTS.all(conn, {**window, "since": since, "before": before})
            alive = {row.segment: decode(row.members) for row in rows}
        else:
            alive = dict.fromkeys(range(first, last + 1), _EVERYONE)
        for stage in self._stages:
            if not alive:
                break
            found = _look_up(conn, stage, window, list(alive))
            alive = {
                segment: bits
                for segment, everyone in alive.items()
                if (bits := meeting(stage, found.get(segment, {}), everyone))
            }
        return alive


def _is_dear(one: Condition) -> bool:
    return len(one.lookups) > _FEW_LOOKUPS or any(lookup.is_range for lookup in one.lookups)


def _look_up(
    conn: Connection, stage: list[Condition], window: dict[str, int], segments: list[int]
) -> dict[int, dict[Lookup, int]]:
    lookups = list({lookup for one in stage for lookup in one.lookups})
    parameters: dict[str, Any] = {
        "terms": [lookup.term for lookup in lookups],
        "lows": [lookup.low for lookup in lookups],
    }
    if _is_dear(stage[0]):
        highs = [lookup.high for lookup in lookups]
        rows = sql.POSTINGS_BETWEEN.all(conn, {**parameters, "highs": highs, "segments": segments})
    else:
        rows = sql.POSTINGS.all(conn, {**parameters, **window})
    found: defaultdict[int, dict[Lookup, int]] = defaultdict(dict)
    for row in rows:
        lookup, of_segment = lookups[row.lookup - 1], found[row.segment]
        of_segment[lookup] = of_segment.get(lookup, 0) | decode(row.members)
    return found
