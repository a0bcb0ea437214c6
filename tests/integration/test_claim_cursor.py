"""A claim passes by what was claimed before, and misses nothing for long."""

from __future__ import annotations

from support import connect, spec

from solti_store import Agent, TaskStore
from solti_store.rules.claim_cursor import ClaimCursor


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
    from sqlalchemy import create_engine  # noqa: PLC0415

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
