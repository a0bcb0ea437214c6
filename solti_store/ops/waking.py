"""Tell workers that wait that there is something to do. A help and no promise: they also look by themselves."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from sqlalchemy.exc import DBAPIError

from solti_store.sql import waking as sql

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

__all__ = ["wake", "wake_if_possible"]

logger = logging.getLogger(__name__)


def wake(conn: Connection) -> bool:
    """Wake the workers that wait; whether any did."""
    return bool(sql.WAKE.all(conn, {}))


# Who creates one task after the other need not call for each: a worker that was called looks again when it has claimed,
# and some 10 ms later. To call each time cost one client 40 % of its rate.
_AGAIN_S: Final = 0.005
_called: WeakKeyDictionary[Engine, float] = WeakKeyDictionary()


def wake_if_possible(conn: Connection) -> None:
    """The same after a commit, which stands whatever comes of this; not if the last time was a moment ago."""
    now = time.monotonic()
    if now - _called.get(conn.engine, -1.0) < _AGAIN_S:
        return
    try:
        if wake(conn):
            _called[conn.engine] = now
    except DBAPIError as error:
        logger.debug("could not wake workers: %s", error)
