"""The Flower half of `flower.py`: FedAvg as a Flower app, run by its simulation engine. Runs under Flower's Python.

    python flower_app.py SPECIFICATION.json

It trains and measures with `bflnode.fl`, as the other half does, so that only the engines differ. Prints a line when a
round has ended.
"""

import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from bflnode.fl.architectures import Architecture, architecture
from bflnode.fl.inference import repeatable_torch
from bflnode.fl.population import Population, PopulationOptions, load_data, make_population
from bflnode.fl.training import TrainingConfig, fit, measure

VARIABLE = "BFLNODE_BENCHMARK_SPECIFICATION"
"""Tells workers of the simulation where the specification is."""

client = ClientApp()
server = ServerApp()


@cache
def specification() -> dict[str, Any]:
    return json.loads(Path(os.environ[VARIABLE]).read_text())


@cache
def model() -> Architecture:
    return architecture(specification()["architecture"])


@cache
def population() -> Population:
    """The clients: read and spread once in each worker, as Flower's examples do."""
    options = specification()["population"]
    return make_population(load_data("fashion-mnist", None), PopulationOptions(**options))


@client.train()
def train(message: Message, context: Context) -> Message:
    number = int(context.node_config["partition-id"])
    learning_round = int(message.content["config"]["server-round"])
    shard = population().shard((number,))
    config = TrainingConfig(**specification()["training"], seed=specification()["seeds"][learning_round - 1][number])
    with repeatable_torch(1):
        classifier = model().build()
        classifier.load_state_dict(message.content["arrays"].to_torch_state_dict())
        received = measure(classifier, shard.test).accuracy
        fit(classifier, shard.train, config)
        post = measure(classifier, shard.test).accuracy
    measures = MetricRecord({"num-examples": 1, "received": received, "post": post})  # clients count equally
    arrays = ArrayRecord(classifier.state_dict())
    return Message(content=RecordDict({"arrays": arrays, "metrics": measures}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's interface
    def report(learning_round: int, arrays: ArrayRecord) -> None:  # noqa: ARG001 - Flower's interface
        if learning_round:
            print(f"round {learning_round} of {rounds}", flush=True)

    rounds = specification()["rounds"]
    initial = model().load(Path(specification()["initial"]).read_bytes())
    strategy = FedAvg(fraction_evaluate=0.0)  # clients measure where they train: no second exchange of messages
    result = strategy.start(grid, ArrayRecord(initial.state_dict()), num_rounds=rounds, evaluate_fn=report)
    found = {number: dict(measures) for number, measures in result.train_metrics_clientapp.items()}
    Path(specification()["results"]).write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ[VARIABLE] = sys.argv[1]
    torch.set_num_threads(1)
    jobs = specification()["jobs"]
    # The module by its name: workers import it once, and keep what it caches between clients.
    import flower_app

    run_simulation(
        server_app=flower_app.server,
        client_app=flower_app.client,
        num_supernodes=specification()["population"]["clients"],
        backend_config={"init_args": {"num_cpus": jobs}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
