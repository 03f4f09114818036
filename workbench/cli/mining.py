"""`workbench mine` and `workbench mine report`: select frames to label, and measure the gain."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench import services
from workbench.cli.common import (
    DefaultCommand,
    GroupWithDefault,
    first_rows,
    info,
    json_option,
    print_result,
    progress_bar,
    resolve_ref,
    validation_message,
)
from workbench.core.errors import ParameterError
from workbench.core.text import counted
from workbench.core.workspace import Workspace, find_workspace
from workbench.records.base import Ref, digest_of, kind_of, short_ref
from workbench.records.store import Store

if TYPE_CHECKING:
    from workbench.curation import Budget, MiningQuery, SelectionRules
    from workbench.curation.embedding.encoders import Encoder
    from workbench.curation.selection.report import LabelledSelection, RetrainedModels
    from workbench.records.dataset import Dataset
    from workbench.records.types import MiningReport, Selection

__all__ = ()

_FRAMES_LISTED = 10
_NO_CHECKPOINT = "no pipeline trained a model with this dataset's classes"
_MAX_FRAMES_IN_FIFTYONE = 50_000


@click.group(cls=GroupWithDefault)
def mine() -> None:
    """Select the frames of DATASET's pool that are worth labeling, with the reason for each.

    A killed command continues where it stopped: run it again. Once the frames are labeled,
    `workbench mine report SELECTION --labels LABELS` measures the gain over random selection.
    """


@mine.command(GroupWithDefault.default, cls=DefaultCommand, hidden=True)
@click.argument("dataset")
@click.option("--budget", type=int, help="Frames to select; with --control, in each arm.")
@click.option("--minutes", type=float, help="Labeling time to spend (min), instead of --budget.")
@click.option(
    "--model",
    help="Checkpoint, bundle or models:/NAME@ALIAS used for embeddings."
    "  [default: the dataset's champion, or the newest of a pipeline; without one, an ImageNet "
    "classifier]",
)
@click.option(
    "--like",
    multiple=True,
    metavar="FRAME[:x,y,w,h]",
    help="Find frames similar to this frame or box (px). Repeatable.",
)
@click.option(
    "--unlike",
    multiple=True,
    metavar="FRAME[:x,y,w,h]",
    help="Avoid frames similar to this one. Repeatable.",
)
@click.option(
    "--text",
    help="Find frames that show this: words such as `motor scooter`, or any text with an --encoder"
    " that has a text model.",
)
@click.option(
    "--watch",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Watch list: file with a word a line.  [default: rare things on roads, for real drives]",
)
@click.option(
    "--encoder",
    metavar="lite0|FOLDER|NAME|FILE.onnx",
    help="Vision model used for embeddings.  [default: the detector]",
)
@click.option(
    "--against",
    multiple=True,
    metavar="CHECKPOINT",
    help="Prefer frames where this checkpoint disagrees with --model. Repeatable.",
)
@click.option("--control", is_flag=True, help="Also select as many frames at random, to compare.")
@click.option(
    "--random-share", type=float, help="Share of the budget selected at random.  [default: 0.15]"
)
@click.option(
    "--quota",
    multiple=True,
    metavar="CONDITION=N",
    help="Minimum number of frames of a condition, such as night=20. Repeatable.",
)
@click.option(
    "--seconds-per-frame",
    type=float,
    help="Labeling time (s) per frame, for --minutes.  [default: measured in this workspace]",
)
@click.option(
    "--seconds-per-box",
    type=float,
    default=0.0,
    show_default=True,
    help="Additional labeling time (s) per box.",
)
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@click.option("--tag", help="Tag the selected frames in FiftyOne.")
@click.option(
    "--show/--no-show", default=True, help="Publish the frames to FiftyOne if mongod is running."
)
@json_option
def _select(
    dataset: str, seed: int, tag: str | None, show: bool, as_json: bool, **options: Any
) -> None:
    from workbench import curation
    from workbench.records.dataset import load_dataset
    from workbench.records.types import Selection

    workspace = find_workspace()
    store = Store(workspace)
    dataset_ref = resolve_ref(workspace, dataset, ("dataset",))
    version = load_dataset(store, dataset_ref)
    model = _checkpoint_if_any(workspace, store, options["model"], version)
    budget = _budget(store, options)
    query = _mining_query(workspace, version, model, options)
    rules = _selection_rules(query, options)
    with progress_bar("embed") as progress:
        ref = curation.mine(
            store, dataset_ref, model, budget, seed, rules=rules, query=query, progress=progress
        )
    selection = store.get(ref, Selection)
    if show:
        # Without an encoder of its own, mining has just embedded the pool with this model.
        embedded = options["encoder"] is None and model is not None
        shown = _show_in_fiftyone(workspace, ref, version, tag, embedded=embedded)
    else:
        shown = "not published to FiftyOne (--no-show)"
    names = {frame.id: f"{frame.drive}@{frame.index}" for frame in version.frames}
    result = {
        "selection": ref,
        "dataset": dataset_ref,
        "model": model,
        "method": selection.method,
        "arms": _frames_by_arm(selection),
        "minutes": selection.parameters.get("expected_minutes"),
        "notes": list(selection.notes),
        "backtest": selection.backtest and selection.backtest.model_dump(mode="json"),
        "fiftyone": shown,
        "chosen": [
            {**choice.model_dump(mode="json"), "name": names[choice.frame]}
            for choice in selection.chosen
        ],
    }
    print_result(result, as_json=as_json, text=_selection_text(ref, selection, names, shown))


def _checkpoint_if_any(
    workspace: Workspace, store: Store, reference: str | None, dataset: Dataset
) -> Ref | None:
    """As `resolve_checkpoint`; None from a cold start, which it says."""
    try:
        return resolve_checkpoint(workspace, store, reference, dataset)
    except ParameterError as error:
        if reference or error.what != _NO_CHECKPOINT:
            raise
        info("model: an ImageNet classifier sees the frames, because no pipeline trained a model")
        info(f"  with the dataset's classes. {error.hint}")
        return None


def resolve_checkpoint(
    workspace: Workspace, store: Store, reference: str | None, dataset: Dataset
) -> Ref:
    """The checkpoint that ``--model`` names, by default the dataset's champion.

    Without a champion it is the newest that a pipeline trained, see `catalog.default_model`; what
    is taken is printed.

    Raises:
        ParameterError: No pipeline trained a checkpoint with these classes.
    """
    from workbench.records import catalog
    from workbench.records.model_types import ExportBundle, Release

    if reference:
        ref = resolve_ref(workspace, reference, ("checkpoint", "bundle", "release"))
        if kind_of(ref) == Release.KIND:
            ref = store.get(ref, Release).bundle
        return store.get(ref, ExportBundle).checkpoint if kind_of(ref) == ExportBundle.KIND else ref
    classes = dataset.label_schema.classes
    found = catalog.default_model(store, dataset.name, classes)
    if found is not None:
        why = "champion" if found.champion else "the newest that a pipeline trained"
        info(f"model: {found}; {why}")
        return found.ref
    by_hand = [row for row in catalog.list_models(store) if row.classes == classes]
    hint = "Train one with `workbench run pipelines/data_engine.yaml`, or name one with --model"
    if by_hand:
        name = short_ref(by_hand[0].ref)
        hint = f"One was made by hand; use it with --model {name} ({by_hand[0]})"
    raise ParameterError(_NO_CHECKPOINT, where=dataset.name, hint=hint)


def load_encoder(store: Store, name: str | None, model: Ref | None) -> Encoder | None:
    """The vision model that ``--encoder`` names: ``lite0``, ``lite0:1280x704`` for another input
    size, a folder, an ONNX file or a name on the hub.

    Args:
        store: Where the checkpoint is.
        name: Value of the option; None gives None.
        model: Checkpoint whose boxes are embedded as objects; None for no boxes.
    """
    from workbench.curation.embedding import image_encoders
    from workbench.curation.embedding.lite0 import Lite0Encoder
    from workbench.detection.predictor import load_checkpoint

    if name is None:
        return None
    boxes = (
        image_encoders.BoxSource(load_checkpoint(store, model), digest_of(model)) if model else None
    )
    if name == "lite0":
        return Lite0Encoder(boxes, store.workspace)
    if size := re.fullmatch(r"lite0:(\d+)x(\d+)", name):
        return Lite0Encoder(boxes, store.workspace, (int(size[1]), int(size[2])))
    if name.endswith(".onnx"):
        return image_encoders.OnnxEncoder(Path(name), boxes)
    return image_encoders.HuggingFaceEncoder(name, boxes)


def _budget(store: Store, options: dict[str, Any]) -> Budget:
    from workbench import labeling
    from workbench.curation import Budget, LabelingPace
    from workbench.records.types import LabelSet

    frames, minutes = options["budget"], options["minutes"]
    if (frames is None) == (minutes is None):
        raise ParameterError(
            "a selection needs a budget: either --budget or --minutes",
            hint="Give --budget FRAMES, or --minutes MINUTES of labeling time",
        )
    if frames is not None:
        return Budget(frames=frames)
    per_frame, per_box = options["seconds_per_frame"], options["seconds_per_box"]
    if per_frame is not None:
        pace = LabelingPace(seconds_per_frame=per_frame, seconds_per_box=per_box)
        return Budget(minutes=minutes, pace=pace)
    effort = labeling.labeling_effort(store, store.refs(LabelSet.KIND))
    if effort.seconds_per_frame is None or effort.seconds_per_box is None:
        return Budget(minutes=minutes)  # mining refuses it and says which options to give
    pace = LabelingPace(
        seconds_per_frame=effort.seconds_per_frame,
        seconds_per_box=effort.seconds_per_box,
        source=f"measured over {effort.frames} answers of people",
    )
    return Budget(minutes=minutes, pace=pace)


def _mining_query(
    workspace: Workspace, version: Dataset, model: Ref | None, options: dict[str, Any]
) -> MiningQuery:
    from workbench.curation import MiningQuery
    from workbench.curation.selection.ranking import parse_exemplar
    from workbench.curation.signals.words import read_watch_list

    return MiningQuery(
        like=tuple(parse_exemplar(version.frames, text) for text in options["like"]),
        unlike=tuple(parse_exemplar(version.frames, text) for text in options["unlike"]),
        text=options["text"],
        watch=read_watch_list(options["watch"]) if options["watch"] else (),
        encoder=load_encoder(Store(workspace), options["encoder"], model),
        other_models=tuple(
            resolve_ref(workspace, text, ("checkpoint",)) for text in options["against"]
        ),
    )


def _selection_rules(query: MiningQuery, options: dict[str, Any]) -> SelectionRules:
    from pydantic import ValidationError

    from workbench.curation import SelectionRules

    rules = {"control": options["control"], "quotas": _parse_quotas(options["quota"])}
    if options["random_share"] is not None:
        rules["random_share"] = options["random_share"]
    elif query.is_search:
        rules["random_share"] = 0.0  # a search for similar frames wants nothing else
    try:
        return SelectionRules(**rules)
    except ValidationError as error:
        field, message = validation_message(error)
        raise ParameterError(message, where=f"--{field.replace('_', '-')}") from error


def _parse_quotas(texts: tuple[str, ...]) -> dict[str, int]:
    quotas = {}
    for text in texts:
        condition, _, count = text.rpartition("=")
        if not condition or not count.isdecimal():
            raise ParameterError(
                "invalid --quota", where=text, hint="Write CONDITION=FRAMES, such as night=20"
            )
        quotas[condition.strip()] = int(count)
    return quotas


def _show_in_fiftyone(
    workspace: Workspace, ref: Ref, version: Dataset, tag: str | None, *, embedded: bool
) -> str:
    """Publish the pool and the selection to FiftyOne; says where they are, or why not."""
    from workbench import api, curation

    mongod = services.status(workspace)["mongod"]
    if not mongod.usable:
        return f"not in FiftyOne: mongod is {mongod.state}; run `workbench up` and repeat"
    pool = version.role("pool")
    if len(pool) > _MAX_FRAMES_IN_FIFTYONE:
        return (
            f"not in FiftyOne: the pool has {len(pool):,} frames,"
            f" the limit is {_MAX_FRAMES_IN_FIFTYONE:,}"
        )
    selection = api.Selection(workspace, ref)
    embeddings = None
    if embedded:
        model = api.Model(workspace, str(selection.record.model)).torch_predictor
        embeddings = curation.embed(workspace, model, pool.frames)
    name = selection.publish(embeddings)
    if tag:
        selection.tag(tag, by="workbench mine")
    return f"in FiftyOne: dataset {name!r}, saved view 'mined'"


def _frames_by_arm(selection: Selection) -> dict[str, int]:
    arms = [choice.arm for choice in selection.chosen]
    return {arm: arms.count(arm) for arm in dict.fromkeys(arms)}


def _selection_text(ref: Ref, selection: Selection, names: dict[str, str], shown: str) -> str:
    from workbench.curation import LabelingPace
    from workbench.curation.selection.backtest import describe_backtest

    parameters = selection.parameters
    arms = " + ".join(f"{count} {arm}" for arm, count in _frames_by_arm(selection).items())
    lines = [
        f"{short_ref(ref)}: {arms} of {counted(parameters['pool'], 'frame')} in the pool",
        f"  {selection.method}",
    ]
    minutes = parameters.get("expected_minutes")
    if minutes is not None:
        pace = LabelingPace(**parameters["pace"])
        lines.append(f"  expected labeling time: {minutes:.0f} min, at {pace}")
    if selection.backtest:
        lines += [f"  {line}" for line in describe_backtest(selection.backtest)]
    lines += [f"  note: {note}" for note in selection.notes]
    if parameters["kept_out"]:
        faults = ", ".join(f"{count} {fault}" for fault, count in parameters["kept_out"].items())
        lines.append(f"  excluded by the quality gate: {faults}")
    if unreadable := parameters["unreadable"]:
        count = counted(len(unreadable), "unreadable frame")
        lines.append(f"  {count}, such as {unreadable[0]['frame']}")
    width = max(len(names[choice.frame]) for choice in selection.chosen[:_FRAMES_LISTED])
    rows = [
        f"{choice.rank:4}  {choice.arm:7}  {choice.frame[:12]}  {names[choice.frame]:{width}}"
        f"  {'; '.join(choice.reasons)}"
        for choice in selection.chosen
    ]
    lines += first_rows(rows, _FRAMES_LISTED, "  ")
    boxes = " --boxes" if selection.model else ""
    lines += [f"  {shown}", f"next: workbench label send {short_ref(ref)}{boxes}"]
    if selection.has_control:
        lines.append(f"then: workbench mine report {short_ref(ref)} --labels BATCH")
    return "\n".join(lines)


@mine.command()
@click.argument("selection")
@click.option(
    "--labels",
    multiple=True,
    required=True,
    help="Label set, batch, or dataset version with the merged labels. Repeatable.",
)
@click.option(
    "--rare",
    multiple=True,
    metavar="KEY=VALUE",
    help="What counts as rare: class=NAME, light=night, … joined by +. Repeatable."
    "  [default: classes on fewer than 5 % of the frames labeled before]",
)
@click.option(
    "--seconds-per-frame", type=float, help="Labeling time (s) per frame if none was measured."
)
@click.option(
    "--seconds-per-box",
    type=float,
    default=0.0,
    show_default=True,
    help="Additional labeling time (s) per box.",
)
@click.option("--mined-model", help="Checkpoint trained with the mined arm.")
@click.option("--control-model", help="Checkpoint trained with the control arm.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write a plot here."
)
@json_option
def report(
    selection: str,
    labels: tuple[str, ...],
    rare: tuple[str, ...],
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Report the gain of SELECTION's mined arm over its control arm, with an interval.

    Both arms have to be labeled. With --mined-model and --control-model, two checkpoints trained
    in the same way with one arm each, their metrics on the safety frames are compared as well.
    """
    from workbench import curation
    from workbench.curation import LabelingPace
    from workbench.records.types import MiningReport

    workspace = find_workspace()
    store = Store(workspace)
    selection_ref = resolve_ref(workspace, selection, ("selection",))
    answers = _collect_answers(workspace, store, selection_ref, labels)
    before = _selection_dataset(store, selection_ref)
    queries = [curation.parse_rare(text, before.label_schema) for text in rare]
    queries = queries or list(curation.rare_classes(before))
    classes = [value for query in queries for key, value in query.terms if key == "class"]
    per_frame, per_box = options["seconds_per_frame"], options["seconds_per_box"]
    models = (options["mined_model"], options["control_model"])
    ref = curation.report_mining(
        store,
        selection_ref,
        answers,
        queries,
        pace=None
        if per_frame is None
        else LabelingPace(seconds_per_frame=per_frame, seconds_per_box=per_box),
        retrained=_compare_models(workspace, store, answers, classes, models),
    )
    record = store.get(ref, MiningReport)
    if output:
        from workbench.curation import plots

        plots.arm_comparison(record).savefig(output, dpi=120, bbox_inches="tight")
    result = {"report": ref, **record.model_dump(mode="json")}
    print_result(result, as_json=as_json, text=_report_text(ref, record, output))


