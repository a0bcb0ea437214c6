"""Counts the runs of days that are over, for when retention takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solti_store.sql import rollups as sql

if TYPE_CHECKING:
    from datetime import date, datetime

    from sqlalchemy import Connection

__all__ = ["roll_up", "unkept"]


def roll_up(conn: Connection, *, before: datetime | None = None, now: datetime | None = None) -> date | None:
    """Keep what the attempts of the first day came to that is over and not kept yet.

    Args:
        conn: In a transaction, with which all of it is kept or nothing.
        before: Only if one of them ended before.
        now: The time to go by instead of the database's.

    Returns:
        The day; None when there is none, or somebody else is at it.
    """
    found = sql.SELECT_UNKEPT.one_or_none(conn, {"now": now, "before": before})
    if found is None:
        return None
    sql.BEGIN.all(conn, {})
    if not sql.LOCK.all(conn, {"ended": found.ended}):
        return None
    for statement in sql.KEEP:
        statement.all(conn, {"day": found.day})
    sql.ADVANCE.all(conn, {"day": found.day})
    day: date = found.day
    return day


def unkept(conn: Connection, *, now: datetime | None = None) -> datetime | None:
    """When the first run ended that is not kept yet and whose day is over; None when there is none."""
    found = sql.SELECT_UNKEPT.one_or_none(conn, {"now": now, "before": None})
    return None if found is None else found.ended
