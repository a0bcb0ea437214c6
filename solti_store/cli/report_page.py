"""Reports as a page that needs nothing but a browser."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from solti_store.cli.report_drawing import drawing, svg
from solti_store.cli.report_forms import cell, title_of
from solti_store.rules.reports import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from solti_store.ops.reports import Rows

__all__ = ["page"]

_ROWS = 25

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
p { opacity: .75; }
/* Where there is no room for a drawing it is made smaller, and moved when nobody could read it. */
svg { display: block; width: 100%; max-width: 45rem; min-width: 32rem; height: auto; }
.scroll { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; font-size: 13px; white-space: nowrap; }
th, td { padding: .2rem .7rem .2rem 0; text-align: left; border-bottom: 1px solid #8883; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
"""
_NUMBERS = frozenset({"int4", "int8", "float8"})


def page(found: Sequence[Rows], freshness: str, since: datetime | None) -> str:
    """A page of several reports, with everything it needs inside.

    Args:
        found: The reports.
        freshness: How fresh they are.
        since: From when on, if that is not for each to say.
    """
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    sections = "\n".join(_section(one, since) for one in found)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>solti-store, {made}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>solti-store</h1>\n<p>Made {made}, {escape(freshness)}. Reports version {VERSION}; times are UTC.</p>\n"
        f"{sections}\n</body>\n</html>\n"
    )


def _section(found: Rows, since: datetime | None) -> str:
    report = found.report
    period = ""
    if since is not None and report.time is not None:
        period = f" Since {cell('', since)}."
    elif report.since is not None:
        period = f" Of the last {report.since}."
    head = f"<section>\n<h2>{escape(report.name)}</h2>\n<p>{escape(report.summary)}{period}</p>\n"
    if not found.rows:
        return f"{head}<p>Nothing to report.</p>\n</section>"
    cut = f"<p>Drawn from the first {len(found.rows):,} rows; there are more.</p>\n" if found.is_cut else ""
    return f'{head}<div class="scroll">{svg(drawing(found))}</div>\n{cut}{_table(found)}\n</section>'


def _table(found: Rows) -> str:
    places = [found.columns.index(name) for name in found.report.shown]
    kinds = [' class="n"' if found.types[place] in _NUMBERS else "" for place in places]
    names = [found.columns[place] for place in places]
    lines = ["".join(f"<th{kind}>{title_of(name).lower()}</th>" for kind, name in zip(kinds, names, strict=True))]
    lines += [
        "".join(
            f"<td{kind}>{escape(cell(name, row[place]))}</td>"
            for kind, name, place in zip(kinds, names, places, strict=True)
        )
        for row in found.rows[:_ROWS]
    ]
    rest = len(found.rows) - _ROWS
    more = f"<p>{'More than ' if found.is_cut else ''}{rest:,} more rows.</p>" if rest > 0 else ""
    rows = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table>\n{rows}\n</table></div>{more}'
