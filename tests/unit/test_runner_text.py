"""What a task wrote, as the store keeps it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solti_store.rules.outcome import MAX_OUTPUT_BYTES, MAX_OUTPUT_TAIL, Outcome
from solti_store.worker.runners.text import tail_text


@pytest.mark.parametrize(
    ("data", "limit", "expected"),
    [
        (b"", 10, ""),
        (b"abc", 0, ""),
        (b"abc", 2, "bc"),
        (b"abc", 10, "abc"),
        ("aé€𝄞".encode(), 4, "𝄞"),
        ("aé€𝄞".encode(), 5, "𝄞"),
        ("aé€𝄞".encode(), 7, "€𝄞"),
        (b"\x80" * 9, 8, "\ufffd" * 5),  # three of them may be the end of a character that was cut
        (b"a\0b\xff\x1b[1m\r\n", 20, "a\ufffdb\ufffd\x1b[1m\r\n"),
        (b"\xed\xa0\x80.", 20, "\ufffd\ufffd\ufffd."),  # a surrogate, encoded
    ],
)
def test_the_end_is_kept_from_the_start_of_a_character(data: bytes, limit: int, expected: str) -> None:
    assert tail_text(data, limit) == expected


@given(st.binary(max_size=64), st.integers(0, 64))
def test_whatever_it_is_it_can_be_stored(data: bytes, limit: int) -> None:
    kept = tail_text(data, limit)
    assert len(kept.encode()) <= 3 * limit
    Outcome.succeeded().with_output(kept, kept)


def test_the_longest_tail_of_nonsense_can_be_stored() -> None:
    kept = tail_text(b"\xff" * 100_000, MAX_OUTPUT_TAIL)
    assert len(kept.encode()) == MAX_OUTPUT_BYTES
    assert Outcome.succeeded().with_output(kept, None).stdout == kept
