"""What any user of this machine could send to the RPC port."""

import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from bflnode.node.configuration import load_configuration
from bflnode.node.node import open_node
from bflnode.node.rpc.calls import INSPECTIONS
from bflnode.node.rpc.client import RpcClient
from bflnode.node.rpc.methods import RpcMethods
from bflnode.node.rpc.refusals import UnreachableError
from tests.node.rpc.answering import answering
from tests.node.rpc.test_server import two_accounts


async def said(served: int, sent: bytes) -> bytes:
    """All that comes back before the node ends the connection, or is silent."""
    answer = b""
    async with await trio.open_tcp_stream("127.0.0.1", served) as stream:
        with trio.move_on_after(0.5), suppress(trio.BrokenResourceError):
            await stream.send_all(sent)
            while piece := await stream.receive_some():
                answer += piece
    return answer


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NO_SETTINGS = b"\0\0\0\4\0\0\0\0\0"


async def test_nobody_is_spoken_to_in_http_2(served: int) -> None:
    """A connection then has a hundred requests, and held 120 MB of answers that nobody read, as long as it liked."""
    assert (await said(served, PREFACE + NO_SETTINGS)).startswith(b"HTTP/1.1 404 ")
    upgrade = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: \r\n"
    answer = await said(served, b"GET /livez HTTP/1.1\r\nhost: localhost\r\n" + upgrade + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\nok\n")


JSON = b"content-type: application/json\r\n"
ODD_REQUESTS = (
    *(
        method + b" / HTTP/1.1\r\nhost: localhost\r\n\r\n"
        for method in (b"TRACE", b"DELETE", b"OPTIONS", b"QUERY", b"post")
    ),
    b"CONNECT localhost:1 HTTP/1.1\r\nhost: localhost:1\r\n\r\n",
    b"GET http://localhost/livez HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET //%00/../livez?" + b"&" * 4_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nhost: [::1\r\n\r\n",
    b"GET /livez HTTP/1.0\r\n\r\n",
    b"GET /livez HTTP/9.9\r\nhost: localhost\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: localhost\r\n" + JSON + b"content-length: 1\r\ncontent-length: 2\r\n\r\n{}",
    b"POST / HTTP/1.1\r\nhost: localhost\r\n" + JSON + b"content-length: -1\r\n\r\n{}",
    b"POST / HTTP/1.1\r\nhost: localhost\r\n"
    + JSON
    + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: localhost\r\n" + JSON + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
    b"POST / HTTP/1.1\r\nhost: localhost\r\n"
    + JSON
    + b"transfer-encoding: chunked\r\n\r\n"
    + b"1\r\n[\r\n" * 20_000
    + b"0\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: localhost\r\n" + JSON + b"content-length: 4\r\n\r\n\xff\xfe{\0",
    b"GET /livez HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 2_000 + b"\r\n",
)


async def test_odd_requests_get_an_answer_or_an_end_and_trouble_nobody_else(
    served: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(sent: bytes) -> None:
        assert (await said(served, sent))[:9] in (b"", b"HTTP/1.1 ")

    async with trio.open_nursery() as nursery:
        for sent in ODD_REQUESTS:
            nursery.start_soon(ask, sent)
    assert (await said(served, b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR", "CRITICAL")]


async def test_callers_of_what_is_slow_leave_half_of_the_time_to_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty-four that listed the models of twenty rounds, over and over, had a block of their node take 25 s."""
    looks: list[tuple[float, float]] = []

    def slow(_: Any) -> None:
        began_s = trio.current_time()
        time.sleep(0.01)
        looks.append((began_s, trio.current_time()))

    monkeypatch.setitem(INSPECTIONS, "models", slow)
    home, _ = two_accounts(tmp_path / "asked")
    async with open_node(home, load_configuration(home)) as node:
        methods = RpcMethods(node, "")
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(methods.call, "models", {})
    assert len(looks) == 16
    assert all(begun - ended >= ended - began for (began, ended), (begun, _) in pairwise(looks))


@pytest.mark.parametrize(
    "body",
    [
        *(b"{}", b"[]", b"7", b"null", b'{"error":1}', b'{"error":{}}', b'{"error":{"code":"x","message":"y"}}'),
        *(b'{"error":{"code":1}}', b"[" * 100_000, b'{"result":' + b"9" * 5_000 + b"}", b"\xff"),
    ],
)
def test_whatever_else_answers_under_the_address_of_a_node_is_told_in_words(body: bytes) -> None:
    with answering(body) as url, RpcClient(url) as client, pytest.raises(UnreachableError):
        client.call("status")
