"""`workbench models | selections | batches | releases`: lists of records; `compare A B`: models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.cli.common import (
    first_rows,
    info,
    json_option,
    print_result,
    progress_bar,
    warn_of_damaged,
)
from workbench.core.errors import ParameterError, RecordError
from workbench.core.text import counted
from workbench.core.workspace import find_workspace
from workbench.records import catalog
from workbench.records.base import Record, short_ref
from workbench.records.model_types import Checkpoint, Release, Rollback
from workbench.records.store import Store
from workbench.records.types import LabelBatch, LabelSet, Selection

if TYPE_CHECKING:
    from workbench.evaluation.comparison import Comparison, FlippedFrame

__all__ = ()

_FLIPPED_LISTED = 10


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List trained models: name, dataset, steps, AP50, and whether a pipeline made them."""
    _print_list(
        "models",
        catalog.list_models,
        ("model", "names", "dataset", "steps", "AP50", "made by", ""),
        lambda row: (
            short_ref(row.ref),
            ", ".join(row.names) or "-",
            row.dataset,
            "-" if row.steps is None else f"{row.steps:,}",
            "-" if row.ap50 is None else f"{row.ap50:.3f}{' simulated' if row.simulated else ''}",
            row.made_by,
            "champion" if row.champion else "",
        ),
        (Checkpoint, Release, Rollback),
        "workbench run pipelines/data_engine.yaml",
        as_json=as_json,
    )


@click.command()
@json_option
def selections(as_json: bool) -> None:
    """List selections of frames to label."""
    _print_list(
        "selections",
        catalog.list_selections,
        ("selection", "dataset", "frames", "made by", "created", "method"),
        lambda row: (
            short_ref(row.ref),
            row.dataset,
            f"{row.frames:,}",
            row.made_by,
            row.created,
            row.method,
        ),
        (Selection,),
        "workbench mine DATASET",
        as_json=as_json,
    )


@click.command()
@json_option
def batches(as_json: bool) -> None:
    """List label batches, and the labels collected from them."""
    _print_list(
        "batches",
        catalog.list_batches,
        ("batch", "dataset", "frames", "made by", "created", "labels"),
        lambda row: (
            short_ref(row.ref),
            row.dataset,
            f"{row.frames:,}",
            row.made_by,
            row.created,
            short_ref(row.labels) if row.labels else "not collected",
        ),
        (LabelBatch, LabelSet),
        "workbench label send SELECTION",
        as_json=as_json,
    )


@click.command()
@click.argument("model", required=False)
@json_option
def releases(model: str | None, as_json: bool) -> None:
    """List releases with their aliases, verdicts and waivers.

    With MODEL, show every move of its aliases instead: when, who and why, from the audit log.
    """
    if model is not None:
        _print_moves(model, as_json=as_json)
        return
    _print_list(
        "releases",
        catalog.list_releases,
        ("release", "model", "aliases", "verdict", "promoted", "created", "waivers"),
        lambda row: (
            short_ref(row.ref),
            f"{row.model}/{row.version}" if row.version else row.model,
            ", ".join(row.aliases) or "-",
            row.verdict,
            "yes" if row.promoted else "no",
            row.created,
            "; ".join(row.waived) or "-",
        ),
        (Release, Rollback),
        "workbench run pipelines/data_engine.yaml",
        as_json=as_json,
    )


