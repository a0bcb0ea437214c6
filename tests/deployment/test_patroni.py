"""Patroni's failovers, under load."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from deployment.load import load
from deployment.nodes import Ground
from deployment.patroni import Patroni

from solti_store import TaskStore
from solti_store.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.deployment("etcd", "patroni")


def test_nothing_acknowledged_is_lost_in_a_switchover_a_crash_and_the_loss_of_a_node(
    ground: Ground, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    cluster = Patroni(ground)
    try:
        upgrade(cluster.url)
        with TaskStore.open(cluster.url) as store, load(cluster.url, tmp_path) as running:
            running.flows(0)

            def pause(what: str, happens: Callable[[], None]) -> None:
                begun = time.monotonic()
                happens()
                running.flows(time.monotonic())
                tell(f"{what}: {running.longest_pause(begun - 1):.1f} s")

            pause("switchover", cluster.switch_over)
            cluster.wait_whole()
            pause("kill -9 of PostgreSQL", cluster.leader.kill_server)
            cluster.wait_whole()
            pause("kill -9 of Patroni and PostgreSQL", cluster.leader.kill)

            running.stop_creating()
            count = running.check_all_done(store)
            answers = running.answers()
        tell(f"{count} acknowledged, none is lost, {len(answers) - count} were of unknown outcome or refused")
    finally:
        for member in cluster.members:
            member.end()
