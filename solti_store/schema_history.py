"""Keeps the schema's own list of the revisions that are applied to it.

Alembic's version table has the newest revision, and may be a host application's; what old code has to know of a schema
that came after it stands in a table of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from solti_store.errors import SchemaMismatch
from solti_store.sql.naming import in_schema, renamed
from solti_store.sql.revision import list_applied
from solti_store.sql.schemas import HAS_HISTORY, as_it_stands

if TYPE_CHECKING:
    from collections.abc import Collection

    from alembic.runtime.migration import MigrationContext, MigrationInfo

__all__ = ["is_ours", "record_applied"]


def is_ours(step: MigrationInfo) -> bool:
    """Whether a step of Alembic's is one of our migrations, up or down, and not a host application's."""
    return any(_is_listed(script) for script in step.up_revisions)


def record_applied(*, ctx: MigrationContext, step: MigrationInfo, heads: Collection[str], **_: Any) -> None:  # noqa: ANN401 - Alembic's
    """Make the list what a step of Alembic's left applied: for `on_version_apply` of an environment.

    In the migration's own transaction, or its script; after a stamp as well. Migrations of a host application, which
    declare no `oldest_code`, are not ours to list, and their steps change nothing of it.

    Raises:
        SchemaMismatch: A stamp says that ours are applied where there are no tables of ours.
    """
    if not is_ours(step):
        return
    scripts = ctx.script.iterate_revisions(tuple(heads), "base") if ctx.script and heads else ()
    applied = {script.revision: script.module.oldest_code for script in scripts if _is_listed(script)}
    schema = ctx.opts["solti_schema"]
    if step.is_stamp and not ctx.as_sql and not _has_list(ctx, schema):
        if not applied:
            return
        raise SchemaMismatch(
            f"there is nothing to stamp: the schema '{schema}' has no table schema_history, which its first migration"
            " makes"
        )
    # Without the first migration there is no list; to stamp leaves the tables as they are.
    if applied or step.is_stamp:
        for statement in list_applied(applied):
            ctx.execute(as_it_stands(renamed(statement, schema)))


def _is_listed(script: Any) -> bool:  # noqa: ANN401 - Alembic's revisions have no module, its scripts do
    return hasattr(getattr(script, "module", None), "oldest_code")


def _has_list(ctx: MigrationContext, schema: str) -> bool:
    assert ctx.connection is not None  # noqa: S101 - it is no script
    with in_schema(ctx.connection, schema):
        return bool(HAS_HISTORY.one(ctx.connection, {}).is_so)
