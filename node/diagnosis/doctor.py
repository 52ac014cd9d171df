"""Why two nodes don't see each other: one check for each cause that we know, each with what to do about it.

What belongs here: the checks, of this node and of others by dialling them. They change nothing, and work whether the
node runs or not: a running one is asked over RPC and dialled by a throw-away identity, a stopped one is stood in for by
its own. What a person sees of it is `verbs.doctor`'s business.
"""

import errno
import resource
import secrets
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from typing import Any

import trio

from bflnode.consensus.genesis import Genesis
from bflnode.consensus.rejection import Rejection
from bflnode.consensus.types import AccountId
from bflnode.node.configuration import Configuration, load_configuration
from bflnode.node.home import Home
from bflnode.node.node_clock import now_ms
from bflnode.node.p2p.about import chain_fault, genesis_digests, version_fault
from bflnode.node.p2p.addresses import host_and_port, is_loopback, is_wildcard, parse_address
from bflnode.node.p2p.libp2p_connections import check_port_is_free
from bflnode.node.p2p.libp2p_greetings import Greeting, hear_greeting
from bflnode.node.p2p.messages import (
    ABOUT,
    MAX_ABOUT_BYTES,
    MAX_VERSION_LENGTH,
    OLDEST_PROTOCOL_VERSION,
    PROTOCOL_VERSION,
    About,
    AboutAnswer,
    AboutRequest,
)
from bflnode.node.p2p.network import (
    Network,
    NetworkConfig,
    PeerId,
    TransportError,
    UnsupportedProtocolError,
    open_network,
)
from bflnode.node.p2p.network_key import load_network_key
from bflnode.node.p2p.peer_identity import peer_id_text

CONNECT_TIMEOUT_S = 5.0
"""For TCP: a host that is there answers in a fraction of a second; a firewall that drops packets never does."""

GREETING_TIMEOUT_S = 5.0
ASK_TIMEOUT_S = 10.0
LAST_WORDS_TIMEOUT_S = 1.0
"""For a node that ends the connection to say why."""

MAX_TARGETS = 16
"""Peers looked at; the first ones of a longer list say enough."""

CLOCK_WARNING_MS = 1_000
"""Clocks that NTP keeps differ by some milliseconds."""

FREE_DISK_WARNING_BYTES = 2 * 1024**3
FREE_DISK_FAILED_BYTES = 128 * 1024**2
"""A node that can't write stops. A gigabyte is a few rounds of large models."""

FILES_BESIDE_CONNECTIONS = 256
"""Files that a node has open beside its connections: LevelDB's tables, logs, the trainer's."""


