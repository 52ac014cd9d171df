import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from bflnode.consensus.keys import account_text
from bflnode.consensus.task import MAX_PHASE_MS
from bflnode.consensus.transaction import Transaction, Transfer, sign_transaction
from bflnode.consensus.types import Signature
from bflnode.node.configuration import load_configuration
from bflnode.node.home import Home, HomeError
from bflnode.node.node import Node, open_node
from bflnode.node.rpc import server as rpc
from bflnode.node.rpc.client import RpcClient
from bflnode.node.rpc.server import INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, NOT_FOUND, PARSE_ERROR, REFUSED
from tests.consensus.harness import Harness
from tests.node.stored_homes import home_with

BALANCE = 1_000


@dataclass
class Running:
    """A running node with its RPC, asked over loopback."""

    node: Node
    url: str
    http: httpx.AsyncClient

    async def post(self, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.http.post(self.url, content=content, headers={"content-type": "application/json", **headers})

    async def call(self, method: str, **params: Any) -> Any:
        answer = await self.post({"jsonrpc": "2.0", "id": 7, "method": method, "params": params})
        assert answer.status_code == 200
        assert answer.json()["id"] == 7
        return answer.json()

    async def result(self, method: str, **params: Any) -> Any:
        answer = await self.call(method, **params)
        assert "error" not in answer, answer
        return answer["result"]

    async def included(self, sent: Transaction) -> Any:
        """The transaction once a block has it."""
        with trio.fail_after(20):
            while True:
                changed = self.node.chain.changed
                found = await self.result("tx", reference=sent.id.hex())
                if found["status"] == "included":
                    return found
                await changed.wait()


def two_accounts(root: Path, actor: int = 0) -> tuple[Home, Harness]:
    """The home of one of two accounts, of which the first is the only validator: it needs nobody to make blocks."""
    harness = Harness(actors=2, stakes=(10,), deadlines={"registration_ms": MAX_PHASE_MS})
    return home_with(root, harness.genesis, harness.keys[actor]), harness


@asynccontextmanager
async def running(home: Home) -> AsyncIterator[Running]:
    async with open_node(home, load_configuration(home)) as node, trio.open_nursery() as nursery:
        url: str = await nursery.start(rpc.serve, node)
        nursery.start_soon(node.run)
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            yield Running(node, url, http)
        nursery.cancel_scope.cancel()


@pytest.fixture
def validator(tmp_path: Path) -> tuple[Home, Harness]:
    return two_accounts(tmp_path / "validator")


async def test_status_is_of_this_node_and_chain(validator: tuple[Home, Harness]) -> None:
    home, harness = validator
    async with running(home) as asked:
        status = await asked.result("status")
        wanted = {
            "chain_id": harness.genesis.chain_id.hex(),
            "node_id": str(asked.node.network.peer_id),
            "account": account_text(harness.account(0)),
            "balance": BALANCE,
            "running": True,
            "name": "tested",
            "rpc": asked.url,
            "peers": 0,
            "syncing": False,
        }
        assert {key: status[key] for key in wanted} == wanted


async def test_transfer_that_is_broadcast_ends_in_a_block(validator: tuple[Home, Harness]) -> None:
    home, harness = validator
    sent = harness.transfer(0, harness.account(1), 250)
    async with running(home) as asked:
        answer = await asked.result("broadcast_tx", transaction=sent.encoded.hex())
        assert answer == {"id": sent.id.hex(), "status": "waiting"}
        found = await asked.included(sent)
        block = await asked.result("block", reference=found["height"])
        assert [entry["id"] for entry in block["transactions"]] == [sent.id.hex()]
        receiver = await asked.result("account", reference=account_text(harness.account(1)))
        assert receiver["balance"] == BALANCE + 250
        own = await asked.result("account")
        assert (own["nonce"], own["next_nonce"]) == (1, 1)
        verification = await asked.result("verify", reexecute=True)
        assert (verification["is_valid"], verification["transactions"]) == (True, 1)
        assert verification["verified"] >= found["height"]


async def test_next_nonce_counts_what_waits(tmp_path: Path) -> None:
    home, harness = two_accounts(tmp_path / "client", actor=1)
    waiting = harness.transfer(1, harness.account(0), 1)
    async with running(home) as asked:
        await asked.result("broadcast_tx", transaction=waiting.encoded.hex())
        assert (await asked.result("account"))["next_nonce"] == 1
        assert (await asked.result("unconfirmed_txs"))["txs"][0]["id"] == waiting.id.hex()
        assert (await asked.result("tx", reference=waiting.id.hex()))["status"] == "waiting"


async def test_refused_transaction_names_the_reason(validator: tuple[Home, Harness]) -> None:
    home, harness = validator
    forged = replace(harness.transfer(0, harness.account(1), 1), signature=Signature(bytes(64)))
    poor = sign_transaction(harness.keys[0], harness.genesis.chain_id, Transfer(harness.account(1), BALANCE + 1))
    async with running(home) as asked:
        for transaction, reason in ((forged, "bad-signature"), (poor, "insufficient-funds")):
            error = (await asked.call("broadcast_tx", transaction=transaction.encoded.hex()))["error"]
            assert (error["code"], error["data"]) == (REFUSED, {"reason": reason})
        error = (await asked.call("broadcast_tx", transaction="0102"))["error"]
        assert (error["code"], error["data"]) == (REFUSED, {"reason": "malformed"})


@pytest.mark.parametrize(
    ("method", "params", "code", "message"),
    [
        ("nonsense", {}, METHOD_NOT_FOUND, "methods are"),
        ("__init__", {}, METHOD_NOT_FOUND, "methods are"),
        ("block", {"height": 1}, INVALID_PARAMS, "it takes reference"),
        ("block", {}, INVALID_PARAMS, "'reference' is missing"),
        ("blockchain", {"count": "many"}, INVALID_PARAMS, "of type str, not int"),
        ("blockchain", {"count": True}, INVALID_PARAMS, "of type bool, not int"),
        ("status", {"number": 1}, INVALID_PARAMS, "it takes none"),
        ("broadcast_tx", {"transaction": "xyz"}, INVALID_PARAMS, "not hexadecimal"),
        ("block", {"reference": 5000}, NOT_FOUND, "blocks"),
        ("account", {"reference": "ffffffff"}, NOT_FOUND, "there is no account"),
    ],
)
async def test_wrong_call_is_an_error_with_its_cause(
    validator: tuple[Home, Harness], method: str, params: dict[str, Any], code: int, message: str
) -> None:
    async with running(validator[0]) as asked:
        error = (await asked.call(method, **params))["error"]
        assert error["code"] == code
        assert message in error["message"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", PARSE_ERROR),
        (b"[" * 100_000, PARSE_ERROR),
        (b"\xff\xfe", PARSE_ERROR),
        ([{"jsonrpc": "2.0", "id": 1, "method": "status"}], INVALID_REQUEST),
        ("status", INVALID_REQUEST),
        ({"id": 1, "method": "status"}, INVALID_REQUEST),
        ({"jsonrpc": "2.0", "id": 1, "method": 5}, INVALID_REQUEST),
        ({"jsonrpc": "2.0", "id": {}, "method": "status"}, INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": NaN, "method": "status"}', INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": "\\ud800", "method": "none"}', METHOD_NOT_FOUND),
        ({"jsonrpc": "2.0", "id": 1, "method": "status", "params": [1]}, INVALID_PARAMS),
    ],
)
async def test_malformed_request_is_answered_with_its_code(
    validator: tuple[Home, Harness], body: Any, code: int
) -> None:
    async with running(validator[0]) as asked:
        answer = await asked.post(body)
        assert answer.status_code == 200
        assert answer.json()["error"]["code"] == code


