"""The command `submit`: tasks from flags, or from JSON documents."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from solti_store.cli.exits import UsageError
from solti_store.cli.flags import DEFAULT_TIMEOUT, Flags, from_flags
from solti_store.cli.render import Output
from solti_store.cli.session import open_store
from solti_store.cli.tasks import OutputOption

if TYPE_CHECKING:
    from solti_store.model import TaskSpec

__all__ = ["SubmitCommand", "submit"]

_TAIL = "solti_store.cli.command"


class SubmitCommand(TyperCommand):
    """`submit`, with everything after `--` set apart.

    The parser forgets where `--` stood, and `submit build` must not be taken for the command `build`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Typer's context
        """Cut the arguments at the first `--`."""
        if "--" in args:
            at = args.index("--")
            ctx.meta[_TAIL] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401
        """The usage line, with the command that the parser does not know of."""
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND ARGS...]"]


def submit(
    context: typer.Context,
    *,
    task_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="The task's id; made up if not given.", show_default=False)
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", "-f", metavar="FILE|-", help="Read the task, or several, as JSON.", show_default=False),
    ] = None,
    script: Annotated[
        str | None,
        typer.Option(
            metavar="RUNTIME",
            help="Run --body with bash, python, node or custom:PROGRAM:FLAG; what follows -- are its arguments.",
            show_default=False,
        ),
    ] = None,
    body: Annotated[
        str | None, typer.Option(metavar="TEXT|@FILE|-", help="The text of the script.", show_default=False)
    ] = None,
    slot: Annotated[
        str | None, typer.Option(metavar="NAME", help="The admission lane; the id if not given.", show_default=False)
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help=f"How long an attempt may take: 500ms, 30s, 5m, 2h. [default: {DEFAULT_TIMEOUT}]",
            show_default=False,
        ),
    ] = None,
    restart: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="never, on-failure, always or always:MILLISECONDS. [default: never]",
            show_default=False,
        ),
    ] = None,
    max_retries: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="The most retries in a row; without, no limit.", show_default=False),
    ] = None,
    backoff: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST[..MAX][xFACTOR][:JITTER]",
            help="The wait after failures; jitter is full, none, equal or decorrelated. [default: 1s..30sx2:full]",
            show_default=False,
        ),
    ] = None,
    admission: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="If the slot is taken: drop-if-running, queue or replace. [default: drop-if-running]",
            show_default=False,
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", metavar="KEY=VALUE", help="A label of the task.", show_default=False),
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A label that the worker must have.", show_default=False),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="KEY=VALUE", help="An environment variable.", show_default=False),
    ] = None,
    cwd: Annotated[str | None, typer.Option(metavar="PATH", help="The working directory.", show_default=False)] = None,
    no_fail_on_non_zero: Annotated[
        bool, typer.Option("--no-fail-on-non-zero", help="Take any exit code for a success.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a task from flags, or tasks from JSON.

    A task runs the command after --, or a script, or what a JSON document says: a whole task as `get -o json` prints
    it, {"id":…,"spec":{…}}, or a spec alone; one, an array of them, or one after another.

    Options that take KEY=VALUE may be repeated.
    """
    tail: list[str] | None = context.meta.get(_TAIL)
    flags = Flags(
        command=tail,
        script=script,
        body=body,
        slot=slot,
        timeout=timeout,
        restart=restart,
        max_retries=max_retries,
        backoff=backoff,
        admission=admission,
        label=label,
        select=select,
        env=env,
        cwd=cwd,
        no_fail_on_non_zero=no_fail_on_non_zero or None,
    )
    from solti_store.cli.views import show_task, show_tasks  # noqa: PLC0415 - needs the model

    if file is None:
        items, is_single = [from_flags(task_id, flags)], True
    else:
        if given := flags.first_given():
            raise UsageError(f"--file holds the whole task, so it does not go with {given}")
        items, is_single = _from_file(task_id, file)
    with open_store(context) as store:
        tasks = store.create_many(items) if len(items) > 1 else [store.create(*item) for item in items]
    if is_single and output is Output.JSON:
        show_task(tasks[0], output)
    else:
        show_tasks(tasks, output)


def _from_file(task_id: str | None, file: str) -> tuple[list[tuple[str, "TaskSpec"]], bool]:
    from solti_store.cli.documents import new_id, parse, read_bytes  # noqa: PLC0415
    from solti_store.model import TaskId  # noqa: PLC0415

    found, is_single = parse(read_bytes(file, "--file"), file)
    if task_id is None:
        return [(name or new_id(), spec) for name, spec in found], is_single
    if not is_single:
        raise UsageError(f"one ID for {len(found)} tasks: leave it out, the documents may have their own")
    # Given twice, the command line wins: so a copy of a task is submitted under another name.
    return [(TaskId(task_id), found[0][1])], True
