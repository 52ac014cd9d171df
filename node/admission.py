"""Admission credentials: the admission key's signature that lets an account in, as a file."""

import json
from pathlib import Path

from bflnode.consensus.genesis import Genesis
from bflnode.consensus.keys import account_text, admission_payload, verify
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.types import AccountId, Signature
from bflnode.storage.durable import write_durably

from .home import Home, HomeError, read_credential, read_secret_key


def sign_credential(admission_key: Path, genesis: Genesis, account: AccountId) -> Signature:
    """Sign an account in.

    Raises:
        HomeError: the key file is no admission key of this chain.
    """
    key = read_secret_key(admission_key)
    if key.account != genesis.admission_key:
        raise HomeError(f"{admission_key} is not the admission key of chain {genesis.chain_id.hex()[:16]}")
    return key.sign("admit", genesis.chain_id, admission_payload(account))


def credential_text(admission_key: Path, genesis: Genesis, account: AccountId) -> str:
    """The content of a new credential file.

    Raises:
        HomeError: the key file is no admission key of this chain.
    """
    return _text(account, sign_credential(admission_key, genesis, account))


def check_credential(file: Path, genesis: Genesis, account: AccountId) -> Signature:
    """Read a credential that must open this account on this chain.

    Raises:
        HomeError: unreadable, of another account or chain.
    """
    admitted, credential = read_credential(file)
    if admitted != account:
        raise HomeError(f"{file} admits account {account_text(admitted)}, this node's is {account_text(account)}")
    try:
        verify(genesis.admission_key, "admit", genesis.chain_id, admission_payload(account), credential)
    except Rejection as rejection:
        raise HomeError(
            f"{file} is not signed by the admission key of chain {genesis.chain_id.hex()[:16]}"
        ) from rejection
    return credential


def write_credential(home: Home, account: AccountId, credential: Signature) -> None:
    """Put a credential where the node finds it.

    Raises:
        HomeError: the file can't be written.
    """
    try:
        write_durably(home.admission_file, _text(account, credential).encode())
    except OSError as error:
        raise HomeError(f"cannot write {home.admission_file}: {error.strerror}") from error


def _text(account: AccountId, credential: Signature) -> str:
    return json.dumps({"account": account_text(account), "credential": credential.hex()}, indent=2) + "\n"