async def test_notification_gets_no_answer(validator: tuple[Home, Harness]) -> None:
    async with running(validator[0]) as asked:
        answer = await asked.post({"jsonrpc": "2.0", "method": "status"})
        assert (answer.status_code, answer.content) == (204, b"")


async def test_request_that_is_too_large_is_refused(validator: tuple[Home, Harness]) -> None:
    async with running(validator[0]) as asked:
        answer = await asked.post(b" " * (rpc.MAX_REQUEST_BYTES + 1))
        assert answer.status_code == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example:26657"}, 403),
        ({"host": "[127.0.0.1:26657"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:26657"}, 200),
        ({"host": "[::1]:26657"}, 200),
    ],
)
async def test_what_a_page_of_another_site_could_send_is_refused(
    validator: tuple[Home, Harness], headers: dict[str, str], status: int
) -> None:
    async with running(validator[0]) as asked:
        answer = await asked.post({"jsonrpc": "2.0", "id": 1, "method": "status"}, **headers)
        assert answer.status_code == status


async def test_page_of_the_node_itself_may_ask(validator: tuple[Home, Harness]) -> None:
    async with running(validator[0]) as asked:
        answer = await asked.post({"jsonrpc": "2.0", "id": 1, "method": "status"}, origin=asked.url)
        assert answer.status_code == 200


