"""Bars as SVG, for a page of Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Bar", "bars"]

_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 760, 210, 90, 26, 34
_OURS, _THEIRS = "#2b6cb0", "#a0aec0"


class Bar(NamedTuple):
    """A lane's bar.

    Attributes:
        name: The lane.
        value: How long it is.
        low: Where the spread begins.
        high: Where it ends.
        said: The figure beside it.
        ours: Whether it is this project's.
    """

    name: str
    value: float
    low: float
    high: float
    said: str
    ours: bool


def bars(title: str, rows: Sequence[Bar]) -> str:
    """One bar a lane, with a line from the first quartile to the third."""
    height = _TOP + _ROW * len(rows) + 8
    scale = (_WIDTH - _LEFT - _RIGHT) / (max((max(row.high, row.value) for row in rows), default=1.0) or 1.0)
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
            f' viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">'
        ),
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for number, row in enumerate(rows):
        top = _TOP + _ROW * number
        middle = top + _ROW / 2 - 3
        low, end = _LEFT + row.low * scale, _LEFT + max(row.high, row.value) * scale
        lines += [
            f'<text x="{_LEFT - 8}" y="{middle + 4:.0f}" text-anchor="end">{escape(row.name)}</text>',
            (
                f'<rect x="{_LEFT}" y="{top}" width="{row.value * scale:.1f}" height="{_ROW - 6}"'
                f' fill="{_OURS if row.ours else _THEIRS}"/>'
            ),
            f'<path d="M{low:.1f} {middle:.0f}H{_LEFT + row.high * scale:.1f}" stroke="black"/>',
            f'<text x="{end + 6:.1f}" y="{middle + 4:.0f}">{escape(row.said)}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
