"""Checks of plain arguments, before anything is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solti_store.errors import Invalid
from solti_store.model import MAX_LIMIT, Task

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["capacity", "limit", "max_slot_queue", "position", "precondition"]

_CAPACITY_MAX = 2**31 - 1  # PostgreSQL's integer
_VERSION_MAX = 2**63 - 1  # PostgreSQL's bigint


def limit(given: object) -> int:
    """How many rows at the most: at least 1, and cut to `MAX_LIMIT`."""
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise Invalid(f"invalid model: limit must be an integer of at least 1, got {given!r}", field="limit")
    return min(given, MAX_LIMIT)


def capacity(given: object) -> int:
    """How many attempts an agent runs at the same time."""
    return _integer(given, "capacity", 1, _CAPACITY_MAX)


def max_slot_queue(given: object) -> int:
    """How many tasks may wait for a slot."""
    return _integer(given, "max_slot_queue", 0, _VERSION_MAX)


def position(given: object) -> int:
    """A row's number to go on after."""
    return _integer(given, "after", 0, _VERSION_MAX)


def precondition(expected: object) -> tuple[int, datetime | None]:
    """A `resourceVersion` to compare with; of a task as it was read, the time of its creation too.

    Created at: versions start at 1 again when an id is deleted and created anew.
    """
    if isinstance(expected, Task):
        return expected.metadata.resource_version, expected.metadata.created_at.datetime
    return _integer(expected, "expected", 1, _VERSION_MAX, name="expected version"), None


def _integer(given: object, field: str, least: int, most: int, *, name: str = "") -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not least <= given <= most:
        raise Invalid(
            f"invalid model: {name or field} must be an integer from {least} to {most}, got {given!r}", field=field
        )
    return given
