"""Tasks and runs as tables, JSON documents and names."""

from __future__ import annotations

import time
from datetime import UTC
from shlex import join
from typing import TYPE_CHECKING

from solti_store.cli import render
from solti_store.cli.render import PHASE_STYLES, Column, Output, Table, ago, elapsed, emit, note, one_line, span
from solti_store.model import Command, Container, Script, Subprocess, Wasm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from solti_store.model import AgentStatus, Task, TaskKind, TaskPhase, TaskRun, Timestamp, Value

__all__ = ["page_as_json", "show_agents", "show_phases", "show_runs", "show_task", "show_tasks", "what"]

_SUMMARY_CHARS = 60
_PHASE = Column("PHASE", styles=PHASE_STYLES)
_STATE_STYLES = {"active": "green", "draining": "yellow", "silent": "yellow", "stopped": "dim", "lost": "red"}


def what(kind: TaskKind, limit: int = _SUMMARY_CHARS) -> str:
    """In short what a task runs; a script by its interpreter and first line."""
    match kind:
        case Subprocess(spec=spec) if isinstance(spec.mode, Command):
            text = join([spec.mode.command, *spec.mode.args])
        case Subprocess(spec=spec) if isinstance(spec.mode, Script):
            first = next((line for line in spec.mode.text.splitlines() if line.strip()), "")
            text = f"{spec.mode.runtime if isinstance(spec.mode.runtime, str) else spec.mode.runtime.command}: {first}"
        case Wasm(spec=module):
            text = join([module.module, *module.args])
        case Container(spec=container):
            text = join([container.image, *(container.command or ()), *container.args])
        case _:
            text = ""
    line = one_line(text)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def show_tasks(tasks: Sequence[Task], output: Output) -> None:
    """Write tasks to stdout: a table with a row each, their ids, or a document `{"items":[…]}`."""
    if output is Output.NAME:
        emit("".join(f"{task.id}\n" for task in tasks))
    elif output is Output.JSON:
        for part in page_as_json([tasks]):
            emit(part)
    elif tasks:
        _show_rows(tasks)
    else:
        note("no tasks")


def show_task(task: Task, output: Output) -> None:
    """Write one task to stdout: what is known of it line by line, its id, or its JSON document."""
    if output is Output.NAME:
        emit(f"{task.id}\n")
    elif output is Output.JSON:
        emit(task.to_json() + "\n")
    else:
        render.show_details(list(_details(task)), PHASE_STYLES)


def page_as_json(pages: Iterable[Sequence[Task]], tail: Callable[[], list[str]] = list) -> Iterator[str]:
    """One JSON document of many tasks, page by page.

    Args:
        pages: The tasks.
        tail: Further members of the document, as JSON; asked for after the last page.
    """
    separator = '{"items":['
    for page in pages:
        for task in page:
            yield separator + task.to_json()
            separator = ","
    yield ("" if separator == "," else separator) + "".join(["]", *(f",{member}" for member in tail()), "}\n"])


def show_runs(runs: Sequence[TaskRun], output: Output) -> None:
    """Write the runs of a task to stdout: a table, their numbers, or a document `{"items":[…]}`."""
    if _emitted(runs, [run.attempt for run in runs], output):
        return
    if not runs:
        note("no runs")
        return
    now = time.time() * 1000
    columns = [
        Column("ATTEMPT", is_number=True),
        _PHASE,
        Column("AGENT", is_name=True),
        Column("STARTED"),
        Column("TOOK"),
        Column("EXIT", is_number=True),
        Column("ERROR", is_flexible=True),
    ]
    rows = [
        (
            str(run.attempt),
            run.phase.value,
            run.agent or "-",
            ago(run.started_at, now),
            elapsed((now if run.finished_at is None else run.finished_at) - run.started_at),
            "-" if run.exit_code is None else str(run.exit_code),
            one_line(run.error or ""),
        )
        for run in runs
    ]
    render.show_table(Table(columns, rows))


