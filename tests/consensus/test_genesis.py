"""Genesis: what JSON is accepted, how refusals read, and that the chain id covers every field."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from bflnode.consensus.block import Validator
from bflnode.consensus.encoding import encode
from bflnode.consensus.genesis import (
    DEFAULTS_BY_RULE,
    MAX_GENESIS_ACCOUNTS,
    MAX_GENESIS_BYTES,
    MAX_GENESIS_TASKS,
    MAX_GENESIS_TEXT,
    MAX_SUPPLY,
    Genesis,
    GenesisAccount,
    GenesisError,
    GenesisTask,
    Mode,
    default_deadlines,
    default_parameters,
    default_task,
    format_genesis,
    parse_genesis,
    task_id,
    validate_genesis,
)
from bflnode.consensus.hashing import tagged_hash
from bflnode.consensus.keys import SecretKey, account_text
from bflnode.consensus.task import Combination, ProbeMode, Rule, Similarity, Weighting
from bflnode.consensus.types import MAX_VALIDATORS, TOKEN, AccountId, BlobId, Hash

KEYS = sorted(SecretKey.from_seed(bytes([number]) * 32).account for number in range(4))
TASK = GenesisTask(
    default_task(
        name="digits",
        architecture="linear",
        classes=10,
        model_bytes=31_400,
        initial_model=BlobId(b"i" * 32),
        probe_set=BlobId(b"p" * 32),
    ),
    requester=KEYS[0],
    escrow=1_000 * TOKEN,
)
GENESIS = Genesis(
    name="test",
    time_ms=1_700_000_000_000,
    mode=Mode.CACC,
    parameters=default_parameters(),
    accounts=tuple(GenesisAccount(key, 7 * TOKEN) for key in KEYS),
    validators=tuple(Validator(key, 5 * TOKEN) for key in KEYS[:3]),
    queue=(KEYS[2], KEYS[0]),
    admission_key=KEYS[3],
    admission_pool=100 * TOKEN,
    tasks=(TASK,),
    beacon=Hash(b"b" * 32),
)


def document() -> Any:
    return json.loads(format_genesis(GENESIS))


def changed(path: str, value: Any) -> str:
    """The genesis as JSON with the value at a path such as "accounts.0.balance" replaced."""
    top = node = document()
    *parents, last = path.split(".")
    for name in parents:
        node = node[int(name) if isinstance(node, list) else name]
    node[int(last) if isinstance(node, list) else last] = value
    return json.dumps(top)


def refusal(text: str) -> str:
    with pytest.raises(GenesisError) as refused:
        parse_genesis(text)
    return str(refused.value)


def test_json_comes_back_as_the_same_genesis() -> None:
    assert parse_genesis(format_genesis(GENESIS)) == GENESIS


def test_json_is_for_people() -> None:
    shown = document()
    assert list(shown) == [field.name for field in fields(Genesis)]
    assert (shown["mode"], shown["queue"]) == ("cacc", [account_text(KEYS[2]), account_text(KEYS[0])])
    assert shown["accounts"][0] == {"account": account_text(KEYS[0]), "balance": 7_000_000}
    assert (shown["beacon"], shown["tasks"][0]["specification"]["probe_mode"]) == ("62" * 32, "public")
    assert format_genesis(GENESIS).startswith('{\n  "name": "test",\n')


def test_chain_id_is_the_tagged_hash_of_the_canonical_bytes_and_not_of_the_text() -> None:
    assert GENESIS.chain_id == tagged_hash("genesis", GENESIS.to_bytes())
    assert parse_genesis(json.dumps(document(), indent=None)).chain_id == GENESIS.chain_id


@pytest.mark.parametrize(
    "change",
    [
        {"name": "tesu"},
        {"time_ms": 1},
        {"parameters": replace(GENESIS.parameters, max_step_ms=1)},
        {"accounts": GENESIS.accounts[1:]},
        {"validators": GENESIS.validators[1:]},
        {"queue": GENESIS.queue[::-1]},
        {"admission_key": KEYS[0]},
        {"admission_pool": 0},
        {"tasks": ()},
        {"tasks": (replace(TASK, requester=KEYS[1]),)},
        {"tasks": (replace(TASK, specification=replace(TASK.specification, rho=3)),)},
        {"beacon": Hash(bytes(32))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_changing_any_field_changes_the_chain_id(change: dict[str, Any]) -> None:
    assert replace(GENESIS, **change).chain_id != GENESIS.chain_id


def test_supply_is_free_and_bonded_and_pool_and_escrow() -> None:
    assert GENESIS.supply == (4 * 7 + 3 * 5 + 100 + 1_000) * TOKEN


def test_task_id_binds_place_and_task() -> None:
    assert task_id(0, TASK) == tagged_hash("genesis-task", encode((0, TASK.to_value())))
    assert len({task_id(0, TASK), task_id(1, TASK), task_id(0, replace(TASK, requester=KEYS[1]))}) == 3


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("name", 7, "genesis.name: expected a string, found the number 7; write a string"),
        ("name", None, "genesis.name: expected a string, found null; write a string"),
        ("name", "é", "genesis.name: value '\\xe9' is out of bounds; use ASCII characters"),
        ("name", "n" * 65, "genesis.name: size 65 is out of bounds; use 0 to 64"),
        ("time_ms", 1.0, "genesis.time_ms: expected an integer, found the number 1.0; write an integer"),
        ("time_ms", True, "genesis.time_ms: expected an integer, found true; write an integer"),
        ("time_ms", "1", 'genesis.time_ms: expected an integer, found the string "1"; write an integer'),
        ("time_ms", -1, "genesis.time_ms: value -1 is out of bounds; use 0 to 9007199254740992"),
        ("mode", "CACC", 'genesis.mode: expected "cacc", found the string "CACC"; write "cacc"'),
        ("mode", 1, 'genesis.mode: expected "cacc", found the number 1; write "cacc"'),
        ("parameters", [], "genesis.parameters: expected an object, found an array; write an object"),
        ("accounts", {}, "genesis.accounts: expected an array, found an object; write an array"),
        (
            "accounts.1.balance",
            float("nan"),
            "genesis.accounts[1].balance: expected an integer, found the number NaN; write an integer",
        ),
        ("beacon", "00" * 31, "genesis.beacon: 62 hex digits instead of 64; copy the whole value again"),
        ("beacon", "AB" * 32, f"genesis.beacon: {'AB' * 18}A... is not hex digits; write pairs of 0-9 and a-f"),
        (
            "validators.0.stake",
            0,
            "genesis.validators[0].stake: value 0 is out of bounds; use 1 to 9007199254740992",
        ),
        ("validators", [], "genesis.validators: is empty; add at least one: nobody could make a block"),
        (
            "queue.1",
            account_text(KEYS[3]),
            "genesis.queue[1]: is not a validator; remove it or add it to the validators",
        ),
        ("queue.1", account_text(KEYS[2]), "genesis.queue[1]: is in the queue twice; remove it"),
        (
            "parameters.heartbeat_ms",
            100,
            "genesis.parameters.heartbeat_ms: 100 is not above block_interval_ms, 100; raise it: it is the most time"
            " between two blocks, the interval the least",
        ),
        (
            "tasks.0.specification.clients_min",
            21,
            "genesis.tasks[0].specification.clients_min: 21 is above clients_start, 20; lower it",
        ),
        (
            "tasks.0.escrow",
            999,
            "genesis.tasks[0].escrow: 999 does not pay 50 rounds of 20000000; raise it to 1000000000",
        ),
    ],
)
def test_refusal_says_where_what_and_what_to_do(path: str, value: Any, message: str) -> None:
    assert refusal(changed(path, value)) == message


def test_account_with_a_typing_error_is_refused() -> None:
    text = account_text(KEYS[0])
    message = refusal(changed("admission_key", text[:-1] + ("0" if text[-1] != "0" else "1")))
    assert message.startswith("genesis.admission_key: account ")
    assert message.endswith(
        "has a wrong checksum: one of its characters is mistyped; copy the whole account again, checksum included"
    )


@pytest.mark.parametrize("name", ["accounts", "validators"])
def test_entries_must_ascend_by_account(name: str) -> None:
    entries = document()[name]
    assert refusal(changed(name, [entries[1], entries[0]])) == (
        f"genesis.{name}[1].account: is below the account before it; sort {name} by account"
    )
    assert refusal(changed(name, [entries[0], entries[0]])) == (
        f"genesis.{name}[1].account: is listed twice; merge the two entries"
    )


def test_supply_above_what_doubles_hold_is_refused() -> None:
    rest = GENESIS.supply - GENESIS.accounts[0].balance
    largest = parse_genesis(changed("accounts.0.balance", MAX_SUPPLY - rest))
    assert largest.supply == MAX_SUPPLY
    assert refusal(changed("accounts.0.balance", MAX_SUPPLY - rest + 1)) == (
        "genesis.accounts: balances, stakes, pool and escrows add up to 9007199254740993 micro-tokens; lower them to"
        " 9007199254740992 or less in all"
    )


@pytest.mark.parametrize("field", [field.name for field in fields(Genesis)])
def test_every_field_must_be_there(field: str) -> None:
    shown = document()
    del shown[field]
    assert refusal(json.dumps(shown)) == f"genesis.{field}: is missing; add this field; there are no defaults"


def test_unknown_field_is_refused_with_the_known_ones() -> None:
    shown = document()
    shown["accounts"][2]["stake"] = 1
    assert refusal(json.dumps(shown)) == (
        "genesis.accounts[2].stake: is not a known field; remove it or correct its name; the fields are account,"
        " balance"
    )


def test_key_that_is_there_twice_is_refused() -> None:
    text = format_genesis(GENESIS).replace('"heartbeat_ms"', '"heartbeat_ms": 5, "heartbeat_ms"')
    assert refusal(text) == "genesis.parameters.heartbeat_ms: is there twice; keep one of the two"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "genesis, line 1, column 1: not JSON: Expecting value; check commas, quotes and brackets there"),
        (
            '{\n"name": "a"\n"time_ms"',
            "genesis, line 3, column 1: not JSON: Expecting ',' delimiter; check commas, quotes and brackets there",
        ),
        ("[]", "genesis: expected an object, found an array; write an object"),
        ("1" * 10_000, f"genesis: expected an object, found the number {'1' * 37}...; write an object"),
        ("1e5", "genesis: expected an object, found the number 1e5; write an object"),
        ("[" * 100_000, "genesis: brackets nested too deep; check that each one is closed"),
        (" " * (MAX_GENESIS_TEXT + 1), "genesis: 8388609 characters, at most 8388608; is this the right file?"),
    ],
)
def test_text_that_is_no_genesis_at_all_is_refused_in_words(text: str, message: str) -> None:
    assert refusal(text) == message


def test_largest_genesis_fits_its_limits() -> None:
    keys = [AccountId(number.to_bytes(32, "big")) for number in range(MAX_GENESIS_ACCOUNTS)]
    largest = replace(
        GENESIS,
        accounts=tuple(GenesisAccount(key, 2**40) for key in keys),
        validators=tuple(Validator(key, 2**40) for key in keys[:MAX_VALIDATORS]),
        queue=tuple(keys[:MAX_VALIDATORS]),
        tasks=(TASK,) * MAX_GENESIS_TASKS,
    )
    assert len(largest.to_bytes()) < MAX_GENESIS_BYTES
    text = format_genesis(largest)
    assert len(text) < MAX_GENESIS_TEXT
    assert parse_genesis(text) == largest


def test_genesis_built_in_code_is_held_to_the_same_rules() -> None:
    validate_genesis(GENESIS)
    with pytest.raises(GenesisError, match=r"genesis\.validators: is empty"):
        validate_genesis(replace(GENESIS, validators=(), queue=()))


def test_weights_go_with_the_mean_alone() -> None:
    specification = replace(TASK.specification, weighting=Weighting.SAMPLES)
    validate_genesis(replace(GENESIS, tasks=(replace(TASK, specification=specification),)))
    robust = replace(specification, combination=Combination.KRUM)
    with pytest.raises(GenesisError) as refused:
        validate_genesis(replace(GENESIS, tasks=(replace(TASK, specification=robust),)))
    assert str(refused.value) == (
        "genesis.tasks[0].specification.weighting: is samples although the combination is KRUM, which counts clients"
        " equally; use uniform, or the MEAN"
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"rule": Rule.PAA, "shared_permille": 500},
            "shared_permille: is 500 although the rule is PAA, which shares nothing; use 1000, or the rule prior_rows",
        ),
        (
            {"similarity": Similarity.PROTOTYPES, "probe_set": BlobId(bytes(32))},
            "probe_set: is zero although probe_mode is public; name the blob that the probe samples are drawn from",
        ),
        (
            {"similarity": Similarity.UPDATES, "probe_mode": ProbeMode.AGGREGATOR},
            "probe_mode: is aggregator although the similarity is updates, which takes no probe; use public, or the"
            " similarity prototypes",
        ),
    ],
)
def test_what_means_nothing_together_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(GenesisError) as refused:
        validate_genesis(replace(GENESIS, tasks=(replace(TASK, specification=replace(TASK.specification, **changes)),)))
    assert str(refused.value) == f"genesis.tasks[0].specification.{complaint}"


def test_a_task_that_compares_updates_needs_no_probe_set() -> None:
    specification = replace(TASK.specification, similarity=Similarity.UPDATES, probe_set=BlobId(bytes(32)))
    validate_genesis(replace(GENESIS, tasks=(replace(TASK, specification=specification),)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rule", "fastest"),
        ("combination", "best"),
        ("hostile_permille", 500),
        ("clip_permille", 0),
        ("step_permille", 0),
        ("step_permille", 10_001),
        ("momentum_permille", -1),
        ("momentum_permille", 1_001),
        ("shared_permille", 1_001),
        ("similarity", "looks"),
        ("tolerance", 0),
    ],
)
def test_a_rule_that_there_isnt_is_refused_with_its_place(field: str, value: object) -> None:
    shown = document()
    shown["tasks"][0]["specification"][field] = value
    assert refusal(json.dumps(shown)).startswith(f"genesis.tasks[0].specification.{field}: ")


def test_a_task_with_the_aggregators_own_probe_needs_no_probe_set() -> None:
    specification = replace(
        TASK.specification,
        similarity=Similarity.PROTOTYPES,
        probe_mode=ProbeMode.AGGREGATOR,
        probe_set=BlobId(bytes(32)),
    )
    validate_genesis(replace(GENESIS, tasks=(replace(TASK, specification=specification),)))


def test_defaults_of_a_task_are_those_of_the_papers_evaluation_but_for_the_rule() -> None:
    task = TASK.specification
    assert (task.rounds, task.reward, task.rho, task.clients_max) == (50, 20 * TOKEN, 2, 20)
    assert (task.epochs, task.batch_size, task.learning_rate_micro) == (5, 64, 1_000)
    assert (task.psi, task.clusters, task.tolerance) == (32, 2, 10)
    assert (task.probe_mode, task.weighting) == (ProbeMode.PUBLIC, Weighting.UNIFORM)
    assert (task.rule, task.combination) == (Rule.PRIOR_ROWS, Combination.MEAN)
    assert (task.step_permille, task.momentum_permille) == (1250, 700)
    assert (task.shared_permille, task.similarity) == (300, Similarity.UPDATES)
    assert list(DEFAULTS_BY_RULE[Rule.PAA].values()) == [1000, 0, 1000, Similarity.PROTOTYPES]
    assert task.deadlines == default_deadlines()


def test_floor_of_the_grace_is_not_below_the_time_a_block_may_take() -> None:
    """A straggler's transaction needs a block: a propose time-out and two votes, should the first leader be silent."""
    parameters = default_parameters()
    assert default_deadlines().grace_floor_ms >= parameters.propose_timeout_ms + parameters.vote_timeout_ms
