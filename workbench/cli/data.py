"""`workbench ingest` and `workbench datasets`: read drives, list and compare dataset versions."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.cli.common import (
    first_rows,
    json_option,
    print_result,
    progress_bar,
    warn_of_damaged,
)
from workbench.core.errors import ParameterError
from workbench.core.text import counted
from workbench.core.types import Json
from workbench.core.workspace import find_workspace
from workbench.records.base import short_ref

if TYPE_CHECKING:
    from workbench.data.diff import DatasetDiff
    from workbench.data.ingest import IngestResult
    from workbench.records.dataset import Dataset
    from workbench.records.types import Quarantined

__all__ = ()

FORMATS = [
    *("auto", "images", "coco", "scalabel", "yolo", "voc", "kitti", "fiftyone", "via"),
    "returned",
]
"""Choices of ``--format``: those of `workbench.data.readers.READERS`, which is slow to import."""

_EXAMPLES_PER_REASON = 5
_UNKNOWN_CLASS = re.compile(r"class '(.*)'$")


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the dataset.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default="auto",
    show_default=True,
    help="Format of the labels.",
)
@click.option(
    "--schema",
    "schema_file",
    type=click.Path(path_type=Path),
    help="YAML file with the classes of the labels; default: the classes of a front camera.",
)
@click.option(
    "--map",
    "mapped",
    multiple=True,
    metavar="SOURCE=CLASS|FILE",
    help="Map a class of the source to one of the schema, `ignore` or `drop`; or a YAML file of "
    "such pairs. Repeatable.",
)
@click.option(
    "--condition",
    "condition_words",
    multiple=True,
    metavar="WORD=VALUE",
    help="Map a word of the source for light or weather to day, dusk, night, clear, rain, fog or "
    "snow. Repeatable.",
)
@click.option(
    "--frame-rate",
    default=30.0,
    show_default=True,
    help="Frame rate (Hz) of drives without timestamps.",
)
@click.option("--workers", default=2, show_default=True, help="Number of decoding processes.")
@click.option(
    "--licence", default="", help="Licence of the data, such as CC-BY-4.0; releases list it."
)
@click.option(
    "--roles/--no-roles", default=True, show_default=True, help="Assign a role to each frame."
)
@click.option(
    "--blind",
    type=click.FloatRange(0, 0.5),
    default=0.0,
    help="Share of the drives to hold out as blind: see `workbench blind`.",
)
@json_option
def ingest(  # noqa: PLR0913, PLR0917 - each is an option of the command
    source: Path,
    name: str,
    format_: str,
    schema_file: Path | None,
    mapped: tuple[str, ...],
    condition_words: tuple[str, ...],
    frame_rate: float,
    workers: int,
    licence: str,
    roles: bool,
    blind: float,
    as_json: bool,
) -> None:
    """Read a folder of drives into an immutable dataset version.

    Every image is decoded and every box checked. Invalid inputs are quarantined: the record lists
    each with its file and the reason.
    """
    from workbench import data
    from workbench.records import references
    from workbench.records.frames import Role
    from workbench.records.store import Store

    workspace = find_workspace()
    schema = data.FRONT_CAMERA if schema_file is None else data.load_schema(schema_file)
    for pairs in mapped:
        schema = data.with_mapping(schema, data.read_mapping(pairs))
    conditions = _parse_conditions(condition_words)
    with progress_bar("reading frames") as progress:
        ingested = data.ingest(
            workspace,
            source,
            name=name,
            format=format_,
            schema=schema,
            frame_rate=frame_rate,
            workers=workers,
            conditions=conditions,
            licence=licence,
            progress=progress,
        )
    policy = data.RolePolicy()
    if blind:
        others = {role: share * (1 - blind) for role, share in policy.shares.items()}
        policy = replace(policy, shares={**others, Role.BLIND: blind})
    dataset = data.assign_roles(ingested.dataset, policy) if roles else ingested.dataset
    ref = ingested.save(Store(workspace), dataset)
    version = references.register_dataset(workspace, ref)
    hint = _map_hint(ingested)
    summary = {
        "version": str(version),
        "ref": ref,
        "format": ingested.format,
        **_dataset_summary(dataset),
        "quarantined": dict(Counter(entry.reason for entry in ingested.quarantine)),
        "notes": list(ingested.notes),
        "hint": hint,
    }
    text = [f"{version}  {ref}", *_dataset_lines(dataset), *_quarantine_lines(ingested.quarantine)]
    text += [f"note: {note}" for note in ingested.notes]
    if hint:
        text.append(f"next: to map the unknown classes, ingest with {hint}")
    text.append(f"next: workbench datasets show {version}")
    print_result(summary, as_json=as_json, text="\n".join(text))


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def datasets(context: click.Context, as_json: bool) -> None:
    """List, show and compare dataset versions."""
    if context.invoked_subcommand is not None:
        return
    from workbench.records import references
    from workbench.records.store import Store
    from workbench.records.types import DatasetVersion

    workspace = find_workspace()
    store = Store(workspace)
    rows = []
    records, damaged = dict(store.readable(DatasetVersion)), store.damaged(DatasetVersion)
    for one in references.conflicting_versions(workspace):
        damaged[one.ref] = f"another dataset version is {one}, too"
    for version in references.list_dataset_versions(workspace):
        if (record := records.get(version.ref)) is None:
            continue
        if record.name != version.name:
            damaged[version.ref] = f"its side/version.json has another name than {record.name}"
            continue
        rows.append(
            {
                "version": str(version),
                "ref": version.ref,
                "frames": record.frames,
                "labels": record.labels,
                "drives": record.drives,
                "quarantined": sum(record.quarantined.values()),
                "made_by": record.made_by,
                "simulated": record.simulated,
            }
        )
    warn_of_damaged(damaged)
    value = {"datasets": rows, "damaged": damaged}
    print_result(value, as_json=as_json, text=_datasets_table(rows))


@datasets.command("show")
@click.argument("reference", metavar="DATASET")
@json_option
def show(reference: str, as_json: bool) -> None:
    """Show the contents of a dataset version, and what was quarantined."""
    from workbench.records.dataset import load_dataset, read_json_lines
    from workbench.records.references import resolve_dataset
    from workbench.records.store import Store
    from workbench.records.types import DatasetVersion, Quarantined

    workspace = find_workspace()
    store = Store(workspace)
    ref = resolve_dataset(workspace, reference)
    record = store.get(ref, DatasetVersion)
    dataset = load_dataset(store, ref)
    quarantine = read_json_lines(store.payload(ref, "quarantine.jsonl"), Quarantined)
    value = {
        "ref": ref,
        "name": record.name,
        "made_by": record.made_by,
        "parents": list(record.parents),
        **_dataset_summary(dataset),
        "split": record.split,
        "quarantined": record.quarantined,
        "quarantine": [entry.model_dump() for entry in quarantine],
    }
    parents = ", ".join(short_ref(parent) for parent in record.parents)
    origin = f"made by {record.made_by}" + (f", from {parents}" if parents else "")
    text = [ref, origin, *_dataset_lines(dataset), *_quarantine_lines(quarantine)]
    print_result(value, as_json=as_json, text="\n".join(text))


@datasets.command("diff")
@click.argument("old")
@click.argument("new")
@json_option
def diff(old: str, new: str, as_json: bool) -> None:
    """Show frames and labels added, removed and changed from OLD to NEW."""
    from workbench.data.diff import diff_datasets
    from workbench.records.dataset import load_dataset
    from workbench.records.references import resolve_dataset
    from workbench.records.store import Store

    workspace = find_workspace()
    store = Store(workspace)
    refs = [resolve_dataset(workspace, reference) for reference in (old, new)]
    changes = diff_datasets(*(load_dataset(store, ref) for ref in refs))
    value = {"old": refs[0], "new": refs[1], **changes.counts()}
    print_result(value, as_json=as_json, text=_diff_text(changes))


def _parse_conditions(texts: tuple[str, ...]) -> dict[str, str]:
    # The last sign: a word of the source may have one.
    pairs = [text.rpartition("=") for text in texts]
    for text, (source, sign, target) in zip(texts, pairs, strict=True):
        if not (source and sign and target):
            raise ParameterError(
                "invalid --condition", where=text, hint="Write --condition WORD=VALUE"
            )
    return {source: target.strip() for source, _, target in pairs}


def _map_hint(ingested: IngestResult) -> str:
    """The options that map the unknown classes, with the class left to choose."""
    matches = (_UNKNOWN_CLASS.search(entry.detail) for entry in ingested.quarantine)
    names = sorted({match[1] for match in matches if match})
    return " ".join(f"--map {shlex.quote(name)}=CLASS" for name in names)


def _dataset_summary(dataset: Dataset) -> Json:
    return {
        "frames": len(dataset.frames),
        "labels": len(dataset.labels),
        "drives": len(dataset.drives),
        "simulated": dataset.simulated,
        "roles": _count_values(
            frame.role.value if frame.role else "none" for frame in dataset.frames
        ),
        "light": _count_values(frame.conditions.light.value for frame in dataset.frames),
        "weather": _count_values(frame.conditions.weather.value for frame in dataset.frames),
        "classes": _count_values(label.cls for label in dataset.labels if not label.ignore),
        "ignore_regions": sum(label.ignore for label in dataset.labels),
        "origins": _count_values(label.origin.value for label in dataset.labels),
    }


def _dataset_lines(dataset: Dataset) -> list[str]:
    summary = _dataset_summary(dataset)
    simulated = "  SIMULATED" if dataset.simulated else ""
    frames, drives = counted(summary["frames"], "frame"), counted(summary["drives"], "drive")
    rows = [f"{frames} of {drives}, {counted(summary['labels'], 'label')}{simulated}"]
    for name in ("roles", "light", "weather", "classes", "origins"):
        counts = ", ".join(f"{key} {count:,}" for key, count in summary[name].items())
        rows.append(f"  {name:<8} {counts or 'none'}")
    if summary["ignore_regions"]:
        rows.append(f"  ignored   {counted(summary['ignore_regions'], 'region')}")
    if dataset.split:
        rows.append(f"  split by  {dataset.split.get('method', 'hand')}")
    whole = dataset.split.get("drives_too_short_to_cut")
    if whole:
        rows.append(f"  {counted(len(whole), 'drive')} too short to split: one role each")
    return rows


def _quarantine_lines(entries: tuple[Quarantined, ...]) -> list[str]:
    """Counts by reason, each with a few examples."""
    if not entries:
        return ["nothing quarantined"]
    lines = [f"{counted(len(entries), 'input')} quarantined"]
    for reason, count in Counter(entry.reason for entry in entries).most_common():
        examples = [f"{entry.file}: {entry.detail}" for entry in entries if entry.reason == reason]
        lines.append(f"  {count:>6,}  {reason}")
        lines += first_rows(examples, _EXAMPLES_PER_REASON, " " * 10)
    return lines


def _datasets_table(rows: list[Json]) -> str:
    if not rows:
        return "no datasets yet\nnext: workbench ingest SOURCE --name NAME"
    width = max(len(row["version"]) for row in rows)
    lines = [f"{'version':<{width}}  frames  labels  drives  quarantined  made by"]
    for row in rows:
        marked = " (simulated)" if row["simulated"] else ""
        lines.append(
            f"{row['version']:<{width}}  {row['frames']:>6}  {row['labels']:>6}  "
            f"{row['drives']:>6}  {row['quarantined']:>11}  {row['made_by']}{marked}"
        )
    return "\n".join(lines)


def _diff_text(changes: DatasetDiff) -> str:
    if changes.empty:
        return "no difference in frames or labels"
    counts = changes.counts()
    lines = []
    for kind, detail in (("frames", "changed_fields"), ("labels", "changed_kinds")):
        row = counts[kind]
        why = ", ".join(f"{name} {count}" for name, count in row[detail].items())
        tail = f" ({why})" if why else ""
        lines.append(f"{kind}  +{row['added']}  -{row['removed']}  ~{row['changed']}{tail}")
    for heading in ("by_class", "by_slice"):
        for name, row in counts[heading].items():
            lines.append(f"  {name:<18} +{row['added']}  -{row['removed']}  ~{row['changed']}")
    return "\n".join(lines)


def _count_values(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
