"""The command line `bflnode`: which verbs there are. Each group of verbs is in a `cli_…` module.

Importing this must stay quick: what a verb needs beyond click is imported when it runs.
"""

import click

from .cli_accounts import account, keys, queue, task, transfer
from .cli_blobs import model_pin, model_unpin
from .cli_chain import block, chain, clusters, learning_round, learning_rounds, tx
from .cli_completion import completion
from .cli_debug import debug
from .cli_doctor import doctor
from .cli_experiment import experiment
from .cli_init import init
from .cli_keys import keys_protect, keys_unprotect
from .cli_models import model
from .cli_node import health, journal, start, status, stop
from .cli_options import Root, examples
from .cli_peers import peers
from .cli_proof import proof
from .cli_rewards import reward
from .cli_snapshot import snapshot
from .cli_storage import chain_check, chain_export, chain_import, chain_prune, chain_rollback
from .cli_testnet import testnet
from .cli_validators import evidence, validator


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


def main() -> None:
    """The program `bflnode`."""
    bflnode.main(prog_name="bflnode")


if __name__ == "__main__":
    main()
