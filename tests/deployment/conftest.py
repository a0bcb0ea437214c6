"""What the deployment tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from deployment.nodes import Ground, ground
from deployment_marker import MARKER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(name="ground")
def fixture_ground() -> Iterator[Ground]:
    """What the test's servers stand on."""
    with ground() as made:
        yield made


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Prints a line at the end of the run."""
    return lambda line: record_property(MARKER, line)
