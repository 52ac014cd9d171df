"""Every record of the consensus package: its bytes come back, and no other bytes crash or pass for it."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bflnode.consensus.encoding import decode, encode
from bflnode.consensus.genesis import Genesis
from bflnode.consensus.record_json import format_record, parse_record
from bflnode.consensus.records import Record
from bflnode.consensus.rejection import Rejection
from tests.properties.strategies import canonical_values, record_types, records

LIMIT = 1024 * 1024
RECORDS = pytest.mark.parametrize("record_type", record_types(), ids=lambda kind: kind.__name__)
FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
MANY = settings(max_examples=300, deadline=None)


def decoded(record_type: type[Record], data: bytes) -> Record | None:
    """The record, or None where it is rejected; anything but a Rejection fails the test."""
    try:
        return record_type.from_bytes(data, max_bytes=LIMIT)
    except Rejection:
        return None


@RECORDS
@FEW
@given(data=st.data())
def test_every_record_comes_back_from_its_bytes(record_type: type[Record], data: st.DataObject) -> None:
    record = data.draw(records(record_type))
    assert decoded(record_type, record.to_bytes()) == record


@RECORDS
@FEW
@given(data=st.data())
def test_mutated_bytes_are_rejected_or_another_record_with_exactly_those_bytes(
    record_type: type[Record], data: st.DataObject
) -> None:
    mutated = bytearray(data.draw(records(record_type)).to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(mutated) - 1))
        mutated[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        if not mutated:
            break
    record = decoded(record_type, bytes(mutated))
    assert record is None or record.to_bytes() == bytes(mutated)


@RECORDS
@FEW
@given(value=canonical_values)
def test_any_canonical_value_is_rejected_or_a_record_with_exactly_its_bytes(
    record_type: type[Record], value: int
) -> None:
    data = encode(value)
    record = decoded(record_type, data)
    assert record is None or record.to_bytes() == data


@MANY
@given(value=canonical_values)
def test_canonical_values_come_back(value: int) -> None:
    assert decode(encode(value), max_bytes=LIMIT) == value


@MANY
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_are_rejected_or_canonical(data: bytes) -> None:
    try:
        value = decode(data, max_bytes=LIMIT)
    except Rejection:
        return
    assert encode(value) == data


@FEW
@given(genesis=records(Genesis))
def test_every_genesis_comes_back_from_its_json(genesis: Genesis) -> None:
    assert parse_record(Genesis, format_record(genesis), "genesis") == genesis
