"""Results as a table, for the terminal or for a document."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.measure import Result

__all__ = ["layout", "table"]

_HEAD = (
    "operation",
    "ours",
    "bare",
    "ratio",
    "middle half",
    "aim",
    "ours, CPU",
    "bare, CPU",
    "compared with",
    "what the store does besides",
)


def table(results: Sequence[Result], settings: Mapping[str, str], *, markdown: bool) -> str:
    """The results and what they were measured on."""
    rows = [_HEAD, *(_row(result) for result in results)]
    about = "PostgreSQL " + ", ".join(
        value if name == "server_version" else f"{name}={value}" for name, value in settings.items()
    )
    return f"{about}\n\n" + layout(rows, rule="|---|---:|---:|---:|---|---|---:|---:|---|---|" if markdown else None)


def layout(rows: Sequence[tuple[str, ...]], *, rule: str | None) -> str:
    """Rows, the first of them the head, in columns.

    Args:
        rows: The rows.
        rule: What Markdown has under the head; None lays them out for the terminal.
    """
    if rule:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([lines[0], rule, *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(result: Result) -> tuple[str, ...]:
    low, high = result.spread
    case = result.case
    missed = case.aim is not None and result.ratio < case.aim
    return (
        case.name,
        _duration(median(one.wall for one in result.ours)),
        _duration(median(one.wall for one in result.bare)),
        f"{result.ratio:.2f}",
        f"{low:.2f} to {high:.2f}",
        "" if case.aim is None else f"{case.aim:g}{' missed' if missed else ''}",
        _duration(median(one.cpu for one in result.ours)),
        _duration(median(one.cpu for one in result.bare)),
        case.baseline,
        case.extra,
    )


def _duration(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} us" if seconds < 0.01 else f"{seconds * 1e3:,.0f} ms"
