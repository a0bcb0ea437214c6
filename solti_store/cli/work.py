"""The command `work`: run tasks until told to stop."""

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from solti_store.cli import parsing
from solti_store.cli.exits import Exit, UsageError
from solti_store.cli.render import PHASE_STYLES, console, is_fancy, note, one_line
from solti_store.cli.session import session_of

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from datetime import timedelta

    from solti_store.worker import Runner, Worker, WorkerEvent, WorkerReport

__all__ = ["work"]

KINDS = ("subprocess", "container", "wasm")
_LEASE = "30s"
_RETENTION = "30d"


def default_agent_id() -> str:
    """The name of a worker that was given none: this host and process."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:100] or "worker"
    return f"{host}-{os.getpid()}"


def work(
    context: typer.Context,
    *,
    agent_id: Annotated[
        str | None,
        typer.Option("--id", metavar="NAME", help="The worker's name. [default: HOST-PID]", show_default=False),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            "-l",
            metavar="KEY=VALUE",
            help="A label that tasks may ask for; may be repeated.",
            show_default=False,
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", metavar="N", min=1, help="Attempts at the same time.")
    ] = 4,
    prefetch: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Attempts more to take on, which wait for others to end; their time runs from then.",
        ),
    ] = 0,
    listen: Annotated[
        bool,
        typer.Option(
            "--listen/--no-listen", help="Be woken by new tasks, by one connection more; or look twice a second only."
        ),
    ] = True,
    kinds: Annotated[
        str, typer.Option(metavar="KIND,...", help="The kinds of task to run: subprocess, container, wasm.")
    ] = "subprocess",
    output_tail: Annotated[
        int,
        typer.Option(
            metavar="BYTES", min=0, max=65_536, help="How much of each output to keep with the run, from the end."
        ),
    ] = 4096,
    lease: Annotated[
        str, typer.Option(metavar="TIME", help="How long it may be silent before others take over its attempts.")
    ] = _LEASE,
    retention: Annotated[
        str, typer.Option(metavar="TIME", help="How long final tasks and ended runs are kept, or 'forever'.")
    ] = _RETENTION,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            "-e",
            metavar="KEY=VALUE",
            help="An environment variable for every task, over the task's own; may be repeated.",
            show_default=False,
        ),
    ] = None,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="End when nothing is due.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell of every attempt.")] = False,
    while_stdin: Annotated[bool, typer.Option("--while-stdin", hidden=True)] = False,
) -> int:
    """Run tasks until told to stop.

    SIGTERM or Ctrl-C finishes what runs and takes nothing more; the second one stops what runs, too.
    """
    options = _Options(
        url=session_of(context).url,
        schema=session_of(context).schema,
        agent_id=agent_id or default_agent_id(),
        labels=dict(parsing.pairs(label or (), "--label")),
        env=parsing.pairs(env or (), "--env"),
        kinds=_kinds(kinds),
        concurrency=concurrency,
        prefetch=prefetch,
        listen=listen,
        output_tail=output_tail,
        lease=parsing.duration(lease, "--lease"),
        retention=None if retention == "forever" else parsing.duration(retention, "--retention"),
        until_idle=until_idle,
        while_stdin=while_stdin,
        tell=None if quiet else _teller(),
    )
    import asyncio  # noqa: PLC0415 - a third of what `--help` costs

    return asyncio.run(_work(options))


def _kinds(text: str) -> list[str]:
    kinds = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if "embedded" in kinds:
        raise UsageError("--kinds: embedded tasks are functions of a Python program, which has its own worker")
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise UsageError(f"--kinds: expected some of {', '.join(KINDS)}, got {wrong[0][:40]!r}")
    return kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    url: str | None
    schema: str | None
    agent_id: str
    labels: dict[str, str]
    env: list[tuple[str, str]]
    kinds: list[str]
    concurrency: int
    prefetch: int
    listen: bool
    output_tail: int
    lease: "timedelta"
    retention: "timedelta | None"
    until_idle: bool
    while_stdin: bool
    tell: "Callable[[WorkerEvent], None] | None"


async def _work(options: _Options) -> int:
    import asyncio  # noqa: PLC0415

    from solti_store.model import RunnerEnv  # noqa: PLC0415 - half a second that help does not need
    from solti_store.rules.retention import Retention  # noqa: PLC0415
    from solti_store.store import AsyncTaskStore  # noqa: PLC0415
    from solti_store.worker import ContainerRunner, SubprocessRunner, WasmRunner, Worker  # noqa: PLC0415

    known: dict[str, Callable[[], Runner]] = {
        "subprocess": SubprocessRunner,
        "container": ContainerRunner,
        "wasm": WasmRunner,
    }
    # Before a database is looked for: this machine may lack what they need.
    runners = [known[kind]() for kind in options.kinds]
    kept = options.retention
    async with await AsyncTaskStore.open(options.url, schema=options.schema) as store:
        worker = Worker(
            store,
            options.agent_id,
            labels=options.labels,
            runners=runners,
            concurrency=options.concurrency,
            prefetch=options.prefetch,
            listen=options.listen,
            output_tail=options.output_tail,
            lease=options.lease,
            env=RunnerEnv(options.env),
            retention=None if kept is None else Retention(tasks=kept, runs=kept),
            on_event=options.tell,
        )
        stopper = _Stopper(worker)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopper.signalled)
        if options.while_stdin:
            threading.Thread(target=_watch_stdin, args=(loop, stopper.stop), daemon=True).start()
        note(f"worker {options.agent_id} is ready")
        report = await worker.run(until_idle=options.until_idle)
    note(f"worker {options.agent_id} ends: {_summary(report)}")
    return Exit.INTERRUPTED if stopper.is_stopped else Exit.OK


class _Stopper:
    """Two ways to end a worker, by how often it was asked."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self._is_draining = False
        self.is_stopped = False

    def signalled(self) -> None:
        if self._is_draining:
            self.stop()
            return
        self._is_draining = True
        note("finishing what runs; once more to stop it")
        self._worker.drain()

    def stop(self) -> None:
        self.is_stopped = True
        self._worker.stop()


