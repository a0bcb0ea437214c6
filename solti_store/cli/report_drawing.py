"""Reports as drawings: bars that stand on a line of time, or lie beside their names; as SVG and as PNG."""

from __future__ import annotations

import io
from html import escape
from typing import TYPE_CHECKING, Literal, NamedTuple

from solti_store.cli.report_bars import bars_of
from solti_store.cli.report_forms import cell, title_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from solti_store.cli.report_bars import Bar
    from solti_store.ops.reports import Rows

__all__ = ["Drawing", "drawing", "png", "svg"]

_WIDTH = 720
_HEIGHT = 160  # of columns over time
_LINE = 20  # of a bar with a name
_NAME_CHARS = 40
_NAMED = 15
_IN_TIME = 120
_FONT_SIZE = 12
_INK = "#888888"
_BAR = "#4a86c5"
# Of a PNG, pixels for each unit of the drawing: sharp on screens of today.
_ZOOM = 2


class Label(NamedTuple):
    """A text, from where its first line stands or up to there."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "end"] = "start"


class Box(NamedTuple):
    """A bar, with what is said of it to who points at it."""

    x: float
    y: float
    width: float
    height: float
    hint: str


class Drawing(NamedTuple):
    """What there is to draw, in a frame of a fixed width."""

    height: int
    parts: Sequence[Label | Box]


def drawing(found: Rows) -> Drawing:
    """The report's bars: columns over time, or lines with names."""
    chart = found.report.chart
    value = chart.value or "rows"
    if chart.in_order:
        return _columns(bars_of(found, _IN_TIME), value)
    return _lines(bars_of(found, _NAMED), value)


def _columns(bars: Sequence[Bar], value: str) -> Drawing:
    longest = max((bar.value for bar in bars), default=0) or 1
    step = _WIDTH / max(len(bars), 1)
    parts: list[Label | Box] = [Label(0, 12, f"{title_of(value).lower()}, at most {cell(value, longest)}")]
    for number, bar in enumerate(bars):
        height = bar.value / longest * (_HEIGHT - 40)
        parts.append(Box(number * step, _HEIGHT - 20 - height, max(step - 1, 0.5), height, _hint(bar, value)))
    if bars:
        parts += [Label(0, _HEIGHT - 5, bars[0].name), Label(_WIDTH, _HEIGHT - 5, bars[-1].name, "end")]
    return Drawing(_HEIGHT, parts)


def _lines(bars: Sequence[Bar], value: str) -> Drawing:
    longest = max((bar.value for bar in bars), default=0) or 1
    left, right = 270, 80
    parts: list[Label | Box] = [Label(0, 12, title_of(value).lower())]
    for number, bar in enumerate(bars, 1):
        top = number * _LINE
        width = bar.value / longest * (_WIDTH - left - right)
        name = bar.name if len(bar.name) <= _NAME_CHARS else bar.name[: _NAME_CHARS - 1] + "…"
        parts += [
            Label(left - 8, top + 13, name, "end"),
            Box(left, top + 2, width, _LINE - 5, _hint(bar, value)),
            Label(left + width + 6, top + 13, cell(value, bar.value)),
        ]
    return Drawing((len(bars) + 1) * _LINE, parts)


def _hint(bar: Bar, value: str) -> str:
    return f"{bar.name}: {cell(value, bar.value)}"


def _sayable(text: str) -> str:
    """Without the control characters that XML does not allow, and line ends, which no label has room for."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


# --- forms --------------------------------------------------------------------------------------


def svg(drawn: Drawing) -> str:
    """The drawing as an element of SVG."""
    inside = "\n".join(_text(part) if isinstance(part, Label) else _rect(part) for part in drawn.parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {drawn.height}" width="{_WIDTH}"'
        f' height="{drawn.height}" font-family="system-ui, sans-serif" font-size="{_FONT_SIZE}">\n{inside}\n</svg>'
    )


def _text(label: Label) -> str:
    place = f'x="{label.x:.1f}" y="{label.y:.1f}" text-anchor="{label.anchor}"'
    return f'<text {place} fill="{_INK}">{escape(_sayable(label.text))}</text>'


def _rect(box: Box) -> str:
    place = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
    return f'<rect {place} fill="{_BAR}"><title>{escape(_sayable(box.hint))}</title></rect>'


def png(drawn: Drawing) -> bytes:
    """The drawing as a PNG. On white: the ink is grey, and would be lost on other colours.

    By Pillow, which brings a font. A renderer of SVG takes those of the machine, and where it knows none of them, as in
    most containers, leaves all text out without a word.
    """
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 - the extra `png`

    image = Image.new("RGB", (_WIDTH * _ZOOM, drawn.height * _ZOOM), "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(_FONT_SIZE * _ZOOM)
    for part in drawn.parts:
        x, y = part.x * _ZOOM, part.y * _ZOOM
        if isinstance(part, Label):
            # By the line it stands on, as in SVG.
            pen.text((x, y), _sayable(part.text), _INK, font, anchor="ls" if part.anchor == "start" else "rs")
        elif part.width and part.height:
            # Its far edges are drawn too.
            far = (x + part.width * _ZOOM - 1, y + part.height * _ZOOM - 1)
            pen.rectangle(((x, y), (max(far[0], x), max(far[1], y))), _BAR)
    with io.BytesIO() as buffer:
        image.save(buffer, "PNG")
        return buffer.getvalue()
