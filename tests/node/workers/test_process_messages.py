"""Messages between our own processes: whatever the cuts of the stream, and what isn't a message."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bflnode.node.workers.process_messages import MAX_MESSAGE_BYTES, FrameReader, ProcessMessageError, ProcessMessages
from bflnode.node.workers.worker_protocol import (
    WORKER_MESSAGES,
    Hello,
    JobDone,
    MatrixJob,
    PredictResult,
    ProbeSamples,
    Progress,
    PublicProbe,
    RunJob,
    TrainJob,
    UnsettledJob,
    UnsettledResult,
    WorkerMessage,
)

MESSAGES: list[WorkerMessage] = [
    Hello(42),
    RunJob(1, TrainJob("mlp/1x8x8/10", "/a", "/b", "/c", epochs=3, learning_rate=0.01)),
    RunJob(2, MatrixJob("mlp/1x8x8/10", ("/a", "/b"), PublicProbe("/p", b"\x00\xff", 16))),
    RunJob(3, UnsettledJob(MatrixJob("mlp/1x8x8/10", ("/a", "/b"), ProbeSamples("/p", 32)), b"\x00\x01", 10)),
    JobDone(3, UnsettledResult(b"\x01")),
    Progress(2, 0.5, "half"),
    JobDone(2, PredictResult((1, 0), ((0.25, 0.75), (1.0, 0.0)))),
]


@given(cuts=st.lists(st.integers(0, 2000), max_size=12))
def test_messages_survive_any_cuts_of_the_stream(cuts: list[int]) -> None:
    stream = b"".join(map(WORKER_MESSAGES.encode, MESSAGES))
    bounds = sorted({0, len(stream), *(cut % len(stream) for cut in cuts)})
    reader = FrameReader(WORKER_MESSAGES)
    received = [message for start, end in pairwise(bounds) for message in reader.feed(stream[start:end])]

    assert received == MESSAGES


def test_announced_length_beyond_the_limit_is_refused_before_it_is_read() -> None:
    reader = FrameReader(WORKER_MESSAGES)
    with pytest.raises(ProcessMessageError, match="announced"):
        list(reader.feed((MAX_MESSAGE_BYTES + 1).to_bytes(4, "big")))


def test_message_beyond_the_limit_is_not_sent() -> None:
    with pytest.raises(ProcessMessageError, match="at most"):
        WORKER_MESSAGES.encode(Progress(1, 0.5, "x" * MAX_MESSAGE_BYTES))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x01",
        b"\x81\xa4type\xa7Unknown",
        b"\x81\xa4type\xa5Hello",
        b"\x82\xa4type\xa5Hello\xa5other\x01",
        b"\x81\xa5other\x01",
        WORKER_MESSAGES.encode(Hello(1))[4:] + b"\x00",
    ],
)
def test_bytes_that_are_no_message_are_refused(body: bytes) -> None:
    with pytest.raises(ProcessMessageError):
        WORKER_MESSAGES.decode(body)


def test_message_of_another_socket_is_refused() -> None:
    only_hello: ProcessMessages[Hello] = ProcessMessages(Hello)
    with pytest.raises(ProcessMessageError):
        only_hello.decode(WORKER_MESSAGES.encode(Progress(1, 0.5, ""))[4:])