def _selection_dataset(store: Store, selection: Ref) -> Dataset:
    from workbench.records.dataset import load_dataset
    from workbench.records.types import Selection

    return load_dataset(store, store.get(selection, Selection).dataset)


def _collect_answers(
    workspace: Workspace, store: Store, selection: Ref, references: tuple[str, ...]
) -> LabelledSelection:
    """The labelers' answers: from label sets, batches, or a dataset they were merged into."""
    from workbench import labeling
    from workbench.cli.labeling import resolve_labels
    from workbench.curation.selection.report import LabelledSelection
    from workbench.records.dataset import load_dataset
    from workbench.records.types import DatasetVersion, LabelBatch, LabelSet

    refs = [resolve_ref(workspace, text, ("label", "batch", "dataset")) for text in references]
    versions = [ref for ref in refs if kind_of(ref) == DatasetVersion.KIND]
    if versions and len(refs) > 1:
        raise ParameterError(
            "--labels names a dataset version and other records",
            hint="Give the dataset version alone, or label sets and batches only",
        )
    if versions:
        parents = store.get(versions[0], DatasetVersion).parents
        label_sets = [ref for ref in parents if kind_of(ref) == LabelSet.KIND]
        after = load_dataset(store, versions[0])
        if not label_sets:
            raise ParameterError(
                "no label set was merged into this dataset version",
                where=versions[0],
                hint="Give the label set or the batch itself",
            )
    else:
        label_sets = [resolve_labels(workspace, text) for text in references]
        after = _selection_dataset(store, selection)
        for ref in label_sets:
            after = labeling.preview_merge(store, after, ref)
    minutes: dict[str, float | None] = {}
    for ref in label_sets:
        minutes |= labeling.minutes_by_frame(store, ref)
    records = [store.get(ref, LabelSet) for ref in label_sets]
    simulated = any(record.simulated for record in records)
    blind = all(store.get(record.batch, LabelBatch).blind for record in records)
    return LabelledSelection(after, minutes, tuple(label_sets), simulated, blind)


