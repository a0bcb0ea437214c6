"""The feed under savepoints, prepared transactions, pruners, late numbers, and pages that are read while they end."""

# ruff: noqa: C901, PLR0915 - stories, told in order
from __future__ import annotations

import random
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from sqlalchemy import create_engine, text
from support import connect, spec

from solti_store import FeedExpired, Retention, TaskQuery, TaskStore
from solti_store.model import Labels
from solti_store.rules.feed_position import FeedPosition


def decode(token: str) -> int:
    return FeedPosition.decode(token).after


def drain(store: TaskStore, token: str, chance: random.Random | None = None) -> tuple[list[int], str]:
    seen: list[int] = []
    while True:
        found = store.changes(token, limit=chance.choice([1, 2, 3, 10, 1000]) if chance else 1000)
        seen += [decode(c.token) for c in found.changes]
        token = found.token
        if found.is_all:
            return seen, token


def test_savepoints_and_late_numbers(database_url: str) -> None:
    """One thread holds 12 transactions and lets them go on, and ends them, in any order; reads page by page between."""
    for seed in range(8):
        chance = random.Random(seed)
        engine = create_engine(database_url, pool_size=20)
        with TaskStore.open(database_url) as store:
            store.create_many([(f"{seed}-{n}", spec(f"{seed}-{n}")) for n in range(12)])
            tokens = [store.token() for _ in range(3)]
            read: list[list[int]] = [[] for _ in tokens]
            open_ones: dict[int, Any] = {}
            for number in range(250):
                one = chance.randrange(12)
                if one not in open_ones:
                    open_ones[one] = engine.connect()
                    if chance.random() < 0.3:
                        open_ones[one].execute(text("SELECT pg_current_xact_id()"))
                    continue
                conn = open_ones[one]
                inner = store.using(conn)
                what = chance.random()
                if what < 0.5:
                    label = Labels({"n": str(number)})
                    inner.update(f"{seed}-{one}", lambda old, label=label: old.replace(labels=label))  # type: ignore[misc]
                elif what < 0.7:
                    save = conn.begin_nested()
                    inner.update(f"{seed}-{one}", lambda old, n=number: old.replace(timeout=n + 1))  # type: ignore[misc]
                    save.commit() if chance.random() < 0.5 else save.rollback()
                else:
                    conn.commit() if chance.random() < 0.7 else conn.rollback()
                    conn.close()
                    del open_ones[one]
                reader = chance.randrange(3)
                found = store.changes(tokens[reader], limit=chance.choice([1, 2, 5, 1000]))
                kept = (
                    found.changes if chance.random() < 0.6 else found.changes[: chance.randint(0, len(found.changes))]
                )
                if len(kept) == len(found.changes):
                    tokens[reader] = found.token
                elif kept:
                    tokens[reader] = kept[-1].token
                read[reader] += [decode(c.token) for c in kept]
            for conn in open_ones.values():
                conn.commit()
                conn.close()
            with connect(database_url) as conn:
                rows = conn.execute(
                    "SELECT event, seq FROM solti.task_events WHERE id LIKE %s AND type <> 'created'", [f"{seed}-%"]
                ).fetchall()
            of_task = dict(rows)
            for reader, token in enumerate(tokens):
                more, _ = drain(store, token, chance)
                all_of = read[reader] + more
                assert sorted(all_of) == sorted(of_task), (seed, reader)
                last: dict[int, int] = defaultdict(int)
                for event in all_of:
                    assert event > last[of_task[event]]
                    last[of_task[event]] = event
        engine.dispose()


def test_pruners_and_readers(database_url: str) -> None:
    """Two pruners that keep next to nothing, writers, readers in small pages: a gap is always an error."""
    over = threading.Event()
    expired = [0, 0, 0]
    errors: list[BaseException] = []

    def write(number: int) -> int:
        made = 0
        chance = random.Random(number)
        with TaskStore.open(database_url) as store:
            engine = create_engine(database_url)
            for n in range(120):
                with engine.connect() as conn:
                    inner = store.using(conn)
                    inner.create_many([(f"{number}-{n}-{i}", spec(f"{number}-{n}-{i}")) for i in range(5)])
                    if chance.random() < 0.2:
                        conn.execute(text("SELECT pg_sleep(0.03)"))
                    conn.rollback() if chance.random() < 0.2 else conn.commit()
                    made += 5
            engine.dispose()
        return made

    def prune() -> None:
        with TaskStore.open(database_url) as store:
            while not over.is_set():
                store.prune(Retention(tasks=None, runs=None, agents=None, events=timedelta(milliseconds=40)), limit=17)

    def read(number: int) -> None:
        chance = random.Random(number)
        with TaskStore.open(database_url) as store, connect(database_url) as conn:
            page = store.list(TaskQuery(with_token=True, limit=1000))
            token = page.token
            assert token
            have = everything(conn, token)
            while True:
                last = over.is_set()
                try:
                    found = store.changes(token, limit=chance.choice([1, 3, 20, 1000]))
                except FeedExpired:
                    expired[number] += 1
                    token = store.token()
                    have = everything(conn, token)
                    continue
                for c in found.changes:
                    assert c.task_id not in have, c
                    have.add(c.task_id)
                token = found.token
                if last and found.is_all and not found.changes:
                    break
                if chance.random() < 0.2:
                    over.wait(0.05)
            assert have == {row[0] for row in conn.execute("SELECT id FROM solti.tasks")}

    def everything(conn: Any, token: str) -> set[str]:
        """What was there at the token, by the transactions that created it."""
        position = FeedPosition.decode(token)
        snapshot = (
            f"{min(position.open, default=position.xmax)}:{position.xmax}:{','.join(map(str, sorted(position.open)))}"
        )
        return {
            row[0]
            for row in conn.execute(
                "SELECT id FROM solti.tasks WHERE pg_visible_in_snapshot(labels_xid, %s::pg_snapshot)", [snapshot]
            )
        }

    def guarded(what: Any, *args: Any) -> None:
        try:
            what(*args)
        except BaseException as error:
            errors.append(error)
            raise

    with ThreadPoolExecutor(12) as pool:
        running = [pool.submit(guarded, prune) for _ in range(2)] + [pool.submit(guarded, read, n) for n in range(3)]
        for writing in [pool.submit(write, n) for n in range(5)]:
            writing.result()
        over.set()
        for one in running:
            one.result()
    assert not errors


def test_all_means_all_from_the_token_of_a_change_too(database_url: str) -> None:
    with TaskStore.open(database_url) as store:
        token = store.token()
        store.create_many([("a", spec("a")), ("b", spec("b"))])
        first = store.changes(token).changes[0].token
        store.create("c", spec("c"))
        assert not store.changes(first).is_all
