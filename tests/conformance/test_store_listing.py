"""What both stores promise about listings, at the public API. Runs over `TaskStore` and `AsyncTaskStore`."""

from __future__ import annotations

import json
import struct
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import connect, queued, spec

from solti_store import Invalid, InvalidCursor, Outcome, TaskPhase, TaskQuery, TaskStore
from solti_store.model import MAX_REQUIREMENTS, Labels, LabelSelector, Selector, Slot, Timestamp
from solti_store.ops.cursor import _digest as cursor_digest
from solti_store.sql.label_index import FRESH_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable

CASES = json.loads(Path(__file__).with_name("selector_cases.json").read_text())


def ids(store: TaskStore, **query: Any) -> list[str]:
    return [task.id for task in store.list(TaskQuery(**query))]


def execute(url: str, statement: str) -> None:
    with connect(url) as connection:
        connection.execute(statement.encode())


def create(store: TaskStore, labelled: Iterable[tuple[str, dict[str, str]]], slot: str | None = None) -> None:
    make = spec if slot is None else partial(queued, slot)
    store.create_many([(task_id, make(labels=Labels(labels))) for task_id, labels in labelled])


def test_list_filters_by_phase_slot_and_kind(store: TaskStore) -> None:
    store.create("a", spec("x"))
    store.create("b", spec("y"))
    store.create("c", queued("x"))
    store.cancel("c")
    assert ids(store) == ["a", "b", "c"]
    assert ids(store, slot="x") == ["a", "c"]
    assert ids(store, kind="subprocess") == ["a", "b", "c"]
    assert ids(store, kind="wasm") == []
    assert ids(store, phases={TaskPhase.PENDING}) == ["a", "b"]
    assert ids(store, phases={TaskPhase.PENDING, TaskPhase.CANCELED}) == ["a", "b", "c"]
    assert ids(store, phases={TaskPhase.PENDING}, slot="x") == ["a"]
    assert ids(store, phases={TaskPhase.CANCELED}, slot="x", kind="subprocess") == ["c"]


def test_list_filters_by_the_agent_that_runs_a_task(store: TaskStore) -> None:
    store.create_many([(f"t-{n}", spec()) for n in range(4)])
    first, again, other = store.register("w"), store.register("w"), store.register("v")
    for agent in (first, other, again):
        claims = store.claim(agent, limit=1)
    assert ids(store, agent="w") == ["t-0", "t-2"]
    assert ids(store, agent="v") == ["t-1"]
    assert ids(store, agent="w", descending=True, limit=1) == ["t-2"]
    assert ids(store, agent="nobody") == []
    store.finish(claims[0], Outcome.succeeded())
    assert ids(store, agent="w") == ["t-0"]


def test_list_filters_by_time(store: TaskStore, database_url: str) -> None:
    store.create_many([(f"t-{n}", spec()) for n in range(6)])
    start = datetime(2026, 5, 1, tzinfo=UTC)
    execute(database_url, "UPDATE solti.tasks SET created_at = '2026-05-01 00:00Z'::timestamptz + seq * interval '1 h'")
    execute(
        database_url,
        "UPDATE solti.task_status SET updated_at = '2026-06-01 00:00:00.0005Z'::timestamptz - seq * interval '1 h'",
    )
    for known in (False, True):
        if known:
            store.index_labels()
        assert ids(store, created_since=start + timedelta(hours=3)) == ["t-2", "t-3", "t-4", "t-5"]
        assert ids(store, created_before=start + timedelta(hours=3)) == ["t-0", "t-1"]
        assert ids(store, created_since=start + timedelta(hours=2), created_before=start + timedelta(hours=4)) == [
            "t-1",
            "t-2",
        ]
        assert ids(store, created_since=start + timedelta(hours=7)) == []
        assert ids(store, created_before=start) == []
    latest = store.get("t-0").metadata.updated_at
    # A task's own time finds it, though it is a millisecond's floor.
    assert ids(store, updated_since=latest) == ["t-0"]
    assert ids(store, updated_before=latest) == ["t-1", "t-2", "t-3", "t-4", "t-5"]
    assert ids(store, updated_before=latest, order_by="updated") == ["t-5", "t-4", "t-3", "t-2", "t-1"]
    assert ids(store, updated_since=latest, order_by="updated", descending=True) == ["t-0"]
    assert ids(store, created_since=Timestamp(0), updated_since=Timestamp(0), limit=1) == ["t-0"]


