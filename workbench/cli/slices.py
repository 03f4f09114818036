"""`workbench slices`: list and check named slices, and find those where a model fails."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.cli.common import info, json_option, print_result, progress_bar
from workbench.core.errors import ParameterError
from workbench.core.text import counted
from workbench.core.types import Json
from workbench.core.workspace import find_workspace

if TYPE_CHECKING:
    from workbench.data.slices import Slice
    from workbench.evaluation.matching import EvaluationSet
    from workbench.records.dataset import Dataset

__all__ = ()

_DEFAULT_FILE = Path("pipelines/slices.yaml")


@click.group()
def slices() -> None:
    """List, check and discover slices: named parts of frames and labels."""


_file_argument = click.argument(
    "file", type=click.Path(path_type=Path, dir_okay=False), default=_DEFAULT_FILE
)


@slices.command("list")
@_file_argument
@click.option("--dataset", help="Count its frames and labels in each slice.")
@click.option("--role", help="Only frames of this role.")
@json_option
def list_slices(file: Path, dataset: str | None, role: str | None, as_json: bool) -> None:
    """List the slices of FILE (pipelines/slices.yaml), with their size in a dataset."""
    import workbench as wb
    from workbench.data.slice_file import load_slices
    from workbench.evaluation.matching import build_evaluation_set

    parts = load_slices(file)
    whole = wb.open().dataset(dataset) if dataset else None
    if whole and role:
        whole = whole.role(role)
    data = build_evaluation_set(whole, ()) if whole else None
    rows: list[Json] = [
        {"slice": part.name, "help": part.description} | (_counts(part, data) if data else {})
        for part in parts
    ]
    print_result({"slices": rows}, as_json=as_json, text="\n".join(map(_slice_line, rows)))


def _counts(part: Slice, data: EvaluationSet) -> Json:
    """Frames of a slice, the labels that count in it, and their drives."""
    from workbench.evaluation.matching import match_slice

    table = match_slice(data, part)
    drives = {data.frames[number].drive for number in table.truth_frame}
    return {"frames": len(table.frames), "labels": len(table.truth_label), "drives": len(drives)}


def _slice_line(row: Json) -> str:
    if "frames" not in row:
        return f"{row['slice']:16} {row['help']}"
    return (
        f"{row['slice']:16} {row['frames']:>7,} frames {row['labels']:>8,} labels"
        f" {row['drives']:>6,} drives  {row['help']}"
    )


@slices.command()
@_file_argument
@click.option(
    "--gates",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also check that the gates of this file name slices of FILE.",
)
@json_option
def check(file: Path, gates: Path | None, as_json: bool) -> None:
    """Check a file of slices: keys, values and how terms are joined."""
    from workbench.data.slice_file import load_slices

    parts = load_slices(file)
    result: Json = {"file": str(file), "slices": [part.name for part in parts]}
    text = f"{file}: {counted(len(parts), 'slice')}"
    if gates is not None:
        from workbench.evaluation.gates import load_rules

        count = len(load_rules(gates, parts).gates)
        result["gates"] = count
        text += f"; {gates}: {counted(count, 'gate')}"
    print_result(result, as_json=as_json, text=text)


@slices.command()
@click.argument("model")
@click.option("--dataset", help="Dataset to look at.  [default: the one it was trained on]")
@click.option("--role", default="val", show_default=True, help="Only frames of this role.")
@click.option(
    "--threshold", type=float, help="Boxes below this score are missing.  [default: the model's]"
)
@click.option("--clusters", default=0, show_default=True, help="Also groups of alike frames.")
@click.option("--alpha", default=0.05, show_default=True, help="Chance of any false finding.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write proposals here."
)
@json_option
def discover(
    model: str,
    dataset: str | None,
    role: str,
    threshold: float | None,
    clusters: int,
    alpha: float,
    output: Path | None,
    as_json: bool,
) -> None:
    """Find slices where MODEL misses more than class and size explain.

    Combinations of conditions, attributes, class and size are looked at, and with --clusters groups
    of frames that look alike. Levels are corrected for their number, and drives are the unit of
    chance. With -o, slices and gates are proposed as YAML, for a person to take over.
    """
    import workbench as wb
    from workbench.data.slices import ALL_FRAMES
    from workbench.evaluation.results import EvaluationSettings
    from workbench.evaluation.slice_discovery import discover_slices
    from workbench.records.model_types import Checkpoint
    from workbench.records.types import DatasetVersion

    workspace = wb.open()
    chosen = workspace.model(model)
    if dataset is None:
        trained = workspace.store.get(chosen.checkpoint, Checkpoint).dataset
        dataset = workspace.store.get(trained, DatasetVersion).name
    frames = workspace.dataset(dataset).role(role)
    if not frames.frames or not frames.labels:
        raise ParameterError(
            f"no labeled frames of role {role!r}", where=dataset, hint="Choose another --role"
        )
    groups = _clusters(frames, clusters) if clusters else {}
    settings = EvaluationSettings(
        threshold=chosen.threshold if threshold is None else threshold, resamples=100
    )
    with progress_bar("predict") as progress:
        found = chosen.predict(frames, progress=progress)
    result = discover_slices(
        wb.evaluate(found, [ALL_FRAMES], settings=settings), groups, alpha=alpha
    )
    if output is not None:
        output.write_text(result.proposals(), encoding="utf-8")
        info(f"proposals: {output}")
    body: Json = {
        "model": chosen.ref,
        "dataset": dataset,
        "role": role,
        "simulated": frames.simulated,
        "candidates": result.candidates,
        "slices": [vars(one) for one in result.found],
    }
    title = (
        f"{counted(len(result.found), 'weak slice')} among {result.candidates:,} candidates on "
        f"{counted(len(frames.frames), 'frame')} of {dataset}"
        f"{', SIMULATED' if frames.simulated else ''}"
    )
    lines = [title, *(f"  {one}" for one in result.found)]
    print_result(body, as_json=as_json, text="\n".join(lines))


def _clusters(frames: Dataset, count: int) -> dict[str, str]:
    """Frame id to the name of its cluster: k-means of frame embeddings (lite0)."""
    from scipy.cluster.vq import kmeans2

    from workbench import curation
    from workbench.cli.mining import load_encoder
    from workbench.records.store import Store

    workspace = find_workspace()
    encoder = load_encoder(Store(workspace), "lite0", None)
    assert encoder is not None  # noqa: S101 - a name was given
    with progress_bar("embed") as progress:
        embedded = curation.embed(workspace, encoder, frames.frames, progress)
    count = min(count, len(embedded.frames))
    _, of = kmeans2(embedded.vectors, count, minit="++", seed=0)
    return {frame: f"cluster={number}" for frame, number in zip(embedded.frames, of, strict=True)}
