"""A claim passes by what was claimed before, and misses nothing for long."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from support import connect, spec

from solti_store import Agent, AgentLost, Invalid, Outcome, TaskStore
from solti_store.rules.claim_cursor import ClaimCursor
from solti_store.sql import closing


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def slow(agent: Agent, clock: Clock) -> None:
    """As if looking at all had just taken a second."""
    cursor = ClaimCursor(clock)
    cursor.looked_at_all(1.0)
    object.__setattr__(agent, "cursor", cursor)


def test_what_comes_to_lie_before_the_cursor_is_found_by_the_next_look_at_all(database_url: str) -> None:
    clock = Clock()
    with TaskStore.open(database_url) as store, connect(database_url) as database:
        agent = store.register("w")
        slow(agent, clock)
        store.create_many([("a", spec()), ("b", spec())])
        database.execute("UPDATE solti.task_status SET due_at = now() - interval '1 hour'")
        assert [one.task_id for one in store.claim(agent)] == ["a"]
        assert [one.task_id for one in store.claim(agent, limit=5)] == ["b"]
        store.create_many([("late", spec()), ("new", spec())])
        database.execute(
            "UPDATE solti.task_status SET due_at = now() - interval '1 minute' FROM solti.tasks t"
            " WHERE t.seq = task_status.seq AND t.id = 'late'"
        )
        assert [one.task_id for one in store.claim(agent, limit=5)] == ["new"]
        assert store.claim(agent, limit=5) == []
        clock.now = 21.0
        assert [one.task_id for one in store.claim(agent, limit=5)] == ["late"]


def test_a_claim_that_was_rolled_back_is_made_again(database_url: str) -> None:
    engine = create_engine(database_url)
    with TaskStore.open(database_url) as store, connect(database_url) as database:
        agent = store.register("w")
        store.create("a", spec())
        database.execute("UPDATE solti.task_status SET due_at = now() - interval '1 hour'")
        with engine.connect() as connection:
            assert len(store.using(connection).claim(agent)) == 1
            connection.rollback()
        assert len(store.claim(agent)) == 1
    engine.dispose()


def locker(database: psycopg.Connection[Any]) -> object:
    """The transaction that locked the agent last: a claim that only looks is none."""
    return database.execute("SELECT xmax::text FROM solti.agents").fetchone()


def test_a_claim_after_one_that_left_nothing_only_looks(database_url: str) -> None:
    with TaskStore.open(database_url) as store, connect(database_url) as database:
        agent = store.register("w")
        assert not agent.cursor.is_dry
        assert store.claim(agent) == []
        before = locker(database)
        assert store.claim(agent) == []
        assert locker(database) == before
        with pytest.raises(Invalid, match="limit"):
            store.claim(agent, limit=0)
        # Of a route that the agent has not seen.
        store.create("a", spec())
        assert [one.task_id for one in store.claim(agent, limit=2)] == ["a"]
        assert locker(database) != before
        # Of one that it has.
        store.create("b", spec())
        assert [one.task_id for one in store.claim(agent)] == ["b"]
        assert not agent.cursor.is_dry  # there may be more


def test_a_claim_that_only_looks_notices_that_the_agent_is_lost(database_url: str) -> None:
    with TaskStore.open(database_url) as store, connect(database_url) as database:
        closed, silent = store.register("closed"), store.register("silent")
        assert store.claim(closed) == store.claim(silent) == []
        store.sign_off(closed)
        database.execute("UPDATE solti.agents SET expires_at = now() - interval '1 second' WHERE id = 'silent'")
        for agent in (closed, silent):
            assert agent.cursor.is_dry
            with pytest.raises(AgentLost):
                store.claim(agent)


def test_an_attempt_is_closed_by_primary_keys_and_not_by_what_ever_ran(database_url: str) -> None:
    with TaskStore.open(database_url) as store, connect(database_url) as database:
        agent = store.register("w")
        store.create_many([(f"t{number}", spec()) for number in range(300)])
        store.finish_many([(claim, Outcome.succeeded(0)) for claim in store.claim(agent, limit=300)])
        # Statistics that make the index of phases look best: hardly any task runs.
        database.execute("VACUUM (ANALYZE) solti.task_status, solti.task_runs, solti.tasks")
        with database.transaction():
            database.execute("SET LOCAL enable_seqscan = off")
            arrays = {name: [1] for name in ("seqs", "attempts", "versions", "exit_codes", "streaks", "delays")}
            texts = {name: ["failed"] for name in ("run_phases", "phases", "errors", "stdouts", "stderrs")}
            plan = database.execute(
                f"EXPLAIN {closing.CLOSE.text}",
                closing.CLOSE.parameters(arrays | texts | {"now": None}),
            ).fetchall()
    lines = [line for (line,) in plan]
    assert any("pk_task_status" in line for line in lines)
    assert not any("ix_task_status" in line for line in lines)
