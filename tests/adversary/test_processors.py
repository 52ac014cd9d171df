"""Numbers made so that kinds of processors compute something else of them, where all must compute the same bytes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import pytest

from bflnode.consensus.clustering import centroids, cluster
from bflnode.fl.robust import RULES, RobustRule
from bflnode.fl.rules import PAA, PRIOR_ROWS, Contribution, Rule, outputs
from bflnode.fl.weights import Tensor
from tests.adversary.test_hostile_numbers import hostile_matrix

LARGEST = float(np.finfo(np.float32).max)
ODD = np.array([0.0, -0.0, 1e-45, -1e-45, 1.2e-38, -1.2e-38, 1.0, -1.0, LARGEST, -LARGEST], dtype=np.float32)
ROOT = Path(__file__).resolve().parents[2]


def hostile_model(generator: np.random.Generator) -> dict[str, Tensor]:
    """Signed zeros, subnormals, the largest numbers, and anything between them over seventy orders of magnitude."""
    model: dict[str, Tensor] = {"representation.seen": np.array(generator.integers(-(2**62), 2**62))}
    shapes = {"representation.a": (17, 40), "representation.b.running_var": (17,), "decision.weight": (5, 17)}
    for name, shape in shapes.items():
        wide = generator.standard_normal(shape) * 10.0 ** generator.integers(-40, 30)
        model[name] = np.where(generator.random(shape) < 0.4, generator.choice(ODD, shape), wide).astype(np.float32)
    return model


def results() -> Iterator[bytes]:
    """What rules make of hostile models, and clustering of hostile matrices."""
    generator, random = np.random.default_rng(3), Random(3)
    for count in (2, 9):
        sent = [hostile_model(generator) for _ in range(count)]
        sent[1] = sent[0] if count > 2 else sent[1]
        bases = [hostile_model(generator) for _ in range(2)]
        contributions = [
            Contribution(sent=model, received=bases[index % 2], holds=[(index + row) % 3 == 0 for row in range(5)])
            for index, model in enumerate(sent)
        ]
        for name, combination, step, hostile in product((PAA, PRIOR_ROWS), RULES, (1.0, 10.0), (0.2, 0.499)):
            combined = RobustRule(name=combination, hostile=hostile, clip=0.7)
            rule = Rule(name=name, combination=combined, server_step=step, shared=1.0 if name == PAA else 0.5)
            for _, output in outputs(rule, contributions, [index % 2 for index in range(count)]):
                assert all(np.isfinite(tensor).all() for tensor in output.values())
                yield b"".join(output[key].tobytes() for key in sorted(output))
    for clients, clusters in ((7, 2), (17, 3), (33, 8)):
        matrix = hostile_matrix(random, clients)
        labels = cluster(matrix, clusters)
        yield repr((labels, centroids(matrix, labels))).encode()


def digest() -> str:
    return sha256(b"".join(results())).hexdigest()


def test_no_hostile_numbers_make_other_outputs_or_clusters_without_wide_registers() -> None:
    """With other bytes an honest aggregator would lose half its stake, with other clusters the chain would fork."""
    features = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    if not any(features):
        pytest.skip("numpy uses nothing beyond its baseline on this machine")
    plain = subprocess.run(
        [sys.executable, "-P", "-c", "from tests.adversary.test_processors import digest; print(digest())"],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OPENBLAS_CORETYPE": "Nehalem",
            "NPY_DISABLE_CPU_FEATURES": " ".join(features),
        },
    )
    assert plain.stdout.strip() == digest()
