"""The command line: `solti-store`.

Typer and rich come with the extra `cli`. Nothing here imports the model, SQLAlchemy or Alembic before a command
runs, so that help and completion answer at once.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name; `sys.argv[1:]` if None.

    Returns:
        The exit code, as `docs/cli.md` lists them.
    """
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        print(  # noqa: T201 - the tools for output are what is missing
            f"error: the command line needs {' and '.join(missing)}: install solti-store[cli]", file=sys.stderr
        )
        return 1
    from solti_store.cli.app import run  # noqa: PLC0415 - needs what was just looked for

    return run(sys.argv[1:] if arguments is None else arguments)
