"""Ed25519 as this network judges it: RFC 8032's own vectors, Wycheproof's, and the edge cases of ed25519-speccheck.

libsodium's verdict, through PyNaCl, is the rule (docs/protocol.md). A library that judges one of these differently
would split the network.
"""

from typing import Any

import pytest
from nacl.signing import SigningKey

from bflnode.consensus.keys import SecretKey, is_signed
from bflnode.consensus.types import AccountId, Signature
from tests.conformance.vectors import load_vectors

RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
]
"""Section 7.1: seed, public key, message, signature. The one of 1,023 bytes is left out: it is two pages long."""


@pytest.mark.parametrize(("seed", "account", "message", "signature"), RFC_8032)
def test_signatures_are_those_of_rfc_8032(seed: str, account: str, message: str, signature: str) -> None:
    """Ed25519 is deterministic: key and signature are given to the bit."""
    key = SecretKey.from_seed(bytes.fromhex(seed))
    made = SigningKey(key.seed).sign(bytes.fromhex(message)).signature
    assert (key.account.hex(), made.hex()) == (account, signature)
    assert is_signed(key.account, bytes.fromhex(message), Signature(made))


def vector_is_signed(key: str, message: str, signature: str) -> bool:
    return is_signed(AccountId(bytes.fromhex(key)), bytes.fromhex(message), Signature(bytes.fromhex(signature)))


def test_wycheproof_signatures_get_the_published_verdicts() -> None:
    groups: list[dict[str, Any]] = load_vectors("wycheproof_ed25519.json")["testGroups"]
    cases = [(group["publicKey"]["pk"], test) for group in groups for test in group["tests"]]
    wrong = [
        test["tcId"]
        for key, test in cases
        if vector_is_signed(key, test["msg"], test["sig"]) != (test["result"] == "valid")
    ]
    assert (len(cases), wrong) == (151, [])


def test_verdicts_on_the_edge_cases_that_implementations_disagree_about_never_change() -> None:
    """A change here, by another libsodium for instance, splits the network: nodes would disagree about blocks.

    Of the twelve cases of ed25519-speccheck ("Taming the many EdDSAs", Chalkias et al. 2020) only number 3 is
    accepted: key and R of mixed order, both equations hold. Rejected are small-order keys (0, 1) and R (2), what only
    the equation with cofactor accepts (4, 5), s not below the group order (6, 7), second encodings of R (8, 9) and of
    the key (10, 11).
    """
    cases = load_vectors("ed25519_speccheck.json")
    accepted = [
        number
        for number, case in enumerate(cases)
        if vector_is_signed(case["pub_key"], case["message"], case["signature"])
    ]
    assert (len(cases), accepted) == (12, [3])
