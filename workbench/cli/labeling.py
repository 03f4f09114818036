"""`workbench label`: send frames to Label Studio, collect labels, measure and review them."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.cli.common import (
    connect_label_studio,
    info,
    json_option,
    print_result,
    progress_bar,
    resolve_ref,
    short_ref,
)
from workbench.core.errors import ParameterError, WorkbenchError
from workbench.core.workspace import Workspace, find_workspace, write_atomic
from workbench.records.base import Ref, kind_of
from workbench.records.store import Store

if TYPE_CHECKING:
    from workbench.labeling import BatchStatus
    from workbench.records.types import AgreementRate, Prediction, Selection


@click.command()
@click.argument("reference", metavar="LABELS|BATCH")
@json_option
def agreement(reference: str, as_json: bool) -> None:
    """Show how far labelers agree: by class, slice and labeler, and with gold frames.

    Each rate has its 95 % interval, by resampling frames.
    """
    from workbench import labeling
    from workbench.records.types import Agreement

    workspace = find_workspace()
    store = Store(workspace)
    ref = labeling.assess_agreement(store, resolve_labels(workspace, reference))
    record = store.get(ref, Agreement)
    lines = [f"{short_ref(ref)}: {record.frames} frames compared, {record.disputed} disputed"]
    lines += [_rate_row(rate) for rate in record.rates]
    if record.disputed:
        lines.append(f"next: workbench label adjudicate {short_ref(record.labels)}")
    result = {"agreement": ref, **record.model_dump(mode="json")}
    print_result(result, as_json=as_json, text="\n".join(lines))


@click.command()
@click.argument("reference", metavar="LABELS|BATCH")
@click.option("--project", help="Title of the project; by default made from dataset and batch.")
@json_option
def adjudicate(reference: str, project: str | None, as_json: bool) -> None:
    """Send what labelers disagree about to a project of its own, blind to who drew what."""
    from workbench import labeling

    workspace = find_workspace()
    batch = labeling.make_adjudication(Store(workspace), resolve_labels(workspace, reference))
    if batch is None:
        nothing = {"batch": None, "sent": 0, "already": 0, "project": None, "url": None}
        print_result(
            nothing, as_json=as_json, text="labelers agree on every frame that several answered"
        )
        return
    with progress_bar("send") as progress:
        sent = labeling.send(
            workspace, connect_label_studio(workspace), batch, project, progress=progress
        )
    text = "\n".join(
        [
            f"sent {sent.sent} frames to settle, {sent.already} were there already",
            f"  label: {sent.url}",
            f"   next: workbench label collect {short_ref(batch)} --merge",
        ]
    )
    print_result(asdict(sent), as_json=as_json, text=text)


@click.command()
@click.argument("dataset")
@click.option("--model", help="Checkpoint whose confident boxes are held against the labels.")
@click.option("--agreement", "agreed", help="Agreement whose disputes and poor labelers count.")
@click.option("--budget", default=50, show_default=True, help="Frames to look at again.")
@json_option
def review(dataset: str, model: str | None, agreed: str | None, budget: int, as_json: bool) -> None:
    """Choose labeled frames of DATASET that look wrong, as a selection to send."""
    from workbench import labeling
    from workbench.detection.predictor import load_checkpoint, predict_frames
    from workbench.records import dataset as datasets
    from workbench.records.types import Selection

    if not model and not agreed:
        raise ParameterError("a review needs --model or --agreement, to know what looks wrong")
    workspace = find_workspace()
    store = Store(workspace)
    ref = resolve_ref(workspace, dataset, ("dataset",))
    found = []
    checkpoint = resolve_ref(workspace, model, ("checkpoint",)) if model else None
    if checkpoint:
        version = datasets.load_dataset(store, ref)
        labeled = [frame for frame in version.frames if frame.role != "pool"]
        predictions = predict_frames(workspace, load_checkpoint(store, checkpoint), labeled)
        found += labeling.suspects_from_model(version, predictions)
    if agreed:
        found += labeling.suspects_from_agreement(
            store, resolve_ref(workspace, agreed, ("agreement",))
        )
    selection = labeling.select_for_review(store, ref, found, budget, checkpoint)
    chosen = store.get(selection, Selection).chosen
    lines = [
        f"{short_ref(selection)}: {len(chosen)} of {len({one.frame for one in found})} suspects"
    ]
    lines += [
        f"  {one.frame[:12]}  {one.score:5.2f}  {'; '.join(one.reasons)}" for one in chosen[:10]
    ]
    lines.append(f"next: workbench label send {short_ref(selection)}")
    result = {"selection": selection, "frames": len(chosen), "suspects": len(found)}
    print_result(result, as_json=as_json, text="\n".join(lines))


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

    workspace = find_workspace()
    ref = resolve_ref(workspace, dataset, ("dataset",))
    done = labeling.withdraw(
        Store(workspace), ref, annotators=annotators, frames=frames, reason=reason
    )
    lines = [
        f"{short_ref(done.dataset)}: {done.frames_removed} frames and {done.labels_removed} labels"
        f" less, {done.frames_back_in_pool} frames back in the pool",
        *(f"  learned from them: {short_ref(model)}" for model in done.models),
    ]
    print_result(asdict(done), as_json=as_json, text="\n".join(lines))


@click.command()
@click.argument("dataset")
@click.argument("schema", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def migrate(dataset: str, schema: Path, as_json: bool) -> None:
    """Bring DATASET under a newer version of its label schema, a YAML file.

    A class that is gone needs a workspace to go to in the new schema's `mapping`.
    """
    from workbench import labeling
    from workbench.data.schema import load_schema

    workspace = find_workspace()
    ref = resolve_ref(workspace, dataset, ("dataset",))
    version, moved = labeling.migrate(Store(workspace), ref, load_schema(schema))
    lines = [f"new dataset version: {version}"]
    lines += [f"  {change}: {count} labels" for change, count in sorted(moved.items())]
    print_result({"dataset": version, "moved": moved}, as_json=as_json, text="\n".join(lines))


@click.command()
@click.argument("references", metavar="[LABELS]…", nargs=-1)
@json_option
def effort(references: tuple[str, ...], as_json: bool) -> None:
    """Show what labeling took people, by default over everything collected here."""
    from workbench import labeling
    from workbench.records.types import LabelSet

    workspace = find_workspace()
    store = Store(workspace)
    refs = [resolve_labels(workspace, one) for one in references] or list(store.refs(LabelSet.KIND))
    found = labeling.labeling_effort(store, refs)
    lines = [f"{found.frames} answers with {found.boxes} boxes took {found.minutes:.1f} minutes"]
    if found.seconds_per_frame is not None:
        lines.append(
            f"  a frame takes {found.seconds_per_frame:.1f} s"
            f" and {found.seconds_per_box:.1f} s more for each box"
        )
    if found.changed_per_minute is not None:
        lines.append(f"  yield: {found.changed_per_minute:.2f} boxes drawn or changed a minute")
    print_result(asdict(found), as_json=as_json, text="\n".join(lines))


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
    from workbench.labeling import projects
    from workbench.records.types import DatasetVersion

    workspace = find_workspace()
    store = Store(workspace)
    ref = resolve_ref(workspace, dataset, ("dataset",))
    crops = projects.example_crops(store, ref)
    content = projects.guide_page(store.get(ref, DatasetVersion).label_schema, crops)
    write_atomic(output, content.encode())
    shown = {name: len(some) for name, some in crops.items()}
    text = f"{output}: {sum(shown.values())} examples of {len(shown)} classes"
    print_result({"page": str(output), "examples": shown}, as_json=as_json, text=text)


_REVIEW_COMMANDS = (agreement, adjudicate, review, withdraw, migrate, effort, guide)


def resolve_labels(workspace: Workspace, reference: str) -> Ref:
    """A label set, or the one that a batch was collected into."""
    from workbench.labeling import sync

    ref = resolve_ref(workspace, reference, ("label", "batch"))
    if kind_of(ref) == "label":
        return ref
    entry = sync.read_entry(workspace, ref)
    if entry is None or entry.collected is None:
        raise ParameterError(
            "this batch was not collected yet",
            where=ref,
            hint=f"Run `workbench label collect {short_ref(ref)}` first",
        )
    return entry.collected


def _rate_row(rate: AgreementRate) -> str:
    name = rate.subject if rate.subject == "all" else f"{rate.subject} {rate.name}"
    against = " against gold" if rate.against == "gold" else ""
    parts = [
        _rate_text("IoU", rate.iou, rate.iou_interval),
        _rate_text("missed", rate.missed, rate.missed_interval),
        _rate_text("kappa", rate.kappa, rate.kappa_interval),
    ]
    return f"  {name + against:40} n={rate.n:<6} {'  '.join(parts)}"


def _rate_text(name: str, value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return f"{name} -"
    if interval is None:
        return f"{name} {value:.3f} [one frame]"
    return f"{name} {value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


# ---- ``workbench label``: send frames to labelers, see how far they are, collect what they did.


@click.group()
def label() -> None:
    """Send frames to labelers, see how far they are, collect.

    A selection or a batch is named by KIND/PREFIX, such as batch/1f2e, or by sha256:DIGEST.
    """


@label.command()
@click.argument("reference", metavar="SELECTION|BATCH")
@click.option("--overlap", default=0.0, show_default=True, help="Share of frames for two labelers.")
@click.option(
    "--attention",
    multiple=True,
    metavar="SLICE:…",
    help="More for a slice, as light=night:labelers=2:first=1:least=10 (seconds). Repeatable.",
)
@click.option("--gold", default=0, help="Frames with trusted labels, mixed in to measure labelers.")
@click.option("--boxes", is_flag=True, help="Start from the boxes of the model that mined them.")
@click.option("--project", help="Title of the project; by default made from dataset and batch.")
@json_option
def send(
    reference: str,
    overlap: float,
    attention: tuple[str, ...],
    gold: int,
    boxes: bool,
    project: str | None,
    as_json: bool,
) -> None:
    """Bring chosen frames to Label Studio; what is there already is not sent again.

    A selection is sent without first boxes, or with --boxes from its own model; a batch, which the
    pipeline makes, with its model's. Tasks that somebody deleted come back.
    """
    from workbench import labeling
    from workbench.records.types import Selection

    workspace = find_workspace()
    store = Store(workspace)
    batch = resolve_ref(workspace, reference, ("selection", "batch"))
    if kind_of(batch) == "selection":
        selection = store.get(batch, Selection)
        care = labeling.LabelingOptions(tuple(map(labeling.LabelingRule.parse, attention)), gold)
        model, predictions = _preannotations(workspace, selection) if boxes else (None, [])
        batch = labeling.make_batch(
            store, selection.dataset, batch, model, predictions, overlap=overlap, care=care
        )
    elif overlap or attention or gold or boxes:
        raise ParameterError("a batch already says what its frames ask of labelers", where=batch)
    with progress_bar("send") as progress:
        sent = labeling.send(
            workspace, connect_label_studio(workspace), batch, project, progress=progress
        )
    text = "\n".join(
        [
            f"sent {sent.sent} frames, {sent.already} were there already",
            f"  batch: {sent.batch}",
            f"  label: {sent.url}",
            f"   next: workbench label collect {short_ref(sent.batch)}",
        ]
    )
    print_result(asdict(sent), as_json=as_json, text=text)


def _preannotations(workspace: Workspace, selection: Selection) -> tuple[Ref, list[Prediction]]:
    """The model of a selection, and what it believes to see on the chosen frames."""
    from workbench.detection.boxes import CONFIDENCE_THRESHOLD
    from workbench.detection.predictor import load_checkpoint, predict_frames
    from workbench.records import dataset

    store = Store(workspace)
    if selection.model is None:
        raise ParameterError(
            "no model chose these frames, so there are no boxes to start from",
            where=selection.method,
            hint="Send without --boxes",
        )
    chosen = {choice.frame for choice in selection.chosen}
    frames = [
        frame
        for frame in dataset.load_dataset(store, selection.dataset).frames
        if frame.id in chosen
    ]
    with progress_bar("predict") as progress:
        found = predict_frames(
            workspace, load_checkpoint(store, selection.model), frames, progress=progress
        )
    return selection.model, [one for one in found if one.score >= CONFIDENCE_THRESHOLD]


@label.command()
@click.argument("reference", metavar="[BATCH]", required=False)
@json_option
def status(reference: str | None, as_json: bool) -> None:
    """Show how far labelers are with a batch, by default with every batch that was sent."""
    from workbench import labeling
    from workbench.labeling import sync

    workspace = find_workspace()
    batches = (
        [resolve_ref(workspace, reference, ("batch",))]
        if reference
        else sync.sent_batches(workspace)
    )
    if not batches:
        print_result({"batches": []}, as_json=as_json, text="no batch was sent from here")
        return
    states, server = [], connect_label_studio(workspace)
    for batch in batches:
        try:
            states.append(labeling.batch_status(workspace, server, batch))
        except ParameterError as error:
            if reference:
                raise
            # One project deleted by hand must not hide the others.
            info(f"{short_ref(batch)}: {error}")
    text = "\n".join(_status_text(state) for state in states)
    print_result(
        {"batches": [_status_as_json(state) for state in states]}, as_json=as_json, text=text
    )


@label.command()
@click.argument("reference", metavar="BATCH")
@click.option("--refresh", is_flag=True, help="Fetch again what labelers changed since.")
@click.option("--without-deleted", is_flag=True, help="Go on without frames deleted there.")
@click.option("--merge", is_flag=True, help="Also keep the new dataset version with these labels.")
@json_option
def collect(
    reference: str, refresh: bool, without_deleted: bool, merge: bool, as_json: bool
) -> None:
    """Keep a complete batch's labels as a record; the exit status is 4 while people are at it."""
    from workbench import labeling
    from workbench.records import dataset
    from workbench.records.types import LabelBatch, LabelSet

    workspace = find_workspace()
    store = Store(workspace)
    batch = resolve_ref(workspace, reference, ("batch",))
    labels = labeling.collect(
        workspace,
        connect_label_studio(workspace),
        batch,
        refresh=refresh,
        without_deleted=without_deleted,
    )
    record = store.get(labels, LabelSet)
    version = None
    if merge:
        about = store.get(batch, LabelBatch)
        parent = dataset.load_dataset(store, about.dataset)
        if about.adjudicates:
            version = labeling.merge(store, parent, about.adjudicates, adjudication=labels).ref
        else:
            version = labeling.merge(store, parent, labels).ref
    result = {
        "labels": labels,
        "batch": batch,
        "boxes": record.labels,
        "skipped": len(record.skipped),
        "deleted": list(record.deleted),
        "annotators": [person.model_dump() for person in record.annotators],
        "agreement": record.agreement,
        "simulated": record.simulated,
        "dataset": version,
    }
    lines = [f"{labels}: {record.labels} boxes, {len(record.skipped)} frames skipped"]
    lines += [f"  {_annotator_text(person.model_dump())}" for person in record.annotators]
    if version:
        lines.append(f"  new dataset version: {version}")
    print_result(result, as_json=as_json, text="\n".join(lines))


