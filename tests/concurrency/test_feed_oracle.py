"""The feed's judgement against a registry that is looked at before and after every single operation.

The oracle knows, of each event, which labels and phase the task had right before and right after it, from SELECTs of
the moment; the feed is read at the end, from many places and in pages of every size.
"""

# ruff: noqa: C901, PLR0912, PLR0915 - one story, told in order
from __future__ import annotations

import random
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from support import connect, queued, retrying, silence, spec

from solti_store import Outcome, Retention, Selector, SoltiStoreError, TaskPhase, TaskQuery, TaskStore
from solti_store.model import AdmissionPolicy, Labels
from solti_store.rules.feed_position import FeedPosition

QUERIES = [
    TaskQuery(),
    TaskQuery(selector=Selector.parse("env=a")),
    TaskQuery(selector=Selector.parse("env!=a")),
    TaskQuery(selector=Selector.parse("!env")),
    TaskQuery(selector=Selector.parse("env in (a,b),!x")),
    TaskQuery(phases=frozenset({TaskPhase.PENDING})),
    TaskQuery(phases=frozenset({TaskPhase.RUNNING, TaskPhase.FAILED}), selector=Selector.parse("env")),
    TaskQuery().with_terminal(),
]


def labels(chance: random.Random) -> Labels:
    return Labels({k: chance.choice("ab") for k in ("env", "x") if chance.random() < 0.7})


def some(chance: random.Random) -> Any:
    slot = f"s{chance.randrange(6)}"
    made = chance.choice(
        [
            spec(slot),
            spec(slot, admission=AdmissionPolicy.REPLACE),
            queued(slot),
            queued(slot),
            retrying(slot),
            retrying(),
            spec(),
        ]
    )
    return made.replace(labels=labels(chance))


def state(conn: Any) -> dict[int, tuple[str, dict[str, str], str]]:
    return {
        seq: (phase, labs, name)
        for seq, phase, labs, name in conn.execute(
            "SELECT s.seq, s.phase, t.labels, t.id FROM solti.tasks t JOIN solti.task_status s USING (seq)"
        )
    }


def step(store: TaskStore, url: str, agents: list[Any], claims: list[Any], *, chance: random.Random, n: int) -> None:
    """One operation, which may be refused."""
    names = [str(one.metadata.id) for one in store.list(TaskQuery(limit=200))] or ["none"]
    one = chance.choice(names)
    match chance.randrange(15):
        case 0 | 1:
            store.create(chance.choice([f"t{n}", f"t{chance.randrange(20)}"]), some(chance))
        case 2:
            store.create_many([(f"m{n}-{i}", some(chance)) for i in range(chance.randint(1, 6))])
        case 3 | 4:
            store.update(one, lambda old: old.replace(labels=labels(chance)))
        case 5:
            store.update(one, lambda old: old.replace(timeout=chance.randint(1, 9), labels=labels(chance)))
        case 6:
            store.cancel(one)
        case 7:
            store.delete(one)
        case 8:
            claims.append(store.start(one))
        case 9 | 10:
            claims.extend(store.claim(chance.choice(agents), limit=3))
        case 11 | 12 if claims:
            some_claims = chance.sample(claims, min(len(claims), 3))
            store.finish_many(
                [
                    (
                        c,
                        chance.choice(
                            [
                                Outcome.failed("no", exit_code=1),
                                Outcome.succeeded(chance.randrange(3)),
                                Outcome.canceled(),
                            ]
                        ),
                    )
                    for c in some_claims
                ]
            )
        case 13:
            agent = chance.choice(agents)
            silence(url, agent)
            store.reap()
            agents[agents.index(agent)] = store.register(f"w{n}")
        case 14:
            agent = chance.choice(agents)
            store.sign_off(agent)
            agents[agents.index(agent)] = store.register(f"v{n}")


def is_watched(query: TaskQuery, what: Any) -> bool:
    if what is None:
        return False
    phase, having, _ = what
    return (not query.phases or TaskPhase(phase) in query.phases) and all(
        one.matches(having) for one in query.requirements
    )


def decode(token: str) -> int:
    return FeedPosition.decode(token).after


