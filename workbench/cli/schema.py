"""`workbench schema`: write, show and check label schemas."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.cli.common import json_option, print_result
from workbench.cli.data import FORMATS
from workbench.core.errors import ParameterError
from workbench.core.text import counted
from workbench.core.workspace import find_workspace, write_atomic

if TYPE_CHECKING:
    from workbench.data.source import Source
    from workbench.records.frames import LabelSchema

__all__ = ()

_SOURCE_OPTION = click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="SOURCE",
    help="A folder of labeled images: its classes are read.",
)
_FORMAT_OPTION = click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default="auto",
    show_default=True,
    help="Format of SOURCE.",
)
_SUFFIXES = (".yaml", ".yml")

_TEMPLATE = """\
# Label schema, for `workbench ingest SOURCE --schema {file}` or `workbench run … -p schema={file}`.
# `workbench schema check {file} --from SOURCE` lists the names of a source that it does not know.
name: {name}
version: 1

# A model numbers the classes in this order; colours follow it, too.
classes:
{classes}
# Vulnerable road users, for whom recall is judged separately.
vulnerable: []

# How objects may be drawn: box, turned (a rotated box), polygon.
shapes: [box]

# Whether labelers give an object the same number in every frame.
tracks: false

# Questions to labelers about each box, beside class, occluded and truncated; and about a frame.
# - {{name: doors, answers: [open, shut], asked: "Are the doors open?"}}
box_questions: []
frame_questions: []

# What belongs to a class, in words for labelers.
definitions: {{}}

# Names that sources use, in lower case: a class, ignore (a region that is not scored) or drop.
mapping: {{}}
"""


@click.group()
def schema() -> None:
    """Write, show and check label schemas."""


@schema.command("new")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--name", help="Name of the schema; by default that of the file.")
@_SOURCE_OPTION
@_FORMAT_OPTION
@json_option
def new(file: Path, name: str | None, source: Path | None, format_: str, as_json: bool) -> None:
    """Write a commented schema to FILE, with the classes of a source if one is given."""
    if file.suffix not in _SUFFIXES:
        raise ParameterError("a schema is a YAML file", where=file, hint="Name it FILE.yaml")
    if file.exists():
        raise ParameterError("the file exists", where=file, hint="Choose another name")
    found = _class_counts(_read(source, format_)) if source else Counter[str]()
    lines = [f"  - {_quoted(cls)}  # {counted(n, 'label')}" for cls, n in found.most_common()]
    text = _TEMPLATE.format(
        file=file.name,
        name=_quoted(name or file.stem),
        classes="\n".join(lines or ["  - car", "  - pedestrian"]) + "\n",
    )
    write_atomic(file, text.encode())
    value = {"file": str(file), "classes": list(found) or ["car", "pedestrian"]}
    print_result(
        value, as_json=as_json, text=f"{file}\nnext: edit it, then workbench schema check {file}"
    )


@schema.command("show")
@click.argument("reference", metavar="[FILE|DATASET]", required=False)
@json_option
def show(reference: str | None, as_json: bool) -> None:
    """Show the schema of a file or dataset, by default that of front cameras."""
    found = _find_schema(reference)
    print_result(found.model_dump(mode="json"), as_json=as_json, text=_schema_text(found))


@schema.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@_SOURCE_OPTION
@_FORMAT_OPTION
@json_option
@click.pass_context
def check(
    context: click.Context, file: Path, source: Path | None, format_: str, as_json: bool
) -> None:
    """Check a schema file, and with --from whether it knows the classes of a source.

    Exits with 1 if the source has classes that the schema does not know.
    """
    from workbench import data

    found = data.load_schema(file)
    counts = _class_counts(_read(source, format_)) if source else Counter[str]()
    targets = {name: found.class_of(name) for name in counts}
    unknown = {name: counts[name] for name, target in targets.items() if target is None}
    value = {
        "file": str(file),
        "name": found.name,
        "version": found.version,
        "classes": list(found.classes),
        "source": {
            name: {"labels": counts[name], "class": target} for name, target in targets.items()
        },
    }
    lines = [
        f"{found.name}@{found.version}: {counted(len(found.classes), 'class', 'classes')}, valid"
    ]
    width = max(map(len, counts), default=0)
    for name, count in counts.most_common():
        lines.append(f"  {name:<{width}}  {count:>7,}  {targets[name] or 'UNKNOWN'}")
    if unknown:
        labels = counted(sum(unknown.values()), "label")
        mapped = "".join(f"\n  {_quoted(name)}: CLASS" for name in sorted(unknown))
        lines.append(
            f"{labels} would be quarantined. Add the classes, or to {file}:\nmapping:{mapped}"
        )
    print_result(value, as_json=as_json, text="\n".join(lines))
    context.exit(1 if unknown else 0)


def _find_schema(reference: str | None) -> LabelSchema:
    from workbench import data

    if reference is None:
        return data.FRONT_CAMERA
    path = Path(reference)
    if path.suffix in _SUFFIXES or path.is_file():
        return data.load_schema(path)
    from workbench.records.dataset import load_dataset
    from workbench.records.references import resolve_dataset
    from workbench.records.store import Store

    workspace = find_workspace()
    return load_dataset(Store(workspace), resolve_dataset(workspace, reference)).label_schema


def _read(source: Path, format_: str) -> Source:
    from workbench.data.readers import read_source

    return read_source(source, format_)


def _class_counts(source: Source) -> Counter[str]:
    return Counter(box.name for frame in source.frames for box in frame.boxes)


def _quoted(name: str) -> str:
    """The name as YAML reads it back as text."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_ ./-]*", name)
    is_word = name.lower() not in {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}
    return (
        name if plain and is_word and name == name.strip() else "'" + name.replace("'", "''") + "'"
    )


def _schema_text(found: LabelSchema) -> str:
    lines = [f"{found.name}@{found.version}"]
    for cls in found.classes:
        notes = ["vulnerable"] if cls in found.vulnerable else []
        names = sorted(name for name, target in found.mapping.items() if target == cls)
        notes += [f"also: {', '.join(names)}"] if names else []
        notes += [found.definitions[cls]] if cls in found.definitions else []
        lines.append(f"  {cls:<16} {'; '.join(notes)}".rstrip())
    for target, label in (("ignore", "not scored"), ("drop", "left out")):
        names = sorted(name for name, to in found.mapping.items() if to == target)
        if names:
            lines.append(f"{label}: {', '.join(names)}")
    lines.append(f"shapes: {', '.join(found.shapes)}{'; tracks' if found.tracks else ''}")
    for kind, questions in (("box", found.box_questions), ("frame", found.frame_questions)):
        for question in questions:
            lines.append(
                f"asked about each {kind}: {question.name} ({', '.join(question.answers)})"
            )
    return "\n".join(lines)
