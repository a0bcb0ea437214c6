"""Results as a table, for the terminal or for a document."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.measure import Result

__all__ = ["table"]

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
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        lines.insert(1, "|---|---:|---:|---:|---|---|---:|---:|---|---|")
        return f"{about}\n\n" + "\n".join(lines)
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return f"{about}\n\n" + "\n".join(lines)


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
