"""JSON of records: the forms that a genesis doesn't have."""

import json
from dataclasses import dataclass
from typing import Annotated

import pytest

from bflnode.consensus.record_json import RecordJsonError, format_record, parse_record, record_to_json
from bflnode.consensus.records import Record
from bflnode.consensus.types import AtMost, Between


@dataclass(frozen=True, slots=True)
class Sample(Record):
    flag: bool
    data: Annotated[bytes, AtMost(4)]
    maybe: Annotated[int, Between(0, 9)] | None
    numbers: Annotated[tuple[Annotated[int, Between(-(2**63), 2**63 - 1)], ...], AtMost(3)]


@pytest.mark.parametrize(
    ("sample", "shown"),
    [
        (Sample(True, b"\x01\xff", None, ()), {"flag": True, "data": "01ff", "maybe": None, "numbers": []}),
        (
            Sample(False, b"", 5, (-(2**63), 2**63 - 1)),
            {"flag": False, "data": "", "maybe": 5, "numbers": [-(2**63), 2**63 - 1]},
        ),
    ],
)
def test_each_form_is_written_and_comes_back(sample: Sample, shown: dict[str, object]) -> None:
    assert record_to_json(sample) == shown
    assert parse_record(Sample, format_record(sample), "sample") == sample


@pytest.mark.parametrize(
    ("change", "path", "fault"),
    [
        ({"flag": 1}, "sample.flag", "expected true or false, found the number 1"),
        ({"data": "0"}, "sample.data", "0 is not hex digits"),
        ({"data": "0 1 "}, "sample.data", "0 1  is not hex digits"),
        ({"data": "٠٠"}, "sample.data", "٠٠ is not hex digits"),
        ({"data": "0102030405"}, "sample.data", "size 5 is out of bounds"),
        ({"data": []}, "sample.data", "expected a string of hex digits, found an array"),
        ({"maybe": 10}, "sample.maybe", "value 10 is out of bounds"),
        ({"maybe": {}}, "sample.maybe", "expected an integer, found an object"),
        ({"numbers": [1, 2, 3, 4]}, "sample.numbers", "items 4 is out of bounds"),
        ({"numbers": [1, False]}, "sample.numbers[1]", "expected an integer, found false"),
        ({"numbers": [2**63]}, "sample.numbers[0]", "value 9223372036854775808 is out of bounds"),
        ({"numbers": [10**20]}, "sample.numbers[0]", "expected an integer, found the number 100000000000000000000"),
    ],
)
def test_what_would_not_have_been_written_is_refused(change: dict[str, object], path: str, fault: str) -> None:
    shown = {**record_to_json(Sample(True, b"", None, ())), **change}
    with pytest.raises(RecordJsonError) as refused:
        parse_record(Sample, json.dumps(shown), "sample")
    assert (refused.value.path, refused.value.fault) == (path, fault)
    assert str(refused.value) == f"{path}: {fault}; {refused.value.remedy}"
