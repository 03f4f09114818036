"""``workbench mine``: from a dataset to the frames that labeling should start with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench import services, workspace
from workbench.commands.common import emit, json_option, progress_bar, say
from workbench.commands.label_access import resolve, short
from workbench.commands.mine_report import report
from workbench.errors import ParameterError
from workbench.records.base import Ref, digest_of, kind_of
from workbench.records.store import Store
from workbench.workspace import Workspace

if TYPE_CHECKING:
    from workbench.curation import Budget, Query, SelectionRules
    from workbench.curation.embedding import Encoder
    from workbench.records.dataset import Dataset
    from workbench.records.types import Selection

_SHOWN = 10
_MOST_IN_FIFTYONE = 50_000


class _Mine(click.Command):
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


@click.command(cls=_Mine)
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

    place = workspace.find()
    store = Store(place)
    ref = resolve(place, dataset, ("dataset",))
    version = datasets.load(store, ref)
    model = model_of(place, store, asked["model"], version)
    budget = _budget(store, asked)
    query = _query(place, version, model, asked)
    rules = _rules(query, asked)
    with progress_bar("embed") as progress:
        made = curation.mine(
            store, ref, model, budget, seed, rules=rules, query=query, progress=progress
        )
    selection = store.get(made, Selection)
    kept = asked["encoder"] is None  # then mining has just embedded the pool with this model
    shown = _show(place, made, version, tag, kept=kept) if show else "not asked to show"
    rows = {frame.id: f"{frame.drive}@{frame.index}" for frame in version.frames}
    result = {
        "selection": made,
        "dataset": ref,
        "model": model,
        "method": selection.method,
        "arms": _arms(selection),
        "minutes": selection.parameters.get("expected_minutes"),
        "notes": list(selection.notes),
        "fiftyone": shown,
        "chosen": [
            {**choice.model_dump(mode="json"), "name": rows[choice.frame]}
            for choice in selection.chosen
        ],
    }
    emit(result, as_json=as_json, text=_words(made, selection, rows, shown))


def model_of(place: Workspace, store: Store, given: str | None, version: Dataset) -> Ref:
    """The checkpoint that is meant, by default the newest that knows the dataset's classes."""
    from workbench.records.types import Checkpoint, ExportBundle, Release

    if given:
        ref = resolve(place, given, ("checkpoint", "bundle", "release"))
        if kind_of(ref) == Release.KIND:
            ref = store.get(ref, Release).bundle
        return store.get(ref, ExportBundle).checkpoint if kind_of(ref) == ExportBundle.KIND else ref
    wanted = version.label_schema.classes
    for ref in reversed(list(store.refs(Checkpoint.KIND))):
        if store.get(ref, Checkpoint).classes == wanted:
            say(f"model: {short(ref)}, the newest that knows these classes")
            return ref
    raise ParameterError(
        "there is no model to look with",
        where=version.name,
        hint="Train one with `workbench run pipelines/data_engine.yaml --to baseline`,"
        " or name one with --model",
    )


def _budget(store: Store, asked: dict[str, Any]) -> Budget:
    from workbench import labeling
    from workbench.curation import Budget, Pace
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
        return Budget(minutes=minutes, pace=Pace(seconds_per_frame=each, seconds_per_box=box))
    known = labeling.effort(store, store.refs(LabelSet.KIND))
    if known.seconds_per_frame is None or known.seconds_per_box is None:
        return Budget(minutes=minutes)  # which says what to do
    pace = Pace(
        seconds_per_frame=known.seconds_per_frame,
        seconds_per_box=known.seconds_per_box,
        source=f"measured over {known.frames} answers of people",
    )
    return Budget(minutes=minutes, pace=pace)


def _query(place: Workspace, version: Dataset, model: Ref, asked: dict[str, Any]) -> Query:
    from workbench.curation import Query
    from workbench.curation.selecting.query import exemplar

    return Query(
        like=tuple(exemplar(version.frames, one) for one in asked["like"]),
        unlike=tuple(exemplar(version.frames, one) for one in asked["unlike"]),
        text=asked["text"],
        encoder=encoder_of(Store(place), asked["encoder"], model),
        other_models=tuple(resolve(place, one, ("checkpoint",)) for one in asked["against"]),
    )