STOP_COPY = "find the other machine that runs with a copy of this key and stop it: they would sign against each other"


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what was looked at: a stable word.
        subject: of whom; "this node" or an address.
        verdict: how it ended.
        text: what was found.
        advice: what to do; empty where nothing has to be done.
    """

    name: str
    subject: str
    verdict: Verdict
    text: str
    advice: str = ""


THIS_NODE = "this node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """The node that is looked at.

    Attributes:
        about: what it would say of itself.
        account: its account.
        peer_seed: seed of its libp2p identity.
        network_key: of its private network, if it is in one.
        running: what `net_info` of the running node says; None where it is stopped.
    """

    home: Home
    configuration: Configuration
    genesis: Genesis
    about: About
    account: AccountId
    peer_id: PeerId
    peer_seed: bytes
    network_key: str | None
    running: dict[str, Any] | None


def patient_of(home: Home, running: dict[str, Any] | None) -> Patient:
    """What is known of a node.

    Args:
        home: an initialised home.
        running: what `net_info` of the running node says; None where it is stopped.

    Raises:
        HomeError: something in the home can't be used.
    """
    configuration = load_configuration(home)
    genesis = home.load_genesis()
    seed = home.load_peer_seed()
    about = About(
        protocol=PROTOCOL_VERSION,
        oldest_protocol=OLDEST_PROTOCOL_VERSION,
        version=version("bflnode")[:MAX_VERSION_LENGTH],
        chain_id=genesis.chain_id,
        genesis=genesis_digests(genesis),
        time_ms=now_ms(),
        height=0,
        peers=0,
        max_peers=configuration.p2p.max_peers,
    )
    return Patient(
        home=home,
        configuration=configuration,
        genesis=genesis,
        about=about,
        account=home.load_account(),
        peer_id=PeerId(peer_id_text(seed)),
        peer_seed=seed,
        network_key=load_network_key(home, configuration),
        running=running,
    )


def _ok(name: str, subject: str, text: str) -> Check:
    return Check(name, subject, Verdict.OK, text)


def _warning(name: str, subject: str, text: str, advice: str) -> Check:
    return Check(name, subject, Verdict.WARNING, text, advice)


def _failed(name: str, subject: str, text: str, advice: str) -> Check:
    return Check(name, subject, Verdict.FAILED, text, advice)


async def examine(patient: Patient, addresses: Sequence[str]) -> list[Check]:
    """Make all checks.

    Args:
        patient: the node.
        addresses: full multiaddrs of peers; the configured ones where none are given.
    """
    p2p = patient.configuration.p2p
    targets = tuple(dict.fromkeys(addresses or (*p2p.persistent_peers, *p2p.bootstrap)))[:MAX_TARGETS]
    checks = [*_machine_checks(patient), *_listening_checks(patient, targets)]
    identity = secrets.token_bytes(32) if patient.running is not None else patient.peer_seed
    config = NetworkConfig(
        identity_seed=identity, listen=(), topics=(), pushes=(), requests=(ABOUT,), network_key=patient.network_key
    )
    async with open_network(config, _Visitor(patient.about)) as network:
        if patient.running is not None:
            checks += await _own_port_checks(patient, network)
        found: dict[str, list[Check]] = {}

        async def look(address: str) -> None:
            found[address] = await examine_peer(patient, network, address)

        async with trio.open_nursery() as nursery:
            for address in targets:
                nursery.start_soon(look, address)
    for address in targets:
        checks += found[address]
    checks += _peer_checks(patient, targets)
    return checks


class _Visitor:
    """Gives nothing but what it is: the doctor only asks."""

    def __init__(self, about: About) -> None:
        self._about = about

    def on_gossip(self, topic: str, sender: PeerId, data: bytes) -> bool:  # noqa: ARG002 - the network's interface
        """Nothing is joined."""
        return False

    def on_push(self, protocol: str, sender: PeerId, data: bytes) -> None:
        """Nothing is taken."""

    async def on_request(self, protocol: str, sender: PeerId, data: bytes) -> bytes:  # noqa: ARG002 - likewise
        """Say what it is: only ABOUT is spoken."""
        return AboutAnswer(self._about, is_account_online=False).to_bytes()

    async def on_connected(self, peer: PeerId) -> None:
        """Nobody is greeted."""

    async def on_disconnected(self, peer: PeerId) -> None:
        """Nobody is missed."""


# This machine


def _machine_checks(patient: Patient) -> list[Check]:
    state = "runs" if patient.running is not None else "is stopped: its peers are dialled in its name"
    return [
        _ok("node", THIS_NODE, f"it {state}"),
        _files_check(patient.configuration),
        _disk_check(patient.home),
    ]


def _files_check(configuration: Configuration) -> Check:
    """Whether the system lets the node open as many files as it may have connections."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * configuration.p2p.max_peers + FILES_BESIDE_CONNECTIONS
    if allowed == resource.RLIM_INFINITY or allowed >= wanted:
        return _ok("open-files", THIS_NODE, f"{allowed} files may be open, {wanted} are enough")
    advice = f"`ulimit -n {wanted}` before starting it (the limit of this user is {most}), or lower p2p.max_peers"
    return _failed("open-files", THIS_NODE, f"only {allowed} files may be open, it may need {wanted}", advice)


def _disk_check(home: Home) -> Check:
    free = shutil.disk_usage(home.root).free
    text = f"{free / 1e9:.1f} GB are free where {home.root} is"
    if free < FREE_DISK_FAILED_BYTES:
        return _failed("disk", THIS_NODE, text, "make room: a node that can't write stops")
    if free < FREE_DISK_WARNING_BYTES:
        return _warning("disk", THIS_NODE, text, "make room, or set storage.blob_quota")
    return _ok("disk", THIS_NODE, text)


