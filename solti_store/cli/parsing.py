"""Text of the command line to values; pure, and free of heavy imports."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from solti_store.cli.exits import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Backoff", "backoff", "duration", "milliseconds", "moment", "pairs"]

_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LENGTH = r"[0-9]{1,15}(?:\.[0-9]{1,9})?(?:ms|s|m|h|d)"
_DURATION = re.compile(rf"({_LENGTH})")
_BACKOFF = re.compile(
    rf"(?P<first>{_LENGTH})(?:\.\.(?P<max>{_LENGTH}))?(?:x(?P<factor>[0-9]{{1,9}}(?:\.[0-9]{{1,9}})?))?(?::(?P<jitter>[a-z]+))?"
)
_PART = re.compile(r"([0-9.]+)([a-z]+)")


def milliseconds(text: str, option: str) -> int:
    """Read a length of time: `5000ms`, `30s`, `1.5m`, `2h`, `1d`.

    Args:
        text: The text.
        option: Who is to blame if it makes no sense.

    Raises:
        UsageError: It is no number with a unit, or less than a millisecond.
    """
    cleaned = text.strip().lower()
    if _DURATION.fullmatch(cleaned) is None:
        raise UsageError(f"{option}: expected a length of time like 500ms, 30s, 5m or 2h, got {text[:40]!r}")
    result = _length(cleaned)
    if result < 1:
        raise UsageError(f"{option}: must be at least 1ms, got {text[:40]!r}")
    return result


def duration(text: str, option: str) -> timedelta:
    """As `milliseconds`, for who wants a timedelta.

    Raises:
        UsageError: It is no number with a unit, or less than a millisecond, or longer than a timedelta can be.
    """
    try:
        return timedelta(milliseconds=milliseconds(text, option))
    except OverflowError:
        raise UsageError(f"{option}: {text[:40]!r} is too long") from None


def moment(text: str, option: str) -> datetime:
    """Read a point in time: ISO 8601, in local time if it names no offset, or how long ago (`90s`, `2h`, `7d`).

    Raises:
        UsageError: It is neither, or lies before the year 1.
    """
    cleaned = text.strip()
    try:
        if _DURATION.fullmatch(cleaned.lower()):
            return datetime.now(UTC) - duration(cleaned, option)
        return datetime.fromisoformat(cleaned).astimezone()
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option}: expected a time like 2026-05-31T18:00:00Z, or how long ago like 90s or 7d, got {text[:40]!r}"
        ) from None


def _length(text: str) -> int:
    part = _PART.fullmatch(text)
    assert part is not None  # noqa: S101 - callers have matched it
    return round(float(part[1]) * _UNITS[part[2]])


class Backoff(NamedTuple):
    """What `--backoff` says; None where it says nothing."""

    first_ms: int
    max_ms: int | None
    factor: float | None
    jitter: str | None


def backoff(text: str) -> Backoff:
    """Read `first[..max][xfactor][:jitter]`, for example `1s..30sx2:full`.

    Raises:
        UsageError: It is not of that form.
    """
    found = _BACKOFF.fullmatch("".join(text.split()).lower())
    if found is None:
        raise UsageError(f"--backoff: expected first[..max][xFACTOR][:JITTER], like 1s..30sx2:full, got {text[:40]!r}")
    return Backoff(
        _length(found["first"]),
        None if found["max"] is None else _length(found["max"]),
        None if found["factor"] is None else float(found["factor"]),
        found["jitter"],
    )


def pairs(texts: Sequence[str], option: str) -> list[tuple[str, str]]:
    """Read repeated `KEY=VALUE`s, in order.

    Raises:
        UsageError: One has no `=`, or nothing before it.
    """
    result = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"{option}: expected KEY=VALUE, got {text[:40]!r}")
        result.append((key, value))
    return result
