"""What all verbs of the command line share: options, exit codes, errors of one line, examples in help.

Light to import, like all `cli` modules: a verb loads what it needs when it runs, since `--help` must be quick.
"""

import errno
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from bflnode.node.home import Home
    from bflnode.node.rpc.reader import Reader

_log = logging.getLogger(__name__)

FAILURE, UNREACHABLE, VERIFICATION_FAILED, NOT_READY, INTERRUPTED = 1, 3, 4, 5, 130
"""Exit codes; 0 is success, 2 a wrong use of the command line, 130 what shells give an interrupted program."""

DEFAULT_HOME = "~/.bflnode"

DEBUG_VARIABLE = "BFLNODE_DEBUG"
"""Set to anything, an unexpected error shows its traceback."""

UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What writing to standard output ends with where it is a file on a disk that takes no more."""

RPC_URL = "bflnode.rpc"
"""Where click's context keeps `--rpc`."""

Function = TypeVar("Function", bound=Callable[..., Any])


class CommandError(click.ClickException):
    """Ends a verb with a message of one line and an exit code."""

    def __init__(self, message: str, exit_code: int = FAILURE) -> None:
        super().__init__(message)
        self.code = exit_code


def require_free(target: Path, is_forced: bool) -> None:
    """Refuse to write over a file unless that is wanted, and over what is no file at all: a folder, a device, a pipe.

    What is written takes the place of what was there, so a device would be gone.

    Raises:
        CommandError: it is taken.
    """
    if not target.exists():
        return
    if not target.is_file():
        kind = "a folder" if target.is_dir() else "no file"
        raise CommandError(f"{target} is {kind}: choose another name")
    if not is_forced:
        raise CommandError(f"{target} is there already: choose another name, or give --force")


def require_terminal(instead: str) -> None:
    """Refuse to ask where nobody can answer.

    Raises:
        click.UsageError: standard input is no terminal.
    """
    if not sys.stdin.isatty():
        raise click.UsageError(f"there is no terminal to ask on: {instead}.")


def examples(*lines: str) -> str:
    """The examples at the end of a verb's help."""
    return "\n".join(["Examples:", "", "\b", *(f"  {line}" for line in lines)])


class FiniteRange(click.FloatRange):
    """A range without nan, which compares as inside any, and without the infinities."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the number and check it."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def _as_home(_context: click.Context, _parameter: click.Parameter, value: Path) -> "Home":
    from bflnode.node.home import Home

    return Home(value.expanduser())


def home_option(function: Function) -> Function:
    """`--home`, given to the verb as a `Home`."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path),
        envvar="BFLNODE_HOME",
        default=DEFAULT_HOME,
        show_default=True,
        show_envvar=True,
        callback=_as_home,
        help="The node's folder.",
    )(function)


def json_option(function: Function) -> Function:
    """`--json`, given to the verb as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON with stable keys.")(function)


def task_option(function: Function) -> Function:
    """`--task`, by number, name or id."""
    return click.option(
        "--task", default="", metavar="TASK", help="Number, name or first digits of the id; default: the one that runs."
    )(function)


def local_options(function: Function) -> Function:
    """What a verb has that reads the home's own files only."""
    return json_option(home_option(function))


def reading_options(function: Function) -> Function:
    """What every verb that reads a node has; `--rpc` is not handed to the verb, `reading` finds it."""
    return click.option(
        "--rpc",
        metavar="URL",
        expose_value=False,
        callback=_note_rpc,
        help="Ask the node that answers there instead of the one of --home.",
    )(local_options(function))


def _note_rpc(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None and not value.startswith(("http://", "https://")):
        raise click.BadParameter(f"{value!r} is no URL: give one like http://127.0.0.1:26657")
    context.meta[RPC_URL] = value


def rpc_url() -> str | None:
    """What `--rpc` said."""
    url: str | None = click.get_current_context().meta.get(RPC_URL)
    return url


@contextmanager
def reading(home: "Home") -> Iterator["Reader"]:
    """A reader of the node: of the one at `--rpc`, else of the home's, running or stopped."""
    url = rpc_url()
    if url is not None:
        from bflnode.node.rpc.client import RpcClient
        from bflnode.node.rpc.reader import LiveReader

        with RpcClient(url) as client:
            yield LiveReader(client)
        return
    from bflnode.node.rpc.reader import open_reader

    with open_reader(home) as reader:
        yield reader


class Root(click.Group):
    """The whole command line: turns every error into one line on standard error and an exit code."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command line; ends the process with the exit code unless `standalone_mode` is off."""
        run: Callable[..., Any] = super().main
        if not options.pop("standalone_mode", True):
            return run(*arguments, standalone_mode=False, **options)
        sys.exit(_outcome(lambda: run(*arguments, standalone_mode=False, **options)))


def _outcome(run: Callable[[], Any]) -> int:
    """Run the command line and give its exit code; what went wrong is said on standard error."""
    try:
        code = run()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "bflnode"
        message = error.format_message()
        _complain(f"{message}{'' if message.endswith(('.', '?', '!')) else '.'} See `{path} --help`.")
        return error.exit_code
    except CommandError as error:
        _complain(error.message)
        return error.code
    except click.ClickException as error:
        _complain(error.format_message())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); nothing more can be written, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except Exception as error:  # the edge: whatever it is, a person gets one line
        if isinstance(error, OSError) and error.errno in UNWRITABLE and error.filename is None:
            _complain(f"cannot write the output: {error.strerror}: make room, or send it elsewhere")
            return FAILURE
        known = _exit_code_of(error)
        if os.environ.get(DEBUG_VARIABLE):
            raise
        if known is None:
            if logging.root.handlers:  # a daemon's log is where its operator looks for the traceback
                _log.error("unexpected error", exc_info=error)
            _complain(f"unexpected {type(error).__name__}: {error} ({DEBUG_VARIABLE}=1 shows where; please report it)")
            return FAILURE
        _complain(str(error))
        return known
    return code if isinstance(code, int) else 0


def _exit_code_of(error: Exception) -> int | None:
    """The exit code for an error that is nobody's bug."""
    from bflnode.node.home import HomeError
    from bflnode.node.rpc.refusals import InspectionError, ParameterError, RpcError, UnreachableError
    from bflnode.storage.errors import StorageError

    if isinstance(error, UnreachableError):
        return UNREACHABLE
    is_known = isinstance(error, (HomeError, StorageError, InspectionError, ParameterError, RpcError))
    return FAILURE if is_known else None


def _complain(message: str) -> None:
    click.echo(f"bflnode: {' '.join(message.split())}", err=True)
