"""Positions in the feed: every event once, whatever the order of commits; and their tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solti_store.rules.feed_position import FeedPosition, Snapshot

XIDS = 12


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[set[int]]]:
    """Events as (number, transaction), and for each look of a reader which transactions are over by then."""
    events = draw(st.lists(st.integers(1, XIDS), min_size=1, max_size=40))
    over = draw(st.permutations(range(1, XIDS + 1)))
    cuts = sorted(draw(st.lists(st.integers(0, XIDS), max_size=6)))
    return list(enumerate(events, 1)), [set(over[:cut]) for cut in [*cuts, XIDS]]


def snapshot(over: set[int]) -> Snapshot:
    """As PostgreSQL has it: xmax is past the highest that is over."""
    xmax = max(over, default=0) + 1
    still_open = sorted(set(range(1, xmax)) - over)
    return Snapshot.parse(f"{min([*still_open, xmax])}:{xmax}:{','.join(map(str, still_open))}")


@given(histories(), st.integers(1, 5), st.booleans())
def test_every_event_is_read_once_and_in_order_within_a_look(
    history: tuple[list[tuple[int, int]], list[set[int]]], page: int, by_token: bool
) -> None:
    events, looks = history
    seen: list[int] = []
    position = FeedPosition.of("e", snapshot(set()))
    for over in looks:
        position = position.look(snapshot(over))
        first = len(seen)
        while look := position.next():
            within = Snapshot.parse(look.within)
            fresh = [number for number, xid in events if within.is_over(xid) and xid >= look.since]
            late = [number for number, xid in events if xid in look.ended]
            if look.first:
                fresh = [number for number in fresh if number >= look.first]
            else:
                position = position.begun(min(fresh, default=None))
            found = sorted(number for number in fresh + late if number > look.after)[:page]
            for number in found:
                position = position.read(number)
            seen += found
            if by_token:
                position = FeedPosition.decode(position.encode())
            if len(found) < page:
                break
        assert seen[first:] == sorted(seen[first:])
        assert sorted(seen) == [number for number, xid in events if xid in over]
        position = position.done()


@given(
    st.text(max_size=50),
    st.integers(0, 2**63 - 1),
    st.frozensets(st.integers(0, 2**63 - 1), max_size=20),
    st.integers(0, 2**63 - 1),
)
def test_a_token_is_what_it_was(epoch: str, xmax: int, still_open: frozenset[int], after: int) -> None:
    position = FeedPosition(epoch, xmax, still_open, None, after)
    assert FeedPosition.decode(position.encode()) == position
    position = position.look(Snapshot.parse("3:7:3,5"))
    assert FeedPosition.decode(position.encode()) == position


@given(st.text(max_size=80))
def test_another_text_is_no_token(token: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        FeedPosition.decode(token)


@pytest.mark.parametrize("wrong", ["", "1:2", "1:2:3,", "a:b:c", "1:2:3;4", "-1:2:"])
def test_another_text_is_no_snapshot(wrong: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        Snapshot.parse(wrong)


def test_pruned_events_are_missed_only_by_who_has_not_read_them() -> None:
    position = FeedPosition.of("e", Snapshot.parse("10:20:10,15"))
    assert position.is_kept(pruned=0, pruned_xid=0)
    assert position.is_kept(pruned=500, pruned_xid=9)
    assert not position.is_kept(pruned=500, pruned_xid=10)
    assert not position.is_kept(pruned=500, pruned_xid=25)
    assert position.read(500).is_kept(pruned=500, pruned_xid=25)
    assert not position.read(499).is_kept(pruned=500, pruned_xid=25)


@pytest.mark.parametrize("text", ["1:9:", "9:9:", "3:9:3", "3:9:4,7", "3:9:3,3"])
def test_a_snapshot_is_read(text: str) -> None:
    assert Snapshot.parse(text).text == text


@pytest.mark.parametrize(
    "text", ["", "1:9", "0:0:", "0:9:", "9:3:", "3:9:2", "3:9:9", "3:9:7,4", "1:99999999999999999999:"]
)
def test_what_postgresql_takes_for_no_snapshot_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=text or None):
        Snapshot.parse(text)