async def test_node_that_has_all_it_needs_is_live_and_ready(validator: tuple[Home, Harness]) -> None:
    async with running(validator[0]) as asked:
        for path in ("/livez", "/readyz"):
            assert (await asked.http.get(asked.url + path)).status_code == 200
        assert await asked.result("health") == {"ready": True, "reasons": []}


async def test_node_without_peers_is_live_but_not_ready(tmp_path: Path) -> None:
    home, _ = two_accounts(tmp_path / "client", actor=1)
    async with running(home) as asked:
        assert (await asked.http.get(asked.url + "/livez")).status_code == 200
        ready = await asked.http.get(asked.url + "/readyz")
        assert (ready.status_code, "no peer is connected" in ready.text) == (503, True)
        assert (await asked.result("health"))["ready"] is False


async def test_metrics_are_readable_by_prometheus(validator: tuple[Home, Harness]) -> None:
    home, harness = validator
    async with running(home) as asked:
        sent = harness.transfer(0, harness.account(1), 1)
        await asked.result("broadcast_tx", transaction=sent.encoded.hex())
        height = (await asked.included(sent))["height"]
        text = (await asked.http.get(asked.url + "/metrics")).text
        samples = {
            (sample.name, sample.labels.get("phase")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert samples["bflnode_height", None] >= height
        assert samples["bflnode_balance_microtokens", None] == BALANCE - 1
        assert samples["bflnode_phase", "idle"] == 1
        assert samples["bflnode_phase", "commit"] == 0


async def test_consensus_state_names_the_leader(validator: tuple[Home, Harness]) -> None:
    home, harness = validator
    async with running(home) as asked:
        state = await asked.result("consensus_state")
        assert state["leader"] == account_text(harness.account(0))
        assert state["height"] == asked.node.chain.height + 1


async def test_port_that_is_taken_is_refused_with_what_to_do(tmp_path: Path, validator: tuple[Home, Harness]) -> None:
    async with running(validator[0]) as asked:
        port = int(asked.url.rsplit(":", 1)[1])
        harness = validator[1]
        other = home_with(tmp_path / "other", harness.genesis, harness.keys[1], rpc={"port": port})
        async with open_node(other, load_configuration(other)) as node:
            with pytest.raises(HomeError, match="--rpc-port"):
                await rpc.serve(node)


async def test_connections_that_clients_have_closed_take_no_places(tmp_path: Path) -> None:
    """A hundred commands in a row, each with a connection of its own."""
    home, _ = two_accounts(tmp_path / "home")
    async with open_node(home, load_configuration(home)) as node, trio.open_nursery() as nursery:
        url: str = await nursery.start(rpc.serve, node)

        def ask(times: int) -> list[int]:
            heights = []
            for _ in range(times):
                with RpcClient(url) as client:
                    heights.append(client.call("head")["height"])
            return heights

        assert len(await trio.to_thread.run_sync(ask, 2 * rpc.MAX_CONNECTIONS)) == 2 * rpc.MAX_CONNECTIONS
        nursery.cancel_scope.cancel()
