"""Rows in columns, for the terminal or for a document."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["layout"]


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
