"""Where claims begin, and when they look at all again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from solti_store.rules.claim_cursor import ClaimCursor

A, B = UUID(int=1), UUID(int=2)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SLACK = timedelta(milliseconds=100)
BEGINNING = datetime(1, 1, 1, tzinfo=UTC)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_first_look_is_at_all() -> None:
    cursor = ClaimCursor(Clock())
    assert cursor.wants_all()
    assert cursor.since([A, B], whole=False) == [BEGINNING, BEGINNING]


def test_a_claim_goes_on_where_the_last_one_got_to_in_each_route() -> None:
    cursor = ClaimCursor(Clock())
    cursor.found([(A, ago(9)), (A, ago(8))], [A, B], NOW, all_there_is=False)
    assert cursor.since([A, B], whole=False) == [ago(8), BEGINNING]
    assert cursor.since([A, B], whole=True) == [BEGINNING, BEGINNING]
    # Back again, when a look at all finds older ones.
    cursor.found([(A, ago(20))], [A, B], NOW, all_there_is=False)
    assert cursor.since([A], whole=False) == [ago(20)]


def test_the_latest_moments_are_always_looked_at() -> None:
    cursor = ClaimCursor(Clock())
    cursor.found([(A, ago(0.01))], [A, B], NOW, all_there_is=False)
    assert cursor.since([A, B], whole=False) == [NOW - SLACK, BEGINNING]
    cursor.found([(A, ago(5))], [A, B], NOW, all_there_is=True)
    assert cursor.since([A, B], whole=False) == [NOW - SLACK, NOW - SLACK]
    later = NOW + timedelta(seconds=1)
    cursor.found_nothing([A], later)
    assert cursor.since([A, B], whole=False) == [later - SLACK, NOW - SLACK]


def test_looks_at_all_take_a_twentieth_of_the_time() -> None:
    clock = Clock()
    cursor = ClaimCursor(clock)
    cursor.looked_at_all(0.004)
    assert cursor.all_is_cheap
    cursor.looked_at_all(0.5)
    assert not cursor.all_is_cheap
    clock.now = 9.9
    assert not cursor.wants_all()
    clock.now = 10.0
    assert cursor.wants_all()


def test_a_claim_that_took_all_there_was_leaves_the_cursor_dry() -> None:
    cursor = ClaimCursor(Clock())
    assert not cursor.is_dry
    cursor.found([(A, ago(1))], [A, B], NOW, all_there_is=True)
    assert cursor.is_dry
    cursor.found([(A, ago(1))], [A, B], NOW, all_there_is=False)
    assert not cursor.is_dry
    cursor.found_nothing([A], NOW)
    assert cursor.is_dry
