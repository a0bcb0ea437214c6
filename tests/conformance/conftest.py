"""Both stores, for every test of the suite."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from support import BlockingStore

from solti_store import TaskStore

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["sync", "async"])
def store(request: pytest.FixtureRequest, database_url: str) -> Iterator[TaskStore]:
    """The store under test; the async one behind plain calls, so that its tests read the same."""
    opened = TaskStore.open(database_url) if request.param == "sync" else cast("TaskStore", BlockingStore(database_url))
    yield opened
    opened.close()
