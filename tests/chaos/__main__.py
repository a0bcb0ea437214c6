"""Chaos by hand, for minutes: `PYTHONPATH=tests python -m chaos --minutes 5 --seed 7`."""

from __future__ import annotations

import argparse
import sys

from chaos.run import run
from checking.mutants import MUTANTS


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long the nemesis is at it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="break this on purpose: violations are expected")
    given = parser.parse_args()
    report = run(seconds=given.minutes * 60, seed=given.seed, workers=given.workers, mutant=given.mutant)
    print(report)  # noqa: T201 - it is what the command is for
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
