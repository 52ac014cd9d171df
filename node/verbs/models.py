"""The verbs about models: list them, export one, measure one, classify with one."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    CommandError,
    Function,
    examples,
    home_option,
    json_option,
    reading,
    reading_options,
    require_free,
    task_option,
)
from .output import emit, facts, percent, table

if TYPE_CHECKING:
    from bflnode.node.home import Home
    from bflnode.node.workers.worker_protocol import Job, Memory, Result

SHOWN_PREDICTIONS = 50
"""Predictions in a terminal; all of them are in --json."""


@click.group(
    epilog=examples(
        "bflnode model list",
        "bflnode model get --cluster 0 --round 3 -o model.safetensors",
        "bflnode model eval --on own",
    )
)
def model() -> None:
    """List, export, measure and use models. Also works while the node is stopped."""


def _choice_options(function: Function) -> Function:
    """Which model; without any of them the one that this node trains from next."""
    for option in (
        click.option("--id", "identifier", default="", metavar="HASH", help="By its id; first digits do."),
        click.option("--client", default="", metavar="ACCOUNT", help="The model that a client revealed in --round."),
        click.option("--cluster", type=click.IntRange(0), help="The model of a cluster in --round."),
        click.option("--round", "number", default="", metavar="N", help="Learning round; default: the latest."),
    ):
        function = option(function)
    return function


@model.command("list", epilog=examples("bflnode model list", "bflnode model list --round 3 --json"))
@click.option("--round", "number", default="", metavar="N", help="Only of this learning round.")
@reading_options
@task_option
def model_list(number: str, home: "Home", as_json: bool, task: str) -> None:
    """List the models and sample files of a task, and which of them are on this disk."""
    with reading(home) as reader:
        answer = reader.call("models", number=number, task=task)
    emit(
        answer,
        as_json,
        lambda rows: table(
            ["model id", "what", "here", "bytes"],
            [(row["id"], row["origin"], row["is_stored"], row["size_bytes"]) for row in rows],
        ),
    )


@model.command(
    "get",
    epilog=examples(
        "bflnode model get -o mine.safetensors",
        "bflnode model get --client 3fa9 --round 3 -o theirs.safetensors",
        "bflnode model get --id 77c1 -o model.safetensors",
    ),
)
@_choice_options
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="File to write.")
@click.option("--force", is_flag=True, help="Write over an existing file.")
@home_option
@json_option
@task_option
def model_get(output: Path, force: bool, home: "Home", as_json: bool, **choice: Any) -> None:
    """Export a model as a safetensors file, checked against its content id."""
    found = _find(home, **choice)
    require_free(output, force)
    partial = output.with_name(output.name + ".partial")
    try:
        shutil.copyfile(found["path"], partial)
        copied = _content_id(partial)
        if copied == found["id"]:
            partial.replace(output)
    except OSError as error:
        raise CommandError(f"cannot write {output}: {error.strerror}") from error
    if copied != found["id"]:
        partial.unlink()
        raise CommandError(f"{found['path']} changed while it was copied: try again")
    answer = {**found, "output": str(output)}
    emit(
        answer,
        as_json,
        lambda shown: click.echo(f"wrote {shown['output']}: {shown['origin']} ({shown['architecture']})"),
    )


@model.command(
    "eval", epilog=examples("bflnode model eval", "bflnode model eval --cluster 0 --round 3 --on global --json")
)
@_choice_options
@click.option(
    "--on", "data", type=click.Choice(["own", "global"]), default="own", show_default=True, help="Which data."
)
@click.option(
    "--prior/--no-prior",
    default=None,
    help="Add the label prior of the own data; default: on own data, where the task's clients train with it.",
)
@click.option(
    "--memory/--no-memory",
    default=None,
    help="Predict half way to what this node trained last; default: on own data, where the task's clients do.",
)
@home_option
@json_option
@task_option
def model_eval(data: str, prior: bool | None, memory: bool | None, home: "Home", as_json: bool, **choice: Any) -> None:
    """Measure a model on the test part of this node's own data, or on the global test set."""
    from bflnode.node.configuration import load_configuration, shard_path
    from bflnode.node.workers.worker_protocol import EvaluateJob, EvaluateResult

    if data == "global" and prior:
        raise CommandError("the global test set is everybody's, and no node's label prior fits it: leave out --prior")
    found = _find(home, **choice)
    path = shard_path(home, load_configuration(home)) if data == "own" else home.test_set
    if not path.is_file():
        what = (
            "own data (`bflnode init --shard` or --data)"
            if data == "own"
            else "global test set (`bflnode init --test-set`)"
        )
        raise CommandError(f"this home has no {what}: {path} is missing")
    has_prior = data == "own" and (found["has_prior"] if prior is None else prior)
    remembered = _memory(found, is_wanted=memory) if data == "own" or memory else None
    prior_path = str(path) if has_prior else ""
    result = _run(EvaluateJob(found["architecture"], found["path"], str(path), prior_path, remembered))
    assert isinstance(result, EvaluateResult), result
    measured = {"accuracy": result.accuracy, "loss": result.loss, "samples": result.samples}
    answer = {**found, "has_prior": has_prior, "has_memory": remembered is not None, "on": data, **measured}
    emit(answer, as_json, _render_evaluation)


