"""What SQL a block of PL/pgSQL has in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from solti_store.migration.known import PLPGSQL
from solti_store.migration.nodes import every, last_name

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Block", "commits", "pieces"]

Block = list[dict[str, Any]]

_STATEMENT, _EXPRESSION = 0, 2  # how PL/pgSQL reads a piece


def pieces(sql: str, body: dict[str, Any]) -> tuple[Block, list[str]] | None:
    """A DO statement's block, and the statements in it in order; None if they are not all to be seen.

    Args:
        sql: The statement.
        body: Its node.
    """
    import postgast  # noqa: PLC0415 - an extra, which the caller has

    options = every(body, "def_elem")
    if any(option["defname"] == "language" and last_name(option["arg"]) != "plpgsql" for option in options):
        return None
    try:
        block = postgast.parse_plpgsql(sql)
    except postgast.PgQueryError:
        return None
    if not block or any(kind not in PLPGSQL for kind in _kinds(block)):
        return None
    return block, [_statement(piece) for piece in every(block, "PLpgSQL_expr")]


def commits(block: Block) -> bool:
    """Whether it ends transactions, for which it has to be outside of one."""
    return "PLpgSQL_stmt_commit" in _kinds(block)


def _statement(piece: dict[str, Any]) -> str:
    query: str = piece["query"]
    if piece["parseMode"] == _STATEMENT:
        return query
    return f"SELECT {query if piece['parseMode'] == _EXPRESSION else query.partition('=')[2]}"


def _kinds(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (key for key in node if key.startswith("PLpgSQL_stmt_"))
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from _kinds(child)
