"""What the tests of the doctor share."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli_run import environment
from support import connect

from solti_store import DoctorLimits, TaskStore

if TYPE_CHECKING:
    from solti_store import Diagnosis, Finding


def diagnose(url: str, **limits: Any) -> Diagnosis:
    """What ails a store, by these limits."""
    with TaskStore.open(url) as store:
        return store.doctor(limits=DoctorLimits(**limits))


def found(url: str, code: str, subject: str = "", **limits: Any) -> list[Finding]:
    """The findings of a code whose subject begins so."""
    return [one for one in diagnose(url, **limits).findings if one.code == code and one.subject.startswith(subject)]


def the(url: str, code: str, subject: str = "", **limits: Any) -> Finding:
    """The only one."""
    (one,) = found(url, code, subject, **limits)
    return one


def mend(url: str, finding: Finding) -> None:
    """Do what a finding says, as an operator would who pastes it."""
    if finding.remedy[0].isupper():
        with connect(url) as connection:
            for statement in finding.remedy.partition("  -- ")[0].split(";"):
                if statement.strip():
                    connection.execute(statement.encode())
        return
    words = shlex.split(finding.remedy, comments=True)
    given = {}
    if words[0] == "env":
        name, value = words[1].split("=", 1)
        given, words = {name: value}, words[2:]
    if words[0] == "python":
        words[0] = sys.executable
    else:
        words[:1] = [sys.executable, "-m", words[0].replace("solti-store", "solti_store.cli")]
    root = str(Path(__file__).resolve().parent.parent)
    env = environment(url) | given | {"PYTHONPATH": os.environ.get("PYTHONPATH", root)}
    done = subprocess.run(words, env=env, capture_output=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr.decode()