def _print_moves(model: str, *, as_json: bool) -> None:
    from workbench.release.registry import alias_history

    moves = alias_history(find_workspace(), model)
    if not moves:
        raise RecordError(
            "no release of this model", where=model, hint="`workbench releases` lists all"
        )
    header = ("time", "event", "who", "candidate", "champion", "previous", "why")
    rows = [
        (
            one.at,
            one.event,
            one.by,
            *(str(number or "-") for number in (one.candidate, one.champion, one.previous)),
            one.why,
        )
        for one in moves
    ]
    body = {"model": model, "moves": [asdict(one) for one in moves]}
    print_result(body, as_json=as_json, text="\n".join(_table([header, *rows])))


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--dataset", help="Dataset to judge on.  [default: the one that B was trained on]")
@click.option("--role", default="safety", show_default=True, help="Only frames of this role.")
@click.option(
    "--slices",
    "slice_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Slices to compare on, such as pipelines/slices.yaml.  [default: the standard ones]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write an HTML page with pictures of the frames that changed.",
)
@json_option
def compare(
    first: str,
    second: str,
    dataset: str | None,
    role: str,
    slice_file: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Compare model B with model A on the same frames: slices with intervals, flipped frames.

    A and B are checkpoints, bundles or releases, by any reference. A difference is positive where
    B is better; its interval resamples drives.
    """
    import workbench as wb
    from workbench.data.slice_file import load_slices
    from workbench.data.slices import STANDARD_SLICES
    from workbench.records.types import DatasetVersion

    slices = load_slices(slice_file) if slice_file else STANDARD_SLICES
    workspace = wb.open()
    one, other = workspace.model(first), workspace.model(second)
    if dataset is None:
        trained = workspace.store.get(other.checkpoint, Checkpoint).dataset
        dataset = workspace.store.get(trained, DatasetVersion).name
        info(f"dataset: {dataset}, whose frames model B was trained on; role {role}")
    frames = workspace.dataset(dataset).role(role)
    if not frames.frames or not frames.labels:
        raise ParameterError(
            f"no labeled frames of role {role!r} to judge on",
            where=dataset,
            hint="Choose another --dataset or --role",
        )
    with progress_bar("predict") as progress:
        compared = wb.compare(one, other, frames, slices, progress=progress)
    if output is not None:
        compared.report(output, workspace.workspace)
        info(f"page: {output}")
    flipped = compared.flipped()
    table = compared.to_pandas()
    value = {
        "first": one.ref,
        "second": other.ref,
        "dataset": dataset,
        "role": role,
        "frames": len(frames.frames),
        "simulated": frames.simulated,
        "verdicts": compared.verdicts(),
        "rows": table.astype(object).where(table.notna(), None).to_dict("records"),
        "flipped": [_flipped_json(one) for one in flipped],
    }
    print_result(value, as_json=as_json, text=_comparison_text(compared, flipped, first, second))


def _comparison_text(
    compared: Comparison, flipped: Sequence[FlippedFrame], first: str, second: str
) -> str:
    simulated = " SIMULATED" if compared.first.metrics.simulated else ""
    frames = counted(len(compared.first.data.frames), "frame")
    rows: list[tuple[str, ...]] = [("slice", "verdict", "boxes", "AP50", "recall", "precision")]
    verdicts = compared.verdicts()
    for row in compared.first.metrics.rows:
        if row.cls == "all" and row.boxes:
            changes = (
                str(compared.difference(metric, row.slice).estimate)
                for metric in ("ap50", "recall", "precision")
            )
            rows.append((row.slice, verdicts[row.slice], f"{row.boxes:,}", *changes))
    lines = [f"{second} minus {first} on {frames}{simulated}", *_table(rows)]
    gained, lost = (sum(len(getattr(one, side)) for one in flipped) for side in ("gained", "lost"))
    lines.append(
        f"{counted(len(flipped), 'frame')} differ: {counted(gained, 'object')} gained, {lost} lost"
    )
    named = [
        f"{frame.drive}@{frame.index}  +{len(one.gained)} -{len(one.lost)}  {frame.id[:12]}"
        for one in flipped
        for frame in [one.frame]
    ]
    return "\n".join([*lines, *first_rows(named, _FLIPPED_LISTED, "  ")])


def _flipped_json(one: FlippedFrame) -> dict[str, object]:
    return {
        "frame": one.frame.id,
        "name": f"{one.frame.drive}@{one.frame.index}",
        "gained": [label.cls for label in one.gained],
        "lost": [label.cls for label in one.lost],
    }


def _print_list(
    name: str,
    rows_of: Callable[[Store], Sequence[Any]],
    header: tuple[str, ...],
    cells: Callable[[Any], tuple[str, ...]],
    types: tuple[type[Record], ...],
    command: str,
    *,
    as_json: bool,
) -> None:
    store = Store(find_workspace())
    rows, damaged = rows_of(store), catalog.damaged_records(store, *types)
    text = "\n".join(_table([header, *map(cells, rows)]))
    if not rows:
        text = f"no {name} yet\nnext: {command}"
    warn_of_damaged(damaged)
    value = {name: [asdict(row) for row in rows], "damaged": damaged}
    print_result(value, as_json=as_json, text=text)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
