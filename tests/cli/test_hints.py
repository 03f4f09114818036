"""Every command that a message or a page recommends exists, with the options it names."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from workbench.cli import cli
from workbench.cli.common import GroupWithDefault

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile")
FOREIGN = {"--address"}
"""Options of other programs that messages name: `ray start --address`."""


class Mention(NamedTuple):
    """A command as it is written somewhere, without the word ``workbench``."""

    where: str
    text: str


def in_markup(where: str, text: str) -> Iterator[Mention]:
    """Commands in code: a line of a block, or between backticks."""
    text = re.sub(r"\\\n\s*", " ", text)
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S):
        yield from at_line_start(where, block)
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    yield from at_line_start(where, "\n".join(re.findall(r"^(?: {4}|\t)(.*)", outside, re.M)))
    for code in re.findall(r"`([^`]+)`", outside):
        yield from at_line_start(where, code.replace("\n", " "))


def at_line_start(where: str, text: str) -> Iterator[Mention]:
    pattern = (
        r"^\s*(?:\$ |@|next: |then: )?(?:\S*bin/|\$\(BIN\)/)?(?:workbench|\$\(WORKBENCH\)) (.+)$"
    )
    for found in re.finditer(pattern, text, re.M):
        line = re.split(r"\s+#|;|\s&&|\s>|→| 2>", found[1])[0]
        yield Mention(where, line.strip())


def strings_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """String literals with their lines; what an f-string fills in is the word ``X``."""
    inner = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner
        ):
            yield node.lineno, inspect.cleandoc(node.value)


def mentions() -> list[Mention]:
    found: list[Mention] = []
    for path in [ROOT / name for name in PAGES] + sorted((ROOT / "docs").rglob("*.md")):
        if path.exists():
            found += in_markup(str(path.relative_to(ROOT)), path.read_text())
    for path in sorted((ROOT / "workbench").rglob("*.py")):
        for line, text in strings_of(ast.parse(path.read_text())):
            found += in_markup(f"{path.relative_to(ROOT)}:{line}", text)
            if "\n" not in text:  # in longer texts only code is meant as a command
                found += at_line_start(f"{path.relative_to(ROOT)}:{line}", text)
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")) + sorted(
        (ROOT / "pipelines").glob("*.yaml")
    ):
        found += in_markup(str(path.relative_to(ROOT)), path.read_text())
    return sorted(set(found))


def fault(text: str) -> str | None:
    """What is wrong with a command as written, or None."""
    words = re.sub(r"[\[\]…'\",]|\.\.\.", " ", text.replace("\\n", " ")).split()
    command: click.Command = cli
    context = click.Context(cli)
    seen = "workbench"
    while isinstance(command, click.Group):
        name = words[0] if words and re.fullmatch(r"[a-z][a-z-]*", words[0]) else None
        child = command.get_command(context, name) if name else None
        if child is not None:
            command, seen, words = child, f"{seen} {name}", words[1:]
        elif isinstance(command, GroupWithDefault):
            command = command.commands[command.default]
        elif name:
            return f"`{seen}` has no command {name!r}"
        else:
            break
    known = {
        name for one in command.get_params(context) for name in (*one.opts, *one.secondary_opts)
    }
    for word in words:
        option = word.partition("=")[0]
        if re.fullmatch(r"-[a-z]|--[a-z-]+", option) and option not in known | {"-h", "--help"}:
            return f"`{seen}` has no option {option}"
    return None


def test_commands_are_found_in_messages_and_pages() -> None:
    """The search itself works: without this, an empty search would pass."""
    found = mentions()
    assert len(found) > 100
    assert any(one.where.startswith("workbench/") for one in found)
    assert any(one.where.startswith("docs/") for one in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run pipelines/data_engine.yaml --to baseline", "`workbench run` has no option --to"),
        ("mine report SELECTION --labels BATCH", None),
        ("mine DATASET --budget 48", None),
        ("mine report SELECTION --budget 48", "`workbench mine report` has no option --budget"),
        ("datasets shw builtin", "`workbench datasets` has no command 'shw'"),
        ("lable send", "`workbench` has no command 'lable'"),
        ("runs [--pipeline P]", None),
    ],
)
def test_a_command_is_held_against_click(text: str, expected: str | None) -> None:
    assert fault(text) == expected


def test_every_recommended_command_exists() -> None:
    faults = {f"{one.where}: workbench {one.text}": fault(one.text) for one in mentions()}
    assert {key: value for key, value in faults.items() if value} == {}


def every_option() -> set[str]:
    def of(command: click.Command) -> Iterator[str]:
        context = click.Context(command)
        for one in command.get_params(context):
            yield from (*one.opts, *one.secondary_opts)
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                if child is not None:
                    yield from of(child)

    return {"--help", *of(cli)}


def test_every_option_in_a_hint_exists() -> None:
    """``hint="Send without --boxes"``: options that stand outside of a whole command."""
    known = every_option() | FOREIGN
    unknown = []
    for path in sorted((ROOT / "workbench").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg in {"hint", "fix"}:
                for line, text in strings_of(node.value):
                    names = re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
                    unknown += [f"{path}:{line} {name}" for name in names if name not in known]
    assert unknown == []
