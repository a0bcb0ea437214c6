"""Walking over a parse tree of plain dictionaries."""

from __future__ import annotations

from typing import Any

__all__ = ["builtin", "every", "last_name", "name_of", "relation"]

Node = dict[str, Any]


def every(node: object, kind: str) -> list[Node]:
    """All nodes of a kind, from the outside in."""
    found: list[Node] = []
    if isinstance(node, dict):
        for key, value in node.items():
            if key == kind and isinstance(value, dict):
                found.append(value)
            found += every(value, kind)
    elif isinstance(node, list):
        for value in node:
            found += every(value, kind)
    return found


def relation(node: Node) -> str:
    """The name of a table as the statement has it, with its schema if that is there."""
    node = node.get("range_var", node)
    name: str = node["relname"]
    return f"{node['schemaname']}.{name}" if "schemaname" in node else name


def name_of(node: Node) -> str:
    """The text of a part of a name."""
    text: str = node["string"]["sval"]
    return text


def builtin(parts: list[Node]) -> str:
    """The name of a function or type that may be the server's own: without a schema, or in pg_catalog; else empty."""
    names = [name_of(part) for part in parts]
    return names[-1] if len(names) == 1 or names[0] == "pg_catalog" else ""


def last_name(node: Node) -> str:
    """The text of a name, or of the last part of one."""
    text: str = every(node, "string")[-1]["sval"]
    return text