def _listening_checks(patient: Patient, targets: Sequence[str]) -> list[Check]:
    p2p = patient.configuration.p2p
    checks = []
    remote = [address for address in targets if not _is_loopback_address(address)]
    if is_loopback(p2p.host) and not p2p.external_host and remote:
        text = f"it listens on {p2p.host} only, but has peers elsewhere ({remote[0]}): they can't dial it"
        checks.append(
            _warning("listening", THIS_NODE, text, 'set p2p.host = "0.0.0.0", and p2p.external_host behind NAT')
        )
    elif is_wildcard(p2p.host) and not p2p.external_host:
        text = f"it listens on all addresses ({p2p.host}) and tells peers those of its network cards"
        checks.append(_ok("listening", THIS_NODE, f"{text}; behind NAT set p2p.external_host"))
    else:
        # A running node may have been given another port; where it really is, its own-port check says.
        where = f"on {p2p.host}" + (f", port {p2p.port}" if patient.running is None else "")
        checks.append(_ok("listening", THIS_NODE, where))
    if patient.running is None and p2p.port:
        try:
            check_port_is_free(p2p.host, p2p.port)
            checks.append(_ok("port", THIS_NODE, f"port {p2p.port} is free for it"))
        except OSError as error:
            advice = "stop the other program, or choose another p2p.port"
            checks.append(_failed("port", THIS_NODE, f"port {p2p.port} on {p2p.host}: {error.strerror}", advice))
    return checks


def _is_loopback_address(address: str) -> bool:
    try:
        return is_loopback(host_and_port(address)[0])
    except TransportError:
        return True


async def _own_port_checks(patient: Patient, network: Network) -> list[Check]:
    """Whether the running node can be dialled at the addresses that it tells its peers."""
    assert patient.running is not None
    checks = []
    for address in patient.running["advertised"]:
        name = "own-port"
        try:
            await network.dial(address)
            checks.append(_ok(name, THIS_NODE, f"it answers at {address}"))
        except TransportError as error:
            advice = (
                "a router without NAT loopback makes this look wrong from here: try it from another machine; else open "
                "the port, or correct p2p.external_host"
            )
            is_external = bool(patient.configuration.p2p.external_host)
            make = _warning if is_external else _failed
            checks.append(make(name, THIS_NODE, f"it can't be dialled at {address}: {error}", advice))
    return checks


# Others


async def examine_peer(patient: Patient, network: Network, address: str) -> list[Check]:
    """Look at one peer, step by step until something is wrong."""
    try:
        _, peer = parse_address(address)
        host, port = host_and_port(address)
    except TransportError as error:
        return [
            _failed("address", address, str(error), "ask its operator for what `bflnode status` lists as listening")
        ]
    if peer == patient.peer_id:
        return [await _own_address_check(patient, host, port, address)]
    checks: list[Check] = []
    for ban in (patient.running or {}).get("bans", ()):
        if ban["target"] in (peer, host):
            text = f"this node has banned it: {ban['reason'] or 'no reason given'}"
            checks.append(_failed("banned-here", address, text, f"`bflnode peers unban {ban['target']}`"))
    reached = await _reach(patient, host, port, address)
    checks += reached
    if any(check.verdict is Verdict.FAILED for check in reached):
        return checks
    return [*checks, *await _ask(patient, network, address, peer)]


async def _own_address_check(patient: Patient, host: str, port: int, address: str) -> Check:
    """This node's own peer id: a slip, or a copy of this home that runs while this one is stopped."""
    found = [] if patient.running is not None else await _reach(patient, host, port, address)
    if not any(check.name == "network-key" and check.verdict is Verdict.OK for check in found):
        return _failed("address", address, "that is this node itself", "name another node")
    text = "a node answers there under this node's own peer id, although this node is stopped"
    return _failed("key", address, text, STOP_COPY)


