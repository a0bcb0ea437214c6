"""Reports as drawings, and as a page that needs nothing but a browser."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from solti_store.cli.report_bars import bars_of
from solti_store.cli.report_forms import cell, title_of
from solti_store.rules.reports import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from solti_store.cli.report_bars import Bar
    from solti_store.ops.reports import Rows

__all__ = ["drawing", "page"]

_WIDTH = 720
_HEIGHT = 160  # of columns over time
_LINE = 20  # of a bar with a name
_NAME_CHARS = 40
_NAMED = 15
_IN_TIME = 120
_ROWS = 25

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
p { opacity: .75; } svg { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
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
    return f"{head}{drawing(found)}\n{cut}{_table(found)}\n</section>"


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


# --- drawings -----------------------------------------------------------------------------------


def drawing(found: Rows) -> str:
    """The report's bars as SVG: columns over time, or lines with names."""
    chart = found.report.chart
    value = chart.value or "rows"
    if chart.in_order:
        return _columns(bars_of(found, _IN_TIME), value)
    return _lines(bars_of(found, _NAMED), value)


def _svg(height: int, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
        f' font-family="system-ui, sans-serif" font-size="12">\n{inside}\n</svg>'
    )


def _columns(bars: Sequence[Bar], value: str) -> str:
    longest = max((bar.value for bar in bars), default=0) or 1
    step = _WIDTH / max(len(bars), 1)
    parts = [_text(0, 12, f"{title_of(value).lower()}, at most {cell(value, longest)}")]
    for number, bar in enumerate(bars):
        height = bar.value / longest * (_HEIGHT - 40)
        parts.append(_rect((number * step, _HEIGHT - 20 - height, max(step - 1, 0.5), height), bar, value))
    if bars:
        parts += [_text(0, _HEIGHT - 5, bars[0].name), _text(_WIDTH, _HEIGHT - 5, bars[-1].name, anchor="end")]
    return _svg(_HEIGHT, parts)


def _lines(bars: Sequence[Bar], value: str) -> str:
    longest = max((bar.value for bar in bars), default=0) or 1
    left, right = 270, 80
    parts = [_text(0, 12, title_of(value).lower())]
    for number, bar in enumerate(bars, 1):
        top = number * _LINE
        width = bar.value / longest * (_WIDTH - left - right)
        name = bar.name if len(bar.name) <= _NAME_CHARS else bar.name[: _NAME_CHARS - 1] + "…"
        parts += [
            _text(left - 8, top + 13, name, anchor="end"),
            _rect((left, top + 2, width, _LINE - 5), bar, value),
            _text(left + width + 6, top + 13, cell(value, bar.value)),
        ]
    return _svg((len(bars) + 1) * _LINE, parts)


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#888">{escape(_sayable(text))}</text>'


def _rect(box: tuple[float, float, float, float], bar: Bar, value: str) -> str:
    x, y, width, height = box
    hint = escape(f"{_sayable(bar.name)}: {cell(value, bar.value)}")
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="#4a86c5">'
        f"<title>{hint}</title></rect>"
    )


def _sayable(text: str) -> str:
    """Without the control characters that XML does not allow."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