@pytest.mark.parametrize("known", [False, True])
def test_every_case_of_the_conformance_suite_matches_in_the_store(store: TaskStore, *, known: bool) -> None:
    labels = list(
        {json.dumps(case["labels"], sort_keys=True): case["labels"] for case in CASES["match_cases"]}.values()
    )
    create(store, ((f"t-{number}", given) for number, given in enumerate(labels)))
    if known:
        store.index_labels()
    for case in CASES["match_cases"]:
        found = ids(store, selector=case["selector"], limit=1000)
        assert (f"t-{labels.index(case['labels'])}" in found) is case["match"], case


@pytest.mark.parametrize("known", [False, True])
def test_every_structured_case_matches_in_the_store(store: TaskStore, *, known: bool) -> None:
    cases = [case for case in CASES["label_selector_cases"] if case["valid"] and case["label_selector"] is not None]
    every = [match["labels"] for case in cases for match in case["matches"]]
    labels = list({json.dumps(given, sort_keys=True): given for given in every}.values())
    create(store, ((f"t-{number}", given) for number, given in enumerate(labels)))
    if known:
        store.index_labels()
    for case in cases:
        found = ids(store, selector=case["label_selector"], limit=1000)
        for match in case["matches"]:
            assert (f"t-{labels.index(match['labels'])}" in found) is match["match"], case


def test_a_structured_selector_takes_any_key(store: TaskStore) -> None:
    create(store, [("a", {"a b": "'; --"}), ("b", {"a b": "x"})])
    assert ids(store, selector=LabelSelector(match_labels=Labels({"a b": "'; --"}))) == ["a"]
    assert ids(store, selector={"matchExpressions": [{"key": "a b", "operator": "NotIn", "values": ["x"]}]}) == ["a"]


def test_labels_are_found_by_what_they_are_now(store: TaskStore) -> None:
    create(store, [(f"t-{n}", {"env": "prod"}) for n in range(3)])
    store.index_labels()
    store.update("t-1", lambda old: old.replace(labels=Labels({"env": "dev"})))
    store.delete("t-2")
    create(store, [("new", {"env": "prod"})])
    for _ in range(2):
        assert ids(store, selector="env=prod") == ["t-0", "new"]
        assert ids(store, selector="env=dev") == ["t-1"]
        assert ids(store, selector="env!=prod") == ["t-1"]
        store.index_labels()


def test_more_tasks_than_the_index_may_lag_are_found_too(store: TaskStore) -> None:
    create(store, [(f"t-{n}", {"n": str(n)}) for n in range(FRESH_MAX + 2)])
    last = f"t-{FRESH_MAX + 1}"
    # The first listing finds it too far behind, walks the tasks, and brings some of it up to date.
    for _ in range(3):
        assert ids(store, selector=f"n={FRESH_MAX + 1}") == [last]
        assert ids(store, selector=f"n>{FRESH_MAX - 1}", descending=True) == [last, f"t-{FRESH_MAX}"]
    store.index_labels()
    assert ids(store, selector=f"n={FRESH_MAX + 1}") == [last]


