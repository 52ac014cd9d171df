"""Argon2id, which turns a passphrase into the key of a key file (`node.protected_key`), against RFC 9106.

PyNaCl has no way to give the secret, the associated data and the four lanes of RFC 9106's own vector. So the vector is
checked with OpenSSL's implementation, and PyNaCl's against that one where both can be asked the same.
"""

import pytest
from nacl.pwhash import argon2id

RFC_9106 = "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"
"""Section 5.3: version 0x13, 32 KiB, 3 passes, 4 lanes, tag of 32 bytes."""

openssl = pytest.importorskip("cryptography.hazmat.primitives.kdf.argon2", reason="cryptography has no Argon2 here")


def test_openssl_gives_the_tag_of_rfc_9106() -> None:
    derive = openssl.Argon2id(
        salt=b"\x02" * 16, length=32, iterations=3, lanes=4, memory_cost=32, secret=b"\x03" * 8, ad=b"\x04" * 12
    )
    assert derive.derive(b"\x01" * 32).hex() == RFC_9106


@pytest.mark.parametrize(("passes", "memory_kib"), [(1, 8), (1, 1024), (3, 32), (4, 4096)])
@pytest.mark.parametrize("passphrase", [b"", b"\x01" * 32, b"correct horse battery staple", bytes(range(256))])
def test_libsodium_derives_the_same_key_as_openssl(passphrase: bytes, passes: int, memory_kib: int) -> None:
    salt = bytes(range(argon2id.SALTBYTES))
    other = openssl.Argon2id(salt=salt, length=32, iterations=passes, lanes=1, memory_cost=memory_kib)
    derived = argon2id.kdf(32, passphrase, salt, opslimit=passes, memlimit=memory_kib * 1024)
    assert derived == other.derive(passphrase)
