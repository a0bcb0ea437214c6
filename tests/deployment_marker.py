"""The marker `deployment`: tests with programs that no wheel of ours brings.

`deployment("etcd", "patroni")` names them. Where one is missing the test is left out, and the header says so; asked for
explicitly (`-m deployment`, or SOLTI_STORE_DEPLOYMENT=1) it fails, and says what to install.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKER = "deployment"
VARIABLE = "SOLTI_STORE_DEPLOYMENT"

# By program: what installs it.
INSTALL = {
    "docker-compose": "apt-get install docker-compose (of Debian trixie: the plugin of Docker)",
    "etcd": "apt-get install etcd-server",
    "patroni": "pip install 'patroni[etcd3,psycopg3]' 'psycopg[binary]' in an environment of its own, which the system"
    " user postgres can reach, and SOLTI_STORE_TEST_PATRONI=ENVIRONMENT/bin",
    "pgbouncer": "apt-get install pgbouncer",
}
_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/libexec/docker/cli-plugins", "/usr/lib/docker/cli-plugins")


def find(program: str) -> str | None:
    """Where the program is."""
    folders = [os.environ.get("SOLTI_STORE_TEST_PATRONI", ""), os.environ.get("PATH", ""), *_FOLDERS]
    return shutil.which(program, path=os.pathsep.join(filter(None, folders)))


def program(name: str) -> str:
    """Where the program is; the test fails without it."""
    found = find(name)
    if found is None:
        pytest.fail(f"{name} is not installed: {INSTALL[name]}", pytrace=False)
    return found


def is_asked_for(config: pytest.Config) -> bool:
    """Whether somebody wants these tests, and not just all that can be run."""
    return MARKER in config.option.markexpr or os.environ.get(VARIABLE, "") not in ("", "0")


def header(config: pytest.Config) -> list[str]:
    """The line that says what is left out."""
    missing = [name for name in INSTALL if find(name) is None]
    if not missing:
        return []
    fate = "fail" if is_asked_for(config) else f"are left out ({VARIABLE}=1 has them fail instead)"
    return [f"deployment: {', '.join(missing)} not installed; tests that need them {fate}"]


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what cannot run here, unless somebody asked for it."""
    if is_asked_for(config):
        return
    out = [item for item in items if any(find(name) is None for name in _needs(item))]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


def require(item: pytest.Item) -> None:
    """Fail a test whose programs are missing."""
    for name in _needs(item):
        program(name)


def told(reports: list[pytest.TestReport]) -> Iterator[str]:
    """What the tests had to tell, by the fixture `tell`."""
    for report in reports:
        for name, line in report.user_properties:
            if name == MARKER:
                yield f"{report.nodeid.rpartition('::')[2]}: {line}"


def _needs(item: pytest.Item) -> list[str]:
    return [name for marker in item.iter_markers(MARKER) for name in marker.args]
