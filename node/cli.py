"""The command line `bflnode`: which verbs there are. Each group of verbs is a module of `verbs`.

Importing this must stay quick: what a verb needs beyond click is imported when it runs.
"""

import click

from bflnode.node.verbs.accounts import account, keys, queue, task, transfer
from bflnode.node.verbs.blobs import model_pin, model_unpin
from bflnode.node.verbs.chain import block, chain, clusters, learning_round, learning_rounds, tx
from bflnode.node.verbs.completion import completion
from bflnode.node.verbs.debug import debug
from bflnode.node.verbs.doctor import doctor
from bflnode.node.verbs.experiment import experiment
from bflnode.node.verbs.forgery import evidence_extract
from bflnode.node.verbs.init import init
from bflnode.node.verbs.keys import keys_protect, keys_unprotect
from bflnode.node.verbs.models import model
from bflnode.node.verbs.node import health, journal, start, status, stop
from bflnode.node.verbs.options import Root, examples
from bflnode.node.verbs.peers import peers
from bflnode.node.verbs.proof import proof
from bflnode.node.verbs.rewards import reward
from bflnode.node.verbs.snapshot import snapshot
from bflnode.node.verbs.storage import chain_check, chain_export, chain_import, chain_prune, chain_rollback
from bflnode.node.verbs.testnet import testnet
from bflnode.node.verbs.validators import evidence, validator


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=examples(
        "bflnode status", "bflnode round current", "bflnode reward explain --round 3", "bflnode chain verify"
    ),
)
@click.version_option(package_name="bflnode", prog_name="bflnode")
def bflnode() -> None:
    """A peer-to-peer node for blockchain-based federated learning.

    Every verb takes --home (or BFLNODE_HOME); reading verbs take --json and work on a running node as on a stopped one.
    Exit codes: 0 ok, 1 failure, 2 usage, 3 node unreachable, 4 verification failed, 5 not ready.
    """


for _command in (
    *(init, start, stop, status, health, peers, doctor, journal),
    *(keys, account, task, queue, transfer),
    *(validator, evidence),
    *(chain, block, tx, learning_round, learning_rounds, clusters),
    *(model, reward, proof, snapshot, testnet, experiment, completion, debug),
):
    bflnode.add_command(_command)


for _command in (chain_check, chain_export, chain_import, chain_prune, chain_rollback):
    chain.add_command(_command)
for _command in (keys_protect, keys_unprotect):
    keys.add_command(_command)
for _command in (model_pin, model_unpin):
    model.add_command(_command)
evidence.add_command(evidence_extract)


def main() -> None:
    """The program `bflnode`."""
    bflnode.main(prog_name="bflnode")


if __name__ == "__main__":
    main()
