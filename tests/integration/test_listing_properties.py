"""Listings, whatever was done before and whatever the label index knows of it: as one would pick and sort by hand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from support import connect, queued, spec

from solti_store import Outcome, TaskQuery, TaskStore
from solti_store.model import Labels, Selector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from solti_store import TaskSpec

KEYS = ["a", "b", "n"]
VALUES = ["", "x", "y", "1", "05", "7"]
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)

label_sets = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=3)
requirements = st.one_of(
    st.sampled_from(KEYS),
    st.sampled_from(KEYS).map("!{}".format),
    st.builds("{}{}{}".format, st.sampled_from(KEYS), st.sampled_from(["=", "!="]), st.sampled_from(VALUES)),
    st.builds("{}{}{}".format, st.sampled_from(KEYS), st.sampled_from([">", "<"]), st.sampled_from(["0", "1", "5"])),
    st.builds(
        "{} {} ({})".format,
        st.sampled_from(KEYS),
        st.sampled_from(["in", "notin"]),
        st.lists(st.sampled_from(VALUES), min_size=1, max_size=10).map(",".join),
    ),
)
moments = st.integers(0, 40).map(lambda minutes: BEGIN + timedelta(minutes=minutes))
queries = st.fixed_dictionaries(
    {"order_by": st.sampled_from(["created", "updated"]), "descending": st.booleans(), "limit": st.integers(1, 40)},
    optional={
        "selector": st.lists(requirements, max_size=3).map(",".join),
        "phases": st.sets(st.sampled_from(["pending", "running", "succeeded", "failed", "canceled"]), max_size=3),
        "slot": st.sampled_from(["s", "t", "none"]),
        "kind": st.sampled_from(["subprocess", "wasm"]),
        "agent": st.sampled_from(["w", "v"]),
        "created_since": moments,
        "created_before": moments,
        "updated_since": moments,
        "updated_before": moments,
    },
)
# Hypothesis makes short lists; a long one of few kinds of task fills pages.
kinds_of_task = st.tuples(label_sets, st.sampled_from(["s", "t", None]))
labelled = st.lists(kinds_of_task, min_size=1, max_size=9).map(lambda some: some * 12)
places = st.integers(0, 500)


def call(method: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.tuples(st.just(method), st.fixed_dictionaries(arguments))


steps = st.lists(
    st.one_of(
        call("create", tasks=labelled),
        call("skip", count=st.sampled_from([1, 100, 4000, 4096, 50_000])),
        call("relabel", place=places, labels=label_sets),
        call("delete", place=places, count=st.integers(1, 60)),
        call("cancel", place=places),
        call("work", agent=st.sampled_from(["w", "v"]), count=st.integers(1, 30), succeeded=st.none() | st.booleans()),
        call("index"),
        call("spoil"),
        call("shift", created=st.integers(0, 40), updated=st.integers(0, 40)),
    ),
    min_size=1,
    max_size=12,
)


def make(slot: str | None, labels: Labels) -> TaskSpec:
    return spec(labels=labels) if slot is None else queued(slot, labels=labels)


@dataclass
class Registry:
    store: TaskStore
    connection: psycopg.Connection[Any]
    made: int = 0

    def clear(self) -> None:
        self.connection.execute(
            "TRUNCATE solti.tasks, solti.task_status, solti.task_runs, solti.task_events, solti.agents"
        )

    def create(self, tasks: list[tuple[dict[str, str], str | None]]) -> None:
        new = [(f"t-{self.made + n}", make(slot, Labels(labels))) for n, (labels, slot) in enumerate(tasks)]
        self.made += len(new)
        self.store.create_many(new)

    def skip(self, count: int) -> None:
        """So that the tasks come to lie in several segments of 4096."""
        self.connection.execute("SELECT setval('solti.tasks_seq_seq', nextval('solti.tasks_seq_seq') + %s)", [count])

    def relabel(self, place: int, labels: dict[str, str]) -> None:
        for task_id in self.ids()[place : place + 1]:
            self.store.update(task_id, lambda old: old.replace(labels=Labels(labels)))

    def delete(self, place: int, count: int) -> None:
        for task_id in self.ids()[place : place + count]:
            self.store.delete(task_id)

    def cancel(self, place: int) -> None:
        for task_id in self.ids()[place : place + 1]:
            self.store.cancel(task_id)

    def work(self, agent: str, count: int, *, succeeded: bool | None) -> None:
        for claim in self.store.claim(self.store.register(agent), limit=count):
            if succeeded is not None:
                self.store.finish(claim, Outcome.succeeded() if succeeded else Outcome.failed("no"))

    def index(self) -> None:
        self.store.index_labels()

    def spoil(self) -> None:
        """As if another cluster's dump had been restored: the index is worth nothing."""
        self.connection.execute("UPDATE solti.label_index SET written_by = '1'")

    def shift(self, created: int, updated: int) -> None:
        """Times that have little to do with the order of creation."""
        self.connection.execute(
            "UPDATE solti.tasks SET created_at = %s::timestamptz + (seq %% 7) * interval '3 min',"
            " labels_xid = pg_current_xact_id()",
            [BEGIN + timedelta(minutes=created)],
        )
        self.connection.execute(
            "UPDATE solti.task_status SET updated_at = %s::timestamptz + (seq %% 5) * interval '4 min'",
            [BEGIN + timedelta(minutes=updated)],
        )

    def ids(self) -> list[str]:
        return [row[0] for row in self.connection.execute("SELECT id FROM solti.tasks ORDER BY seq")]

    def expected(self, query: TaskQuery) -> list[str]:
        rows = self.connection.execute(
            """
            SELECT t.id, t.seq, t.created_at, t.spec -> 'labels', t.slot, t.kind, s.updated_at, s.phase, a.id
            FROM solti.tasks AS t JOIN solti.task_status AS s USING (seq) LEFT JOIN solti.agents AS a ON a.seq = s.agent
            """
        ).fetchall()
        selector = query.selector or Selector()
        # What a query takes for the ends of a period that it does not name.
        first, last = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
        periods = [
            (first if since is None else since.datetime, last if before is None else before.datetime)
            for since, before in (
                (query.created_since, query.created_before),
                (query.updated_since, query.updated_before),
            )
        ]
        found = [
            ((updated_at, seq) if query.order_by == "updated" else seq, task_id)
            for task_id, seq, created_at, labels, slot, kind, updated_at, phase, agent in rows
            if selector.matches(labels or {})
            and (not query.phases or phase in query.phases)
            and query.slot in (None, slot)
            and query.kind in (None, kind)
            and query.agent in (None, agent)
            and periods[0][0] <= created_at < periods[0][1]
            and periods[1][0] <= updated_at < periods[1][1]
        ]
        return [task_id for _, task_id in sorted(found, reverse=query.descending)]


