"""Reports as tables, bars, CSV, JSON, Parquet, SVG and PNG."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from datetime import UTC, date, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from solti_store.cli.exits import UsageError
from solti_store.cli.render import PHASE_STYLES, Column, Table, elapsed, emit, note, one_line, show_table
from solti_store.cli.report_bars import bars_of
from solti_store.rules.reports import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from solti_store.ops.reports import Freshness, Rows

__all__ = ["cell", "title_of", "writer_of"]

_NUMBERS = frozenset({"int4", "int8", "float8"})
_FLEXIBLE = frozenset({"error", "labels", "kinds", "program"})
_NAMES = frozenset({"id", "task", "owner", "sample_task", "slot"})
_BAR_MIN = 10
_BARS = 60
# What is not for terminals, and what makes it, by module and by name: each is an extra of the same name.
_BINARY = {"parquet": ("pyarrow", "pyarrow"), "png": ("PIL", "Pillow")}


def writer_of(output: str) -> Callable[[Rows, Freshness], None]:
    """What writes a report to stdout in a form.

    Raises:
        UsageError: The form needs what is not installed, or is not for terminals.
    """
    if output in _BINARY:
        module, package = _BINARY[output]
        if find_spec(module) is None:
            raise UsageError(f"-o {output} needs {package}: install solti-store[{output}]")
        if sys.stdout.isatty():
            raise UsageError(f"-o {output} is binary: redirect it to a file")
    return _WRITERS[output]


# --- for people ---------------------------------------------------------------------------------


def title_of(column: str) -> str:
    """A column's heading."""
    return column.removesuffix("_seconds").replace("_", " ").upper()


def cell(column: str, value: Any) -> str:  # noqa: ANN401 - whatever a view has
    """A value for people, in one line."""
    match value:
        case None:
            text = ""
        case bool():
            text = "yes" if value else "no"
        case float():
            text = elapsed(value * 1000) if column.endswith("seconds") else f"{value:.3g}"
        case int():
            text = f"{value:,}"
        case datetime():
            text = f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
        case dict():
            text = ", ".join(f"{key}={member}" for key, member in value.items())
        case list():
            text = ",".join(map(str, value))
        case _:
            text = str(value)
    return one_line(text) or "-"


def _table(found: Rows, _freshness: Freshness) -> None:
    if not found.rows:
        note("nothing to report")
        return
    columns = [
        Column(
            title_of(name),
            is_flexible=name in _FLEXIBLE,
            is_name=name in _NAMES,
            is_number=found.types[found.columns.index(name)] in _NUMBERS,
            styles=PHASE_STYLES if name in {"phase", "outcome", "state", "owner_state"} else {},
        )
        for name in found.report.shown
    ]
    places = [found.columns.index(name) for name in found.report.shown]
    show_table(Table(columns, [[cell(found.columns[place], row[place]) for place in places] for row in found.rows]))


def _bars(found: Rows, _freshness: Freshness) -> None:
    bars = bars_of(found, _BARS)
    if not bars:
        note("nothing to report")
        return
    block = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    value = found.report.chart.value or "rows"
    texts = [(one_line(bar.name), cell(value, bar.value), bar.value) for bar in bars]
    names, values = max(len(name) for name, _, _ in texts), max(len(text) for _, text, _ in texts)
    room = max(shutil.get_terminal_size().columns - names - values - 4, _BAR_MIN)
    longest = max(length for _, _, length in texts) or 1
    for name, text, length in texts:
        emit(f"{name:{names}}  {text:>{values}}  {block * round(length / longest * room)}".rstrip() + "\n")


# --- for programs -------------------------------------------------------------------------------


def _plain(value: Any) -> Any:  # noqa: ANN401 - as above
    """A value as JSON has it: times in ISO 8601 and UTC."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date) else value


def _json(found: Rows, freshness: Freshness) -> None:
    head = {"report": found.report.name, "version": VERSION, "asOf": _plain(freshness.as_of)}
    head |= {"isReplica": freshness.is_replica, "isCut": found.is_cut}
    emit(json.dumps(head, separators=(",", ":"))[:-1] + ',"items":[')
    for number, row in enumerate(found.rows):
        item = dict(zip(found.columns, map(_plain, row), strict=True))
        emit(("," if number else "") + json.dumps(item, ensure_ascii=False, separators=(",", ":")))
    emit("]}\n")


def _csv(found: Rows, _freshness: Freshness) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(found.columns)
    for row in found.rows:
        writer.writerow(map(_flat, row))
    emit(buffer.getvalue())


def _flat(value: Any) -> Any:  # noqa: ANN401 - as above
    """A value as a single text or number: labels and lists in JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _plain(value)


def _parquet(found: Rows, freshness: Freshness) -> None:
    import pyarrow as pa  # noqa: PLC0415 - the extra `parquet`
    from pyarrow import parquet  # noqa: PLC0415

    # By the view's types: of a column without a value nothing else would say what it is.
    kinds = {
        "int4": pa.int32(),
        "int8": pa.int64(),
        "float8": pa.float64(),
        "bool": pa.bool_(),
        "date": pa.date32(),
        "timestamptz": pa.timestamp("us", tz="UTC"),
        "text[]": pa.list_(pa.string()),
    }
    fields = [(name, kinds.get(kind, pa.string())) for name, kind in zip(found.columns, found.types, strict=True)]
    said = {"solti_report": found.report.name, "version": f"{VERSION}", "asOf": str(_plain(freshness.as_of))}
    items = [
        {
            name: _flat(value) if isinstance(value, dict) else value
            for name, value in zip(found.columns, row, strict=True)
        }
        for row in found.rows
    ]
    table = pa.Table.from_pylist(items, schema=pa.schema(fields, metadata=said))
    with io.BytesIO() as buffer:
        parquet.write_table(table, buffer)
        sys.stdout.buffer.write(buffer.getvalue())


def _svg(found: Rows, _freshness: Freshness) -> None:
    from solti_store.cli.report_drawing import drawing, svg  # noqa: PLC0415 - it has its words from here

    emit(svg(drawing(found)) + "\n")


def _png(found: Rows, _freshness: Freshness) -> None:
    from solti_store.cli.report_drawing import drawing, png  # noqa: PLC0415 - as above

    sys.stdout.buffer.write(png(drawing(found)))


_WRITERS: dict[str, Callable[[Rows, Freshness], None]] = {
    "table": _table,
    "bars": _bars,
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
    "png": _png,
    "svg": _svg,
}
