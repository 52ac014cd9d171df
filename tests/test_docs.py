"""What the documentation says is there: links, command lines, numbers of records, and figures that code defines."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import click
import pytest

from bflnode.consensus import tables
from bflnode.consensus.genesis import default_parameters
from bflnode.consensus.rewards import bfln_payout
from bflnode.consensus.state import Cell, Table
from bflnode.consensus.transaction import Kind
from bflnode.consensus.types import TOKEN
from bflnode.fl.architectures import architecture
from bflnode.fl.datasets import KINDS
from bflnode.node.cli import bflnode

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RECORDS = sorted((DOCS / "adr").glob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
RECORD_LINK = re.compile(r"\[ADR (\d+)\]\((?:adr/|docs/adr/)?(\d+)-")
INLINE = re.compile(r"(?<!`)`(bflnode [^`]+)`(?!`)")
SUBSTITUTION = re.compile(r"\$\((bflnode [^|)]*)[^$]*\)")
SHELL_END = {"|", "||", "&", "&&", ";", ">", ">>", "<", "2>", "2>&1"}


@dataclass(frozen=True)
class CommandLine:
    """A command line in a page: a whole one in a block of code, or perhaps only the beginning of one in a sentence."""

    page: Path
    text: str
    is_whole: bool


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def _blocks(text: str) -> list[str]:
    return re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)


def _command_lines(page: Path) -> Iterator[CommandLine]:
    text = page.read_text(encoding="utf-8")
    for block in _blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.removeprefix("$ ")
            if command.startswith("bflnode "):
                yield CommandLine(page, SUBSTITUTION.sub("VALUE", command), is_whole=True)
            for inner in SUBSTITUTION.findall(line):
                yield CommandLine(page, inner, is_whole=True)
    for found in INLINE.findall(_without_code(text)):
        yield CommandLine(page, found, is_whole=False)


def _headings(page: Path) -> set[str]:
    """Anchors of a page, as code hosts make them."""
    titles = re.findall(r"^#+ (.+)$", _without_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


def _link_fault(page: Path, target: str) -> str | None:
    if re.match(r"[a-z]+:", target):
        return None
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.is_relative_to(ROOT) or not file.exists():
        return f"{_name(page)}: {target} is not there"
    if anchor and anchor not in _headings(file):
        return f"{_name(page)}: {target} names no heading"
    return None


def _command_fault(line: CommandLine) -> str | None:
    """Why a command line can't be one of ours, judged by the command tree: verbs, options, values, arguments."""
    words = shlex.split(line.text, comments=True)
    end = next((index for index, word in enumerate(words) if word in SHELL_END), len(words))
    command: click.Command = bflnode
    options: dict[str, click.Option] = {}
    given: set[str] = set()
    arguments: list[str] = []
    queue = words[1:end]
    while queue:
        word = queue.pop(0)
        options = {name: option for option in _options(command) for name in (*option.opts, *option.secondary_opts)}
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            option = options.get(name)
            if option is None:
                return f"{command.name} has no option {name}"
            given.add(str(option.name))
            if not option.is_flag and not option.count:
                value = value if equals else queue.pop(0) if queue else ""
                if isinstance(option.type, click.Choice) and value not in option.type.choices:
                    return f"{value!r} is no value of {name}"
        elif isinstance(command, click.Group) and not arguments:
            if word.isupper() and not line.is_whole:
                return None  # a placeholder: `bflnode VERB --help`
            found = command.commands.get(word)
            if found is None:
                return f"{command.name} has no verb {word!r}"
            command = found
        else:
            arguments.append(word)
    return _argument_fault(command, arguments, given) if line.is_whole else None


def _options(command: click.Command) -> list[click.Option]:
    parameters = command.get_params(click.Context(command))
    return [parameter for parameter in parameters if isinstance(parameter, click.Option)]


def _argument_fault(command: click.Command, arguments: list[str], given: set[str]) -> str | None:
    if isinstance(command, click.Group) and not command.invoke_without_command and "help" not in given:
        return f"{command.name} needs a verb"
    wanted = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    least = sum(argument.required for argument in wanted)
    most = len(arguments) if any(argument.nargs == -1 for argument in wanted) else len(wanted)
    if "help" not in given and not least <= len(arguments) <= most:
        return f"{command.name} takes {least} to {most} arguments, not {arguments}"
    missing = [option.opts[-1] for option in _options(command) if option.required and option.name not in given]
    return f"{command.name} needs {missing[0]}" if missing and "help" not in given else None


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = LINK.findall(_without_code(page.read_text(encoding="utf-8")))

    assert [fault for target in targets if (fault := _link_fault(page, target))] == []


