"""``workbench mine report``: by how much a mined arm beat the control arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench import workspace
from workbench.commands.common import emit, json_option, progress_bar
from workbench.commands.label_access import resolve, short
from workbench.errors import ParameterError
from workbench.records.base import Ref, kind_of
from workbench.records.store import Store
from workbench.workspace import Workspace

if TYPE_CHECKING:
    from workbench.curation.selecting.report import Answered, Retrained
    from workbench.records.dataset import Dataset
    from workbench.records.types import MiningReport


@click.command()
@click.argument("selection")
@click.option(
    "--labels",
    multiple=True,
    required=True,
    help="Label set or batch; a dataset version where its labels were merged. Repeatable.",
)
@click.option(
    "--rare",
    multiple=True,
    metavar="KEY=VALUE",
    help="What is rare: class=NAME, light=night, … joined by +. Repeatable."
    " [default: classes on under 5 % of the frames labelled before]",
)
@click.option("--seconds-per-frame", type=float, help="Pace, where no time was measured.")
@click.option("--seconds-per-box", type=float, default=0.0, show_default=True)
@click.option("--mined-model", help="Checkpoint trained with the mined arm, to compare on safety.")
@click.option("--control-model", help="Checkpoint trained with the control arm.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A picture.")
@json_option
def report(
    selection: str,
    labels: tuple[str, ...],
    rare: tuple[str, ...],
    output: Path | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Say by how much the mined arm of SELECTION beat chance, with an interval.

    Both arms have to be labelled. With two models trained alike, one with each arm, their metrics
    on the safety frames are compared, too.
    """
    from workbench import curation
    from workbench.curation import Pace
    from workbench.records.types import MiningReport

    place = workspace.find()
    store = Store(place)
    chosen = resolve(place, selection, ("selection",))
    answered = _answered(place, store, chosen, labels)
    before = _dataset(store, chosen)
    meant = [curation.rare(one, before.label_schema) for one in rare]
    meant = meant or list(curation.rare_classes(before))
    classes = [value for one in meant for key, value in one.terms if key == "class"]
    each, box = asked["seconds_per_frame"], asked["seconds_per_box"]
    pace = None if each is None else Pace(seconds_per_frame=each, seconds_per_box=box)
    made = curation.report(
        store,
        chosen,
        answered,
        meant,
        pace=pace,
        retrained=_retrained(
            place, store, answered, classes, (asked["mined_model"], asked["control_model"])
        ),
    )
    record = store.get(made, MiningReport)
    if output:
        from workbench.curation import pictures

        pictures.arms(record).savefig(output, dpi=120, bbox_inches="tight")
    result = {"report": made, **record.model_dump(mode="json")}
    emit(result, as_json=as_json, text=_words(made, record, output))


def _dataset(store: Store, selection: Ref) -> Dataset:
    from workbench.records import dataset as datasets
    from workbench.records.types import Selection

    return datasets.load(store, store.get(selection, Selection).dataset)


def _answered(
    place: Workspace, store: Store, selection: Ref, references: tuple[str, ...]
) -> Answered:
    """What labelers answered, read from label sets, batches, or a dataset they were merged into."""
    from workbench import labeling
    from workbench.commands.label_review import labels_of
    from workbench.curation.selecting.report import Answered
    from workbench.records import dataset as datasets
    from workbench.records.types import DatasetVersion, LabelBatch, LabelSet

    refs = [resolve(place, one, ("label", "batch", "dataset")) for one in references]
    versions = [ref for ref in refs if kind_of(ref) == DatasetVersion.KIND]
    if versions and len(refs) > 1:
        raise ParameterError(
            "a dataset version holds all labels already", hint="Name it alone, or label sets alone"
        )
    if versions:
        parents = store.get(versions[0], DatasetVersion).parents
        sets = [ref for ref in parents if kind_of(ref) == LabelSet.KIND]
        after = datasets.load(store, versions[0])
        if not sets:
            raise ParameterError(
                "no label set was merged into this version, so nobody's answers are known",
                where=versions[0],
                hint="Give the label set or the batch itself",
            )
    else:
        sets = [labels_of(place, one) for one in references]
        after = _dataset(store, selection)
        for ref in sets:
            after = labeling.preview(after, store, ref)
    minutes: dict[str, float | None] = {}
    for ref in sets:
        minutes |= labeling.minutes_by_frame(store, ref)
    kept = [store.get(ref, LabelSet) for ref in sets]
    simulated = any(one.simulated for one in kept)
    blind = all(store.get(one.batch, LabelBatch).blind for one in kept)
    return Answered(after, minutes, tuple(sets), simulated, blind)


def _retrained(
    place: Workspace,
    store: Store,
    answered: Answered,
    classes: Sequence[str],
    names: tuple[str | None, str | None],
) -> Retrained | None:
    """Both models on the safety frames, where two are given."""
    from workbench.curation.selecting.report import Retrained
    from workbench.evaluation.arms import versus
    from workbench.evaluation.metrics import evaluate
    from workbench.perception.predictor import load_checkpoint, predict_frames
    from workbench.records.frames import Role

    if names == (None, None):
        return None
    if None in names:
        raise ParameterError("a comparison takes two models: --mined-model and --control-model")
    safety = answered.dataset.with_roles(Role.SAFETY)
    models, evaluated = {}, []
    for arm, name in zip(("mined", "control"), names, strict=True):
        models[arm] = resolve(place, str(name), ("checkpoint",))
        with progress_bar(f"evaluate {arm}") as progress:
            found = predict_frames(
                place, load_checkpoint(store, models[arm]), safety.frames, progress=progress
            )
        evaluated.append(evaluate(safety, found, name=arm))
    return Retrained(models, versus(evaluated[0], evaluated[1], classes))


def _words(made: Ref, record: MiningReport, output: Path | None) -> str:
    from workbench.curation.selecting.report import words

    lines = [record.headline, f"  rare: {'; or '.join(record.rare)}"]
    for arm in record.arms:
        hours = "" if arm.hours is None else f" in {arm.hours:.2f} hours"
        left = f", {arm.unlabelled} not labelled" if arm.unlabelled else ""
        lines.append(
            f"  {arm.arm:8} {arm.frames} frames{hours}{left}: {arm.rare_frames} rare frames,"
            f" {arm.rare_events} events, {arm.rare_objects} objects"
        )
    lines.append(f"  time: {record.time_from}")
    if record.prevalence_interval and record.prevalence is not None:
        low, high = record.prevalence_interval
        lines.append(
            f"  rare frames in the pool: {record.prevalence:.2%} [{low:.2%}, {high:.2%}],"
            " from the control arm"
        )
    lines += [f"  {words(one)}" for one in record.beaten]
    lines.append(f"  {short(made)}")
    if output:
        lines.append(f"  picture: {output}")
    return "\n".join(lines)
