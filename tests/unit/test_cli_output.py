"""Tables, cells and JSON documents of the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from solti_store.cli import views
from solti_store.cli.exits import PipeClosedError
from solti_store.cli.render import Column, Output, Table, ago, elapsed, emit, one_line, show_details, show_table
from solti_store.model import (
    Container,
    ObjectMeta,
    Runtime,
    Slot,
    Subprocess,
    Task,
    TaskId,
    TaskKind,
    TaskPhase,
    TaskSpec,
    TaskStatus,
    Timeout,
    Timestamp,
    Wasm,
)

if TYPE_CHECKING:
    from pathlib import Path


def task(task_id: str, *, error: str | None = None, kind: TaskKind | None = None) -> Task:
    return Task(
        metadata=ObjectMeta(
            id=TaskId(task_id), resource_version=1, created_at=Timestamp(1000), updated_at=Timestamp(2000)
        ),
        status=TaskStatus(phase=TaskPhase.FAILED, attempt=1, error=error),
        spec=TaskSpec(slot=Slot("s"), kind=kind or Subprocess.command("true"), timeout=Timeout(5000)),
    )


def test_a_table_without_a_terminal_is_plain_and_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    show_table(
        Table([Column("ID"), Column("N", is_number=True), Column("TEXT")], [("a", "7", long), ("bcd", "10", "")])
    )
    assert capsys.readouterr().out == f"ID    N  TEXT\na     7  {long}\nbcd  10\n"


def test_details_without_a_terminal_are_aligned_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show_details([("ID", "a"), ("Phase", "failed")])
    assert capsys.readouterr().out == "ID     a\nPhase  failed\n"


def test_nothing_to_show_is_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    views.show_tasks([], Output.TABLE)
    assert capsys.readouterr() == ("", "no tasks\n")
    views.show_runs([], Output.TABLE)
    assert capsys.readouterr() == ("", "no runs\n")
    views.show_tasks([], Output.JSON)
    assert capsys.readouterr() == ('{"items":[]}\n', "")


def test_a_document_of_pages_is_one_document() -> None:
    text = "".join(views.page_as_json([[task("a"), task("b")], [], [task("c")]], lambda: ['"total":3']))
    document = json.loads(text)
    assert text.endswith("}\n")
    assert [item["metadata"]["id"] for item in document["items"]] == ["a", "b", "c"]
    assert document["total"] == 3
    assert "".join(views.page_as_json([[task("a")]])) == '{"items":[' + task("a").to_json() + "]}\n"


def test_a_row_is_one_line_whatever_the_task_says(capsys: pytest.CaptureFixture[str]) -> None:
    views.show_tasks([task("a", error="one\ntwo\x1b[31m\x07three"), task("b")], Output.TABLE)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert r"one two\x1b[31m\x07three" in lines[1]
    assert lines[2].endswith("true")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Subprocess.command("ls", "-l", "a b"), "ls -l 'a b'"),
        (Subprocess.script(Runtime.BASH, "\n\necho hi\necho there"), "bash: echo hi"),
        (Subprocess.script(Runtime.custom("ruby", "-e"), "p 1"), "ruby: p 1"),
        (Wasm.module("a.wasm", "x"), "a.wasm x"),
        (Container.image("alpine", "-c", command=("sh",)), "alpine sh -c"),
        (Subprocess.command("echo", "y" * 200), "echo " + "y" * 54 + "…"),
    ],
)
def test_what_a_task_runs_in_short(kind: TaskKind, expected: str) -> None:
    assert views.what(kind) == expected


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (-5, "0ms"),
        (85, "85ms"),
        (1234, "1.2s"),
        (9949, "9.9s"),
        (12_000, "12s"),
        (185_000, "3m05s"),
        (7_800_000, "2h10m"),
        (4 * 86_400_000, "4d"),
    ],
)
def test_elapsed_time_is_short(length: float, expected: str) -> None:
    assert elapsed(length) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-3, "now"), (0, "now"), (59, "59s ago"), (60, "1m ago"), (7200, "2h ago"), (90_000, "1d ago")],
)
def test_moments_are_told_by_their_distance(seconds: int, expected: str) -> None:
    assert ago(1_000_000_000, 1_000_000_000 + seconds * 1000) == expected


def test_one_line_leaves_nothing_that_moves_a_cursor() -> None:
    assert one_line("a\r\n\tb  c") == "a b c"
    assert one_line("ü \u202e\x9b") == r"ü \u202e\x9b"


def test_a_reader_that_is_gone_ends_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Gone())
    with pytest.raises(PipeClosedError):
        emit("x")
