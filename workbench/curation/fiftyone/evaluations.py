"""Whole dataset versions in FiftyOne, with the evaluation of each model that FiftyOne shows.

Every model has a field of predictions of its own beside the ground truth, and an evaluation run, so
that FiftyOne's panel of evaluations, its confusion matrix and its patches of misses work. Figures
that decide are the workbench's: FiftyOne's evaluation has no slices of labels and no intervals.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.curation.fiftyone.connection import connect, load_fo_dataset
from workbench.curation.fiftyone.publishing import color_scheme, predicted_boxes, publish
from workbench.curation.hygiene.inspection import InspectionFindings
from workbench.data.slices import frame_slices
from workbench.records.base import Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Role
from workbench.records.types import Prediction

__all__ = ()

_MATCH_IOU = 0.5
_BY_DRIVE = "by drive"


def publish_evaluations(
    workspace: Workspace,
    dataset: Dataset,
    models: Mapping[str, Sequence[Prediction]],
    name: str,
    *,
    failures: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    findings: InspectionFindings | None = None,
    version: Ref | None = None,
) -> tuple[str, ...]:
    """Publish frames of every role, and evaluate each model on those that are labelled.

    Nothing that was published under another name is touched. Views are saved for each slice, for
    what each model misses and finds falsely, for each kind of miss, and for the drives.

    Args:
        workspace: Its mongod and images.
        dataset: A dataset version, or a part of one.
        models: Predictions by name of the model.
        name: Name in FiftyOne.
        failures: Kinds of misses by frame, by name of the model; see `explain_misses`.
        findings: An inspection of the dataset: adds leaks, duplicates and label errors.
        version: The version that ``dataset`` is a part of; the App's buttons work on it.

    Returns:
        Keys of FiftyOne's evaluation runs, in the order of ``models``.

    Raises:
        ParameterError: Two names of models give one name of a field.
        DataError: The dataset has no frames.
        ServiceError: mongod does not answer.
    """
    keys = [re.sub(r"\W+", "_", model).strip("_").lower() or "model" for model in models]
    if len(set(keys)) < len(keys):
        raise ParameterError(
            "models have one name in FiftyOne", where=", ".join(models), hint="Give them names"
        )
    publish(workspace, dataset, name=name, findings=findings)
    fo = connect(workspace)
    shown = load_fo_dataset(workspace, name)
    by_id = {frame.id: frame for frame in dataset.frames}
    frames = [by_id[one] for one in shown.values("frame")]
    slices = [
        frame_slices(
            frame,
            {label.cls for label in dataset.labels_by_frame[frame.id]},
            dataset.label_schema,
        )
        for frame in frames
    ]
    _list_views(fo, shown, "slices", slices, "slice: {}")
    for key, (model, predictions) in zip(keys, models.items(), strict=True):
        boxes: dict[str, list[Prediction]] = {}
        for one in predictions:
            boxes.setdefault(one.frame, []).append(one)
        values = [predicted_boxes(fo, frame, boxes.get(frame.id)) for frame in frames]
        _evaluate(fo, shown, key, values)
        kinds = (failures or {}).get(model, {})
        found = [tuple(kinds.get(frame.id, ())) for frame in frames]
        _list_views(fo, shown, f"misses_{key}", found, f"missed ({{}}): {key}")
    fields = [name for name in shown.get_field_schema() if name.startswith("model_")]
    shown.app_config.color_scheme = color_scheme(fo, dataset.label_schema, fields)
    shown.info["workbench"] = {**shown.info["workbench"], "dataset": dataset.ref or version}
    shown.save_view(_BY_DRIVE, shown.group_by("drive", order_by="index"), overwrite=True)
    shown.save()
    return tuple(f"eval_{key}" for key in keys)


def _evaluate(fo: Any, shown: Any, key: str, values: list[Any]) -> None:
    field, run = f"model_{key}", f"eval_{key}"
    if not any(values):
        values = [fo.Detections(detections=[]) for _ in values]
    shown.set_values(field, values)
    if run in shown.list_evaluations():
        shown.delete_evaluation(run)
    labelled = shown.match(fo.ViewField("role") != str(Role.POOL))
    if not len(labelled) or not shown.has_sample_field("ground_truth"):
        return
    labelled.evaluate_detections(
        field, gt_field="ground_truth", eval_key=run, iou=_MATCH_IOU, progress=False
    )
    for word, count in (("missed", "fn"), ("false boxes", "fp")):
        found = shown.match(fo.ViewField(f"{run}_{count}") > 0)
        view = found.sort_by(f"{run}_{count}", reverse=True)
        shown.save_view(f"{word}: {key}", view, overwrite=True)


def _list_views(
    fo: Any, shown: Any, field: str, values: Sequence[Sequence[str]], title: str
) -> None:
    """Set a field of names, and save a view of the frames with each; earlier ones are replaced."""
    names = {name for row in values for name in row}
    before = set(shown.distinct(field)) if shown.has_sample_field(field) else set()
    for name in before - names:
        if title.format(name) in shown.list_saved_views():
            shown.delete_saved_view(title.format(name))
    if names or before:
        shown.set_values(field, [list(row) for row in values])
    for name in sorted(names):
        view = shown.match(fo.ViewField(field).contains(name))
        shown.save_view(title.format(name), view, overwrite=True)
