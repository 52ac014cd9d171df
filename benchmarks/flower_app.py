"""The Flower half of `flower.py`: FedAvg as a Flower app, run by its simulation engine. Runs under Flower's Python.

    python flower_app.py SPECIFICATION.json

It trains and measures with `bflnode.fl`, as the other half does, so that only the engines differ; or, where the
specification says `plain`, with torch alone, as a user of Flower would write it. Prints a line when a round has ended.
"""

import json
import os
import sys
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bflnode.fl.architectures import Architecture, architecture
from bflnode.fl.inference import repeatable_torch
from bflnode.fl.population import Population, PopulationOptions, load_data, make_population
from bflnode.fl.samples import LabelledData, Shard, as_float
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
    work = train_plainly if specification()["plain"] else train_as_bflnode
    state = message.content["arrays"].to_torch_state_dict()
    trained, measures = work(state, shard, specification()["seeds"][learning_round - 1][number])
    metrics = MetricRecord({"num-examples": 1, **measures})  # clients count equally
    return Message(content=RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics}), reply_to=message)


State = dict[str, torch.Tensor]


def train_as_bflnode(state: State, shard: Shard, seed: int) -> tuple[State, dict[str, float]]:
    config = TrainingConfig(**specification()["training"], seed=seed)
    with repeatable_torch(1):
        classifier = model().build()
        classifier.load_state_dict(state)
        received = measure(classifier, shard.test).accuracy
        fit(classifier, shard.train, config)
        post = measure(classifier, shard.test).accuracy
    return classifier.state_dict(), {"received": received, "post": post}


def train_plainly(state: State, shard: Shard, seed: int) -> tuple[State, dict[str, float]]:
    """The same work with torch's own loader, optimiser and pooling; batches are drawn in another order."""
    training = specification()["training"]
    network = plain_network()
    network.load_state_dict(state)
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(in_torch(shard.train), training["batch_size"], shuffle=True, generator=generator)
    tested = DataLoader(in_torch(shard.test), training["batch_size"])
    received = plain_accuracy(network, tested)
    optimiser = torch.optim.Adam(network.parameters(), training["learning_rate"])
    network.train()
    for _ in range(training["epochs"]):
        for inputs, labels in loader:
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimiser.step()
    return network.state_dict(), {"received": received, "post": plain_accuracy(network, tested)}


def plain_network() -> nn.Module:
    """The architecture `cnn/1x28x28/10`, with the names of tensors that it has in bflnode."""
    representation = OrderedDict(
        first=nn.Conv2d(1, 8, 5, padding=2),
        first_pooling=nn.MaxPool2d(2),
        first_units=nn.ReLU(),
        second=nn.Conv2d(8, 16, 5, padding=2),
        second_pooling=nn.MaxPool2d(2),
        second_units=nn.ReLU(),
        flat=nn.Flatten(),
        code=nn.Linear(16 * 7 * 7, 32),
        units=nn.ReLU(),
    )
    return nn.Sequential(OrderedDict(representation=nn.Sequential(representation), decision=nn.Linear(32, 10)))


def in_torch(data: LabelledData) -> TensorDataset:
    return TensorDataset(torch.tensor(as_float(data.inputs)), torch.tensor(data.labels))


def plain_accuracy(network: nn.Module, loader: "DataLoader[Any]") -> float:
    network.eval()
    with torch.no_grad():
        hits = sum(int((network(inputs).argmax(1) == labels).sum()) for inputs, labels in loader)
    return hits / len(loader.dataset)


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
