"""The change feed, over both stores."""

from __future__ import annotations

from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from support import connect, queued, retrying, spec

from solti_store import (
    Bookmark,
    ChangeKind,
    FeedExpired,
    Invalid,
    Outcome,
    Selector,
    Task,
    TaskPhase,
    TaskQuery,
    TaskStore,
)
from solti_store.model import Labels

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from solti_store import TaskChange

OK = Outcome.succeeded(0)


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(database_url) as connection:
        yield connection


def labelled(name: str, **labels: str) -> Any:
    return spec(name).replace(labels=Labels(labels))


def seen(store: TaskStore, since: str, query: TaskQuery = TaskQuery()) -> list[tuple[str, str, str]]:
    return [(one.kind, one.type, one.task_id) for one in store.changes(since, query).changes]


def test_every_change_is_in_the_feed_in_order(store: TaskStore) -> None:
    token = store.token()
    store.create("a", retrying("s"))
    store.create("b", queued("s"))
    agent = store.register("w")
    (claim,) = store.claim(agent)
    store.update("a", lambda old: old.replace(timeout=5))
    store.finish(claim, Outcome.failed("no", exit_code=3))
    store.cancel("a")
    store.delete("a")
    (claim,) = store.claim(agent)
    store.cancel("b")
    store.finish(claim, Outcome.canceled())
    changes = store.changes(token).changes
    assert [(one.type, one.task_id, one.phase_before, one.phase) for one in changes] == [
        ("created", "a", None, "pending"),
        ("created", "b", None, "pending"),
        ("started", "a", "pending", "running"),
        ("specChanged", "a", "running", "running"),
        ("finished", "a", "running", "failed"),
        ("finished", "a", "failed", "canceled"),
        ("admitted", "b", "pending", "pending"),
        ("deleted", "a", "canceled", "canceled"),
        ("started", "b", "pending", "running"),
        ("cancelRequested", "b", "running", "running"),
        ("finished", "b", "running", "canceled"),
    ]
    assert [one.resource_version for one in changes if one.task_id == "a"] == [1, 2, 3, 4, 5, 5]
    assert changes[4].detail == {"outcome": "failed", "exitCode": 3, "error": "no"}
    assert changes[-1].task == store.get("b")
    assert changes[0].task is None  # gone by now
    assert changes[7].detail is not None
    assert changes[7].detail["spec"]["timeout"] == 5
    assert changes[7].kind is ChangeKind.DELETED


def test_it_goes_on_from_every_change(store: TaskStore) -> None:
    token = store.token()
    store.create_many([(f"t-{n}", spec()) for n in range(7)])
    store.cancel("t-3")
    everything = store.changes(token)
    assert everything.is_all
    for n, change in enumerate(everything.changes):
        assert store.changes(change.token).changes == everything.changes[n + 1 :]
    # In pieces, and from the end.
    pieces, at = [], token
    while True:
        piece = store.changes(at, limit=3)
        pieces += [(one.task_id, one.type) for one in piece.changes]
        at = piece.token
        if piece.is_all:
            break
    assert pieces == [(one.task_id, one.type) for one in everything.changes]
    assert store.changes(at).changes == store.changes(everything.token).changes == []
    store.delete("t-0")
    assert seen(store, at) == seen(store, everything.token) == [("deleted", "deleted", "t-0")]


def test_a_late_write_is_in_the_feed(store: TaskStore) -> None:
    store.create("a", retrying("a"))
    claim = store.start("a")
    store.finish(claim, Outcome.failed("no"))
    token = store.token()
    assert store.finish_many([(claim, OK)]) != [None]
    (change,) = store.changes(token).changes
    assert (change.kind, change.type, change.phase_before, change.phase) == ("modified", "refused", "failed", "failed")
    assert change.detail is not None
    assert change.detail["outcome"] == "succeeded"


def test_a_selector_sees_tasks_come_and_go(store: TaskStore) -> None:
    token = store.token()
    store.create("a", labelled("a", env="prod"))
    store.create("b", labelled("b", env="dev"))
    store.create("c", labelled("c", env="dev"))
    store.cancel("b")
    store.update("a", lambda old: old.replace(labels=Labels({"env": "dev"})))
    store.cancel("a")
    store.update("b", lambda old: old.replace(labels=Labels({"env": "prod"})))
    store.update("b", lambda old: old.replace(labels=Labels({"env": "prod", "tier": "gold"})))
    store.update("b", lambda old: old.replace(timeout=7))
    store.delete("b")
    store.delete("c")
    # What the labels are now says nothing: each event is judged by what they were.
    assert seen(store, token, TaskQuery(selector=Selector.parse("env=prod"))) == [
        ("added", "created", "a"),
        ("deleted", "specChanged", "a"),
        ("added", "specChanged", "b"),
        ("modified", "specChanged", "b"),
        ("modified", "specChanged", "b"),
        ("deleted", "deleted", "b"),
    ]
    assert seen(store, token, TaskQuery(selector=Selector.parse("env!=prod,!tier"))) == [
        ("added", "created", "b"),
        ("added", "created", "c"),
        ("modified", "finished", "b"),
        ("added", "specChanged", "a"),
        ("modified", "finished", "a"),
        ("deleted", "specChanged", "b"),
        ("deleted", "deleted", "c"),
    ]