def test_a_broken_link_is_noticed() -> None:
    page = DOCS / "protocol.md"

    assert _link_fault(page, "nowhere.md") == "docs/protocol.md: nowhere.md is not there"
    assert _link_fault(page, "learning.md#nothing") == "docs/protocol.md: learning.md#nothing names no heading"
    assert _link_fault(page, "../../elsewhere") == "docs/protocol.md: ../../elsewhere is not there"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_command_lines_are_ones_of_the_command_line(page: Path) -> None:
    faults = [f"{line.text}: {fault}" for line in _command_lines(page) if (fault := _command_fault(line))]

    assert faults == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("bflnode sing", "bflnode has no verb 'sing'"),
        ("bflnode chain sing", "chain has no verb 'sing'"),
        ("bflnode status --loud", "status has no option --loud"),
        ("bflnode model eval --on moon", "'moon' is no value of --on"),
        ("bflnode tx", "tx takes 1 to 1 arguments, not []"),
        ("bflnode block 1 2 | head", "block takes 0 to 1 arguments, not ['1', '2']"),
        ("bflnode init", "init needs --genesis"),
        ("bflnode chain", "chain needs a verb"),
        ("bflnode chain verify --reexecute --home a  # slow", None),
    ],
)
def test_a_wrong_command_line_is_noticed(text: str, fault: str | None) -> None:
    assert _command_fault(CommandLine(DOCS, text, is_whole=True)) == fault


def test_readme_and_tutorial_show_command_lines() -> None:
    shown = {_name(page): sum(line.is_whole for line in _command_lines(page)) for page in PAGES}

    assert shown["README.md"] >= 3
    assert shown["docs/tutorial.md"] >= 10


def test_decision_records_are_numbered_without_gaps() -> None:
    assert [int(record.name[:4]) for record in RECORDS] == list(range(1, len(RECORDS) + 1))


@pytest.mark.parametrize("record", RECORDS, ids=_name)
def test_decision_record_has_its_number_status_and_sections(record: Path) -> None:
    lines = record.read_text(encoding="utf-8").splitlines()

    assert re.fullmatch(rf"# {int(record.name[:4])}\. .+", lines[0])
    assert lines[2].startswith("Status: ")
    sections = [line for line in lines if line.startswith("## ")]
    assert [line for line in sections if line in ("## Context", "## Decision", "## Consequences")] == [
        "## Context",
        "## Decision",
        "## Consequences",
    ]


def test_decision_records_are_named_by_their_numbers() -> None:
    found = [pair for page in PAGES for pair in RECORD_LINK.findall(page.read_text(encoding="utf-8"))]

    assert found
    assert [pair for pair in found if int(pair[0]) != int(pair[1])] == []


def test_protocol_lists_every_kind_of_transaction() -> None:
    listed = re.findall(r"^\| ([A-Z_]+) (\d+) \|", (DOCS / "protocol.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert [(name, int(number)) for name, number in listed] == [(kind.name, int(kind)) for kind in Kind]


def test_protocol_lists_every_key_of_the_state() -> None:
    layout = [value for value in vars(tables).values() if isinstance(value, Table | Cell)]
    keys = {(entry.prefix if isinstance(entry, Table) else entry.key).decode() for entry in layout}
    text = (DOCS / "protocol.md").read_text(encoding="utf-8")

    assert [key for key in sorted(keys) if f"`{key}" not in text] == []


def test_protocol_has_the_default_parameters() -> None:
    text = (DOCS / "protocol.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|", text, re.MULTILINE)
    shown = {
        name: int(value.replace(",", "").removesuffix(" tokens")) * (TOKEN if value.endswith("tokens") else 1)
        for names, values in rows
        for name, value in zip(re.findall(r"`(\w+)`", names), values.strip().split(", "), strict=False)
        if name in {field.name for field in fields(default_parameters())}
    }

    assert shown == {field.name: getattr(default_parameters(), field.name) for field in fields(default_parameters())}


def test_protocol_s_example_of_a_payout_is_what_the_code_pays() -> None:
    labels = [label for label, size in enumerate((12, 5, 3)) for _ in range(size)]
    payout = bfln_payout(labels, 20 * TOKEN, 2)
    text = (DOCS / "protocol.md").read_text(encoding="utf-8").replace(",", "")

    for client in {payout.clients[0], payout.clients[12], payout.clients[17]}:
        assert f"= {client.gross} - {client.fee} = {client.net} each" in re.sub(r" +", " ", text)
    assert f"{payout.fees} fees + {payout.dust} dust = {payout.aggregator}" in re.sub(r" +", " ", text)


def test_threat_model_s_example_of_sybils_is_what_the_code_pays() -> None:
    labels = [label for label, size in enumerate((7, 5, 5, 5)) for _ in range(size)]
    net = bfln_payout(labels, 20 * TOKEN, 2).clients[0].net

    assert f"3 x {net / TOKEN:.6f} = {3 * net / TOKEN:.2f} tokens" in (DOCS / "threat-model.md").read_text(
        encoding="utf-8"
    )


def test_learning_page_lists_every_kind_of_data() -> None:
    text = (DOCS / "learning.md").read_text(encoding="utf-8")

    assert [kind for kind in KINDS if f"`{kind}`" not in text] == []


def test_learning_page_has_the_architectures_sizes() -> None:
    text = (DOCS / "learning.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9]+/[\dx]+/\d+)` \|.*\| (\d+) \| ([\d,]+) \| ([\d,]+) \|$", text, re.MULTILINE)

    assert len(rows) >= 6
    for name, code_length, parameters, size_bytes in rows:
        chosen = architecture(name)
        floats = sum(spec.elements for spec in chosen.table.tensors if spec.dtype.value == "F32")
        found = (int(code_length), int(parameters.replace(",", "")), int(size_bytes.replace(",", "")))
        assert found == (chosen.code_length, floats, chosen.size_bytes)
