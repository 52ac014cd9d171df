"""The command line in this process, as tests use it."""

import json
from typing import Any

from click.testing import CliRunner, Result

from bflnode.node.cli import bflnode


def run(*arguments: object, typed: str | bytes | None = None, **environment: str) -> Result:
    """Run `bflnode`; what is typed is its standard input."""
    return CliRunner().invoke(bflnode, [str(argument) for argument in arguments], input=typed, env=environment)


def read(*arguments: object) -> Any:
    """The JSON of a verb that succeeds."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def complaint(result: Result, exit_code: int) -> str:
    """The message of a verb that fails: one line, without a traceback."""
    assert result.exit_code == exit_code, result.output
    assert (result.stderr.startswith("bflnode: "), result.stderr.count("\n")) == (True, 1), result.stderr
    assert "Traceback" not in result.output
    return result.stderr
