"""``workbench label agreement`` and what follows from it: adjudication, review, withdrawal."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench import workspace
from workbench.commands.common import emit, json_option, progress_bar
from workbench.commands.label_access import resolve, server_of, short
from workbench.errors import ParameterError
from workbench.records.base import Ref, kind_of
from workbench.records.store import Store
from workbench.workspace import Workspace

if TYPE_CHECKING:
    from workbench.records.types import Rate


@click.command()
@click.argument("reference", metavar="LABELS|BATCH")
@json_option
def agreement(reference: str, as_json: bool) -> None:
    """Show how far labelers agree: by class, slice and labeler, and with gold frames.

    Each rate has its 95 % interval, by resampling frames.
    """
    from workbench import labeling
    from workbench.records.types import Agreement

    place = workspace.find()
    store = Store(place)
    ref = labeling.assess(store, labels_of(place, reference))
    record = store.get(ref, Agreement)
    lines = [f"{short(ref)}: {record.frames} frames compared, {record.disputed} disputed"]
    lines += [_row(rate) for rate in record.rates]
    if record.disputed:
        lines.append(f"next: workbench label adjudicate {short(record.labels)}")
    result = {"agreement": ref, **record.model_dump(mode="json")}
    emit(result, as_json=as_json, text="\n".join(lines))


@click.command()
@click.argument("reference", metavar="LABELS|BATCH")
@click.option("--project", help="Title of the project; by default made from dataset and batch.")
@json_option
def adjudicate(reference: str, project: str | None, as_json: bool) -> None:
    """Send what labelers disagree about to a project of its own, blind to who drew what."""
    from workbench import labeling

    place = workspace.find()
    batch = labeling.make_adjudication(Store(place), labels_of(place, reference))
    if batch is None:
        nothing = {"batch": None, "sent": 0, "already": 0, "project": None, "url": None}
        emit(nothing, as_json=as_json, text="labelers agree on every frame that several answered")
        return
    with progress_bar("send") as progress:
        sent = labeling.send(place, server_of(place), batch, project, progress=progress)
    text = "\n".join(
        [
            f"sent {sent.sent} frames to settle, {sent.already} were there already",
            f"  label: {sent.url}",
            f"   next: workbench label collect {short(batch)} --merge",
        ]
    )
    emit(asdict(sent), as_json=as_json, text=text)


@click.command()
@click.argument("dataset")
@click.option("--model", help="Checkpoint whose confident boxes are held against the labels.")
@click.option("--agreement", "agreed", help="Agreement whose disputes and poor labelers count.")
@click.option("--budget", default=50, show_default=True, help="Frames to look at again.")
@json_option
def review(dataset: str, model: str | None, agreed: str | None, budget: int, as_json: bool) -> None:
    """Choose labeled frames of DATASET that look wrong, as a selection to send."""
    from workbench import labeling
    from workbench.perception.predictor import load_checkpoint, predict_frames
    from workbench.records import dataset as datasets
    from workbench.records.types import Selection

    if not model and not agreed:
        raise ParameterError("a review needs --model or --agreement, to know what looks wrong")
    place = workspace.find()
    store = Store(place)
    ref = resolve(place, dataset, ("dataset",))
    found = []
    checkpoint = resolve(place, model, ("checkpoint",)) if model else None
    if checkpoint:
        version = datasets.load(store, ref)
        labeled = [frame for frame in version.frames if frame.role != "pool"]
        predictions = predict_frames(place, load_checkpoint(store, checkpoint), labeled)
        found += labeling.suspects(version, predictions)
    if agreed:
        found += labeling.from_agreement(store, resolve(place, agreed, ("agreement",)))
    selection = labeling.to_review(store, ref, found, budget, checkpoint)
    chosen = store.get(selection, Selection).chosen
    lines = [f"{short(selection)}: {len(chosen)} of {len({one.frame for one in found})} suspects"]
    lines += [
        f"  {one.frame[:12]}  {one.score:5.2f}  {'; '.join(one.reasons)}" for one in chosen[:10]
    ]
    lines.append(f"next: workbench label send {short(selection)}")
    result = {"selection": selection, "frames": len(chosen), "suspects": len(found)}
    emit(result, as_json=as_json, text="\n".join(lines))


@click.command()
@click.argument("dataset")
@click.option("--annotator", "annotators", multiple=True, help="Whose work goes. Repeatable.")
@click.option("--frame", "frames", multiple=True, help="A frame that goes. Repeatable.")
@click.option("--reason", required=True, help="Why; it is kept with the withdrawal.")
@json_option
def withdraw(
    dataset: str,
    annotators: tuple[str, ...],
    frames: tuple[str, ...],
    reason: str,
    as_json: bool,
) -> None:
    """Make a version of DATASET without a labeler's work or without frames, for consent or quality.

    Lists the models that learned from what was withdrawn.
    """
    from workbench import labeling

    place = workspace.find()
    ref = resolve(place, dataset, ("dataset",))
    done = labeling.withdraw(Store(place), ref, annotators=annotators, frames=frames, reason=reason)
    lines = [
        f"{short(done.dataset)}: {done.frames_removed} frames and {done.labels_removed} labels"
        f" less, {done.frames_back_in_pool} frames back in the pool",
        *(f"  learned from them: {short(model)}" for model in done.models),
    ]
    emit(asdict(done), as_json=as_json, text="\n".join(lines))


@click.command()
@click.argument("dataset")
@click.argument("schema", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def migrate(dataset: str, schema: Path, as_json: bool) -> None:
    """Bring DATASET under a newer version of its label schema, a YAML file.

    A class that is gone needs a place to go to in the new schema's `mapping`.
    """
    from workbench import labeling
    from workbench.data.schema import load_schema

    place = workspace.find()
    ref = resolve(place, dataset, ("dataset",))
    version, moved = labeling.migrate(Store(place), ref, load_schema(schema))
    lines = [f"new dataset version: {version}"]
    lines += [f"  {change}: {count} labels" for change, count in sorted(moved.items())]
    emit({"dataset": version, "moved": moved}, as_json=as_json, text="\n".join(lines))


@click.command()
@click.argument("references", metavar="[LABELS]…", nargs=-1)
@json_option
def effort(references: tuple[str, ...], as_json: bool) -> None:
    """Show what labeling took people, by default over everything collected here."""
    from workbench import labeling
    from workbench.records.types import LabelSet

    place = workspace.find()
    store = Store(place)
    refs = [labels_of(place, one) for one in references] or list(store.refs(LabelSet.KIND))
    found = labeling.effort(store, refs)
    lines = [f"{found.frames} answers with {found.boxes} boxes took {found.minutes:.1f} minutes"]
    if found.seconds_per_frame is not None:
        lines.append(
            f"  a frame takes {found.seconds_per_frame:.1f} s"
            f" and {found.seconds_per_box:.1f} s more for each box"
        )
    if found.changed_per_minute is not None:
        lines.append(f"  yield: {found.changed_per_minute:.2f} boxes drawn or changed a minute")
    emit(asdict(found), as_json=as_json, text="\n".join(lines))


@click.command()
@click.argument("dataset")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("labeling-guide.html"),
    show_default=True,
)
@json_option
def guide(dataset: str, output: Path, as_json: bool) -> None:
    """Write the labelers' guide page of DATASET's schema, with examples cut from its frames.

    Projects link to it already; this is for reading it elsewhere.
    """
    from workbench.labeling import guide as pages
    from workbench.records.types import DatasetVersion

    place = workspace.find()
    store = Store(place)
    ref = resolve(place, dataset, ("dataset",))
    crops = pages.examples(store, ref)
    content = pages.page(store.get(ref, DatasetVersion).label_schema, crops)
    workspace.write_atomic(output, content.encode())
    shown = {name: len(some) for name, some in crops.items()}
    text = f"{output}: {sum(shown.values())} examples of {len(shown)} classes"
    emit({"page": str(output), "examples": shown}, as_json=as_json, text=text)


COMMANDS = (agreement, adjudicate, review, withdraw, migrate, effort, guide)


def labels_of(place: Workspace, reference: str) -> Ref:
    """A label set, or the one that a batch was collected into."""
    from workbench.labeling import ledger

    ref = resolve(place, reference, ("label", "batch"))
    if kind_of(ref) == "label":
        return ref
    entry = ledger.read(place, ref)
    if entry is None or entry.collected is None:
        raise ParameterError(
            "this batch was not collected yet",
            where=ref,
            hint=f"Run `workbench label collect {short(ref)}` first",
        )
    return entry.collected


def _row(rate: Rate) -> str:
    name = rate.subject if rate.subject == "all" else f"{rate.subject} {rate.name}"
    against = " against gold" if rate.against == "gold" else ""
    parts = [
        _figure("IoU", rate.iou, rate.iou_interval),
        _figure("missed", rate.missed, rate.missed_interval),
        _figure("kappa", rate.kappa, rate.kappa_interval),
    ]
    return f"  {name + against:40} n={rate.n:<6} {'  '.join(parts)}"


def _figure(name: str, value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return f"{name} -"
    if interval is None:
        return f"{name} {value:.3f} [one frame]"
    return f"{name} {value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
