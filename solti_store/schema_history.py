"""Keeps the schema's own list of the revisions that are applied to it.

Alembic's version table has the newest revision, and may be a host application's; what old code has to know of a schema
that came after it stands in a table of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from solti_store.sql.naming import renamed
from solti_store.sql.revision import list_applied
from solti_store.sql.schemas import as_it_stands

if TYPE_CHECKING:
    from collections.abc import Collection

    from alembic.runtime.migration import MigrationContext, MigrationInfo

__all__ = ["record_applied"]


def record_applied(*, ctx: MigrationContext, step: MigrationInfo, heads: Collection[str], **_: Any) -> None:  # noqa: ANN401 - Alembic's
    """Make the list what a step of Alembic's left applied: for `on_version_apply` of an environment.

    In the migration's own transaction, or its script; after a stamp as well. Migrations of a host application, which
    declare no `oldest_code`, are not ours to list.
    """
    scripts = ctx.script.iterate_revisions(tuple(heads), "base") if ctx.script and heads else ()
    applied = {
        script.revision: script.module.oldest_code for script in scripts if hasattr(script.module, "oldest_code")
    }
    # Without the first migration there is no list; to stamp leaves the tables as they are.
    if applied or step.is_stamp:
        for statement in list_applied(applied):
            ctx.execute(as_it_stands(renamed(statement, ctx.opts["solti_schema"])))
