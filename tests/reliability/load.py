"""Wallets that send transfers to a network without pause, and remember what was acknowledged.

A transfer counts as acknowledged once some node has said that a block has it: from then on it must never be missing. A
wallet gives its transaction to one random node; if no block has it in time, it gives the same one to another.
"""

import json
import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from bflnode.consensus.genesis import Genesis
from bflnode.consensus.keys import SecretKey, admission_payload
from bflnode.consensus.transaction import Admit, Transaction, Transfer, sign_transaction
from bflnode.node.home import Home, read_secret_key
from bflnode.node.rpc.client import RpcClient
from bflnode.node.rpc.reader import find_running
from bflnode.node.rpc.refusals import RpcError, UnreachableError
from bflnode.node.testnets.homes import STAKE, Testnet

WALLETS = 2

RESUBMIT_S = 2.0

INTERVAL_S = 0.15
"""Between questions whether a block has the transfers."""

RPC_TIMEOUT_S = 2.0


@dataclass(slots=True)
class Wallet:
    """One account.

    Attributes:
        sent: transfers made, whose nonces are 0, 1, 2, …; the last one may still wait.
        acknowledged: of these, how many a node has said to be in a block.
    """

    key: SecretKey
    sent: list[tuple[int, int]] = field(default_factory=list)
    acknowledged: int = 0


class Load:
    """Sends, each wallet in a thread of its own, until closed.

    Attributes:
        acknowledged: ids of transactions that some node said to be in a block, in order.
    """

    def __init__(self, testnet: Testnet, seed: int) -> None:
        genesis = testnet.homes[0].load_genesis()
        self.acknowledged: list[str] = []
        self._homes = testnet.homes
        self._genesis: Genesis = genesis
        self._wallets = [Wallet(_wallet_key(seed, number)) for number in range(WALLETS)]
        self._file = testnet.directory / "wallets.json"
        self._admission = read_secret_key(testnet.directory / "admission.key")
        self._is_closed = threading.Event()
        self._failure: BaseException | None = None
        self._saving = threading.Lock()
        self._restore()
        self._threads = [
            threading.Thread(target=self._run, args=(number, random.Random(seed + number)), name=f"wallet{number}")
            for number in range(WALLETS)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def balances(self) -> dict[bytes, tuple[int, int]]:
        """Balance and nonce by account, as they must be when everything that was sent is in the chain."""
        balances = {wallet.key.account: STAKE for wallet in self._wallets}
        for wallet in self._wallets:
            for receiver, amount in wallet.sent:
                balances[wallet.key.account] -= amount
                balances[self._wallets[receiver].key.account] += amount
        return {wallet.key.account: (balances[wallet.key.account], len(wallet.sent)) for wallet in self._wallets}

    def close(self) -> None:
        """Stop sending once everything that was sent is acknowledged."""
        self._is_closed.set()
        for thread in self._threads:
            thread.join()
        self._save()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, number: int, generator: random.Random) -> None:
        wallet = self._wallets[number]
        try:
            if not wallet.sent:
                self._deliver(self._admit(wallet.key), generator)
            while not self._is_closed.is_set():
                self._deliver(self._next(number, generator), generator)
                wallet.acknowledged = len(wallet.sent)
        except BaseException as failure:  # noqa: BLE001  # handed to whoever closes
            self._failure = failure

    def _admit(self, key: SecretKey) -> Transaction:
        chain_id = self._genesis.chain_id
        credential = self._admission.sign("admit", chain_id, admission_payload(key.account))
        return sign_transaction(key, chain_id, Admit(credential))

    def _next(self, number: int, generator: random.Random) -> Transaction:
        """A wallet's next transfer, to the next wallet; the last one, if it may not have arrived."""
        wallet = self._wallets[number]
        if wallet.acknowledged == len(wallet.sent):
            wallet.sent.append(((number + 1) % WALLETS, generator.randint(1, 1_000)))
            self._save()
        receiver, amount = wallet.sent[-1]
        body = Transfer(self._wallets[receiver].key.account, amount)
        return sign_transaction(wallet.key, self._genesis.chain_id, body, nonce=len(wallet.sent) - 1)

    def _deliver(self, transaction: Transaction, generator: random.Random) -> None:
        """Send a transaction until a node says that a block has it, however many of them die meanwhile."""
        submitted_s = -RESUBMIT_S
        while True:
            with suppress(UnreachableError, RpcError), _client(generator.choice(self._homes)) as client:
                if time.monotonic() - submitted_s >= RESUBMIT_S:
                    submitted_s = time.monotonic()
                    with suppress(RpcError):  # refused, because a block has it already
                        client.call("broadcast_tx", transaction=transaction.encoded.hex(), timeout_s=RPC_TIMEOUT_S)
                found = client.call("tx", reference=transaction.id.hex(), timeout_s=RPC_TIMEOUT_S)
                if found["status"] == "included":
                    self.acknowledged.append(transaction.id.hex())
                    return
            time.sleep(INTERVAL_S)

    def _save(self) -> None:
        content = {
            "acknowledged": self.acknowledged,
            "sent": [[wallet.sent, wallet.acknowledged] for wallet in self._wallets],
        }
        with self._saving:
            temporary = self._file.with_suffix(".new")
            temporary.write_text(json.dumps(content), encoding="utf-8")
            temporary.replace(self._file)

    def _restore(self) -> None:
        """Go on where an earlier run on the same network ended."""
        if not self._file.exists():
            return
        content = json.loads(self._file.read_text(encoding="utf-8"))
        self.acknowledged = content["acknowledged"]
        for wallet, (sent, acknowledged) in zip(self._wallets, content["sent"], strict=True):
            wallet.sent = [(receiver, amount) for receiver, amount in sent]
            wallet.acknowledged = acknowledged


def _wallet_key(seed: int, number: int) -> SecretKey:
    return SecretKey.from_seed(f"wallet {number} of {seed}".encode().ljust(32)[:32])


def _client(home: Home) -> RpcClient:
    """A connection to the node on a home.

    Raises:
        UnreachableError: none runs there, or it is starting.
    """
    running = find_running(home, patience_s=0)
    if running is None:
        raise UnreachableError(f"no node runs on {home.root}")
    return RpcClient(running.rpc)
