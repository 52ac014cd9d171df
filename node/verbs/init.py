"""The verb `init`: makes the home of a node that joins a network."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import CommandError, examples, home_option, json_option
from .output import emit, facts

if TYPE_CHECKING:
    from bflnode.node.home import Home

FILE = click.Path(path_type=Path)


@click.command(
    epilog=examples(
        "bflnode init --home mine --genesis genesis.json --shard own.npz --peer /ip4/192.0.2.7/tcp/26656/p2p/12D3KooW…",
        "bflnode init --home mine --genesis genesis.json --data imagefolder:photos --classes cat,dog,other",
        "bflnode init --home mine --genesis genesis.json --admission-key admission.key --data digits",
    )
)
@home_option
@click.option("--genesis", required=True, type=FILE, help="The chain's genesis, from whoever runs the network.")
@click.option("--name", default="node", show_default=True, help="A name for people.")
@click.option("--account-key", type=FILE, help="Take over this key file instead of making a new key.")
@click.option("--admission", type=FILE, help="Credential that opens the account of --account-key.")
@click.option("--admission-key", type=FILE, help="The network's admission key, if you have it: admits the new account.")
@click.option("--shard", type=FILE, help="Own data as .npz: x_train, y_train, x_test, y_test, class_names.")
@click.option(
    "--data", metavar="KIND[:PATH]", help="Own data of another kind, such as imagefolder:PATH, npz:PATH, digits."
)
@click.option("--classes", metavar="NAME,NAME", help="All classes of the task in order, if your data lacks some.")
@click.option("--test-set", type=FILE, help="Global test data as .npz, for `model eval --on global`.")
@click.option("--blobs", type=FILE, help="Folder with initial model and probe set; else they are fetched from peers.")
@click.option("--peer", "peers", multiple=True, metavar="MULTIADDR", help="Peer to connect to; may be repeated.")
@click.option("--bootstrap", multiple=True, metavar="MULTIADDR", help="Dialled while there are no peers; repeatable.")
@click.option("--mdns", is_flag=True, help="Look for nodes of the same chain on the local network.")
@click.option("--network-key", type=FILE, help="Key of a private network, 64 hexadecimal digits: is copied.")
@click.option("--host", help="Address to listen on for peers (default 127.0.0.1; 0.0.0.0 for all).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port for peers (default 26656; 0 takes a free one).")
@click.option("--rpc-port", type=click.IntRange(0, 65535), help="Port for RPC (default 26657; 0 takes a free one).")
@json_option
def init(home: "Home", as_json: bool, data: str | None, classes: str | None, **given: Any) -> None:
    """Make the home of a new node: keys, genesis, settings, and your own data in the form that training takes.

    Everything is checked first; the data must fit a task of the chain. Keys are made here and never leave this folder.
    """
    from bflnode.node.initialisation import NewHome, initialise
    from bflnode.storage import failpoints

    failpoints.arm()
    if data is not None and given["shard"] is not None:
        raise click.UsageError("give --shard or --data, not both.")
    if given["admission"] is not None and given["admission_key"] is not None:
        raise click.UsageError("give --admission or --admission-key, not both.")
    names = None if classes is None else tuple(name.strip() for name in classes.split(","))
    done = initialise(
        NewHome(root=home.root, data=None if data is None else _kind_and_path(data), class_names=names, **given)
    )
    answer = {
        "home": str(done.home.root),
        "account": done.account,
        "chain_id": done.chain_id,
        "is_member": done.is_member,
        "samples": None if done.samples is None else {"train": done.samples[0], "test": done.samples[1]},
        "task": done.task,
    }
    emit(answer, as_json, _render)


def _kind_and_path(data: str) -> tuple[str, Path | None]:
    kind, colon, path = data.partition(":")
    if colon and not path:
        raise CommandError(f"--data {data!r} ends where the path should be: write KIND:PATH")
    return kind, Path(path).expanduser() if path else None


def _render(answer: dict[str, Any]) -> None:
    samples = answer["samples"]
    data = "none: the node follows the chain and doesn't train"
    if samples is not None:
        data = f"{samples['train']} samples to train on, {samples['test']} to test, for task {answer['task']}"
    facts([("home", answer["home"]), ("account", answer["account"]), ("chain", answer["chain_id"]), ("data", data)])
    if not answer["is_member"]:
        click.echo(
            "This account must be admitted before it can take part: have the network's operator run\n"
            f"  bflnode keys admit --admission-key FILE --out admission.json {answer['account']}\n"
            f"and then run `bflnode keys accept admission.json --home {answer['home']}`."
        )
    click.echo(f"Start it with `bflnode start --home {answer['home']}`.")
