"""Pages made while mkdocs builds: the command line from click, packages from docstrings.

A hook of mkdocs (``hooks`` in mkdocs.yml), so that neither page can differ from the code.
"""

from __future__ import annotations

import ast
import html
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from workbench.cli import cli
from workbench.cli.common import GroupWithDefault

_PACKAGE = Path(__file__).resolve().parents[1] / "workbench"
_PACKAGE_PAGE = """\
# {name}

::: {name}
    options:
      show_root_heading: false
      show_root_toc_entry: false
"""
_CLI_INTRODUCTION = """\
# Command line

Generated from the commands themselves. Every command takes `--help`. Those with `--json` print one
object on standard output ([what it holds](json.md)) and everything else on standard error. The exit
status is 0 only on success.

"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lists the packages' pages in the navigation, at the end of the reference."""
    pages = ["reference/packages/index.md"]
    pages += [f"reference/packages/{name}.md" for name in sorted(_packages())]
    (reference,) = (entry["Reference"] for entry in config.nav or () if "Reference" in entry)
    reference.append({"Packages": pages})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, before mkdocs resolves the navigation."""
    pages = {"reference/cli.md": _CLI_INTRODUCTION + "\n".join(_command_lines())}
    packages = sorted(_packages())
    for name in packages:
        pages[f"reference/packages/{name}.md"] = _PACKAGE_PAGE.format(name=f"workbench.{name}")
    pages["reference/packages/index.md"] = _package_index(packages)
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def _packages() -> Iterator[str]:
    for path in _PACKAGE.iterdir():
        if path.suffix == ".py" and not path.stem.startswith("_"):
            yield path.stem
        elif (path / "__init__.py").exists() and path.name != "cli":
            yield path.name


def _package_index(packages: list[str]) -> str:
    rows = []
    for name in packages:
        path = _PACKAGE / f"{name}.py"
        source = path if path.exists() else _PACKAGE / name / "__init__.py"
        docstring = ast.get_docstring(ast.parse(source.read_text())) or ""
        rows.append(f"| [`workbench.{name}`]({name}.md) | {docstring.partition(chr(10))[0]} |")
    head = "# Packages\n\n| package | what it holds |\n| --- | --- |\n"
    return head + "\n".join(rows) + "\n"


def _command_lines() -> Iterator[str]:
    context = click.Context(cli, info_name="workbench")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if command is not None and not command.hidden:
            yield from _command_page(command, context, name, level=2)


def _command_page(
    command: click.Command, parent: click.Context, name: str, level: int
) -> Iterator[str]:
    context = click.Context(command, parent=parent, info_name=name)
    yield f"{'#' * level} `{context.command_path}`\n"
    usage = context.get_usage().removeprefix("Usage: ")
    yield f"```text\n{usage}\n```\n"
    yield f"{_paragraphs(command.help or '')}\n"
    described = (
        command.commands[command.default] if isinstance(command, GroupWithDefault) else command
    )
    records = [one.get_help_record(context) for one in described.get_params(context)]
    rows = [row for row in records if row and row[0].startswith("-") and "--help" not in row[0]]
    if rows:
        yield "| option | |\n| --- | --- |"
        for option, text in rows:
            yield f"| <code>{_cell(option)}</code> | {_cell(text)} |"
        yield ""
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            if child is not None and not child.hidden:
                yield from _command_page(child, context, child_name, level + 1)


def _paragraphs(text: str) -> str:
    """Click's ``\\b`` marks a paragraph whose lines stay as they are."""
    parts = [part.replace("\b\n", "").strip() for part in text.split("\n\n")]
    return "\n\n".join(part for part in parts if part)


def _cell(text: str) -> str:
    """Text for a table's cell: no character of it is markup."""
    return (
        html.escape(" ".join(text.split()))
        .replace("|", "&#124;")
        .replace("*", "&#42;")
        .replace("[", "&#91;")
    )
