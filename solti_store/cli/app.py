"""The Typer application: global options, the commands, and how all of it ends."""

import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from solti_store.cli import db, tasks
from solti_store.cli.agents import agents, drain
from solti_store.cli.demo.command import demo
from solti_store.cli.doctor import doctor
from solti_store.cli.exits import Exit, PipeClosedError, report
from solti_store.cli.logs import logs
from solti_store.cli.report import report as report_
from solti_store.cli.session import Session
from solti_store.cli.submit import SubmitCommand, submit
from solti_store.cli.top import top
from solti_store.cli.watch import watch
from solti_store.cli.work import work

__all__ = ["app", "run"]

PROGRAM = "solti-store"

app = typer.Typer(
    name=PROGRAM,
    help="A durable task registry on PostgreSQL.\n\n"
    "Without a URL it keeps a private PostgreSQL server for you, started when it is needed.",
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
    # Plain help. To draw it Typer imports the half of rich that renders Markdown, which doubles the cost of `--help`.
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from solti_store import __version__  # noqa: PLC0415 - read when asked for

        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    context: typer.Context,
    *,
    url: Annotated[
        str | None,
        typer.Option(
            envvar="SOLTI_STORE_URL",
            metavar="URL",
            help="The database: postgresql://user@host/name. Without one, the private server.",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(
            envvar="SOLTI_STORE_SCHEMA", metavar="NAME", help="The schema of the tables: solti.", show_default=False
        ),
    ] = None,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Say more on stderr; twice for everything.")
    ] = 0,
    version: Annotated[  # noqa: ARG001 - its callback has done the work
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = Session(url or None, schema)
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("solti_store").setLevel(level)


app.command("demo")(demo)
app.command("submit", cls=SubmitCommand)(submit)
app.command("get", no_args_is_help=False)(tasks.get)
app.command("list")(tasks.list_)
app.command("runs")(tasks.runs)
app.command("logs")(logs)
app.command("why")(tasks.why)
app.command("cancel")(tasks.cancel)
app.command("delete")(tasks.delete)
app.command("agents")(agents)
app.command("drain")(drain)
app.command("top")(top)
app.command("doctor")(doctor)
app.command("report", no_args_is_help=False)(report_)
app.command("watch")(watch)
app.command("work")(work)
app.add_typer(db.app, name="db")


def run(arguments: Sequence[str]) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name.

    Returns:
        The exit code.
    """
    _open_closed_streams()
    # A terminal that cannot show a character is no reason to fail.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        command = typer.main.get_command(app)
        # Not standalone, because errors are to be told in our way, and never as a traceback.
        result = command.main(args=list(arguments) or ["--help"], prog_name=PROGRAM, standalone_mode=False)
        code = result if isinstance(result, int) else Exit.OK
        sys.stdout.flush()
    except (BrokenPipeError, PipeClosedError):
        code = Exit.OK
    except SystemExit as error:
        # How Typer ends the options that install completion, and a help text whose reader is gone.
        is_unread = isinstance(error.__context__, BrokenPipeError)
        code = error.code if isinstance(error.code, int) and not is_unread else Exit.OK
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last place to turn it into a message
        code = report(error)
    _finish_output()
    return int(code)


def _open_closed_streams() -> None:
    """Give whoever closed a standard stream (`>&-`) the null device: Python has None there."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - for the process's life


def _finish_output() -> None:
    """Flush, and if that cannot be done make sure that the interpreter does not complain of it at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
