"""The page cursor: opaque to callers, versioned, bound to the query it came from."""

from __future__ import annotations

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from typing import TYPE_CHECKING

from solti_store.errors import InvalidCursor

if TYPE_CHECKING:
    from solti_store.model import TaskQuery

__all__ = ["decode", "encode"]

_VERSION = 1
# Version, digest of the filters, seq of the last task. 24 bytes, so that the text needs no padding.
_LAYOUT = struct.Struct(">B15sq")


def _digest(query: TaskQuery) -> bytes:
    # Not of the limit: a reader may change the size of its pages on the way.
    filters = "\0".join((",".join(sorted(query.phases)), query.slot or "", query.kind or ""))
    return sha256(filters.encode()).digest()[:15]


def encode(query: TaskQuery, seq: int) -> str:
    """The cursor that continues `query` after the task `seq`."""
    return urlsafe_b64encode(_LAYOUT.pack(_VERSION, _digest(query), seq)).decode()


def decode(query: TaskQuery) -> int:
    """The seq to continue after; 0 when the query has no cursor.

    Raises:
        InvalidCursor: The cursor is damaged, of another version of this package, or of another query.
    """
    if query.cursor is None:
        return 0
    try:
        version, digest, seq = _LAYOUT.unpack(urlsafe_b64decode(query.cursor))
    except (ValueError, struct.error) as error:
        raise InvalidCursor("the cursor is damaged; start again without one") from error
    if version != _VERSION:
        raise InvalidCursor("the cursor comes from another version of solti-store; start again without one")
    if digest != _digest(query) or seq < 0:
        raise InvalidCursor("the cursor belongs to a query with other filters")
    return int(seq)
