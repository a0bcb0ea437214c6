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
# Version, direction, time of the last change in µs, seq; then 15 bytes of a digest of these and of the query. 33 bytes
# in all, so that the text needs no padding.
_PLACE: Final = struct.Struct(">BBqq")
_DIGEST_BYTES: Final = 15
_SEQ_MAX: Final = 2**63 - 1
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


def encode(query: TaskQuery, position: Position) -> str:
    """The cursor that continues `query` from a position."""
    microseconds = (position.updated_at - _EPOCH) // _MICROSECOND
    place = _PLACE.pack(_VERSION, position.backward, microseconds, position.seq)
    return urlsafe_b64encode(place + _digest(query, place)).decode()


def decode(query: TaskQuery) -> Position | None:
    """The position to continue from; None when the query has no cursor.

    Raises:
        InvalidCursor: The cursor is damaged, of another version of this package, or of another query.
    """
    if query.cursor is None:
        return None
    try:
        raw = urlsafe_b64decode(query.cursor)
    except ValueError:
        raw = b""
    place, digest = raw[: _PLACE.size], raw[_PLACE.size :]
    # The decoder skips what it does not know, so the text is compared as well.
    is_ours = raw[:1] == bytes([_VERSION]) and urlsafe_b64encode(raw).decode() == query.cursor
    try:
        if is_ours and digest == _digest(query, place):
            _, backward, microseconds, seq = _PLACE.unpack(place)
            if 0 <= seq < _SEQ_MAX:
                return Position(_EPOCH + timedelta(microseconds=microseconds), seq, backward=bool(backward))
    except OverflowError:
        pass  # made by somebody who can make the digest too
    raise InvalidCursor(
        "the cursor is not of this query: it is damaged, or of other filters, another order or another version; "
        "start again without one"
    )


def _digest(query: TaskQuery, place: bytes) -> bytes:
    # Not of the limit and the totals: a reader may change them on the way.
    ask = query.to_dict()
    for free in ("limit", "cursor", "withTotal", "withEstimate", "withToken"):
        del ask[free]
    ask["phases"].sort()
    return sha256(place + json.dumps(ask, sort_keys=True).encode()).digest()[:_DIGEST_BYTES]