async def _reach(patient: Patient, host: str, port: int, address: str) -> list[Check]:
    """DNS, TCP and the private network's key."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        text = f"the name {host} isn't known: {error.strerror or error}"
        return [_failed("dns", address, text, "check the name, and this machine's DNS")]
    resolved = str(found[0][4][0])
    checks = [] if resolved == host else [_ok("dns", address, f"{host} is {resolved}")]
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            stream = await trio.open_tcp_stream(host, port)
    except trio.TooSlowError:
        advice = "the machine is off or unreachable, or a firewall drops what comes: open the port there"
        return [*checks, _failed("tcp", address, f"no answer in {CONNECT_TIMEOUT_S:g} s", advice)]
    except OSError as error:
        return [*checks, _unreachable(address, port, error)]
    async with stream:
        greeting = await hear_greeting(stream, patient.network_key, GREETING_TIMEOUT_S)
    return [*checks, _ok("tcp", address, f"port {port} is open"), _greeting_check(patient, address, greeting)]


def _unreachable(address: str, port: int, error: OSError) -> Check:
    causes = [*getattr(error, "exceptions", ()), error, error.__cause__]
    if isinstance(error.__cause__, BaseExceptionGroup):
        causes += error.__cause__.exceptions
    numbers = {cause.errno for cause in causes if isinstance(cause, OSError)}
    if errno.ECONNREFUSED in numbers:
        advice = "the node is stopped or listens elsewhere: compare with what `bflnode status` says there"
        return _failed("tcp", address, f"connection refused: nothing listens on port {port}", advice)
    if numbers & {errno.EHOSTUNREACH, errno.ENETUNREACH}:
        return _failed("tcp", address, "there is no route to it", "check the address, and this machine's network")
    return _failed("tcp", address, f"no connection: {error}", "check the address, and this machine's network")


def _greeting_check(patient: Patient, address: str, greeting: Greeting) -> Check:
    """Whether both nodes are in the same private network, or in none."""
    name = "network-key"
    has_key = patient.network_key is not None
    match greeting:
        case Greeting.OPEN if has_key:
            advice = "give it the key (`bflnode init --network-key`), or unset p2p.private_key_file here"
            return _failed(name, address, "it is in an open network, this node has a network key", advice)
        case Greeting.OPEN:
            return _ok(name, address, "both are in an open network")
        case Greeting.SAME_KEY:
            return _ok(name, address, "both have the same network key")
        case Greeting.CLOSED:
            advice = "it may have banned this machine's address, or have too many connections of it: ask its operator"
            return _failed("handshake", address, "it closes connections of this machine at once", advice)
        case Greeting.SILENT:
            text = f"something listens there but says nothing in {GREETING_TIMEOUT_S:g} s"
            return _failed("handshake", address, text, "it is no bflnode, or one that hangs: look at its log")
        case Greeting.OTHER if has_key:
            text = "its network key is another one than this node's, or it is no bflnode"
            return _failed(name, address, text, "compare the files p2p.private_key_file of both")
        case Greeting.OTHER:
            text = "it is in a private network, and this node has no key; or it is no bflnode"
            return _failed(name, address, text, "ask its operator for the key, and set p2p.private_key_file")


async def _ask(patient: Patient, network: Network, address: str, peer: PeerId) -> list[Check]:
    """Shake hands, and compare versions, chains and clocks."""
    try:
        await network.dial(address)
        asked_ms = now_ms()
        request = AboutRequest(patient.about, patient.account).to_bytes()
        answer = await network.request(
            peer, ABOUT, request, timeout_s=ASK_TIMEOUT_S, max_response_bytes=MAX_ABOUT_BYTES
        )
        received_ms = now_ms()
        found = AboutAnswer.from_bytes(answer, max_bytes=MAX_ABOUT_BYTES)
    except UnsupportedProtocolError:
        text = "it doesn't say what it is: a bflnode that is too old, or other software"
        return [_failed("version", address, text, "update the other node")]
    except TransportError as error:
        return [await _handshake_failure(network, address, peer, error)]
    except Rejection as rejection:
        return [_failed("version", address, f"it says nonsense of itself: {rejection}", "it is no bflnode")]
    return _compare(patient, address, found, (asked_ms + received_ms) // 2)


async def _handshake_failure(network: Network, address: str, peer: PeerId, error: TransportError) -> Check:
    with trio.move_on_after(LAST_WORDS_TIMEOUT_S):
        while network.last_words(peer) is None:  # noqa: ASYNC110 - it may come within a moment, or never
            await trio.sleep(0.05)
    words = network.last_words(peer)
    if words is not None:
        name = "banned-there" if words.startswith("banned") else "refused"
        return _failed(name, address, f"it refuses this node: {words}", "ask its operator")
    if "peer id" in str(error).lower():
        text = "another node than the one of this peer id answers there"
        return _failed("peer-id", address, text, "take the address from `bflnode status` of the node that is meant")
    return _failed("handshake", address, str(error), "look at its log")


def _compare(patient: Patient, address: str, found: AboutAnswer, clock_ms: int) -> list[Check]:
    ours, theirs = patient.about, found.about
    checks = []
    fault = version_fault(ours, theirs)
    if fault is None:
        checks.append(_ok("version", address, f"protocol {theirs.protocol}, version {theirs.version}"))
    else:
        text, _, advice = fault.rpartition(": ")
        checks.append(_failed("version", address, text, advice))
    fault = chain_fault(ours, theirs)
    if fault is None:
        checks.append(_ok("chain", address, f"the same chain, at height {theirs.height}"))
    else:
        text, _, advice = fault.rpartition(": ")
        checks.append(_failed("chain", address, text, advice))
    checks.append(_clock_check(patient, address, theirs.time_ms - clock_ms))
    if theirs.peers >= theirs.max_peers:
        text = f"it is full: it has {theirs.peers} peers of at most {theirs.max_peers}"
        checks.append(
            _warning("full", address, text, "its operator may raise p2p.max_peers, or keep this node as a peer")
        )
    if found.is_account_online and patient.running is None:
        text = "this account is online there, although this node is stopped"
        checks.append(_failed("key", address, text, STOP_COPY))
    return checks


def _clock_check(patient: Patient, address: str, offset_ms: int) -> Check:
    tolerance_ms = patient.genesis.parameters.clock_tolerance_ms
    text = f"its clock is {abs(offset_ms) / 1000:.1f} s {'ahead of' if offset_ms > 0 else 'behind'} this machine's"
    advice = "let both machines take the time from NTP (`timedatectl status`)"
    if abs(offset_ms) > tolerance_ms:
        tolerated = f"more than the chain tolerates ({tolerance_ms / 1000:g} s)"
        return _failed("clock", address, f"{text}, {tolerated}: blocks of one are refused by the other", advice)
    if abs(offset_ms) > CLOCK_WARNING_MS:
        return _warning("clock", address, text, advice)
    return _ok("clock", address, "the clocks agree")


# What the running node knows


def _peer_checks(patient: Patient, targets: Sequence[str]) -> list[Check]:
    if patient.running is None:
        return []
    info = patient.running
    connected = {peer["node_id"] for peer in info["peers"]}
    checks = []
    for refusal in info["refusals"]:
        if refusal["node_id"] not in connected:
            who = "this node refused it" if refusal["by_us"] else "it refused this node"
            text = f"{who}: {refusal['reason']}"
            is_wanted = any(address.endswith(refusal["node_id"]) for address in targets)
            make = _warning if refusal["by_us"] and not is_wanted else _failed
            checks.append(make("refused", refusal["node_id"], text, "see the reason; it is tried again regularly"))
    if connected:
        checks.append(_ok("peers", THIS_NODE, f"{len(connected)} connected"))
    elif targets:
        advice = "see what was found about each of them"
        checks.append(_failed("peers", THIS_NODE, "no peer is connected", advice))
    else:
        advice = "give it one: `bflnode start --peer MULTIADDR`, p2p.bootstrap, or p2p.mdns on a local network"
        checks.append(_warning("peers", THIS_NODE, "no peer is connected, and none is configured", advice))
    return checks
