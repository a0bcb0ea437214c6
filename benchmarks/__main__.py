"""`python -m benchmarks`."""

from __future__ import annotations

import argparse
import sys

from benchmarks.arena import arena
from benchmarks.cases import MANY, all_cases
from benchmarks.measure import compare
from benchmarks.report import table

ROUNDS = 15
QUICK_ROUNDS = 5


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="The store beside bare psycopg.")
    parser.add_argument("--url", help="a server where databases can be created; without one a private one is started")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds, not {ROUNDS}")
    parser.add_argument("--once", action="store_true", help="one operation a side: do they run at all?")
    parser.add_argument("--only", metavar="WORD", default="", help="only operations with this word in their name")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    given = parser.parse_args(arguments)
    rounds = 1 if given.once else QUICK_ROUNDS if given.quick else ROUNDS
    with arena(given.url) as field:
        results = []
        for make in all_cases(field, many=10 if given.once else MANY):
            case = make()
            if given.only not in case.name:
                continue
            print(f"measuring {case.name} ...", file=sys.stderr, flush=True)
            results.append(compare(case, rounds=rounds, once=given.once))
        print(table(results, field.settings(), markdown=given.markdown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
