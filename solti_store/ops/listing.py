"""One page of a listing.

Every filter with an index of its own offers a stream of candidates. They are read in turn, ever larger pieces of each,
until the candidates of one have filled the page or come to their end. Which goes on is decided by what has come of each
so far: no statistics have to be right about it beforehand, and no wrong guess can hide the best of them for long.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from solti_store.model import TaskOrder, TaskPage
from solti_store.ops import cursor, feed, rows
from solti_store.ops.candidates import Both, Candidates, Collected, LabelIndex, Labelled, Scan, Segments, Walk
from solti_store.ops.cursor import Position
from solti_store.sql import pages, selectors

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from solti_store.model import TaskQuery
    from solti_store.sql.driver import Row

__all__ = ["Listed", "following", "list_page"]

# The first piece of a stream is a page's, or this; the later ones are from two to eight times the one before.
_FIRST_PIECE: Final = 64
_LARGEST_PIECE: Final = 32_768
# A stream is not left behind further than this: one that has looked at 32 times as much gives way.
_SHARE: Final = 32

_START: Final = Position(datetime(1, 1, 1, tzinfo=UTC), 0)
_END: Final = Position(datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), 2**63 - 1)

_NARROW: Final[tuple[tuple[str, pages.Walk], ...]] = (("agent_name", "agent"), ("task_slot", "slot"))
_WIDE: Final[tuple[tuple[str, pages.Walk], ...]] = (("phases", "phases"), ("task_kind", "kind"))


@dataclass(frozen=True, slots=True)
class Listed:
    """A page, and what was noticed on the way.

    Attributes:
        page: The page.
        index_lags: Whether the label index should be brought up to date.
        feed_is_stale: Whether the page should have a token and has none, before `feed.renew`.
    """

    page: TaskPage
    index_lags: bool
    feed_is_stale: bool


def list_page(conn: Connection, query: TaskQuery) -> Listed:
    """One page of the tasks that meet `query`; in one snapshot all along, if it asks for a token."""
    token = feed.token(conn) if query.with_token else None
    listing = _Listing(conn, query)
    found = listing.hits()
    shown = found[: query.limit]
    more = len(found) > query.limit
    if listing.backward:
        shown.reverse()
    page = TaskPage(
        items=tuple(map(rows.task, shown)),
        total=listing.total() if query.with_total else None,
        estimated_total=listing.estimate() if query.with_estimate else None,
        next_cursor=listing.cursor(shown, backward=False) if more or listing.backward else None,
        prev_cursor=listing.cursor(shown, backward=True) if listing.has_before(more=more) else None,
        token=token,
    )
    return Listed(
        page,
        index_lags=listing.index is not None and listing.index.lags,
        feed_is_stale=query.with_token and token is None,
    )


def following(query: TaskQuery, page: TaskPage) -> TaskQuery | None:
    """What to ask for the next page, None behind the last; totals and the token are of the first one only."""
    if page.next_cursor is None:
        return None
    return query.replace(cursor=page.next_cursor, with_total=False, with_estimate=False, with_token=False)


class _Listing:
    def __init__(self, conn: Connection, query: TaskQuery) -> None:
        self._conn = conn
        self._query = query
        self._at = cursor.decode(query)
        self.backward = self._at is not None and self._at.backward
        requirements = query.requirements
        filters = _filters(query)
        self._shape = pages.Shape(
            filters=frozenset(filters),
            labels=selectors.shape_of(requirements),
            by_update=query.order_by is TaskOrder.UPDATED,
            # Backward is forward in the opposite order.
            descending=query.descending is not self.backward,
        )
        self._filters = filters | selectors.parameters(requirements)
        self._after = self._at or (_END if self._shape.descending else _START)
        has_period = query.created_since is not None or query.created_before is not None
        self.index = LabelIndex.read(conn) if requirements or has_period else None
        self._labelled: Labelled | None = None
        if self.index and self.index.is_usable:
            period = filters.get("created_since"), filters.get("created_before")
            self._labelled = Labelled(self.index, requirements, period)

    def hits(self) -> list[Row]:
        """The tasks past the cursor that meet the query, up to one more than the page takes."""
        wanted = self._query.limit + 1
        parameters = {**self._filters, "after_at": self._after.updated_at, "after_seq": self._after.seq}
        searches = [_Search(self._conn, self._shape, stream, parameters, wanted) for stream in self._streams()]
        while True:
            search = min(searches, key=attrgetter("due"))
            if search.advance():
                return search.hits

    def total(self) -> int:
        """How many tasks meet the query's filters."""
        return int(pages.total(self._unordered()).one(self._conn, self._filters).total)

    def estimate(self) -> int:
        """About as many: those with the labels, times the share that the planner expects of the other filters."""
        shape = self._unordered()
        if self._labelled is None or not shape.labels:
            return self._planned(shape)
        fresh = {**self._filters, "candidates": self._labelled.index.fresh_seqs}
        labels_only = pages.Shape(frozenset(), shape.labels)
        having = self._labelled.count(self._conn) + pages.total_of(labels_only).one(self._conn, fresh).total
        if not shape.filters:
            return int(having)
        share = self._planned(pages.Shape(shape.filters)) / max(self._planned(pages.Shape(frozenset())), 1)
        return int(having * min(share, 1.0))

    def cursor(self, shown: list[Row], *, backward: bool) -> str:
        """The cursor from an end of the page; from where the page should have begun, if it is empty."""
        if not shown:
            # Back to where the empty page began; with that task, which was the last of the page before.
            step = -1 if self._shape.descending else 1
            return cursor.encode(self._query, Position(self._after.updated_at, self._after.seq + step, backward))
        edge = shown[0 if backward else -1]
        return cursor.encode(self._query, Position(edge.updated_at, edge.seq, backward))

    def has_before(self, *, more: bool) -> bool:
        """Whether there is, or may be, a page before this one."""
        return more if self.backward else self._at is not None

    def _unordered(self) -> pages.Shape:
        return pages.Shape(self._shape.filters, self._shape.labels)

    def _planned(self, shape: pages.Shape) -> int:
        [[plan]] = pages.estimate(shape).one(self._conn, self._filters)
        return int(plan["Plan"]["Plan Rows"])

    def _streams(self) -> list[Candidates]:
        """What may be narrow comes first."""
        descending = self._shape.descending
        if self._shape.by_update:
            by_creation = self._by_creation(_START, descending=False)
            return [*map(Collected, by_creation), self._both(self._by_update(self._after, descending=descending))]
        result = self._by_creation(self._after, descending=descending)
        if not result:
            result.append(self._walk("created", self._after, descending=descending))
        if {"updated_since", "updated_before"} & self._shape.filters:
            result.append(Collected(self._both(self._by_update(_START, descending=False))))
        return result

    def _by_creation(self, after: Position, *, descending: bool) -> list[Candidates]:
        def walks(some: tuple[tuple[str, pages.Walk], ...]) -> list[Candidates]:
            given = [by for name, by in some if name in self._shape.filters]
            return [self._both(self._walk(by, after, descending=descending)) for by in given]

        by_label: list[Candidates] = []
        if self._labelled is not None:
            by_label = [Segments(self._labelled, after_seq=after.seq, descending=descending)]
        elif self._shape.labels:
            by_label = [Scan(self._shape.labels, self._filters, after=after, descending=descending)]
        return [*walks(_NARROW), *by_label, *walks(_WIDE)]

    def _both(self, candidates: Candidates) -> Candidates:
        return candidates if self._labelled is None else Both(candidates, self._labelled)

    def _by_update(self, after: Position, *, descending: bool) -> Walk:
        since = self._filters.get("updated_since", _START.updated_at)
        before = self._filters.get("updated_before", _END.updated_at)
        # One bound at each end: of two at the same end, PostgreSQL begins its search at either.
        if descending:
            begin = min(after, Position(before, 0), key=_place)
            return self._walk("updated", begin, descending=True, end_at=since)
        begin = max(after, Position(since, 0), key=_place)
        return self._walk("updated", begin, descending=False, end_at=before)

    def _walk(self, by: pages.Walk, after: Position, *, descending: bool, end_at: datetime | None = None) -> Walk:
        return Walk(by, self._filters, after=after, descending=descending, end_at=end_at)


