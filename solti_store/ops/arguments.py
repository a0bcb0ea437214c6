"""Checks of plain arguments, before anything is written."""

from __future__ import annotations

from solti_store.errors import Invalid
from solti_store.model import MAX_LIMIT

__all__ = ["limit", "version"]

_VERSION_MAX = 2**63 - 1  # PostgreSQL's bigint


def limit(given: int) -> int:
    """How many rows at the most: at least 1, and cut to `MAX_LIMIT`."""
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise Invalid(f"invalid model: limit must be an integer of at least 1, got {given!r}", field="limit")
    return min(given, MAX_LIMIT)


def version(expected: int) -> int:
    """A `resourceVersion` to compare with."""
    if isinstance(expected, bool) or not isinstance(expected, int) or not 1 <= expected <= _VERSION_MAX:
        raise Invalid(
            f"invalid model: expected version must be an integer from 1 to {_VERSION_MAX}, got {expected!r}",
            field="expected",
        )
    return expected
