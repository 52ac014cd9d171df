"""A node's figures in Prometheus' text format, out of what `status` answers."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST

PHASES = ("idle", "commit", "reveal", "available", "aggregate", "attest")

GAUGES = (
    ("height", "height", "Height of the last block"),
    ("validators", "validators", "Validators that vote on the next block"),
    ("stake_microtokens", "stake", "Stake of this node's account"),
    ("balance_microtokens", "balance", "Free balance of this node's account"),
    ("learning_round", "round", "Learning round that runs, 0 for none"),
    ("learning_rounds_settled", "settled_rounds", "Learning rounds settled on this chain"),
    ("round_clients", "clients", "Clients of the learning round that runs"),
    ("round_committed", "committed", "Clients that have committed in this round"),
    ("round_revealed", "revealed", "Clients that have revealed in this round"),
    ("peers", "peers", "Connected peers"),
    ("syncing", "syncing", "1 while the node catches up with its peers"),
    ("mempool_transactions", "mempool", "Transactions that wait for a block"),
)
"""Metric, key of `status`, help."""

ACCURACIES = ("received_accuracy", "post_accuracy", "control_accuracy", "global_accuracy")


class StatusCollector(Collector):
    """Turns one status into metrics."""

    def __init__(self, status: dict[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """The metrics of the status."""
        status = self._status
        identity = {key: str(status[key]) for key in ("version", "chain_id", "node_id", "account", "name")}
        yield InfoMetricFamily("bflnode_build", "Which node and chain this is", identity)
        for name, key, text in GAUGES:
            yield GaugeMetricFamily(f"bflnode_{name}", text, float(status[key] or 0))
        yield GaugeMetricFamily("bflnode_uptime_seconds", "Time since the start", status["uptime_ms"] / 1000)
        head = GaugeMetricFamily("bflnode_head_time_seconds", "Header time of the last block, since the epoch")
        head.add_metric([], status["head_time_ms"] / 1000)
        yield head
        phase = GaugeMetricFamily("bflnode_phase", "1 for the phase of the learning round", labels=["phase"])
        for name in PHASES:
            phase.add_metric([name], float(status["phase"] == name))
        yield phase
        yield from self._traffic(status["network"])
        trainer = status["trainer"]
        yield GaugeMetricFamily(
            "bflnode_trainer_busy", "1 while the trainer has a job", float(trainer["job"] is not None)
        )
        yield GaugeMetricFamily("bflnode_trainer_waiting", "Jobs that wait for the trainer", float(trainer["waiting"]))
        yield self._accuracy(status["accuracy"] or {})

    def _traffic(self, network: dict[str, Any]) -> Iterator[Metric]:
        bytes_total = CounterMetricFamily("bflnode_network_bytes", "Bytes of messages with peers", labels=["direction"])
        bytes_total.add_metric(["in"], network["bytes_in"])
        bytes_total.add_metric(["out"], network["bytes_out"])
        yield bytes_total
        messages = CounterMetricFamily(
            "bflnode_network_messages", "Messages with peers", labels=["direction", "protocol"]
        )
        for direction in ("in", "out"):
            for protocol, count in network[f"messages_{direction}"].items():
                messages.add_metric([direction, str(protocol)], count)
        yield messages
        refused = CounterMetricFamily("bflnode_network_refused", "Messages of peers refused", labels=["reason"])
        for reason, count in network["refused"].items():
            refused.add_metric([str(reason)], count)
        yield refused

    def _accuracy(self, entry: dict[str, Any]) -> Metric:
        accuracy = GaugeMetricFamily("bflnode_accuracy", "Accuracies in the last journal entry", labels=["kind"])
        for name in ACCURACIES:
            if entry.get(name) is not None:
                accuracy.add_metric([name.removesuffix("_accuracy")], entry[name])
        return accuracy


def metrics_text(status: dict[str, Any]) -> bytes:
    """The metrics as Prometheus reads them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))
    return generate_latest(registry)
