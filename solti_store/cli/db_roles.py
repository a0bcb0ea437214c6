"""The command `db roles`."""

from typing import Annotated

import typer

from solti_store.cli import parsing
from solti_store.cli.exits import UsageError
from solti_store.cli.render import note
from solti_store.cli.session import open_connection, session_of

__all__ = ["roles"]


def roles(
    context: typer.Context,
    *,
    prefix: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name them NAME_owner, NAME_worker and NAME_reader.", show_default=False),
    ] = None,
    owner: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Who owns the schemas and migrates.", show_default=False)
    ] = None,
    worker: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Who reads and writes tasks.", show_default=False)
    ] = None,
    reader: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Who reads reports, and nothing else.", show_default=False)
    ] = None,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="How long a statement of the reader may take.")
    ] = "30s",
) -> None:
    """Make roles that can do their job and nothing else, or set right those that are there.

    All three, named after the schema or a prefix; or only those that are named. They can log in, once you have given
    them a password or another way.
    """
    given = [owner, worker, reader]
    if prefix is not None and any(name is not None for name in given):
        raise UsageError("--prefix names all three roles: give that, or names one by one")
    bound = parsing.duration(timeout, "--timeout")
    from solti_store.migrate import holding_lock  # noqa: PLC0415 - half a second that help does not need
    from solti_store.ops.roles import Roles, ensure  # noqa: PLC0415
    from solti_store.schema_name import resolve_schema  # noqa: PLC0415

    schema = resolve_schema(session_of(context).schema)
    wanted = Roles(*given) if any(name is not None for name in given) else Roles.prefixed(prefix or schema)
    with open_connection(context) as connection:
        connection.execution_options(isolation_level="READ COMMITTED")
        with holding_lock(connection, schema=schema):
            new = ensure(connection, wanted, bound)
            connection.commit()
    for job, name in (("own and migrate", wanted.owner), ("work", wanted.worker), ("read reports", wanted.reader)):
        if name is not None:
            note(f"the role '{name}' {'was created and ' if name in new else ''}may {job} in this database")
