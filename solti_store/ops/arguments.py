"""Checks of plain arguments, before anything is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solti_store.errors import Invalid
from solti_store.model import MAX_LIMIT, Task

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["limit", "max_slot_queue", "position", "precondition"]

_VERSION_MAX = 2**63 - 1  # PostgreSQL's bigint


def limit(given: object) -> int:
    """How many rows at the most: at least 1, and cut to `MAX_LIMIT`."""
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise Invalid(f"invalid model: limit must be an integer of at least 1, got {given!r}", field="limit")
    return min(given, MAX_LIMIT)


def max_slot_queue(given: object) -> int:
    """How many tasks may wait for a slot."""
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= _VERSION_MAX:
        raise Invalid(
            f"invalid model: max_slot_queue must be an integer from 0 to {_VERSION_MAX}, got {given!r}",
            field="max_slot_queue",
        )
    return given


def position(given: object) -> int:
    """A row's number to go on after."""
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= _VERSION_MAX:
        raise Invalid(f"invalid model: after must be an integer from 0 to {_VERSION_MAX}, got {given!r}", field="after")
    return given


def precondition(expected: object) -> tuple[int, datetime | None]:
    """A `resourceVersion` to compare with; of a task as it was read, the time of its creation too.

    Created at: versions start at 1 again when an id is deleted and created anew.
    """
    if isinstance(expected, Task):
        return expected.metadata.resource_version, expected.metadata.created_at.datetime
    if isinstance(expected, bool) or not isinstance(expected, int) or not 1 <= expected <= _VERSION_MAX:
        raise Invalid(
            f"invalid model: expected version must be an integer from 1 to {_VERSION_MAX}, got {expected!r}",
            field="expected",
        )
    return expected, None
