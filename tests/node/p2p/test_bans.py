"""Bans: how long they last, and that they outlive the process."""

from pathlib import Path

import pytest

from bflnode.node.p2p import bans as limits
from bflnode.node.p2p.bans import FIRST_BAN_MS, FOR_EVER_MS, FORGET_MS, MAX_BAN_MS, Ban, BanError, Bans, check_target

PEER = "12D3KooWGC6TvWhfajpgX6wvJHhYvKpTGRW4xGdjw3cPhZ7fkgcz"


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_ban_for_misbehaving_passes_and_the_next_is_longer(clock: Clock) -> None:
    bans = Bans(clock)
    lengths = []
    for _ in range(8):
        ban = bans.punish(PEER, "garbage")
        lengths.append(ban.until_ms - clock.now)
        assert PEER in bans
        clock.now = ban.until_ms
        assert PEER not in bans
    assert lengths[:3] == [FIRST_BAN_MS, 4 * FIRST_BAN_MS, 16 * FIRST_BAN_MS]
    assert lengths[-1] == MAX_BAN_MS


def test_after_a_quiet_day_a_ban_is_a_first_one_again(clock: Clock) -> None:
    bans = Bans(clock)
    bans.punish(PEER, "garbage")
    clock.now += FIRST_BAN_MS + FORGET_MS + 1
    assert bans.punish(PEER, "garbage").count == 1


def test_bans_outlive_the_process_with_their_counts(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "data" / "bans.json"
    bans = Bans(clock, path)
    bans.punish(PEER, "garbage")
    clock.now += FIRST_BAN_MS + 1
    second = bans.punish(PEER, "more garbage")
    bans.ban("192.0.2.7", reason="by hand")
    again = Bans(clock, path)
    assert again.all() == (second, Ban("192.0.2.7", FOR_EVER_MS, "by hand"))
    assert again.unban(PEER)
    assert not again.unban(PEER)
    assert Bans(clock, path).all() == (Ban("192.0.2.7", FOR_EVER_MS, "by hand"),)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"bans": 3}', '{"bans": [{"target": 1}]}', '{"bans": [["a"]]}', "[" * 2000, "\xff" * 50],
)
def test_a_damaged_file_is_set_aside_and_nobody_is_banned(clock: Clock, tmp_path: Path, content: str) -> None:
    path = tmp_path / "bans.json"
    path.write_text(content, encoding="latin-1")
    bans = Bans(clock, path)
    assert bans.all() == ()
    assert (tmp_path / "bans.damaged").read_text(encoding="latin-1") == content
    bans.ban(PEER)
    assert PEER in Bans(clock, path)


def test_a_file_of_any_size_is_read_within_bounds(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bans.json"
    bans = Bans(clock, path)
    for number in range(10):
        bans.ban(f"10.0.0.{number}")
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 100)
    assert Bans(clock, path).all() == ()


def test_memory_is_bounded_and_the_oldest_ban_is_forgotten(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BANS", 3)
    bans = Bans(clock)
    for number in range(5):
        bans.ban(f"10.0.0.{number}")
    assert [ban.target for ban in bans.all()] == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]


def test_a_full_disk_costs_the_memory_of_a_ban_and_not_the_node(
    clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    bans = Bans(clock, tmp_path / "data" / "bans.json")
    bans.punish(PEER, "garbage")
    assert PEER in bans
    assert "the bans can't be written" in caplog.text


@pytest.mark.parametrize("text", ["", "nonsense", "12D3Koo", "1.2.3", "300.1.1.1", "x" * 200, "a b", PEER[:-1] + "!"])
def test_what_is_neither_a_peer_nor_an_address_is_refused(text: str) -> None:
    with pytest.raises(BanError, match="is neither a peer id like 12D3KooW"):
        check_target(text)


def test_addresses_are_banned_in_one_form() -> None:
    assert [check_target(text) for text in (PEER, "192.0.2.7", "2001:DB8::0:1")] == [PEER, "192.0.2.7", "2001:db8::1"]