def show_agents(agents: Sequence[AgentStatus], output: Output) -> None:
    """Write agents to stdout: a table, their names, or a document `{"items":[…]}`."""
    if _emitted(agents, [agent.id for agent in agents], output):
        return
    if not agents:
        note("no agents")
        return
    now = time.time() * 1000
    columns = [
        Column("ID", is_name=True),
        Column("STATE", styles=_STATE_STYLES),
        Column("RUNNING", is_number=True),
        Column("KINDS", is_flexible=True),
        Column("LABELS", is_flexible=True),
        Column("REGISTERED"),
        Column("HEARTBEAT"),
    ]
    rows = [
        (
            agent.id,
            agent.state.value,
            str(agent.running) if agent.capacity is None else f"{agent.running}/{agent.capacity}",
            ",".join(agent.kinds),
            _pairs(agent.labels.items()) or "-",
            ago(agent.registered_at, now),
            ago(agent.heartbeat_at, now),
        )
        for agent in agents
    ]
    render.show_table(Table(columns, rows))


def show_phases(counts: Mapping[TaskPhase, int | None]) -> None:
    """Write to stdout about how many tasks are in each phase."""
    columns = [Column(phase.value.upper(), is_number=True) for phase in counts]
    render.show_table(Table(columns, [[f"{count or 0:,}" for count in counts.values()]]))


def _emitted(items: Sequence[Value], names: Sequence[object], output: Output) -> bool:
    """Write the forms that are not for people; whether one of them was asked for."""
    if output is Output.NAME:
        emit("".join(f"{name}\n" for name in names))
    elif output is Output.JSON:
        emit('{"items":[' + ",".join(item.to_json() for item in items) + "]}\n")
    return output is not Output.TABLE


def _show_rows(tasks: Sequence[Task]) -> None:
    now = time.time() * 1000
    columns = [
        Column("ID", is_name=True),
        _PHASE,
        Column("ATTEMPT", is_number=True),
        Column("SLOT", is_flexible=True),
        Column("KIND"),
        Column("UPDATED"),
        Column("DETAIL", is_flexible=True),
    ]
    rows = [
        (
            task.id,
            task.phase.value,
            str(task.status.attempt),
            task.spec.slot,
            task.spec.kind.name,
            ago(task.metadata.updated_at, now),
            one_line(task.status.error) if task.status.error else what(task.spec.kind),
        )
        for task in tasks
    ]
    render.show_table(Table(columns, rows))


def _details(task: Task) -> Iterator[tuple[str, str]]:
    meta, status, spec = task.metadata, task.status, task.spec
    yield "ID", task.id
    yield "Phase", status.phase.value
    yield "Attempt", str(status.attempt)
    if status.exit_code is not None:
        yield "Exit code", str(status.exit_code)
    if status.error:
        yield "Error", one_line(status.error)
    yield "Slot", f"{spec.slot} ({spec.admission.text})"
    yield "Kind", spec.kind.name
    yield "Runs", what(spec.kind, 500)
    if isinstance(spec.kind, Subprocess):
        if spec.kind.spec.cwd is not None:
            yield "Directory", one_line(spec.kind.spec.cwd)
        if not spec.kind.spec.fail_on_non_zero:
            yield "Exit codes", "any is a success"
    yield "Timeout", span(spec.timeout)
    retries = "" if spec.max_retries is None else f", at most {spec.max_retries} retries"
    yield "Restart", f"{spec.restart}{retries}"
    backoff = spec.backoff
    yield (
        "Backoff",
        f"{span(backoff.first_ms)}..{span(backoff.max_ms)} x{backoff.factor:g}, jitter {backoff.jitter.value}",
    )
    if spec.labels:
        yield "Labels", _pairs(spec.labels.items())
    if spec.runner_selector is not None:
        terms = [f"{key}={value}" for key, value in spec.runner_selector.match_labels.items()]
        terms += [
            " ".join([expression.key, expression.operator.value, *expression.values])
            for expression in spec.runner_selector.match_expressions
        ]
        yield "Workers", one_line(", ".join(terms) or "any")
    yield "Created", _moment(meta.created_at)
    yield "Updated", _moment(meta.updated_at)
    yield "Version", f"{meta.resource_version} (generation {meta.generation})"


def _pairs(items: Iterable[tuple[str, str]]) -> str:
    return one_line(", ".join(f"{key}={value}" for key, value in items))


def _moment(moment: Timestamp) -> str:
    local = moment.datetime.astimezone(UTC)
    return f"{local:%Y-%m-%d %H:%M:%S} UTC ({ago(moment, time.time() * 1000)})"
