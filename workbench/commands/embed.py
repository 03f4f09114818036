"""``workbench embed``: vectors of a dataset's frames, objects and tiles, ahead of mining."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from workbench import workspace
from workbench.commands.common import emit, json_option, progress_bar
from workbench.commands.label_access import resolve
from workbench.commands.mine import encoder_of, model_of
from workbench.errors import ParameterError
from workbench.records.store import Store

if TYPE_CHECKING:
    from workbench.curation import Embeddings
    from workbench.records.frames import Frame

_SHOWN = 3


@click.command()
@click.argument("dataset")
@click.option(
    "--encoder",
    metavar="FOLDER|NAME|FILE.onnx",
    help="Whose vectors: a model of Hugging Face or ONNX. Default: the detector's own.",
)
@click.option("--model", help="The detector: a checkpoint, bundle or models:/NAME@ALIAS.")
@click.option("--role", "roles", multiple=True, help="Only frames of this role. Repeatable.")
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Share the work with a Ray cluster that sees this workspace; `local` starts one here.",
)
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1), help="Frames.")
@json_option
def embed(dataset: str, as_json: bool, roles: tuple[str, ...], **asked: Any) -> None:
    """Look at every frame of DATASET once and keep what was seen.

    What is on disk already is not computed again: a killed pass goes on when it is started again,
    and added frames cost only themselves. `workbench mine` uses what was kept, and computes what
    is missing.
    """
    from workbench import curation
    from workbench.curation.embedding import DetectorEncoder, shards
    from workbench.perception.predictor import load_checkpoint
    from workbench.records import dataset as datasets

    place = workspace.find()
    store = Store(place)
    ref = resolve(place, dataset, ("dataset",))
    version = datasets.load(store, ref)
    frames = _chosen(version.frames, roles)
    model = model_of(place, store, asked["model"], version)
    named = encoder_of(store, asked["encoder"], model)
    encoder = named or DetectorEncoder(load_checkpoint(store, model))
    with progress_bar("embed") as progress:
        found = curation.embed(
            place, encoder, frames, progress, batch=asked["batch"], ray=asked["ray"]
        )
    result = {
        "dataset": ref,
        "model": found.model,
        "preprocessing": found.preprocessing,
        "folder": str(shards.folder_of(place, encoder)),
        "frames": len(found.frames),
        "objects": len(found.owner),
        "tiles_per_frame": found.tiles.per_frame,
        "widths": {"frame": found.vectors.shape[1], "object": found.object_vectors.shape[1]},
        "faults": _faults(found),
        "left_out": [{"frame": frame, "reason": why} for frame, why in found.left_out],
    }
    emit(result, as_json=as_json, text=_words(result))


def _chosen(frames: tuple[Frame, ...], roles: tuple[str, ...]) -> list[Frame]:
    from workbench.records.frames import Role

    known = [role.value for role in Role]
    strange = [role for role in roles if role not in known]
    if strange:
        raise ParameterError(
            "no such role", where=f"--role {strange[0]}", hint=f"Roles are {', '.join(known)}"
        )
    chosen = [frame for frame in frames if not roles or (frame.role and frame.role.value in roles)]
    if not chosen:
        raise ParameterError("the dataset has no such frames", where=f"--role {' '.join(roles)}")
    return chosen


def _faults(found: Embeddings) -> dict[str, int]:
    """What the quality gate would keep out, by fault."""
    from workbench.curation import QualityGate

    gate = QualityGate()
    verdicts = Counter(gate.verdict(row) for row in found.quality)
    return {fault: count for fault, count in sorted(verdicts.items()) if fault}


def _words(result: dict[str, Any]) -> str:
    faults = ", ".join(f"{count} {fault}" for fault, count in result["faults"].items())
    left = result["left_out"]
    lines = [
        f"{result['frames']} frames embedded, {result['objects']} objects, "
        f"{result['tiles_per_frame']} tiles a frame",
        f"  in {result['folder']}",
        f"  the quality gate would keep out: {faults or 'none'}",
    ]
    if left:
        lines.append(f"  left out: {len(left)}")
        lines += [f"    {one['frame'][:12]}  {one['reason']}" for one in left[:_SHOWN]]
        lines += [f"    and {len(left) - _SHOWN} more (--json lists them)"] * (len(left) > _SHOWN)
    return "\n".join([*lines, f"next: workbench mine {result['dataset'][:20]} --budget 100"])
