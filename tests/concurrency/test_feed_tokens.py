"""Tokens that are well made and say absurd things: the digest is no secret."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from contextlib import suppress
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solti_store import FeedExpired, Invalid, TaskStore
from solti_store.rules.feed_position import FeedPosition


def made(body: bytes) -> str:
    return urlsafe_b64encode(sha256(body).digest()[:6] + body).decode().rstrip("=")


def parts(token: str) -> list[Any]:
    position = FeedPosition.decode(token)
    return [1, position.epoch, position.xmax, [], None, 0, 0]


@pytest.mark.parametrize(
    "change",
    [
        {3: ["a", 1]},
        {3: {"1": 2}},
        {3: "12"},
        {3: [[1]]},
        {3: [True]},
        {4: "1:9:", 5: None},
        {4: "1:9:", 5: [1]},
        {4: "1:9:", 5: "x"},
        {4: "1:9:7,3", 5: 1},
        {4: "0:0:", 5: 1},
        {4: "1:99999999999999999999999:", 5: 1},
        {4: [5]},
        {2: -5},
        {2: 2**70},
        {2: 2**62},
        {2: "abc"},
        {2: 1.5},
        {5: 2**70},
        {5: -1},
        {6: -1},
        {6: None},
        {4: "1:9:", 6: 2**63},
        {1: "\ud800"},
        {1: ["x"]},
    ],
    ids=repr,
)
def test_an_absurd_token_is_refused(database_url: str, change: dict[int, Any]) -> None:
    with TaskStore.open(database_url) as store:
        content = parts(store.token())
        for place, value in change.items():
            content[place] = value
        with pytest.raises((Invalid, FeedExpired)):
            store.changes(made(json.dumps(content).encode()))
        with pytest.raises(Invalid):
            store.changes(made(b"[" * 200_000))


def test_any_content_is_read_or_refused(database_url: str) -> None:
    value = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=4,
    )
    snapshot = st.from_regex(r"\d{1,5}:\d{1,5}:(\d{1,4}(,\d{1,4})?)?", fullmatch=True)
    with TaskStore.open(database_url) as store:
        content = parts(store.token())

        @settings(max_examples=300, suppress_health_check=list(HealthCheck), deadline=None)
        @given(
            value | st.integers(0, 900),
            value | st.lists(st.integers(0, 900)),
            value | snapshot,
            value | st.integers(0, 99),
            value | st.integers(0, 99),
        )
        def check(xmax: Any, still_open: Any, within: Any, after: Any, first: Any) -> None:
            with suppress(Invalid, FeedExpired):
                store.changes(made(json.dumps([1, content[1], xmax, still_open, within, after, first]).encode()))

        check()
