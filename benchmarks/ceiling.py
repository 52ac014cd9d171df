"""What could be had if all data were in one place: how far the methods of docs/results.md are from that.

    python benchmarks/ceiling.py examples/experiments/results/label-skew-fashion-rate-3.toml

One model is trained on the data of all clients together, as long as all of them train, at the learning rate and on the
seeds of an experiment. A client predicts with it and its own label prior, beside RECEIVED under `prior-rows`, and, half
way to what a round on its own data makes of it, beside POST. Of each the best of all rounds is shown, chosen on the
test data themselves: so rather more than could be had. Ten minutes on a core for fifteen runs.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from bflnode.fl.architectures import Architecture
from bflnode.fl.inference import repeatable_torch
from bflnode.fl.interpolation import between
from bflnode.fl.methods.method import load
from bflnode.fl.networks import get_tensors
from bflnode.fl.population import Population, load_data, make_population
from bflnode.fl.prior import WithPrior, with_prior
from bflnode.fl.samples import Shard
from bflnode.fl.training import TrainingConfig, fit, measure
from bflnode.fl.weights import Tensors, parse
from bflnode.node.experiments.file import Experiment, read_experiment
from bflnode.node.experiments.round import architecture_of, training_config
from bflnode.node.experiments.run import population_options

OWN_SHARE = 0.5
"""How far a client goes towards what its own data make of the model."""


def personal(chosen: Architecture, model: Tensors, client: Shard) -> WithPrior:
    """What predicts for a client: the model with its own prior."""
    return with_prior(load(chosen, model), client.train.histogram())


def accuracies(chosen: Architecture, model: Tensors, client: Shard, config: TrainingConfig) -> tuple[float, float]:
    """Of a client with its own prior, and half way to what its own data make of that."""
    received, own = (personal(chosen, model, client) for _ in range(2))
    fit(own, client.train, config)
    halfway = between(model, get_tensors(own.classifier), OWN_SHARE)
    return (
        measure(received, client.test).accuracy,
        measure(personal(chosen, halfway, client), client.test).accuracy,
    )


def play(experiment: Experiment, population: Population) -> np.ndarray:
    """The best RECEIVED, POST and GLOBAL of any round, each by itself."""
    everybody = population.shard(range(population.options.clients)).train
    clients = [population.shard([client]) for client in range(population.options.clients)]
    chosen = architecture_of(experiment, population)
    config = replace(training_config(experiment.training), device="cpu")
    model = load(chosen, parse(chosen.initial_weights(population.options.seed), chosen.table))
    found = []
    for number in range(1, experiment.rounds + 1):
        again = replace(config, seed=number)
        fit(model, everybody, again)
        tensors = get_tensors(model)
        general = measure(model, population.held.global_test).accuracy
        own = np.mean([accuracies(chosen, tensors, client, again) for client in clients], axis=0)
        found.append((*own, general))
    return np.max(found, axis=0)


def main() -> None:
    """Print RECEIVED, POST and GLOBAL by alpha, mean and standard deviation over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    experiment, _ = read_experiment(file)
    whole = load_data(experiment.data.kind, file.parent / experiment.data.path if experiment.data.path else None)
    if len(experiment.seeds) < 2:
        parser.error(f"{file} has one seed: a spread takes two")
    print("| alpha | RECEIVED | POST | GLOBAL |\n|---|---|---|---|")
    with repeatable_torch(1):
        for alpha in experiment.alphas:
            best = [
                play(experiment, make_population(whole, population_options(experiment, alpha, seed)))
                for seed in experiment.seeds
            ]
            cells = (f"{fmean(column):.3f} ± {stdev(column):.3f}" for column in np.transpose(best))
            print(f"| {alpha:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
