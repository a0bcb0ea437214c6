"""The release before this one, as it was shipped: its wheel, and its own tests beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

__all__ = ["Release", "previous"]

ROOT = Path(__file__).parents[2]
_NAMED_IN = ROOT / ".ci" / "previous-release"
# What the wheel is built from, and the tests.
_PARTS = ("solti_store", "migrations", "tests", "pyproject.toml", "README.md", "LICENSE", "alembic.ini")


@dataclass(frozen=True)
class Release:
    """A wheel that is unpacked, and the tests of its source tree.

    Attributes:
        package: Where its package is imported from.
        tree: Where its tests are; the package's sources are not there.
        head: The newest revision of its schema.
    """

    package: Path
    tree: Path
    head: str

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run Python with this release, and not with the code that is around."""
        return _run(self.package, self.tree, *arguments, **variables)


def previous(directory: Path) -> Release:
    """Build the release that .ci/previous-release names; today's code when it names none.

    Args:
        directory: An empty one, for all that is made.
    """
    tree = directory / "tree"
    tree.mkdir()
    if commit := _commit():
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        with tarfile.open(fileobj=BytesIO(archive)) as packed:
            packed.extractall(tree, filter="data")
    else:
        for part in _PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / part, tree)
    # The backend is a wheel from outside, unless it is installed.
    isolation = ["--no-isolation"] if find_spec("hatchling") else []
    build = [sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(directory), str(tree)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = directory.glob("*.whl")
    package = directory / "package"
    with zipfile.ZipFile(wheel) as packed_wheel:
        packed_wheel.extractall(package)
    for part in ("solti_store", "migrations", "alembic.ini"):
        path = tree / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    script = "import solti_store; from solti_store.sql.revision import HEAD; print(solti_store.__file__, HEAD)"
    found, head = _run(package, tree, "-c", script).stdout.split()
    assert Path(found).is_relative_to(package)
    return Release(package, tree, head)


def _commit() -> str | None:
    lines = _NAMED_IN.read_text().splitlines() if _NAMED_IN.exists() else []
    return next((line for line in lines if line and not line.startswith("#")), None)


def _run(package: Path, tree: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    around = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "SOLTI_STORE"))}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**around, "PYTHONPATH": str(package), **variables},
        check=False,
        capture_output=True,
        text=True,
    )
