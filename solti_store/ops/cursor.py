"""The page cursor: opaque to callers, versioned, bound to the query it came from."""

from __future__ import annotations

import json
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from solti_store.errors import InvalidCursor

if TYPE_CHECKING:
    from solti_store.model import TaskQuery

__all__ = ["Position", "decode", "encode"]

_VERSION: Final = 2
# Version, digest of filters and order, direction, time of the last change in µs, seq. 33 bytes, so that the text needs
# no padding.
_LAYOUT: Final = struct.Struct(">B15sBqq")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Position:
    """A task's place in a listing, and which way to go from there.

    Attributes:
        updated_at: When the task was changed last; says nothing in the order of creation.
        seq: The task.
        backward: Whether the page before it is wanted.
    """

    updated_at: datetime
    seq: int
    backward: bool = False


def _digest(query: TaskQuery) -> bytes:
    # Not of the limit and the totals: a reader may change them on the way.
    ask = query.to_dict()
    for free in ("limit", "cursor", "withTotal", "withEstimate"):
        del ask[free]
    ask["phases"].sort()
    return sha256(json.dumps(ask, sort_keys=True).encode()).digest()[:15]


def encode(query: TaskQuery, position: Position) -> str:
    """The cursor that continues `query` from a position."""
    microseconds = (position.updated_at - _EPOCH) // _MICROSECOND
    return urlsafe_b64encode(
        _LAYOUT.pack(_VERSION, _digest(query), position.backward, microseconds, position.seq)
    ).decode()


def decode(query: TaskQuery) -> Position | None:
    """The position to continue from; None when the query has no cursor.

    Raises:
        InvalidCursor: The cursor is damaged, of another version of this package, or of another query.
    """
    if query.cursor is None:
        return None
    damaged = InvalidCursor("the cursor is damaged; start again without one")
    try:
        raw = urlsafe_b64decode(query.cursor)
        # Whatever does not come out again as it went in was no cursor: the decoder skips what it does not know.
        if not raw or urlsafe_b64encode(raw).decode() != query.cursor:
            raise damaged
        if raw[0] != _VERSION:
            raise InvalidCursor("the cursor comes from another version of solti-store; start again without one")
        _, digest, direction, microseconds, seq = _LAYOUT.unpack(raw)
        position = Position(_EPOCH + timedelta(microseconds=microseconds), seq, backward=direction == 1)
    except (ValueError, OverflowError, struct.error) as error:
        raise damaged from error
    if digest != _digest(query):
        raise InvalidCursor("the cursor belongs to a query with other filters or another order")
    if direction > 1:
        raise damaged
    return position
