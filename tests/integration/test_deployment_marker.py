"""Tests whose programs are missing: left out with a word, or failed when somebody asks for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1] / "deployment"


def run_pytest(url: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """On a machine where nothing is installed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "SOLTI"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *arguments],
        env=env | {"SOLTI_STORE_TEST_URL": url, "PATH": "", "SOLTI_STORE_TEST_PATRONI": "/nowhere"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_its_programs_a_test_is_left_out_and_the_header_says_so(database_url: str) -> None:
    done = run_pytest(database_url, "--collect-only", str(TESTS / "test_patroni.py"))
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "patroni not installed; tests that need them are left out" in done.stdout
    assert "1 deselected" in done.stdout


@pytest.mark.parametrize(("arguments", "asked"), [(("-m", "deployment"), ""), ((), "1")])
def test_asked_for_it_fails_and_says_what_to_install(database_url: str, arguments: tuple[str, ...], asked: str) -> None:
    done = run_pytest(database_url, str(TESTS / "test_patroni.py"), *arguments, SOLTI_STORE_DEPLOYMENT=asked)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "is not installed: " in done.stdout
    assert "1 error" in done.stdout
    assert "skipped" not in done.stdout
