"""Text of the command line to values."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solti_store.cli import parsing
from solti_store.cli.exits import UsageError
from solti_store.cli.parsing import Backoff
from solti_store.cli.render import span


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1ms", 1),
        ("5000ms", 5000),
        ("30s", 30_000),
        ("1.5s", 1500),
        (" 5M ", 300_000),
        ("2h", 7_200_000),
        ("1d", 86_400_000),
        ("0.001s", 1),
    ],
)
def test_a_length_of_time_has_a_unit(text: str, expected: int) -> None:
    assert parsing.milliseconds(text, "--timeout") == expected


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1 s", "5 min", "1e3s", "1s2s", "٣s", "1.s", "9" * 16 + "s"])
def test_what_is_no_length_of_time_names_the_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--timeout: expected a length of time"):
        parsing.milliseconds(text, "--timeout")


@pytest.mark.parametrize("text", ["0s", "0.0001ms", "0ms"])
def test_nothing_is_no_length_of_time(text: str) -> None:
    with pytest.raises(UsageError, match="at least 1ms"):
        parsing.milliseconds(text, "--lease")


@given(st.integers(min_value=1, max_value=10**12))
def test_an_exact_length_reads_back(length: int) -> None:
    assert parsing.milliseconds(span(length), "--timeout") == length


def test_a_duration_longer_than_a_timedelta_is_refused() -> None:
    assert parsing.duration("90s", "--lease") == timedelta(seconds=90)
    with pytest.raises(UsageError, match="--lease: '999999999999999d' is too long"):
        parsing.duration("999999999999999d", "--lease")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1s", Backoff(1000, None, None, None)),
        ("1s..30s", Backoff(1000, 30_000, None, None)),
        ("1sx2", Backoff(1000, None, 2.0, None)),
        ("1.5s..3sx1.25:none", Backoff(1500, 3000, 1.25, "none")),
        ("1s:Equal", Backoff(1000, None, None, "equal")),
        ("100ms .. 1m x3 :full", Backoff(100, 60_000, 3.0, "full")),
    ],
)
def test_a_backoff_has_three_parts_that_may_be_left_out(text: str, expected: Backoff) -> None:
    assert parsing.backoff(text) == expected


@pytest.mark.parametrize("text", ["", "1", "..1s", "1s..", "1s...2s", "1s:", "1sx", "x2", "1sx-1", "1s:full:none"])
def test_what_is_no_backoff_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--backoff: expected"):
        parsing.backoff(text)


def test_pairs_are_cut_at_the_first_equals_sign() -> None:
    assert parsing.pairs(["a=b=c", "d=", "a=e"], "--env") == [("a", "b=c"), ("d", ""), ("a", "e")]
    for text in ("a", "=b", ""):
        with pytest.raises(UsageError, match="--env: expected KEY=VALUE"):
            parsing.pairs([text], "--env")
