"""What the races share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from solti_store import TaskStore

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def shared(database_url: str) -> Iterator[TaskStore]:
    """A store for sixteen threads."""
    with TaskStore.open(database_url, pool_size=8, max_overflow=8, max_slot_queue=10_000) as opened:
        yield opened