def _compare_models(
    workspace: Workspace,
    store: Store,
    answers: LabelledSelection,
    classes: Sequence[str],
    references: tuple[str | None, str | None],
) -> RetrainedModels | None:
    """Both models evaluated on the safety frames; None where no models are given."""
    from workbench.curation.selection.report import RetrainedModels
    from workbench.detection.model import Model
    from workbench.evaluation.comparison import compare_retrained
    from workbench.evaluation.metrics import evaluate
    from workbench.records.frames import Role

    if references == (None, None):
        return None
    if None in references:
        raise ParameterError(
            "a comparison needs two models", hint="Give both --mined-model and --control-model"
        )
    safety = answers.dataset.role(Role.SAFETY)
    models, evaluated = {}, []
    for arm, reference in zip(("mined", "control"), references, strict=True):
        models[arm] = resolve_ref(workspace, str(reference), ("checkpoint",))
        with progress_bar(f"evaluate {arm}") as progress:
            predictions = Model(workspace, models[arm], name=arm).predict(safety, progress=progress)
        evaluated.append(evaluate(predictions))
    return RetrainedModels(models, compare_retrained(evaluated[0], evaluated[1], classes))


def _report_text(ref: Ref, record: MiningReport, output: Path | None) -> str:
    from workbench.curation.selection.report import describe_comparison, describe_promise

    lines = [record.headline, f"  rare: {'; or '.join(record.rare)}"]
    for arm in record.arms:
        hours = "" if arm.hours is None else f" in {arm.hours:.2f} h"
        unlabeled = f", {arm.unlabelled} not labeled" if arm.unlabelled else ""
        lines.append(
            f"  {arm.arm:8} {counted(arm.frames, 'frame')}{hours}{unlabeled}:"
            f" {counted(arm.rare_frames, 'rare frame')}, {counted(arm.rare_events, 'event')},"
            f" {counted(arm.rare_objects, 'object')}"
        )
    lines.append(f"  time: {record.time_from}")
    if record.prevalence_interval and record.prevalence is not None:
        low, high = record.prevalence_interval
        lines.append(
            f"  rare frames in the pool: {record.prevalence:.2%} [{low:.2%}, {high:.2%}],"
            " estimated from the control arm"
        )
    lines += [f"  {describe_comparison(comparison)}" for comparison in record.beaten]
    lines += [f"  {describe_promise(promise)}" for promise in record.promises]
    lines.append(f"  {short_ref(ref)}")
    if output:
        lines.append(f"  plot: {output}")
    return "\n".join(lines)
