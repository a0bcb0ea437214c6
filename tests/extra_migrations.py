"""Migrations that exist for tests alone, on top of the shipped ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solti_store.sql.revision import HEAD

if TYPE_CHECKING:
    from pathlib import Path

FILE = '''"""{name}"""
from __future__ import annotations
from alembic import op
from solti_store.migrate import execute
from solti_store.migration.steps import backfill, build_index, drop_index
from solti_store.sql.tables import SCHEMA

revision = {name!r}
down_revision = {down!r}
branch_labels = None
depends_on = None
oldest_code = {head!r}
unsafe = {unsafe!r}


def upgrade() -> None:
    {up}


def downgrade() -> None:
    {down_body}
'''


def write(folder: Path, *ups: str, downs: tuple[str, ...] = (), unsafe: dict[str, str] | None = None) -> list[str]:
    """Write a migration file for each body; returns their revisions, oldest first, which code of today works on."""
    before, names = HEAD, []
    for number, up in enumerate(ups, 1):
        name = f"{HEAD}_{number:04}"
        down_body = downs[number - 1] if number <= len(downs) else "pass"
        content = FILE.format(name=name, head=HEAD, down=before, up=up, down_body=down_body, unsafe=unsafe or {})
        (folder / f"{name}.py").write_text(content)
        before = name
        names.append(name)
    return names
