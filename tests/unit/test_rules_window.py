"""Which code runs on which schema."""

from __future__ import annotations

import re

import pytest

from solti_store import SchemaMismatch
from solti_store.rules.window import Applied, Fit, Window

WINDOW = Window("solti_0004", "solti_0006")


@pytest.mark.parametrize(
    ("applied", "fit", "lags"),
    [
        (None, Fit.MISSING, True),
        (Applied("solti_0003", "solti_0002", "solti_0003"), Fit.BEHIND, True),
        (Applied("solti_0004", "solti_0003", "solti_0004"), Fit.FITS, True),
        (Applied("solti_0005", "solti_0004", "solti_0005"), Fit.FITS, True),
        (Applied("solti_0006", "solti_0006", "solti_0006"), Fit.FITS, False),
        (Applied("solti_0007", "solti_0006", "solti_0007"), Fit.FITS, False),
        (Applied("solti_0009", "solti_0006", "solti_0009"), Fit.FITS, False),
        (Applied("solti_0008", "solti_0007", "solti_0007"), Fit.AHEAD, False),
        (Applied("solti_0010", "solti_0009", None), Fit.AHEAD, False),
    ],
)
def test_how_code_and_schema_go_together(applied: Applied | None, fit: Fit, lags: bool) -> None:
    assert WINDOW.fit(applied) is fit
    assert WINDOW.lags(applied) is lags
    if fit is Fit.FITS:
        WINDOW.require(applied)
    else:
        with pytest.raises(SchemaMismatch, match="solti-store") as refusal:
            WINDOW.require(applied)
        assert refusal.value.revision == (applied.revision if applied else None)


@pytest.mark.parametrize(
    ("applied", "commands"),
    [
        (None, ["solti-store db upgrade"]),
        (Applied("solti_0003", "solti_0002", "solti_0003"), ["solti-store db upgrade"]),
        (
            Applied("solti_0008", "solti_0007", "solti_0007"),
            ["pip install --upgrade solti-store", "solti-store db downgrade solti_0007 -y"],
        ),
        (Applied("solti_0010", "solti_0009", None), ["pip install --upgrade solti-store"]),
    ],
)
def test_a_refusal_has_the_commands_to_run(applied: Applied | None, commands: list[str]) -> None:
    with pytest.raises(SchemaMismatch) as refusal:
        WINDOW.require(applied)
    assert re.findall(r"`([^`]*)`", str(refusal.value)) == commands
