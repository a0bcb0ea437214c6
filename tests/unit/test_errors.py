"""Errors travel: between processes, and as copies."""

from __future__ import annotations

import copy
import pickle
from datetime import timedelta

import pytest

from solti_store import (
    AgentLost,
    AlreadyExists,
    AlreadyRunning,
    Blocker,
    LeaseLost,
    LockTimeout,
    NotFound,
    SchemaMismatch,
    SoltiStoreError,
    VersionConflict,
)

ERRORS = [
    NotFound("a"),
    AlreadyExists("a"),
    AlreadyRunning("a", attempt=3),
    VersionConflict("a", expected=1, current=2),
    VersionConflict("a", expected=1, current=1),
    LeaseLost("a", attempt=1, current_attempt=2, holder="w"),
    LeaseLost("a", attempt=1, current_attempt=None, holder=None),
    AgentLost("w"),
    SchemaMismatch("too old", revision="solti_0001"),
    SchemaMismatch("none"),
    LockTimeout("s.t", waited=timedelta(seconds=3), blockers=(Blocker(7, "active", "SELECT 1", 2.5),)),
    LockTimeout(None, waited=timedelta(seconds=3), blockers=()),
]


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_an_error_survives_pickling_and_copying(error: SoltiStoreError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(twin), str(twin), vars(twin)) == (type(error), str(error), vars(error))