def test_phases_see_tasks_come_and_go(store: TaskStore) -> None:
    token = store.token()
    store.create("a", retrying("a"))
    store.create("b", spec("b"))
    store.cancel("b")
    store.finish(store.start("a"), Outcome.failed("no"))
    store.start("a")
    store.delete("a")
    running = TaskQuery(phases=frozenset({TaskPhase.RUNNING}))
    assert seen(store, token, running) == [
        ("added", "started", "a"),
        ("deleted", "finished", "a"),
        ("added", "started", "a"),
        ("deleted", "deleted", "a"),
    ]
    assert seen(store, token, TaskQuery().with_terminal()) == [
        ("added", "finished", "b"),
        ("added", "finished", "a"),
        ("deleted", "started", "a"),
    ]


def test_a_page_says_where_the_feed_goes_on(store: TaskStore) -> None:
    store.create_many([(f"t-{n}", spec()) for n in range(3)])
    page = store.list(TaskQuery(with_token=True, limit=2))
    assert page.token is not None
    assert seen(store, page.token) == []
    assert store.list().token is None
    assert [one.token is None for one in store.pages(TaskQuery(with_token=True, limit=2))] == [False, True]
    store.delete("t-1")
    assert seen(store, page.token) == [("deleted", "deleted", "t-1")]


def test_a_watch_gives_changes_and_bookmarks(store: TaskStore) -> None:
    store.create("a", spec("a"))
    token = store.token()
    store.create("b", spec("b"))
    quick = timedelta(milliseconds=1)
    watch = store.watch(since=token, poll=quick, bookmarks=quick)
    change, bookmark = islice(watch, 2)
    assert (change.task_id, change.kind) == ("b", "added")  # type: ignore[union-attr]
    assert isinstance(bookmark, Bookmark)
    store.cancel("a")
    assert seen(store, bookmark.token) == [("modified", "finished", "a")]
    canceled: list[TaskChange] = [one for one in islice(watch, 30) if not isinstance(one, Bookmark)]
    assert [(one.task_id, one.phase) for one in canceled] == [("a", "canceled")]


@pytest.mark.parametrize(
    "query",
    [{"slot": "s"}, {"kind": "wasm"}, {"descending": True}, {"cursor": "x"}, {"with_total": True}],
    ids=lambda query: next(iter(query)),
)
def test_what_cannot_be_watched_is_refused(store: TaskStore, query: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match="goes by selector and phases") as caught:
        store.changes(store.token(), TaskQuery(**query))
    assert caught.value.field == next(iter(query))


def test_a_damaged_token_is_refused(store: TaskStore) -> None:
    token = store.token()
    for wrong in ("", "x", token[:-1], token + "A", "A" + token, token.swapcase(), "ä", "\0"):
        with pytest.raises(Invalid) as caught:
            store.changes(wrong)
        assert caught.value.field == "token"
    for n in range(len(token)):
        changed = token[:n] + ("A" if token[n] != "A" else "B") + token[n + 1 :]
        # The last character may hold bits that mean nothing.
        if n < len(token) - 1:
            with pytest.raises((Invalid, FeedExpired)):
                store.changes(changed)
    for watch in (store.watch(poll=timedelta(0)), store.watch(bookmarks=timedelta(days=2))):
        with pytest.raises(Invalid, match="must be positive and at most"):
            next(watch)


def test_a_token_of_another_life_of_the_database_has_expired(
    store: TaskStore, database: psycopg.Connection[Any]
) -> None:
    token = store.token()
    store.create("a", spec("a"))
    # As a restored dump is: the row was written by a transaction that this cluster never had.
    database.execute("UPDATE solti.feed SET written_by = '12345678901'")
    with pytest.raises(FeedExpired, match="another database"):
        store.changes(token)
    again = store.list(TaskQuery(with_token=True))
    assert again.token is not None
    store.cancel("a")
    assert seen(store, again.token) == [("modified", "finished", "a")]
    with pytest.raises(FeedExpired, match="another database"):
        store.changes(token)


def test_a_spec_that_cannot_be_read_does_not_stop_the_feed(store: TaskStore, database: psycopg.Connection[Any]) -> None:
    token = store.token()
    store.create("a", spec("a"))
    store.create("b", spec("b"))
    database.execute("""UPDATE solti.tasks SET spec = spec || '{"kind": {"subprocess": {}}}' WHERE id = 'a'""")
    first, second = store.changes(token).changes
    assert (first.task, isinstance(second.task, Task)) == (None, True)