@pytest.fixture
def registry(database_url: str) -> Iterator[Registry]:
    with TaskStore.open(database_url, max_slot_queue=10_000) as store, connect(database_url) as connection:
        yield Registry(store, connection)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(done=steps, asked=st.lists(queries, min_size=1, max_size=6), spoilt=st.booleans())
def test_a_listing_is_what_one_would_pick_and_sort_by_hand(
    registry: Registry, done: list[tuple[str, dict[str, Any]]], asked: list[dict[str, Any]], *, spoilt: bool
) -> None:
    registry.clear()
    for method, arguments in done:
        getattr(registry, method)(**arguments)
    for ask in asked:
        query = TaskQuery(**ask)
        if spoilt:
            registry.spoil()  # each listing heals it
        expected = registry.expected(query)
        event(f"found {min(len(expected), 41) // 20}")
        pages = [registry.store.list(query.replace(with_total=True))]
        while cursor := pages[-1].next_cursor:
            pages.append(registry.store.list(query.replace(cursor=cursor)))
        assert [task.id for page in pages for task in page] == expected
        assert pages[0].total == len(expected)
        assert all(len(page) == query.limit for page in pages[:-1])
        back = [pages[-1]]
        while cursor := back[-1].prev_cursor:
            back.append(registry.store.list(query.replace(cursor=cursor)))
        assert [task.id for page in reversed(back) for task in page] == expected
