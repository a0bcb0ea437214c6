"""Tell workers that wait that there is something to do. A help and no promise: they also look by themselves."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from solti_store.sql import waking as sql

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["wake", "wake_if_possible"]

logger = logging.getLogger(__name__)


def wake(conn: Connection) -> None:
    """Wake the workers that wait."""
    sql.WAKE.all(conn, {})


def wake_if_possible(conn: Connection) -> None:
    """The same after a commit, which stands whatever comes of this."""
    try:
        wake(conn)
    except DBAPIError as error:
        logger.debug("could not wake workers: %s", error)
