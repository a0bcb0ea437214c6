"""The commands around the database: migrations, and the private server."""

from typing import TYPE_CHECKING

import typer

from solti_store.cli import schema
from solti_store.cli.db_roles import roles
from solti_store.cli.exits import UsageError
from solti_store.cli.render import Output, emit, note, show_details
from solti_store.cli.session import open_connection, session_of
from solti_store.cli.tasks import OutputOption

if TYPE_CHECKING:
    from solti_store.embedded import EmbeddedServer

__all__ = ["app"]

app = typer.Typer(help="Migrate the database, and look after the private server.", rich_markup_mode=None)
app.command("roles")(roles)
app.command()(schema.upgrade)
app.command()(schema.downgrade)
app.command()(schema.current)
app.command()(schema.check)
app.command()(schema.plan)
app.command()(schema.stamp)


@app.command("roll-up")
def roll_up(context: typer.Context) -> None:
    """Keep what attempts came to on days that are over, longer than retention keeps their runs. Workers do it, too."""
    from solti_store.ops import rollups  # noqa: PLC0415

    days = 0
    with open_connection(context) as connection:
        connection.execution_options(isolation_level="READ COMMITTED")
        # A day each: what is kept stays kept, whatever becomes of the next.
        while rollups.roll_up(connection) is not None:
            connection.commit()
            days += 1
    note(f"{days} more {'day is' if days == 1 else 'days are'} kept")


@app.command()
def status(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show whether the private server runs, and where its files are."""
    found = _private_server(context).status()
    url = found.url
    if output is Output.JSON:
        import json  # noqa: PLC0415

        document = {
            "state": found.state,
            "pid": found.pid,
            "major": found.major,
            "dataRoot": str(found.data_root),
            "logFile": str(found.log_file),
            "url": url,
        }
        emit(json.dumps(document, separators=(",", ":")) + "\n")
    elif output is Output.NAME:
        emit(f"{found.state}\n")
    else:
        rows = [("State", found.state), ("Process", f"{found.pid or '-'}"), ("PostgreSQL", f"{found.major or '-'}")]
        rows += [("Data", str(found.data_root)), ("Log", str(found.log_file)), ("URL", url or "-")]
        show_details(rows, {"ready": "green", "stopped": "yellow"})


@app.command()
def stop(context: typer.Context) -> None:
    """Stop the private server, for everybody who uses it; the next use starts it again."""
    note("stopped the private server" if _private_server(context).stop() else "the private server was not running")


def _private_server(context: typer.Context) -> "EmbeddedServer":
    from solti_store.url import is_embedded  # noqa: PLC0415

    if not is_embedded(session_of(context).url):
        raise UsageError("this is about the private server, and a URL was given")
    from solti_store.embedded import EmbeddedServer  # noqa: PLC0415

    return EmbeddedServer()