class _Search:
    """Reads one stream of candidates, and keeps those that meet the query."""

    def __init__(
        self, conn: Connection, shape: pages.Shape, candidates: Candidates, parameters: dict[str, Any], wanted: int
    ) -> None:
        self._conn = conn
        self._statement = pages.page(shape)
        self._candidates = candidates
        self._parameters = dict(parameters)
        self._wanted = wanted
        self._budget = self._expected = max(_FIRST_PIECE, wanted)
        self._seen = 0
        self.hits: list[Row] = []

    @property
    def due(self) -> int:
        """After how many candidates it should be done; the search that is due first goes on.

        A guess from few candidates may be wrong, so one that does not look promising still gets its share.
        """
        return min(self._seen + self._expected, _SHARE * self._seen + self._budget)

    def advance(self) -> bool:
        """Look at some more candidates; whether all that is wanted, or all there is, has been found."""
        piece = self._candidates.read(self._conn, self._budget)
        missing = self._wanted - len(self.hits)
        if piece.seqs:
            until_at, until_seq = piece.until or (None, None)
            more = {"candidates": piece.seqs, "until_at": until_at, "until_seq": until_seq, "limit": missing}
            self.hits += self._statement.all(self._conn, self._parameters | more)
            missing = self._wanted - len(self.hits)
        if piece.until:
            # What was changed since it was a candidate must not come up behind what is there already.
            self._parameters |= {"after_at": piece.until[0], "after_seq": piece.until[1]}
        self._seen += self._budget
        # As many as should do, going by those seen.
        self._expected = max(missing * self._seen // max(len(self.hits), 1), 2 * self._budget)
        self._budget = min(self._expected, 8 * self._budget, _LARGEST_PIECE)
        return piece.is_last or missing == 0


def _place(position: Position) -> tuple[datetime, int]:
    return position.updated_at, position.seq


def _filters(query: TaskQuery) -> dict[str, Any]:
    given: dict[str, Any] = {
        "phases": list(query.phases),
        "agent_name": query.agent and str(query.agent),
        "task_slot": query.slot and str(query.slot),
        "task_kind": query.kind,
        **{
            name: None if (moment := getattr(query, name)) is None else moment.datetime
            for name in ("created_since", "created_before", "updated_since", "updated_before")
        },
    }
    return {name: value for name, value in given.items() if value not in (None, [])}
