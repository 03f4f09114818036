"""`workbench mine` and `workbench mine report`: select frames to label, and measure the gain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench import services
from workbench.cli.common import (
    info,
    json_option,
    print_result,
    progress_bar,
    resolve_ref,
    short_ref,
)
from workbench.core import workspace
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.records.base import Ref, digest_of, kind_of
from workbench.records.store import Store

if TYPE_CHECKING:
    from workbench.curation import Budget, MiningQuery, SelectionRules
    from workbench.curation.embedding.encoders import Encoder
    from workbench.curation.selection.report import LabelledSelection, RetrainedModels
    from workbench.records.dataset import Dataset
    from workbench.records.types import MiningReport, Selection


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
    from workbench.curation import LabelingPace
    from workbench.records.types import MiningReport

    place = workspace.find_workspace()
    store = Store(place)
    chosen = resolve_ref(place, selection, ("selection",))
    answered = _collect_answers(place, store, chosen, labels)
    before = _selection_dataset(store, chosen)
    meant = [curation.parse_rare(one, before.label_schema) for one in rare]
    meant = meant or list(curation.rare_classes(before))
    classes = [value for one in meant for key, value in one.terms if key == "class"]
    each, box = asked["seconds_per_frame"], asked["seconds_per_box"]
    pace = None if each is None else LabelingPace(seconds_per_frame=each, seconds_per_box=box)
    made = curation.report_mining(
        store,
        chosen,
        answered,
        meant,
        pace=pace,
        retrained=_compare_models(
            place, store, answered, classes, (asked["mined_model"], asked["control_model"])
        ),
    )
    record = store.get(made, MiningReport)
    if output:
        from workbench.curation import plots

        plots.arm_comparison(record).savefig(output, dpi=120, bbox_inches="tight")
    result = {"report": made, **record.model_dump(mode="json")}
    print_result(result, as_json=as_json, text=_report_text(made, record, output))


def _selection_dataset(store: Store, selection: Ref) -> Dataset:
    from workbench.records import dataset
    from workbench.records.types import Selection

    return dataset.load_dataset(store, store.get(selection, Selection).dataset)


def _collect_answers(
    place: Workspace, store: Store, selection: Ref, references: tuple[str, ...]
) -> LabelledSelection:
    """What labelers answered, read from label sets, batches, or a dataset they were merged into."""
    from workbench import labeling
    from workbench.cli.labeling import resolve_labels
    from workbench.curation.selection.report import LabelledSelection
    from workbench.records import dataset
    from workbench.records.types import DatasetVersion, LabelBatch, LabelSet

    refs = [resolve_ref(place, one, ("label", "batch", "dataset")) for one in references]
    versions = [ref for ref in refs if kind_of(ref) == DatasetVersion.KIND]
    if versions and len(refs) > 1:
        raise ParameterError(
            "a dataset version holds all labels already", hint="Name it alone, or label sets alone"
        )
    if versions:
        parents = store.get(versions[0], DatasetVersion).parents
        sets = [ref for ref in parents if kind_of(ref) == LabelSet.KIND]
        after = dataset.load_dataset(store, versions[0])
        if not sets:
            raise ParameterError(
                "no label set was merged into this version, so nobody's answers are known",
                where=versions[0],
                hint="Give the label set or the batch itself",
            )
    else:
        sets = [resolve_labels(place, one) for one in references]
        after = _selection_dataset(store, selection)
        for ref in sets:
            after = labeling.preview_merge(after, store, ref)
    minutes: dict[str, float | None] = {}
    for ref in sets:
        minutes |= labeling.minutes_by_frame(store, ref)
    kept = [store.get(ref, LabelSet) for ref in sets]
    simulated = any(one.simulated for one in kept)
    blind = all(store.get(one.batch, LabelBatch).blind for one in kept)
    return LabelledSelection(after, minutes, tuple(sets), simulated, blind)


def _compare_models(
    place: Workspace,
    store: Store,
    answered: LabelledSelection,
    classes: Sequence[str],
    names: tuple[str | None, str | None],
) -> RetrainedModels | None:
    """Both models on the safety frames, where two are given."""
    from workbench.curation.selection.report import RetrainedModels
    from workbench.detection.predictor import load_checkpoint, predict_frames
    from workbench.evaluation.metrics import compare_arms, evaluate
    from workbench.records.frames import Role

    if names == (None, None):
        return None
    if None in names:
        raise ParameterError("a comparison takes two models: --mined-model and --control-model")
    safety = answered.dataset.with_roles(Role.SAFETY)
    models, evaluated = {}, []
    for arm, name in zip(("mined", "control"), names, strict=True):
        models[arm] = resolve_ref(place, str(name), ("checkpoint",))
        with progress_bar(f"evaluate {arm}") as progress:
            found = predict_frames(
                place, load_checkpoint(store, models[arm]), safety.frames, progress=progress
            )
        evaluated.append(evaluate(safety, found, name=arm))
    return RetrainedModels(models, compare_arms(evaluated[0], evaluated[1], classes))


def _report_text(made: Ref, record: MiningReport, output: Path | None) -> str:
    from workbench.curation.selection.report import describe_comparison

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
    lines += [f"  {describe_comparison(one)}" for one in record.beaten]
    lines.append(f"  {short_ref(made)}")
    if output:
        lines.append(f"  picture: {output}")
    return "\n".join(lines)


# ---- ``workbench mine``: from a dataset to the frames that labeling should start with.


_FRAMES_LISTED = 10
_MAX_FRAMES_IN_FIFTYONE = 50_000


class _MineCommand(click.Command):
    """``mine DATASET``, and ``mine report SELECTION`` beside it."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        if args[:1] == [report.name]:
            other: click.Command = report
            return other.make_context(f"{info_name} {other.name}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=_MineCommand)
@click.argument("dataset")
@click.option("--budget", type=int, help="Frames to choose; with --control, in each arm.")
@click.option("--minutes", type=float, help="Instead: minutes of labelers' time to spend.")
@click.option("--model", help="Whose view counts: a checkpoint, bundle or models:/NAME@ALIAS.")
@click.option(
    "--like", multiple=True, metavar="FRAME[:x,y,w,h]", help="More like this. Repeatable."
)
@click.option("--unlike", multiple=True, metavar="FRAME[:x,y,w,h]", help="But not like this.")
@click.option("--text", help="What frames should show; needs an --encoder that knows words.")
@click.option("--encoder", metavar="FOLDER|NAME|FILE.onnx", help="Whose vectors to use.")
@click.option("--against", multiple=True, help="Another checkpoint; where both differ counts.")
@click.option("--control", is_flag=True, help="Draw a random arm of the same size to compare with.")
@click.option("--random-share", type=float, help="Of the budget, drawn at random. [default: 0.15]")
@click.option("--quota", multiple=True, metavar="CONDITION=N", help="At least so many. Repeatable.")
@click.option("--seconds-per-frame", type=float, help="For --minutes, where nothing was measured.")
@click.option("--seconds-per-box", type=float, default=0.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--tag", help="Also tag the chosen frames so in FiftyOne.")
@click.option("--show/--no-show", default=True, help="Show them in FiftyOne, if mongod is up.")
@json_option
def mine(dataset: str, seed: int, tag: str | None, show: bool, as_json: bool, **asked: Any) -> None:
    """Choose the frames of DATASET's pool that labeling should start with, and say why each.

    A killed pass goes on where it stopped: give the same command again. `workbench mine report
    SELECTION --labels LABELS` tells afterwards how much better than chance the choice was.
    """
    from workbench import curation
    from workbench.records import dataset as datasets
    from workbench.records.types import Selection

    place = workspace.find_workspace()
    store = Store(place)
    ref = resolve_ref(place, dataset, ("dataset",))
    version = datasets.load_dataset(store, ref)
    model = resolve_checkpoint(place, store, asked["model"], version)
    budget = _budget(store, asked)
    query = _mining_query(place, version, model, asked)
    rules = _selection_rules(query, asked)
    with progress_bar("embed") as progress:
        made = curation.mine(
            store, ref, model, budget, seed, rules=rules, query=query, progress=progress
        )
    selection = store.get(made, Selection)
    kept = asked["encoder"] is None  # then mining has just embedded the pool with this model
    shown = _show_in_fiftyone(place, made, version, tag, kept=kept) if show else "not asked to show"
    rows = {frame.id: f"{frame.drive}@{frame.index}" for frame in version.frames}
    result = {
        "selection": made,
        "dataset": ref,
        "model": model,
        "method": selection.method,
        "arms": _frames_by_arm(selection),
        "minutes": selection.parameters.get("expected_minutes"),
        "notes": list(selection.notes),
        "fiftyone": shown,
        "chosen": [
            {**choice.model_dump(mode="json"), "name": rows[choice.frame]}
            for choice in selection.chosen
        ],
    }
    print_result(result, as_json=as_json, text=_selection_text(made, selection, rows, shown))


def resolve_checkpoint(place: Workspace, store: Store, given: str | None, version: Dataset) -> Ref:
    """The checkpoint that is meant, by default the newest that knows the dataset's classes."""
    from workbench.records.model_types import Checkpoint, ExportBundle, Release

    if given:
        ref = resolve_ref(place, given, ("checkpoint", "bundle", "release"))
        if kind_of(ref) == Release.KIND:
            ref = store.get(ref, Release).bundle
        return store.get(ref, ExportBundle).checkpoint if kind_of(ref) == ExportBundle.KIND else ref
    wanted = version.label_schema.classes
    for ref in reversed(list(store.refs(Checkpoint.KIND))):
        if store.get(ref, Checkpoint).classes == wanted:
            info(f"model: {short_ref(ref)}, the newest that knows these classes")
            return ref
    raise ParameterError(
        "there is no model to look with",
        where=version.name,
        hint="Train one with `workbench run pipelines/data_engine.yaml --to baseline`,"
        " or name one with --model",
    )


def _budget(store: Store, asked: dict[str, Any]) -> Budget:
    from workbench import labeling
    from workbench.curation import Budget, LabelingPace
    from workbench.records.types import LabelSet

    frames, minutes = asked["budget"], asked["minutes"]
    if (frames is None) == (minutes is None):
        raise ParameterError(
            "give a budget", hint="--budget N in frames, or --minutes M of labelers' time"
        )
    if frames is not None:
        return Budget(frames=frames)
    each, box = asked["seconds_per_frame"], asked["seconds_per_box"]
    if each is not None:
        return Budget(
            minutes=minutes, pace=LabelingPace(seconds_per_frame=each, seconds_per_box=box)
        )
    known = labeling.labeling_effort(store, store.refs(LabelSet.KIND))
    if known.seconds_per_frame is None or known.seconds_per_box is None:
        return Budget(minutes=minutes)  # which says what to do
    pace = LabelingPace(
        seconds_per_frame=known.seconds_per_frame,
        seconds_per_box=known.seconds_per_box,
        source=f"measured over {known.frames} answers of people",
    )
    return Budget(minutes=minutes, pace=pace)


def _mining_query(
    place: Workspace, version: Dataset, model: Ref, asked: dict[str, Any]
) -> MiningQuery:
    from workbench.curation import MiningQuery
    from workbench.curation.selection.ranking import parse_exemplar

    return MiningQuery(
        like=tuple(parse_exemplar(version.frames, one) for one in asked["like"]),
        unlike=tuple(parse_exemplar(version.frames, one) for one in asked["unlike"]),
        text=asked["text"],
        encoder=load_encoder(Store(place), asked["encoder"], model),
        other_models=tuple(resolve_ref(place, one, ("checkpoint",)) for one in asked["against"]),
    )


def load_encoder(store: Store, given: str | None, model: Ref) -> Encoder | None:
    """A vision model from a folder, a file or the hub, with the detector's boxes to look at."""
    from workbench.curation.embedding import image_encoders
    from workbench.detection.predictor import load_checkpoint

    if given is None:
        return None
    boxes = image_encoders.BoxSource(load_checkpoint(store, model), digest_of(model))
    if given.endswith(".onnx"):
        return image_encoders.OnnxEncoder(Path(given), boxes)
    return image_encoders.HuggingFaceEncoder(given, boxes)


def _selection_rules(query: MiningQuery, asked: dict[str, Any]) -> SelectionRules:
    from pydantic import ValidationError

    from workbench.curation import SelectionRules

    said: dict[str, Any] = {"control": asked["control"], "quotas": _parse_quotas(asked["quota"])}
    if asked["random_share"] is not None:
        said["random_share"] = asked["random_share"]
    elif query.is_search:
        said["random_share"] = 0.0  # whoever asks for more like this wants nothing else
    try:
        return SelectionRules(**said)
    except ValidationError as error:
        first = error.errors()[0]
        raise ParameterError(
            str(first["msg"]), where=f"--{str(first['loc'][0]).replace('_', '-')}"
        ) from error


def _parse_quotas(written: tuple[str, ...]) -> dict[str, int]:
    quotas = {}
    for one in written:
        name, _, count = one.rpartition("=")
        if not name or not count.isdigit():
            raise ParameterError(
                "not a quota", where=one, hint="Write CONDITION=FRAMES, such as night=20"
            )
        quotas[name.strip()] = int(count)
    return quotas


def _show_in_fiftyone(
    place: Workspace, made: Ref, version: Dataset, tag: str | None, *, kept: bool
) -> str:
    """Put the pool into FiftyOne; what came of it in words."""
    from workbench import curation
    from workbench.detection.boxes import CONFIDENCE_THRESHOLD
    from workbench.detection.predictor import load_checkpoint, predict_frames
    from workbench.records.frames import Role
    from workbench.records.types import Selection

    state = services.status(place)["mongod"]
    if not state.usable:
        return f"not in FiftyOne: mongod is {state.state}; `workbench up`, then this command again"
    pool = version.with_roles(Role.POOL)
    if len(pool.frames) > _MAX_FRAMES_IN_FIFTYONE:
        return f"not in FiftyOne: {len(pool.frames)} frames are too many to show at once"
    store = Store(place)
    selection = store.get(made, Selection)
    chosen = {choice.frame for choice in selection.chosen}
    frames = [frame for frame in pool.frames if frame.id in chosen]
    model = load_checkpoint(store, str(selection.model))
    found = predict_frames(place, model, frames)
    confident = [one for one in found if one.score >= CONFIDENCE_THRESHOLD]
    scores = curation.read_scores(store, made)
    seen = curation.embed(place, model, pool.frames) if kept else None
    curation.publish(place, pool, confident, selection, version.name, scores=scores, seen=seen)
    if tag:
        ranked = [choice.frame for choice in selection.chosen]
        curation.tag_frames(version.name, ranked, tag, by="workbench mine", place=place)
    return f"in FiftyOne: dataset {version.name!r}, saved view 'mined'"


def _frames_by_arm(selection: Selection) -> dict[str, int]:
    arms = [choice.arm for choice in selection.chosen]
    return {arm: arms.count(arm) for arm in dict.fromkeys(arms)}


def _selection_text(made: Ref, selection: Selection, rows: dict[str, str], shown: str) -> str:
    from workbench.curation import LabelingPace

    arms = " + ".join(f"{count} {arm}" for arm, count in _frames_by_arm(selection).items())
    pool = selection.parameters["pool"]
    lines = [f"{short_ref(made)}: {arms} of {pool} frames in the pool", f"  {selection.method}"]
    expected = selection.parameters.get("expected_minutes")
    if expected is not None:
        pace = LabelingPace(**selection.parameters["pace"])
        lines.append(f"  about {expected:.0f} minutes of labeling, at {pace}")
    lines += [f"  note: {note}" for note in selection.notes]
    faults = selection.parameters["kept_out"]
    if faults:
        kept = ", ".join(f"{count} {fault}" for fault, count in faults.items())
        lines.append(f"  kept out by the quality gate: {kept}")
    if unreadable := selection.parameters["unreadable"]:
        lines.append(f"  {len(unreadable)} frames cannot be read, such as {unreadable[0]['frame']}")
    width = max(len(rows[choice.frame]) for choice in selection.chosen[:_FRAMES_LISTED])
    for choice in selection.chosen[:_FRAMES_LISTED]:
        name = rows[choice.frame]
        why = "; ".join(choice.reasons)
        lines.append(
            f"  {choice.rank:4}  {choice.arm:7}  {choice.frame[:12]}  {name:{width}}  {why}"
        )
    if len(selection.chosen) > _FRAMES_LISTED:
        lines.append(
            f"        and {len(selection.chosen) - _FRAMES_LISTED} more; --json prints all"
        )
    lines += [f"  {shown}", f"next: workbench label send {short_ref(made)} --boxes"]
    if selection.has_control:
        lines.append(
            f"then: workbench mine report {short_ref(made)} --labels BATCH, once they are labeled;"
            " labelers cannot see which arm a frame is of"
        )
    return "\n".join(lines)
