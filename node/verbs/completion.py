"""The verb `completion`: prints a script with which a shell completes the other verbs."""

import click
from click.shell_completion import get_completion_class

from .options import examples

COMPLETION_VARIABLE = "_BFLNODE_COMPLETE"
"""By which the script tells the program that it is to complete, not to run."""


@click.command(
    epilog=examples(
        'eval "$(bflnode completion bash)"',
        "bflnode completion zsh > ~/.zfunc/_bflnode",
        "bflnode completion fish > ~/.config/fish/completions/bflnode.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    kind = get_completion_class(shell)
    assert kind is not None, f"click completes for {shell}"
    click.echo(kind(context.find_root().command, {}, "bflnode", COMPLETION_VARIABLE).source())
