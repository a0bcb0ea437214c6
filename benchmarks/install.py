"""An environment of the peers' own, outside the repository, made once for each set of pinned versions."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["NODE", "PYTHON", "Environment", "environment"]

# The one place that says which versions are measured. pg-boss 12 wants Node 22; 10 is the last that runs on 20.
PYTHON = {
    "pgqueuer": "1.6.0",
    "asyncpg": "0.32.0",
    "uvloop": "0.23.0",
    "procrastinate": "3.10.0",
    "dbos": "3.4.0",
    "psycopg[binary]": "3.3.9",
}
NODE = {"graphile-worker": "0.17.3", "pg-boss": "10.4.2", "pg": "8.23.1"}

_CACHE = "solti-store-benchmarks"


@dataclass(frozen=True, slots=True)
class Environment:
    """Where the peers are.

    Attributes:
        python: An interpreter that has the peers in Python.
        node_modules: The folder of those in JavaScript.
    """

    python: Path
    node_modules: Path


def environment(folder: Path | None = None) -> Environment:
    """The peers' environment, installed if it is not there.

    Args:
        folder: Where; a folder of the user's cache if None.

    Raises:
        RuntimeError: `pip` or `npm` failed.
    """
    root = (folder or _cache()) / hashlib.sha256(json.dumps([PYTHON, NODE]).encode()).hexdigest()[:12]
    found = Environment(root / "venv/bin/python", root / "node_modules")
    if root.exists():
        return found
    made = root.with_name(f"{root.name}.{os.getpid()}")
    try:
        print(f"installing the peers in {root} ...", file=sys.stderr, flush=True)
        _run(sys.executable, "-m", "venv", str(made / "venv"))
        _run(str(made / "venv/bin/python"), "-m", "pip", "install", "--quiet", *_pinned(PYTHON, "=="))
        _run("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(made), *_pinned(NODE, "@"))
        # Complete or not there. A venv may move, as long as nobody calls its scripts.
        made.rename(root)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return found


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / _CACHE


def _pinned(versions: dict[str, str], sign: str) -> list[str]:
    return [f"{name}{sign}{version}" for name, version in versions.items()]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
