"""Migrations up and down under live processes.

By hand, for minutes: `PYTHONPATH=tests python -m deployment.rolling --minutes 5`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.run import Kind, Report, await_events, observe
from deployment.ahead import NEXT, write

from solti_store import TaskStore
from solti_store.migrate import downgrade, upgrade
from solti_store.sql.revision import HEAD, OLDEST

if TYPE_CHECKING:
    from chaos.run import Crew

    from solti_store.embedded import EmbeddedServer

__all__ = ["KIND", "run", "summary", "waits"]

#: Half of them work, half of them create.
SIZE = 8
#: Nobody is given up: a wait for a lock is no silence.
KIND = Kind(module="deployment.rolling_worker", lease_s=60.0)


def run(*, seconds: float, seed: int, rounds: int = 2) -> Report:
    """Let processes work and create while the schema goes up and down through all that their code works on.

    Args:
        seconds: How long, at least.
        seed: Of the processes' choices.
        rounds: How often up and down, at least.
    """

    def deploy(crew: Crew, _server: EmbeddedServer) -> Counter[str]:
        done: Counter[str] = Counter()
        end = time.monotonic() + seconds
        with tempfile.TemporaryDirectory() as directory:
            versions = [write(Path(directory))]
            while done["down"] < rounds or time.monotonic() < end:
                for move, revision in ((upgrade, NEXT), (downgrade, OLDEST), (upgrade, HEAD)):
                    move(crew.url, revision, versions=versions)
                    done["up" if move is upgrade else "down"] += 1
                    # A process that starts anew now.
                    TaskStore.open(crew.url).close()
                    await_events(crew, 100)
        return done

    return observe(deploy, seed=seed, size=SIZE, kind=KIND)


def waits(report: Report) -> str:
    """The longest call of each operation, the longest of all first."""
    of_all = sorted(report.waits.items(), key=lambda item: -item[1])
    return "longest calls: " + ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in of_all)


def summary(report: Report) -> str:
    """The report and the longest calls."""
    return f"{report}\n{waits(report)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="deployment.rolling", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    report = run(seconds=given.minutes * 60, seed=given.seed)
    print(summary(report))  # noqa: T201 - it is what the command is for
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
