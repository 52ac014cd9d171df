"""The verbs `chain export`, `import`, `prune`, `rollback`, `check`, `model pin` and `unpin` as a person has them."""

import shutil
from pathlib import Path

import plyvel
import pytest

from bflnode.consensus.tables import ACCOUNTS, Account
from bflnode.node.home import Home
from bflnode.storage.home_lock import HomeLock
from tests.node.command_line import complaint, read, run
from tests.node.stored_homes import learning_home

BLOCKS = 16
"""Of three learning rounds."""


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A stopped home with three learning rounds; tests that change something work on copies."""
    return learning_home(tmp_path_factory.mktemp("learned") / "home", rounds=3)


@pytest.fixture
def home(learned: Home, tmp_path: Path) -> Home:
    return Home(Path(shutil.copytree(learned.root, tmp_path / "home")))


@pytest.fixture
def fresh(learned: Home, tmp_path: Path) -> Home:
    """A home of the same network without a chain."""
    shutil.copytree(learned.root / "config", tmp_path / "fresh" / "config")
    return Home(tmp_path / "fresh")


def test_a_chain_is_exported_and_imported(learned: Home, fresh: Home, tmp_path: Path) -> None:
    archive = tmp_path / "all.chain"
    done = read("chain", "export", archive, "--home", learned.root)
    assert {**done, "seconds": 0} == {
        "file": str(archive),
        "chain_id": done["chain_id"],
        "first": 1,
        "last": BLOCKS,
        "blocks": BLOCKS,
        "seconds": 0,
    }
    assert "is there already" in complaint(run("chain", "export", archive, "--home", learned.root), 1)
    assert run("chain", "export", archive, "--force", "--home", learned.root).exit_code == 0
    result = run("chain", "import", archive, "--home", fresh.root)
    assert result.stdout.startswith(f"imported up to block {BLOCKS}: {BLOCKS} blocks in ")
    assert "blocks/s; 0 known before" in result.stdout
    heads = [read("chain", "head", "--home", root) for root in (learned.root, fresh.root)]
    assert heads[0] == heads[1]
    again = read("chain", "import", archive, "--home", fresh.root)
    assert {**again, "seconds": 0} == {"before": BLOCKS, "after": BLOCKS, "known": BLOCKS, "appended": 0, "seconds": 0}


def test_a_part_goes_through_standard_streams(learned: Home, fresh: Home) -> None:
    exported = run("chain", "export", "-", "--to", 5, "--home", learned.root)
    assert exported.exit_code == 0
    assert exported.stderr.startswith("exported blocks 1 to 5: 5 blocks in")
    imported = run("chain", "import", "-", "--home", fresh.root, typed=exported.stdout_bytes)
    assert imported.exit_code == 0, imported.output
    assert read("chain", "head", "--home", fresh.root)["height"] == 5
    torn = run("chain", "import", "-", "--home", fresh.root, typed=exported.stdout_bytes[:-1])
    assert "standard input: it was cut off: the commit of block 5 begins at byte" in complaint(torn, 1)


def test_a_file_that_can_not_be_imported_is_one_line(learned: Home, fresh: Home, tmp_path: Path) -> None:
    assert "not a chain archive" in complaint(run("chain", "import", learned.genesis_file, "--home", fresh.root), 1)
    missing = tmp_path / "nowhere.chain"
    assert "nowhere.chain: opening the archive failed" in complaint(
        run("chain", "import", missing, "--home", fresh.root), 1
    )
    archive = tmp_path / "all.chain"
    run("chain", "export", archive, "--home", learned.root)
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    assert "all.chain: " in complaint(run("chain", "import", archive, "--home", fresh.root), 4)
    archive.write_bytes(bytes(data) + b"more")


def test_every_verb_wants_a_stopped_node(home: Home, tmp_path: Path) -> None:
    verbs: list[list[object]] = [
        ["export", tmp_path / "x.chain"],
        ["import", home.genesis_file],
        ["prune"],
        ["rollback", "--yes"],
        ["check"],
    ]
    with HomeLock(home.root):
        for verb in verbs:
            assert "end it with `bflnode stop`" in complaint(run("chain", *verb, "--home", home.root), 1)
    for verb in verbs:
        assert "is not the home of a node" in complaint(run("chain", *verb, "--home", tmp_path / "nowhere"), 1)


def test_old_models_are_pruned_and_verification_says_from_when_on_it_could(home: Home) -> None:
    by_default = read("chain", "prune", "--home", home.root)
    assert (by_default["keep_rounds"], by_default["models"]) == (50, [])
    dry = read("chain", "prune", "--keep-rounds", 1, "--dry-run", "--home", home.root)
    assert (dry["is_dry_run"], len(dry["models"]), dry["size_bytes"], dry["journal_entries"]) == (True, 9, 9 * 5192, 0)
    assert list(dry["kept_from"].values()) == [3]
    assert read("chain", "check", "--home", home.root)["models"] == 18
    result = run("chain", "prune", "--keep-rounds", 1, "--home", home.root)
    assert result.stdout == "removed 9 models and sample files, 45.6 KiB, and 0 journal entries\n"
    verified = run("chain", "verify", "--reexecute", "--home", home.root)
    assert verified.exit_code == 0
    assert "1 of 3 learning rounds aggregated again; models of older rounds are gone, complete from round 3" in (
        verified.stdout
    )


def test_settings_decide_what_is_pruned(home: Home) -> None:
    with home.configuration_file.open("a") as file:
        file.write("\n[storage]\nkeep_rounds = 0\n")
    assert "keeps everything" in run("chain", "prune", "--home", home.root).stdout
    home.configuration_file.write_text(
        home.configuration_file.read_text().replace("keep_rounds = 0", "keep_rounds = 2")
    )
    assert len(read("chain", "prune", "--home", home.root)["models"]) == 3


def test_a_pinned_model_is_not_pruned(home: Home) -> None:
    oldest = read("chain", "prune", "--keep-rounds", 1, "--dry-run", "--home", home.root)["models"][0]
    assert read("model", "pin", oldest[:8], "--home", home.root) == {
        "id": oldest,
        "is_pinned": True,
        "is_changed": True,
    }
    assert read("model", "pin", "--home", home.root) == {"pinned": [oldest]}
    assert run("model", "pin", oldest, "--home", home.root).stdout == f"{oldest} is pinned, as before\n"
    left = read("chain", "prune", "--keep-rounds", 1, "--home", home.root)["models"]
    assert (oldest in left, len(left)) == (False, 8)
    assert read("model", "unpin", oldest[:8], "--home", home.root)["is_changed"] is True
    assert read("chain", "prune", "--keep-rounds", 1, "--home", home.root)["models"] == [oldest]
    assert "no pinned model begins with" in complaint(run("model", "unpin", oldest, "--home", home.root), 1)
    assert complaint(run("model", "pin", "12", "--home", home.root), 1)


def test_blocks_are_taken_off_and_come_back(learned: Home, home: Home, tmp_path: Path) -> None:
    log = home.signer_wal
    log.write_bytes(b"what this key has signed")
    done = read("chain", "rollback", "--yes", "--home", home.root)
    assert (done["before"], done["after"]) == (BLOCKS, BLOCKS - 1)
    assert read("chain", "rollback", "--to", 7, "--yes", "--home", home.root)["after"] == 7
    assert read("chain", "head", "--home", home.root)["state_root"]
    assert read("chain", "verify", "--home", home.root)["verified"] == 7
    assert log.read_bytes() == b"what this key has signed"
    archive = tmp_path / "all.chain"
    run("chain", "export", archive, "--home", learned.root)
    assert read("chain", "import", archive, "--home", home.root)["appended"] == BLOCKS - 7
    assert read("chain", "verify", "--reexecute", "--home", home.root)["is_valid"] is True


def test_a_rollback_asks_first_and_knows_where_the_chain_ends(home: Home) -> None:
    assert "no terminal to ask on: give --yes" in complaint(run("chain", "rollback", "--home", home.root), 2)
    beyond = run("chain", "rollback", "--to", 99, "--yes", "--home", home.root)
    assert "ends with block 16: --to 99 is beyond it" in complaint(beyond, 1)
    assert read("chain", "head", "--home", home.root)["height"] == BLOCKS


def test_a_broken_state_is_found_and_computed_again(home: Home) -> None:
    database = plyvel.DB(str(home.chain))
    key = next(key for key, _ in database.iterator(prefix=b"s" + ACCOUNTS.prefix))
    database.put(key, Account(123_456, 0).to_bytes())
    database.close()
    assert "the stored state has the root" in complaint(run("chain", "check", "--home", home.root), 4)
    assert complaint(run("status", "--home", home.root), 1)
    repaired = read("chain", "rollback", "--to", BLOCKS, "--yes", "--home", home.root)
    assert (repaired["before"], repaired["after"]) == (BLOCKS, BLOCKS)
    assert read("chain", "verify", "--home", home.root)["is_valid"] is True


def test_a_sound_home_passes_the_check_and_a_changed_model_does_not(home: Home) -> None:
    done = read("chain", "check", "--models", "--home", home.root)
    assert {**done, "seconds": 0} == {
        "height": BLOCKS,
        "base": 0,
        "models": 18,
        "models_checked": True,
        "corrupt_models": [],
        "seconds": 0,
    }
    assert "1 to 16, all there and linked" in run("chain", "check", "--home", home.root).stdout
    model = next(home.blobs.glob("[0-9a-f][0-9a-f]/*"))
    model.write_bytes(b"something else")
    changed = run("chain", "check", "--models", "--home", home.root)
    assert "1 models had changed on disk" in complaint(changed, 4)
    assert model.name in changed.stdout or not model.exists()
    database = plyvel.DB(str(home.chain))
    database.delete(b"c" + (3).to_bytes(8))
    database.close()
    assert "commit 3 should follow, but 4 does" in complaint(run("chain", "check", "--home", home.root), 4)