def _watch_stdin(loop: "AbstractEventLoop", stop: Callable[[], None]) -> None:
    # The demo's workers must not outlive it, however it ends: a pipe closes with its last holder.
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    with suppress(RuntimeError):  # the loop has ended first
        loop.call_soon_threadsafe(stop)


def _summary(report: "WorkerReport") -> str:
    counts = {
        "succeeded": report.succeeded,
        "failed": report.failed,
        "timed out": report.timed_out,
        "canceled": report.canceled,
        "refused": report.refused,
        "unreported": report.unreported,
        "taken from others": report.reaped,
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing to do"


# --- telling ----------------------------------------------------------------------------------------


def _line(event: "WorkerEvent") -> tuple[str, str, str]:
    """What to say of an event: the word, the task, the rest."""
    from solti_store.worker import Finished, Reaped, Refused  # noqa: PLC0415 - the worker is there when this runs

    match event:
        case Finished():
            rest = one_line(event.outcome.error or "")
            return event.outcome.phase.value, event.task_id, f"attempt {event.attempt}" + (rest and f": {rest}")
        case Refused():
            return "refused", event.task_id, f"attempt {event.attempt}: {one_line(str(event.reason))}"
        case Reaped():
            next_ = "it will run again" if event.will_retry else f"it ends {event.phase.value}"
            return "reaped", event.task_id, f"attempt {event.attempt} of {event.agent or 'nobody'}: {next_}"
        case _:
            return "started", event.task_id, f"attempt {event.attempt}"


def _teller() -> "Callable[[WorkerEvent], None]":
    """Tells of each event on stderr, in colour on a terminal."""
    if not is_fancy(stderr=True):

        def tell(event: "WorkerEvent") -> None:
            word, task_id, rest = _line(event)
            print(f"{time.strftime('%H:%M:%S')} {word:9} {task_id} {rest}", file=sys.stderr, flush=True)  # noqa: T201

        return tell

    from rich.text import Text  # noqa: PLC0415 - plain output does without

    target = console(stderr=True)
    styles = {**PHASE_STYLES, "started": "cyan", "refused": "bold red", "reaped": "magenta"}

    def draw(event: "WorkerEvent") -> None:
        word, task_id, rest = _line(event)
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{time.strftime('%H:%M:%S')} ", "dim")
        line.append(f"{word:9} ", styles.get(word, ""))
        line.append(f"{task_id} ")
        line.append(rest, "dim")
        target.print(line)

    return draw