ORDERS = [
    {"order_by": order, "descending": descending} for order in ("created", "updated") for descending in (False, True)
]
FILTERS: list[dict[str, Any]] = [
    {},
    {"phases": {TaskPhase.PENDING, TaskPhase.FAILED}},
    {"slot": "slot"},
    {"selector": "even=0"},
    {"selector": "even notin (1)", "phases": {TaskPhase.PENDING}},
    {"updated_since": Timestamp(0), "created_since": Timestamp(0)},
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: f"{order['order_by']}-{order['descending']}")
@pytest.mark.parametrize("filters", FILTERS, ids=lambda filters: "-".join(filters) or "all")
def test_pages_cover_everything_once_there_and_back(
    store: TaskStore, filters: dict[str, Any], order: dict[str, Any]
) -> None:
    create(store, ((f"t-{n:02}", {"even": str(n % 2)}) for n in range(25)), filters.get("slot"))
    store.index_labels()
    for n in (3, 14, 8):  # changed last, in this order
        store.cancel(f"t-{n:02}")
    names = [f"t-{n:02}" for n in range(25)]
    if order["order_by"] == "updated":
        names = [name for name in names if name not in {"t-03", "t-14", "t-08"}] + ["t-03", "t-14", "t-08"]
    if order["descending"]:
        names.reverse()
    if "selector" in filters:
        names = [name for name in names if int(name[2:]) % 2 == 0]
    if "phases" in filters:
        names = [name for name in names if name not in {"t-03", "t-14", "t-08"}]
    query = TaskQuery(**filters, **order, limit=7, with_total=True)
    pages = [store.list(query)]
    while cursor := pages[-1].next_cursor:
        pages.append(store.list(query.replace(cursor=cursor)))
    assert [task.id for page in pages for task in page] == names
    assert {page.total for page in pages} == {len(names)}
    assert [page.prev_cursor is None for page in pages] == [True] + [False] * (len(pages) - 1)
    back = [pages[-1]]
    while cursor := back[-1].prev_cursor:
        back.append(store.list(query.replace(cursor=cursor)))
    assert [page.items for page in reversed(back)] == [page.items for page in pages]
    assert back[-1].next_cursor is not None
    assert store.list(query.replace(cursor=back[-1].next_cursor)).items == pages[1].items
    assert [task.id for page in store.pages(query) for task in page] == names
    assert [page.total for page in store.pages(query)] == [len(names)] + [None] * (len(pages) - 1)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: f"{order['order_by']}-{order['descending']}")
def test_an_empty_page_leads_back(store: TaskStore, order: dict[str, Any]) -> None:
    store.create_many([(f"t-{n}", spec()) for n in range(4)])
    query = TaskQuery(limit=2, **order)
    first = store.list(query)
    rest = store.list(query.replace(cursor=first.next_cursor))
    for task in rest:
        store.delete(task.id)
    empty = store.list(query.replace(cursor=first.next_cursor))
    assert (len(empty), empty.next_cursor) == (0, None)
    assert store.list(query.replace(cursor=empty.prev_cursor)).items == first.items
    # And the other way: nothing before, then forward again.
    other = store.list(query.replace(cursor=rest.prev_cursor))
    assert (other.items, other.prev_cursor) == (first.items, None)
    for task in first:
        store.delete(task.id)
    store.create("x", spec("x"))
    empty = store.list(query.replace(cursor=rest.prev_cursor))
    assert empty.prev_cursor is None
    assert [task.id for task in store.list(query.replace(cursor=empty.next_cursor))] in (["x"], [])


def test_a_page_that_just_fits_is_the_last(store: TaskStore) -> None:
    store.create_many([(f"t-{n}", spec()) for n in range(10)])
    assert store.list(TaskQuery(limit=10)).next_cursor is None
    assert store.list(TaskQuery(limit=9)).next_cursor is not None
    assert store.list(TaskQuery()).total is None


def test_a_limit_past_the_maximum_is_capped(store: TaskStore) -> None:
    store.create_many([(f"t-{n}", spec()) for n in range(1001)])
    page = store.list(TaskQuery(limit=5000))
    assert len(page) == 1000
    assert page.next_cursor is not None


