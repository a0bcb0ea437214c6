"""What was measured, as JSON: written after each work, so that a run that is cut short goes on where it was."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.install import NODE, PYTHON
from benchmarks.lab import Series

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Results", "Section", "machine"]

ROOT = Path(__file__).resolve().parents[1]
_OURS = ("sqlalchemy", "psycopg", "pydantic")


@dataclass(slots=True)
class Section:
    """What came of a work.

    Attributes:
        at: When it began, in UTC.
        took_s: How long it took.
        sizes: How much of everything.
        about: The machine, the versions, the settings, as they were.
        series: The figures.
        notes: What is to be said of it.
        complete: Whether it came to its end.
    """

    at: str
    took_s: float
    sizes: dict[str, Any]
    about: dict[str, str]
    series: list[Series]
    notes: list[str] = field(default_factory=list)
    complete: bool = True


@dataclass(slots=True)
class Results:
    """All works, by name.

    Attributes:
        path: The file; None keeps nothing.
        works: What there is.
    """

    path: Path | None
    works: dict[str, Section] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None) -> Results:
        """What the file has; nothing if there is none."""
        if path is None or not path.exists():
            return cls(path)
        found = json.loads(path.read_text("utf-8"))
        works = {
            name: Section(**{**about, "series": [Series(**one) for one in about["series"]]})
            for name, about in found.items()
        }
        return cls(path, works)

    def add(self, name: str, section: Section) -> None:
        """Put a work in the place of what was measured before."""
        self.works[name] = section
        if self.path is not None:
            text = json.dumps({key: _plain(one) for key, one in sorted(self.works.items())}, indent=1)
            self.path.write_text(f"{text}\n", "utf-8")

    def series(self, work: str, case: str) -> list[Series]:
        """What the lanes were measured at in one case."""
        section = self.works.get(work)
        return [one for one in section.series if one.case == case] if section else []

    def all(self) -> Iterator[tuple[str, Section]]:
        """The works in the order in which they were measured."""
        yield from sorted(self.works.items(), key=lambda item: item[1].at)


def _plain(section: Section) -> dict[str, Any]:
    plain = asdict(section)
    for one in plain["series"]:
        # Four digits: no figure here is known better.
        one["values"] = [float(f"{value:.4g}") for value in one["values"]]
    return plain


def machine(settings: Mapping[str, str], *, peers: bool) -> dict[str, str]:
    """What everything ran on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    commit = _said("git", "-C", str(ROOT), "describe", "--always", "--dirty")
    about = {
        "machine": f"{model}, {os.cpu_count()} cores, {pages * size / 2**30:.0f} GB, Linux {platform.release()}",
        "solti-store": f"{version('solti-store')} ({commit}), Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in _OURS),
        "server": "PostgreSQL "
        + ", ".join(value if name == "server_version" else f"{name}={value}" for name, value in settings.items()),
    }
    if peers:
        pinned = {**PYTHON, **NODE, "Node": _said("node", "--version").removeprefix("v")}
        about["peers"] = ", ".join(f"{name} {number}" for name, number in pinned.items())
    return about


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "?"