def _render_evaluation(answer: dict[str, Any]) -> None:
    facts(
        [
            ("model", f"{answer['id']} ({answer['origin']})"),
            (
                "accuracy",
                f"{percent(answer['accuracy'])} of {answer['samples']} test samples ({answer['on']}"
                f"{', with its label prior' if answer['has_prior'] else ''}"
                f"{', with its memory' if answer['has_memory'] else ''})",
            ),
            ("loss", f"{answer['loss']:.4f} nats"),
        ]
    )


@model.command(
    "predict", epilog=examples("bflnode model predict photos.npz", "bflnode model predict photos.npz --json")
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--prior", is_flag=True, help="Expect classes as often as in this node's own training data.")
@click.option(
    "--memory", is_flag=True, help="Predict half way between the model it trains from next and what it trained last."
)
@_choice_options
@home_option
@json_option
@task_option
def model_predict(file: Path, prior: bool, memory: bool, home: "Home", as_json: bool, **choice: Any) -> None:
    """Classify samples: FILE is an .npz whose array `inputs` is (samples, channels, height, width)."""
    from bflnode.node.configuration import load_configuration, shard_path
    from bflnode.node.workers.worker_protocol import PredictJob, PredictResult

    if not file.is_file():
        fault = "is a folder" if file.is_dir() else "does not exist"
        raise CommandError(f"{file} {fault}: give an .npz with an array named inputs")
    found = _find(home, **choice)
    own = shard_path(home, load_configuration(home)) if prior else None
    if own is not None and not own.is_file():
        raise CommandError(f"this home has no own data to take a prior from: {own} is missing; leave out --prior")
    remembered = _memory(found, is_wanted=True) if memory else None
    prior_path = "" if own is None else str(own)
    result = _run(PredictJob(found["architecture"], found["path"], str(file), prior_path, remembered))
    assert isinstance(result, PredictResult), result
    names = _class_names(home)
    predictions = [
        {"label": label, "name": names.get(label), "probability": row[label], "probabilities": list(row)}
        for label, row in zip(result.labels, result.probabilities, strict=True)
    ]
    emit({**found, "predictions": predictions}, as_json, _render_predictions)


def _render_predictions(answer: dict[str, Any]) -> None:
    predictions = answer["predictions"]
    table(
        ["sample", "class", "name", "probability"],
        [
            (index, entry["label"], entry["name"], percent(entry["probability"]))
            for index, entry in enumerate(predictions[:SHOWN_PREDICTIONS])
        ],
    )
    if len(predictions) > SHOWN_PREDICTIONS:
        click.echo(f"and {len(predictions) - SHOWN_PREDICTIONS} more: see --json")


def _find(home: "Home", **choice: Any) -> dict[str, Any]:
    """The chosen model; it must be on this disk."""
    with reading(home) as reader:
        found: dict[str, Any] = reader.call("model", **choice)
    if found["path"] is None:
        raise CommandError(
            f"the {found['origin']} ({found['id']}) is not on this disk: it was never fetched or has been pruned; "
            "`bflnode model list` shows what is here"
        )
    return found


def _memory(found: dict[str, Any], *, is_wanted: bool | None) -> "Memory | None":
    """What predicts with the chosen model; `is_wanted` is None where it does if the task's clients do so."""
    from bflnode.node.workers.worker_protocol import Memory

    if is_wanted and found["memory"] is None:
        raise CommandError(
            f"no memory goes with the {found['origin']}: only with what this node trains from next, if what it "
            "revealed in the learning round before is on this disk; leave out --memory"
        )
    is_used = found["has_prior"] if is_wanted is None else is_wanted
    return Memory(**found["memory"]) if found["memory"] and is_used else None


def _run(job: "Job") -> "Result":
    from bflnode.node.workers.worker_jobs import run_job

    try:
        return run_job(job, lambda _fraction, _note: None, threads=1)
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from error


def _class_names(home: "Home") -> dict[int, str]:
    """Names of the classes, from the node's own data where it has some."""
    from bflnode.fl.samples import DatasetError, load_shard
    from bflnode.node.configuration import load_configuration, shard_path

    try:
        names = load_shard(shard_path(home, load_configuration(home))).train.class_names
    except DatasetError:
        return {}
    return dict(enumerate(names))


def _content_id(path: Path) -> str:
    from bflnode.consensus.blob import manifest_of

    with path.open("rb") as file:
        return manifest_of(iter(lambda: file.read(1024 * 1024), b"")).id.hex()
