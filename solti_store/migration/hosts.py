"""For a host application's own Alembic: options by which it has our migrations as a branch, or overlooks our tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from solti_store.schema_history import is_ours, record_applied
from solti_store.schema_name import resolve_schema
from solti_store.sql import schemas
from solti_store.sql.naming import quoted, report_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from alembic.runtime.migration import MigrationContext, MigrationInfo

__all__ = ["branch", "theirs"]


def branch(schema: str | None = None) -> dict[str, Any]:
    """Options for `context.configure` in a host application's `env.py`, so that our migrations can be a branch there.

    What is applied to our schema then stands in the application's own version table, and not in one of ours.

    Args:
        schema: The schema; None means SOLTI_STORE_SCHEMA, or else `solti`.

    Raises:
        Invalid: It cannot be one.
    """
    name = resolve_schema(schema)
    return {
        "solti_schema": name,
        "include_name": theirs(name),
        "on_version_apply": _take_over,
        "transaction_per_migration": True,
    }


def theirs(schema: str | None = None) -> Callable[[str | None, str, Any], bool]:
    """What a host application gives `context.configure` as `include_name`: autogenerate then overlooks our schemas.

    Args:
        schema: The schema; None means SOLTI_STORE_SCHEMA, or else `solti`.

    Raises:
        Invalid: It cannot be one.
    """
    name = resolve_schema(schema)
    ours = {name, report_schema(name)}

    def include_name(found: str | None, kind: str, _parents: Any) -> bool:  # noqa: ANN401 - Alembic's signature
        return not (kind == "schema" and found in ours)

    return include_name


def _take_over(*, ctx: MigrationContext, step: MigrationInfo, heads: Collection[str], **more: Any) -> None:  # noqa: ANN401 - Alembic's
    record_applied(ctx=ctx, step=step, heads=heads, **more)
    if is_ours(step):
        names = (ctx.version_table_schema, ctx.version_table)
        theirs_ = ".".join(quoted(name) for name in names if name)
        ctx.execute(schemas.as_it_stands(schemas.drop_version(ctx.opts["solti_schema"], theirs_)))
