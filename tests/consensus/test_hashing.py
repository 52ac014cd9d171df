"""Tagged hashes: the bytes that go in, and that tags keep kinds of things apart."""

from hashlib import sha256

from bflnode.consensus.hashing import tagged_hash


def test_domain_tag_and_zero_byte_come_before_the_parts() -> None:
    assert tagged_hash("block", b"ab", b"c") == sha256(b"bfl1:block\0abc").digest()


def test_tag_and_content_cannot_be_mistaken_for_each_other() -> None:
    assert len({tagged_hash("tx", b"idx"), tagged_hash("txid", b"x"), tagged_hash("txidx")}) == 3
