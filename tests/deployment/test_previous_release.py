"""What is deployed now goes on working when the next release's migrations are applied."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from chaos.run import await_events, observe
from deployment.ahead import NEXT, write
from deployment.release import previous
from deployment.rolling import KIND, summary, waits
from sqlalchemy import make_url
from support import connect

from solti_store.migrate import upgrade
from solti_store.sql.revision import HEAD

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chaos.run import Crew

    from solti_store.embedded import EmbeddedServer

# What one store has to do, without the listings, which take a minute.
SUITE = [f"tests/conformance/test_store_{what}.py" for what in ("attempts", "slots", "tasks", "why")]


@pytest.mark.deployment
def test_the_previous_release_passes_its_tests_on_the_next_schema_while_it_is_in_use(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    release = previous(tmp_path)
    # Until a release after it has migrations of its own.
    versions, ahead = ([], HEAD) if release.head < HEAD else ([write(tmp_path)], NEXT)
    said = []

    def deploy(crew: Crew, _server: EmbeddedServer) -> Counter[str]:
        upgrade(crew.url, ahead, versions=versions)
        with connect(crew.url) as conn:
            conn.execute("CREATE DATABASE ahead")
        upgrade(make_url(crew.url).set(database="ahead"), ahead, versions=versions)
        tests = ["-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-k", "not async", *SUITE]
        done = release.run(*tests, SOLTI_STORE_TEST_URL=crew.url, SOLTI_STORE_TEST_TEMPLATE="ahead")
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout)
        await_events(crew, 100)
        return Counter(tests=int(re.findall(r"(\d+) passed", done.stdout)[0]))

    kind = dataclasses.replace(KIND, path=(release.package, release.tree / "tests"))
    report = observe(deploy, seed=5, size=4, kind=kind, revision=release.head)
    print(*said, summary(report))  # noqa: T201 - what it came by, when it fails
    record_property("deployment", f"{report.done['tests']} tests of {release.head} on {ahead}; {waits(report)}")
    assert [str(violation) for violation in report.violations] == []
    assert report.done["tests"] > 100
