"""The public API's types, as mypy sees them from outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import solti_store

USAGE = Path(__file__).with_name("usage.py")


def test_mypy_reveals_the_promised_types() -> None:
    """`usage.py` asserts each type; strict mode also refuses any untyped leak."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--config-file=", str(USAGE)],
        check=False,
        capture_output=True,
        text=True,
        cwd=USAGE.parents[2],
    )
    assert done.stdout.splitlines()[-1].startswith("Success"), done.stdout


def test_the_public_names_are_all_there_and_typed() -> None:
    for name in solti_store.__all__:
        assert getattr(solti_store, name) is not None
    assert Path(solti_store.__file__).with_name("py.typed").is_file()
    assert set(solti_store.__all__) <= set(dir(solti_store))


def test_importing_the_package_alone_is_cheap() -> None:
    heavy = ["sqlalchemy", "pydantic", "psycopg", "alembic", "typer", "rich"]
    script = f"import sys, solti_store; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(solti_store, "Nothing")