@pytest.mark.parametrize("seed", range(6))
def test_the_feed_judges_as_who_was_there(database_url: str, seed: int) -> None:
    chance = random.Random(seed)
    with TaskStore.open(database_url) as store, connect(database_url) as conn:
        start = store.token()
        agents = [store.register(f"a{i}") for i in range(3)]
        claims: list[Any] = []
        # event -> (seq, type); and states before and after each operation
        expected: list[tuple[int, dict[int, Any], dict[int, Any], list[tuple[Any, ...]]]] = []
        last = 0
        before = state(conn)
        for n in range(150):
            with suppress(SoltiStoreError):
                step(store, database_url, agents, claims, chance=chance, n=n)
            if n % 40 == 39:
                with suppress(SoltiStoreError):
                    store.prune(Retention(tasks=timedelta(0), events=None))
            after = state(conn)
            rows = conn.execute(
                "SELECT event, seq, type, phase_before, phase, labels_before FROM solti.task_events WHERE event > %s"
                " ORDER BY event",
                [last],
            ).fetchall()
            if rows:
                last = rows[-1][0]
            expected.append((n, before, after, rows))
            before = after
        for query in QUERIES:
            for size in (1000, 7, 1):
                if size == 1 and query is not QUERIES[0] and query is not QUERIES[4]:
                    continue
                found, token = [], start
                while True:
                    part = store.changes(token, query, limit=size)
                    found += part.changes
                    token = part.token
                    if part.is_all:
                        break
                by_event = {decode(one.token): one for one in found}
                assert len(by_event) == len(found)
                for n, was, now, rows in expected:
                    for seq in {row[1] for row in rows}:
                        mine = [row for row in rows if row[1] == seq]
                        kinds = [by_event[row[0]].kind if row[0] in by_event else None for row in mine]
                        # Fold the kinds from the state before to the state after.
                        inside = is_watched(query, was.get(seq))
                        for row, kind in zip(mine, kinds, strict=True):
                            if kind is None:
                                assert not inside, (seed, n, query, row)
                            elif kind == "added":
                                assert not inside, (seed, n, query, row)
                                inside = True
                            elif kind == "modified":
                                assert inside, (seed, n, query, row)
                            else:
                                assert inside, (seed, n, query, row)
                                inside = False
                        assert inside == is_watched(query, now.get(seq)), (seed, n, query, mine)
                        # chain of phases
                        for a, b in pairwise(mine):
                            assert a[4] == b[3], (n, mine)
                        if seq in was:
                            assert mine[0][3] == was[seq][0], (n, mine)
                        else:
                            assert mine[0][3] is None
                        if seq in now:
                            assert mine[-1][4] == now[seq][0]
                    changed = {s for s in was.keys() | now.keys() if was.get(s) != now.get(s)}
                    assert changed <= {row[1] for row in rows}, (seed, n, changed)
                # resume from any change
                if size == 1000 and found:
                    at = chance.randrange(len(found))
                    assert [decode(c.token) for c in store.changes(found[at].token, query).changes] == [
                        decode(c.token) for c in found[at + 1 :]
                    ]


def test_several_changes_in_one_transaction(database_url: str) -> None:
    engine = create_engine(database_url)
    with TaskStore.open(database_url) as store:
        store.create("a", spec("a").replace(labels=Labels({"env": "a"})))
        start = store.token()
        with engine.begin() as conn:
            inner = store.using(conn)
            inner.update("a", lambda old: old.replace(labels=Labels({"env": "b"})))
            save = conn.begin_nested()
            inner.update("a", lambda old: old.replace(labels=Labels({"env": "c"})))
            inner.delete("a")
            save.rollback()
            inner.update("a", lambda old: old.replace(labels=Labels({"env": "a"})))
            with conn.begin_nested():
                inner.delete("a")
                inner.create("a", spec("a").replace(labels=Labels({"env": "a"})))
            conn.execute(text("SELECT 1"))
        got = [(c.kind, c.type) for c in store.changes(start, QUERIES[1]).changes]
        assert got == [
            ("deleted", "specChanged"),
            ("added", "specChanged"),
            ("deleted", "deleted"),
            ("added", "created"),
        ]
    engine.dispose()
