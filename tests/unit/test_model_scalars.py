"""Identities, times and constants."""

import copy
import pickle
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from strategies import NAME_CHARS

from solti_store import model
from solti_store.model import AgentId, Invalid, Slot, TaskId, TaskSpec, TaskStatus, Timeout, Timestamp
from solti_store.model.scalars import U64_MAX

IDENTITIES: list[tuple[type[Slot | TaskId | AgentId], str, int]] = [
    (Slot, "slot", 64),
    (TaskId, "task_id", 256),
    (AgentId, "agent_id", 128),
]


def test_constants() -> None:
    assert (model.DEFAULT_LIMIT, model.MAX_LIMIT) == (100, 1000)
    assert (model.SLOT_MAX_LEN, model.TASK_ID_MAX_LEN, model.AGENT_ID_MAX_LEN) == (64, 256, 128)
    assert model.MAX_SCRIPT_BODY_BYTES == 2097152


@pytest.mark.parametrize(("identity", "what", "max_len"), IDENTITIES)
def test_identity_rules(identity: type[Slot], what: str, max_len: int) -> None:
    for legal in ("a", "-", "_", "..x", "...", ".a", "a.", "A-Z_0.9", "x" * max_len):
        assert identity(legal) == legal
    allowed = "(allowed: [A-Za-z0-9._-])"
    for text, problem in [
        ("", "must not be empty"),
        ("x" * (max_len + 1), f"length {max_len + 1} exceeds max {max_len}"),
        # Length is counted in bytes, and looked at before the characters.
        ("é" * max_len, f"length {2 * max_len} exceeds max {max_len}"),
        ("x" * (max_len - 1) + " ", f"contains forbidden byte 0x20 at position {max_len - 1} {allowed}"),
        (".", "cannot be '.' or '..'"),
        ("..", "cannot be '.' or '..'"),
        ("a b", f"contains forbidden byte 0x20 at position 1 {allowed}"),
        ("ab\n", f"contains forbidden byte 0x0A at position 2 {allowed}"),
        ("a/b", f"contains forbidden byte 0x2F at position 1 {allowed}"),
        ("a\0", f"contains forbidden byte 0x00 at position 1 {allowed}"),
        ("aé", f"contains forbidden byte 0xC3 at position 1 {allowed}"),
        ("\ud800", f"contains forbidden byte 0xED at position 0 {allowed}"),
        ("٣", f"contains forbidden byte 0xD9 at position 0 {allowed}"),
    ]:
        with pytest.raises(Invalid) as caught:
            identity(text)
        assert str(caught.value) == f"invalid model: {what} {problem}"
    for wrong in (None, 5, b"a", ["a"]):
        with pytest.raises(Invalid, match=f"{what} must be a string"):
            identity(wrong)  # type: ignore[arg-type]


@given(st.text(st.sampled_from(NAME_CHARS + " /é\0\n"), max_size=70))
def test_a_field_takes_what_the_constructor_takes(text: str) -> None:
    # Schema and constructor check on different paths.
    outcomes: list[str] = []
    for make in (Slot, TypeAdapter(Slot).validate_python):
        try:
            outcomes.append(repr(make(text)))
        except ValueError as error:
            found = re.search(r"slot [^[]+", str(error))
            outcomes.append(found[0].strip() if found else repr(error))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0] == f"Slot({text!r})" or outcomes[0].startswith("slot ")


def test_identities_are_strings() -> None:
    slot = Slot("build")
    assert Slot(slot) is slot
    assert repr(slot) == "Slot('build')"
    assert f"{slot}/{slot}" == "build/build"
    assert "build" in {slot, Slot("other")}
    assert Slot(TaskId("build")) == slot
    assert type(Slot(TaskId("build"))) is Slot
    for twin in (pickle.loads(pickle.dumps(slot)), copy.copy(slot), copy.deepcopy(slot)):
        assert (twin, type(twin)) == (slot, Slot)


@pytest.mark.parametrize("what", [Timeout, Timestamp])
@pytest.mark.parametrize(
    "value",
    [-1, U64_MAX + 1, 10**5000, True, 5.0, "5", None],
    ids=["negative", "65-bit", "huge", "bool", "float", "text", "none"],
)
def test_milliseconds_are_unsigned_64_bit_integers(what: type[Timeout], value: Any) -> None:
    with pytest.raises(Invalid, match="must be an integer from 0 to"):
        what(value)


def test_timeout() -> None:
    timeout = Timeout(5000)
    assert str(timeout) == f"{timeout}" == "5000ms"
    assert repr(timeout) == "Timeout(5000)"
    assert timeout == 5000
    assert timeout.seconds == 5.0
    assert Timeout(U64_MAX) == U64_MAX
    for twin in (pickle.loads(pickle.dumps(timeout)), copy.deepcopy(timeout)):
        assert (twin, type(twin)) == (timeout, Timeout)
    with pytest.raises(Invalid) as caught:
        Timeout(0)
    assert str(caught.value) == "invalid model: timeout must be greater than zero"


def test_timeout_from_timedelta() -> None:
    assert Timeout.from_timedelta(timedelta(minutes=1, microseconds=999)) == 60_000
    for short in (timedelta(microseconds=999), timedelta(0), timedelta(days=-1)):
        with pytest.raises(Invalid):
            Timeout.from_timedelta(short)


@given(st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.timezones()))  # noqa: DTZ001 - hypothesis adds zones
def test_timestamps_truncate_to_milliseconds(moment: datetime) -> None:
    if moment < datetime(1970, 1, 1, tzinfo=UTC):
        return
    back = Timestamp.from_datetime(moment).datetime
    assert timedelta(0) <= moment - back < timedelta(milliseconds=1)
    assert back.tzinfo is UTC
    assert Timestamp.from_datetime(back) == Timestamp.from_datetime(moment)


def test_timestamp_edges() -> None:
    assert Timestamp.from_datetime(datetime(2024, 4, 10, 12, 0, 0, 999_999, tzinfo=UTC)) == 1712750400999
    assert Timestamp.from_datetime(datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))) == 0
    assert Timestamp(0).datetime == datetime(1970, 1, 1, tzinfo=UTC)
    assert Timestamp(253402300799999).datetime.year == 9999
    assert repr(Timestamp(5)) == "Timestamp(5)"
    for late in (253402300800000, U64_MAX):
        with pytest.raises(Invalid, match="past the year 9999"):
            _ = Timestamp(late).datetime
    with pytest.raises(Invalid, match="time zone"):
        Timestamp.from_datetime(datetime(2024, 1, 1))  # noqa: DTZ001 - that is the fault
    for early in (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)):
        with pytest.raises(Invalid, match="before 1970"):
            Timestamp.from_datetime(early)


def test_fields_hold_the_exact_types() -> None:
    spec = TaskSpec.builder("a", model.Embedded(), 5).build()
    assert (type(spec.slot), type(spec.timeout)) == (Slot, Timeout)
    meta = model.ObjectMeta.from_json('{"id":"a","resourceVersion":1,"createdAt":5,"updatedAt":6}')
    assert (type(meta.id), type(meta.created_at), type(meta.updated_at)) == (TaskId, Timestamp, Timestamp)
    assert type(meta.to_dict()["createdAt"]) is int
    assert TaskStatus.from_json('{"phase":"failed","attempt":0}').phase is model.TaskPhase.FAILED