def encoder_of(store: Store, given: str | None, model: Ref) -> Encoder | None:
    """A vision model from a folder, a file or the hub, with the detector's boxes to look at."""
    from workbench.curation import embedding
    from workbench.perception.predictor import load_checkpoint

    if given is None:
        return None
    boxes = embedding.BoxSource(load_checkpoint(store, model), digest_of(model))
    if given.endswith(".onnx"):
        return embedding.OnnxEncoder(Path(given), boxes)
    return embedding.HuggingFaceEncoder(given, boxes)


def _rules(query: Query, asked: dict[str, Any]) -> SelectionRules:
    from pydantic import ValidationError

    from workbench.curation import SelectionRules

    said: dict[str, Any] = {"control": asked["control"], "quotas": _quotas(asked["quota"])}
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


def _quotas(written: tuple[str, ...]) -> dict[str, int]:
    quotas = {}
    for one in written:
        name, _, count = one.rpartition("=")
        if not name or not count.isdigit():
            raise ParameterError(
                "not a quota", where=one, hint="Write CONDITION=FRAMES, such as night=20"
            )
        quotas[name.strip()] = int(count)
    return quotas


def _show(place: Workspace, made: Ref, version: Dataset, tag: str | None, *, kept: bool) -> str:
    """Put the pool into FiftyOne; what came of it in words."""
    from workbench import curation
    from workbench.perception.predictor import load_checkpoint, predict_frames
    from workbench.records.frames import Role
    from workbench.records.types import Selection

    state = services.status(place)["mongod"]
    if not state.usable:
        return f"not in FiftyOne: mongod is {state.state}; `workbench up`, then this command again"
    pool = version.with_roles(Role.POOL)
    if len(pool.frames) > _MOST_IN_FIFTYONE:
        return f"not in FiftyOne: {len(pool.frames)} frames are too many to show at once"
    store = Store(place)
    selection = store.get(made, Selection)
    chosen = {choice.frame for choice in selection.chosen}
    frames = [frame for frame in pool.frames if frame.id in chosen]
    model = load_checkpoint(store, str(selection.model))
    found = predict_frames(place, model, frames)
    confident = [one for one in found if one.score >= 0.3]
    scores = curation.read_scores(store, made)
    seen = curation.embed(place, model, pool.frames) if kept else None
    curation.publish(place, pool, confident, selection, version.name, scores=scores, seen=seen)
    if tag:
        ranked = [choice.frame for choice in selection.chosen]
        curation.tag(version.name, ranked, tag, by="workbench mine", place=place)
    return f"in FiftyOne: dataset {version.name!r}, saved view 'mined'"


def _arms(selection: Selection) -> dict[str, int]:
    arms = [choice.arm for choice in selection.chosen]
    return {arm: arms.count(arm) for arm in dict.fromkeys(arms)}


def _words(made: Ref, selection: Selection, rows: dict[str, str], shown: str) -> str:
    from workbench.curation import Pace

    arms = " + ".join(f"{count} {arm}" for arm, count in _arms(selection).items())
    pool = selection.parameters["pool"]
    lines = [f"{short(made)}: {arms} of {pool} frames in the pool", f"  {selection.method}"]
    expected = selection.parameters.get("expected_minutes")
    if expected is not None:
        pace = Pace(**selection.parameters["pace"])
        lines.append(f"  about {expected:.0f} minutes of labeling, at {pace}")
    lines += [f"  note: {note}" for note in selection.notes]
    faults = selection.parameters["kept_out"]
    if faults:
        kept = ", ".join(f"{count} {fault}" for fault, count in faults.items())
        lines.append(f"  kept out by the quality gate: {kept}")
    if unreadable := selection.parameters["unreadable"]:
        lines.append(f"  {len(unreadable)} frames cannot be read, such as {unreadable[0]['frame']}")
    width = max(len(rows[choice.frame]) for choice in selection.chosen[:_SHOWN])
    for choice in selection.chosen[:_SHOWN]:
        name = rows[choice.frame]
        why = "; ".join(choice.reasons)
        lines.append(
            f"  {choice.rank:4}  {choice.arm:7}  {choice.frame[:12]}  {name:{width}}  {why}"
        )
    if len(selection.chosen) > _SHOWN:
        lines.append(f"        and {len(selection.chosen) - _SHOWN} more; --json prints all")
    lines += [f"  {shown}", f"next: workbench label send {short(made)} --boxes"]
    if selection.has_control:
        lines.append(
            f"then: workbench mine report {short(made)} --labels BATCH, once they are labeled;"
            " labelers cannot see which arm a frame is of"
        )
    return "\n".join(lines)
