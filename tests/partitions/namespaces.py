"""Seven machines on one: network namespaces, each with a link to a switch and one to an operator that is never cut.

    operator (this process)  10.78.0.254 ──bridge "operator"── 10.78.0.N  RPC of node N
    switch                   10.77.0.254 ──bridge "left"    ── 10.77.0.N  peers of node N
                                           bridge "right"      the other side of a partition

Everything lives in namespaces of this process, which `python -m tests.partitions` makes for itself (`unshare`): nothing
of the machine's own network is touched, and all of it is gone when the process is.
"""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

PEERS = "10.77.0"
OPERATOR = "10.78.0"
SWITCH_HOST = 254
LEFT, RIGHT, MANAGEMENT = "left", "right", "operator"


class NotPermitted(Exception):
    """This machine doesn't let us make network namespaces; the message says what it answered."""


def unshare_command(arguments: list[str]) -> list[str]:
    """The command line that runs a program in a network namespace of its own."""
    return ["unshare", "--map-root-user", "--net", "--", *arguments]


def require_permission() -> None:
    """Try what the scenarios need.

    Raises:
        NotPermitted: no tools, or no permission.
    """
    script = "ip link add probe type bridge && ip link add here type veth peer name there && unshare --net -- true"
    try:
        tried = subprocess.run(unshare_command(["sh", "-c", script]), capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotPermitted(f"unshare can't be run: {error}") from error
    if tried.returncode != 0:
        raise NotPermitted(f"network namespaces aren't permitted here: {tried.stderr.strip() or tried.returncode}")


def run(*arguments: str) -> None:
    """Run a command that has to succeed."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr.strip()}"


@dataclass(frozen=True, slots=True)
class Machine:
    """One namespace, kept by a process that only waits.

    Attributes:
        number: from 1; the last byte of its addresses.
        keeper: the process.
    """

    number: int
    keeper: "subprocess.Popen[bytes]"

    @property
    def address(self) -> str:
        """Where peers reach it."""
        return f"{PEERS}.{self.number}"

    @property
    def management(self) -> str:
        """Where the operator reaches it, whatever happens to the switch."""
        return f"{OPERATOR}.{self.number}"

    @property
    def port(self) -> str:
        """The switch's end of its cable."""
        return f"peer{self.number}"

    def command(self, *arguments: str) -> list[str]:
        """A command line that runs inside."""
        return ["nsenter", "--target", str(self.keeper.pid), "--net", "--", *arguments]

    def run(self, *arguments: str) -> None:
        """Run a command inside."""
        run(*self.command(*arguments))


class Switch:
    """The machines and their cables."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.machines: tuple[Machine, ...] = ()

    def __enter__(self) -> Self:
        """Make bridges, namespaces and cables."""
        run("ip", "link", "set", "lo", "up")
        for bridge in (LEFT, RIGHT, MANAGEMENT):
            run("ip", "link", "add", bridge, "type", "bridge")
            run("ip", "link", "set", bridge, "up")
        run("ip", "address", "add", f"{PEERS}.{SWITCH_HOST}/24", "dev", LEFT)
        run("ip", "address", "add", f"{OPERATOR}.{SWITCH_HOST}/24", "dev", MANAGEMENT)
        for number in range(1, self._count + 1):
            self.machines = (*self.machines, self._machine(number))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove cables and bridges, and end the keepers, with whom their namespaces go."""
        for machine in self.machines:
            run("ip", "link", "delete", machine.port)
            run("ip", "link", "delete", f"{MANAGEMENT}{machine.number}")
            machine.keeper.terminate()
            machine.keeper.wait()
        for bridge in (LEFT, RIGHT, MANAGEMENT):
            run("ip", "link", "delete", bridge)

    def _machine(self, number: int) -> Machine:
        ours = Path("/proc/self/ns/net").readlink()
        # The shell says when it is inside, and then waits for its standard input to end.
        keeper = subprocess.Popen(
            ["unshare", "--net", "--", "sh", "-c", "echo inside; exec cat > /dev/null"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"inside\n", "the namespace was made"
        assert Path(f"/proc/{keeper.pid}/ns/net").readlink() != ours
        machine = Machine(number, keeper)
        machine.run("ip", "link", "set", "lo", "up")
        for device, cable, bridge, address in (
            ("eth0", machine.port, LEFT, machine.address),
            ("eth1", f"{MANAGEMENT}{number}", MANAGEMENT, machine.management),
        ):
            run("ip", "link", "add", cable, "type", "veth", "peer", "name", device, "netns", str(keeper.pid))
            run("ip", "link", "set", cable, "master", bridge, "up")
            machine.run("ip", "address", "add", f"{address}/24", "dev", device)
            machine.run("ip", "link", "set", device, "up")
        return machine

    def unplug(self, machine: Machine) -> None:
        """Take a machine's link down."""
        run("ip", "link", "set", machine.port, "down")

    def plug(self, machine: Machine) -> None:
        """Take it up again."""
        run("ip", "link", "set", machine.port, "up")

    def split(self, others: Iterable[Machine]) -> None:
        """A partition: these machines reach only one another from now on."""
        for machine in others:
            run("ip", "link", "set", machine.port, "master", RIGHT)

    def heal(self) -> None:
        """End every partition."""
        for machine in self.machines:
            run("ip", "link", "set", machine.port, "master", LEFT)

    def blackhole(self, source: Machine, target: Machine) -> None:
        """Lose everything that `source` sends to `target`; the other direction goes on."""
        source.run("ip", "route", "add", "blackhole", target.address)

    def end_blackhole(self, source: Machine, target: Machine) -> None:
        """Route it again."""
        source.run("ip", "route", "del", "blackhole", target.address)


def is_inside() -> bool:
    """Whether this process has a network namespace of its own, where nothing but loopback exists."""
    listed = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    return [line.split(": ")[1] for line in listed.splitlines()] == ["lo"]
