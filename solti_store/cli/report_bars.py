"""What a report's bars are, before anybody draws them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from solti_store.cli.render import elapsed

if TYPE_CHECKING:
    from solti_store.ops.reports import Rows

__all__ = ["Bar", "bars_of"]


class Bar(NamedTuple):
    """A name, and how long its bar is."""

    name: str
    value: float


def bars_of(found: Rows, most: int) -> list[Bar]:
    """The bars of a report: the latest ones in order of time, or the longest ones first."""
    chart = found.report.chart
    places = [found.columns.index(name) for name in chart.of]
    value = None if chart.value is None else found.columns.index(chart.value)
    lengths: dict[tuple[Any, ...], float] = {}
    for row in found.rows:
        key = tuple(row[place] for place in places)
        length = 1 if value is None else row[value] or 0
        before = lengths.get(key, 0)
        lengths[key] = max(before, length) if chart.how == "max" else before + length
    longest = sorted(lengths, key=lambda key: (-lengths[key], key))[:most]
    chosen = sorted(lengths)[-most:] if chart.in_order else longest
    return [Bar(" ".join(map(_name, key)), lengths[key]) for key in chosen]


def _name(part: Any) -> str:  # noqa: ANN401 - a value of any column
    match part:
        case datetime():
            return f"{part.astimezone(UTC):%m-%d %H:%M}"
        case float():
            return elapsed(part * 1000)
        case _:
            return str(part)