def _status_as_json(state: BatchStatus) -> dict[str, Any]:
    people = [person.model_dump() for person in state.annotators]
    mends = [asdict(mend) for mend in state.to_mend]
    return {
        **{name: getattr(state, name) for name in ("batch", "project", "url", "total", "done")},
        **{"skipped": state.skipped, "complete": state.complete},
        **{"annotators": people, "to_mend": mends, "drafts": state.drafts},
        **{"comments": state.comments, "deleted": list(state.deleted)},
        **{"unsent": state.unsent, "collected": state.collected},
    }


def _status_text(state: BatchStatus) -> str:
    lines = [
        f"{short_ref(state.batch)}: {state.done} of {state.total} frames done, {state.skipped} skipped",
        f"  {state.url}",
    ]
    lines += [f"  {_annotator_text(person.model_dump())}" for person in state.annotators]
    if state.collected:
        lines.append(f"  collected: {short_ref(state.collected)}")
    if state.drafts:
        lines.append(f"  {state.drafts} drafts begun and not submitted")
    if state.comments:
        lines.append(f"  {state.comments} frames with a comment; they are kept at collect")
    if state.deleted:
        lines.append(f"  {len(state.deleted)} frames deleted there; `label send` brings them back")
    if state.unsent:
        lines.append(f"  {state.unsent} frames never sent; `label send` sends them")
    lines += [f"  to mend, {mend.annotator}: {mend.why} ({mend.url})" for mend in state.to_mend]
    return "\n".join(lines)