def test_totals_are_counted_or_guessed(store: TaskStore, database_url: str) -> None:
    create(store, ((f"t-{n}", {"env": "prod" if n % 4 else "dev", "n": str(n)}) for n in range(1000)))
    for n in range(10):
        store.cancel(f"t-{n}")
    execute(database_url, "ANALYZE solti.tasks, solti.task_status")
    store.index_labels()

    def estimate(**query: Any) -> int | None:
        return store.list(TaskQuery(with_estimate=True, limit=1, **query)).estimated_total

    assert store.list(TaskQuery(with_total=True)).total == 1000
    assert store.list(TaskQuery()).estimated_total is None
    assert estimate() == 1000
    assert estimate(selector="env=dev") == 250
    assert estimate(selector="env=qa") == 0
    assert store.list(TaskQuery(phases=frozenset({TaskPhase.CANCELED}), with_total=True)).total == 10
    assert estimate(selector="n>499") in range(400, 600)
    few = estimate(selector="env=prod", phases={TaskPhase.CANCELED})
    assert few is not None
    assert 5 <= few <= 10


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "é", "A" * 44, "=" * 44, "\n" * 44, "A" * 10_000])
def test_a_damaged_cursor_is_one_clear_error(store: TaskStore, cursor: str) -> None:
    with pytest.raises(InvalidCursor, match="not of this query"):
        store.list(TaskQuery(cursor=cursor))


def test_a_cursor_belongs_to_its_query(store: TaskStore) -> None:
    store.create_many([(f"t-{n}", spec()) for n in range(3)])
    cursor = store.list(TaskQuery(limit=1)).next_cursor
    assert cursor is not None
    assert ids(store, limit=2, cursor=cursor) == ["t-1", "t-2"]
    others: list[dict[str, Any]] = [
        {"slot": Slot("slot")},
        {"kind": "subprocess"},
        {"agent": "w"},
        {"phases": {TaskPhase.PENDING}},
        {"selector": "a"},
        {"created_since": Timestamp(1)},
        {"created_before": Timestamp(1)},
        {"updated_since": Timestamp(1)},
        {"updated_before": Timestamp(1)},
        {"descending": True},
        {"order_by": "updated"},
    ]
    for other in others:
        with pytest.raises(InvalidCursor, match="not of this query"):
            store.list(TaskQuery(limit=1, cursor=cursor, **other))


def test_a_cursor_with_one_character_changed_is_refused(store: TaskStore) -> None:
    store.create_many([(f"t-{n}", spec()) for n in range(3)])
    cursor = store.list(TaskQuery(limit=1)).next_cursor
    assert cursor is not None
    for place in range(len(cursor)):
        for other in ("A", "_", " ", "", "é"):
            changed = cursor[:place] + other + cursor[place + 1 :]
            if changed != cursor:
                with pytest.raises(InvalidCursor):
                    store.list(TaskQuery(cursor=changed))


@pytest.mark.parametrize("microseconds", [-(2**63), 0, 2**63 - 1])
@pytest.mark.parametrize("seq", [-(2**63), -1, 2**63 - 1])
def test_a_cursor_that_was_forged_is_refused_too(store: TaskStore, seq: int, microseconds: int) -> None:
    place = struct.pack(">BBqq", 2, 0, microseconds, seq)
    forged = urlsafe_b64encode(place + cursor_digest(TaskQuery(), place)).decode()
    with pytest.raises(InvalidCursor):
        store.list(TaskQuery(cursor=forged))


def test_a_period_begins_and_ends_where_its_datetimes_say(store: TaskStore, database_url: str) -> None:
    store.create("a", spec("a"))
    execute(database_url, "UPDATE solti.tasks SET created_at = '2026-05-01 00:00:00.0001Z'")
    second = datetime(2026, 5, 1, tzinfo=UTC)
    assert ids(store, created_before=second + timedelta(microseconds=900)) == ["a"]
    assert ids(store, created_since=second + timedelta(microseconds=900)) == []
    assert ids(store, created_since=second) == ["a"]
    assert ids(store, created_before=second) == []


def test_a_selector_of_very_many_requirements_is_refused(store: TaskStore) -> None:
    many = ",".join(f"k{n}" for n in range(MAX_REQUIREMENTS))
    assert ids(store, selector=many) == []
    with pytest.raises(Invalid, match=f"at most {MAX_REQUIREMENTS} requirements, got {MAX_REQUIREMENTS + 1}") as caught:
        TaskQuery(selector=Selector.parse(f"{many},more"))
    assert caught.value.field == "selector"
