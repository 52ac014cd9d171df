"""Coverage-guided fuzzing of one decoder: `python -m tests.fuzz TARGET --seconds N` (`make fuzz TARGET=… SECONDS=…`).

Needs atheris (`pip install -e '.[fuzz]'`). What it finds stays under build/fuzz/TARGET, so the next run goes on there.
A finding stops the run with a traceback and the input in `finding-…`; replay it with `--replay FILE`, and keep it as
a test with `--keep NAME FILE`. `--minimise` puts the smallest inputs that reach every line into the corpus.
"""

import argparse
import gc
import logging
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from random import Random
from types import FunctionType

from tests.fuzz import corpus
from tests.fuzz.mutations import MUTATIONS
from tests.fuzz.rule import Target, is_accepted
from tests.fuzz.targets import targets

BUILD = Path(__file__).resolve().parents[2] / "build" / "fuzz"

INSTRUMENTED = ("bflnode.", "tomllib.", "zipfile", "tarfile", "numpy.lib.", "multiaddr.")
"""Modules whose branches guide the search: ours, and the parsers in Python that stand behind them."""

SLOWEST_INPUT_S = 10
"""libFuzzer calls an input that takes longer a finding; the finer bound is in the test."""


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="?", help="a name; without it, the names are listed")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--replay", type=Path, metavar="FILE", help="decode one input and say what comes of it")
    parser.add_argument("--keep", nargs=2, metavar=("NAME", "FILE"), help="add an input to the corpus")
    parser.add_argument("--minimise", action="store_true", help="put into the corpus what this machine has found")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.target not in targets():
        parser.exit(0 if options.target is None else 2, "targets: " + " ".join(targets()) + "\n")
    target = targets()[options.target]
    if options.replay:
        print("accepted" if is_accepted(target, options.replay.read_bytes()) else "refused")
    elif options.keep:
        label, file = options.keep
        corpus.write(options.target, corpus.kept(options.target) | {label: Path(file).read_bytes()})
    elif options.minimise:
        minimise(options.target, target)
    else:
        fuzz(options.target, target, options.seconds)


def minimise(name: str, target: Target) -> None:
    """Replace the found inputs of the corpus; named ones stay."""
    known = corpus.kept(name)
    files = (path.read_bytes() for path in (BUILD / name / "found").glob("*"))
    chosen = corpus.smallest_that_reach_all(target, [*known.values(), *target.seeds(), *files])
    named = {label: data for label, data in known.items() if not label.startswith(corpus.FOUND)}
    found = {corpus.FOUND + sha256(data).hexdigest()[:8]: data for data in chosen}
    corpus.write(name, named | {label: data for label, data in found.items() if data not in named.values()})


def fuzz(name: str, target: Target, seconds: int) -> None:
    """Search until the time is over or something is found; ends the process."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install -e '.[fuzz]'")
    seeds = [*target.seeds(), *corpus.kept(name).values()]
    folder = BUILD / name
    (folder / "found").mkdir(parents=True, exist_ok=True)
    (folder / "seeds").mkdir(exist_ok=True)
    for seed in seeds:
        (folder / "seeds" / sha256(seed).hexdigest()[:16]).write_bytes(seed)
    for function in _functions():
        atheris.instrument_func(function)

    def mutate(data: bytes, max_size: int, number: int) -> bytes:
        random = Random(number)
        if random.random() < 0.4:
            mutated: bytes = atheris.Mutate(data, max_size)
            return mutated
        for _ in range(random.choice((1, 1, 2, 3))):
            data = random.choice(MUTATIONS)(data, random.randrange(2**32), random.choice(seeds))
        return data[:max_size]

    arguments = [
        *(sys.argv[0], f"-max_total_time={seconds}", f"-max_len={target.limit_bytes}", f"-timeout={SLOWEST_INPUT_S}"),
        *("-rss_limit_mb=4096", "-print_final_stats=1", f"-artifact_prefix={folder}/finding-"),
        *(str(folder / "found"), str(folder / "seeds")),
    ]
    atheris.Setup(arguments, lambda data: is_accepted(target, data), custom_mutator=mutate)
    atheris.Fuzz()


def _functions() -> Iterator[FunctionType]:
    for candidate in gc.get_objects():
        if isinstance(candidate, FunctionType) and str(candidate.__module__).startswith(INSTRUMENTED):
            yield candidate


if __name__ == "__main__":
    main()