def _annotator_text(person: dict[str, Any]) -> str:
    time = f", {person['minutes']:.1f} minutes" if person["minutes"] is not None else ""
    told = " (replayed, not a person)" if person["simulated"] else ""
    return f"{person['id']}: {person['frames']} frames, {person['boxes']} boxes{time}{told}"


@label.command()
@click.option("--every", default=300.0, show_default=True, help="Look at least so often, seconds.")
@click.option("--once", is_flag=True, help="Stop after the first look that a hint or time causes.")
def listen(every: float, once: bool) -> None:
    """Show what labelers do as they do it, and collect each batch as it is complete. Ctrl-C ends.

    Label Studio's webhooks are only hints; what counts is fetched, hint or not.
    """
    from workbench import labeling
    from workbench.labeling import sync

    workspace = find_workspace()
    server = connect_label_studio(workspace)
    entries = [
        entry for ref in sync.sent_batches(workspace) if (entry := sync.read_entry(workspace, ref))
    ]
    waiting = {entry.project: entry.batch for entry in entries if not entry.collected}
    if not waiting:
        info("every batch that was sent from here is collected")
        return
    with sync.listen(server, waiting) as heard, contextlib.suppress(KeyboardInterrupt):
        info(f"listening for {len(waiting)} batches")
        while waiting:
            for batch in heard.wait(every):
                try:
                    state = labeling.batch_status(workspace, server, batch)
                    click.echo(_status_text(state))
                    if state.complete and not state.collected:
                        click.echo(
                            f"  collected: {short_ref(labeling.collect(workspace, server, batch))}"
                        )
                        waiting = {key: ref for key, ref in waiting.items() if ref != batch}
                except WorkbenchError as error:
                    info(f"{short_ref(batch)}: {error}")
            if once:
                return


for _command in _REVIEW_COMMANDS:
    label.add_command(_command)
