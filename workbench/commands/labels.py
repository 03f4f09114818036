"""``workbench label``: send frames to labelers, see how far they are, collect what they did."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from workbench import workspace
from workbench.commands import label_review
from workbench.commands.common import emit, json_option, progress_bar, say
from workbench.commands.label_access import resolve, server_of, short
from workbench.errors import ParameterError, WorkbenchError
from workbench.records.base import Ref, kind_of
from workbench.records.store import Store
from workbench.workspace import Workspace

if TYPE_CHECKING:
    from workbench.labeling import BatchStatus
    from workbench.records.types import Prediction, Selection

_BELIEVED = 0.3
"""Score from which on a model's box is worth a labeler's look."""


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

    place = workspace.find()
    store = Store(place)
    batch = resolve(place, reference, ("selection", "batch"))
    if kind_of(batch) == "selection":
        selection = store.get(batch, Selection)
        care = labeling.Care(tuple(map(labeling.Attention.parse, attention)), gold)
        model, predictions = _first_boxes(place, selection) if boxes else (None, [])
        batch = labeling.make_batch(
            store, selection.dataset, batch, model, predictions, overlap=overlap, care=care
        )
    elif overlap or attention or gold or boxes:
        raise ParameterError("a batch already says what its frames ask of labelers", where=batch)
    with progress_bar("send") as progress:
        sent = labeling.send(place, server_of(place), batch, project, progress=progress)
    text = "\n".join(
        [
            f"sent {sent.sent} frames, {sent.already} were there already",
            f"  batch: {sent.batch}",
            f"  label: {sent.url}",
            f"   next: workbench label collect {short(sent.batch)}",
        ]
    )
    emit(asdict(sent), as_json=as_json, text=text)


def _first_boxes(place: Workspace, selection: Selection) -> tuple[Ref, list[Prediction]]:
    """The model of a selection, and what it believes to see on the chosen frames."""
    from workbench.perception.predictor import load_checkpoint, predict_frames
    from workbench.records import dataset as datasets

    store = Store(place)
    if selection.model is None:
        raise ParameterError(
            "no model chose these frames, so there are no boxes to start from",
            where=selection.method,
            hint="Send without --boxes",
        )
    chosen = {choice.frame for choice in selection.chosen}
    frames = [
        frame for frame in datasets.load(store, selection.dataset).frames if frame.id in chosen
    ]
    with progress_bar("predict") as progress:
        found = predict_frames(
            place, load_checkpoint(store, selection.model), frames, progress=progress
        )
    return selection.model, [one for one in found if one.score >= _BELIEVED]


@label.command()
@click.argument("reference", metavar="[BATCH]", required=False)
@json_option
def status(reference: str | None, as_json: bool) -> None:
    """Show how far labelers are with a batch, by default with every batch that was sent."""
    from workbench import labeling
    from workbench.labeling import ledger

    place = workspace.find()
    batches = [resolve(place, reference, ("batch",))] if reference else ledger.sent(place)
    if not batches:
        emit({"batches": []}, as_json=as_json, text="no batch was sent from here")
        return
    states, server = [], server_of(place)
    for batch in batches:
        try:
            states.append(labeling.status(place, server, batch))
        except ParameterError as error:
            if reference:
                raise
            # One project deleted by hand must not hide the others.
            say(f"{short(batch)}: {error}")
    text = "\n".join(_describe(state) for state in states)
    emit({"batches": [_as_json(state) for state in states]}, as_json=as_json, text=text)


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
    from workbench.records import dataset as datasets
    from workbench.records.types import LabelBatch, LabelSet

    place = workspace.find()
    store = Store(place)
    batch = resolve(place, reference, ("batch",))
    labels = labeling.collect(
        place, server_of(place), batch, refresh=refresh, without_deleted=without_deleted
    )
    record = store.get(labels, LabelSet)
    version = None
    if merge:
        about = store.get(batch, LabelBatch)
        parent = datasets.load(store, about.dataset)
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
    lines += [f"  {_person(person.model_dump())}" for person in record.annotators]
    if version:
        lines.append(f"  new dataset version: {version}")
    emit(result, as_json=as_json, text="\n".join(lines))


def _as_json(state: BatchStatus) -> dict[str, Any]:
    people = [person.model_dump() for person in state.annotators]
    mends = [asdict(mend) for mend in state.to_mend]
    return {
        **{name: getattr(state, name) for name in ("batch", "project", "url", "total", "done")},
        **{"skipped": state.skipped, "complete": state.complete},
        **{"annotators": people, "to_mend": mends, "drafts": state.drafts},
        **{"comments": state.comments, "deleted": list(state.deleted)},
        **{"unsent": state.unsent, "collected": state.collected},
    }


def _describe(state: BatchStatus) -> str:
    lines = [
        f"{short(state.batch)}: {state.done} of {state.total} frames done, {state.skipped} skipped",
        f"  {state.url}",
    ]
    lines += [f"  {_person(person.model_dump())}" for person in state.annotators]
    if state.collected:
        lines.append(f"  collected: {short(state.collected)}")
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


def _person(person: dict[str, Any]) -> str:
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
    from workbench.labeling import hints, ledger

    place = workspace.find()
    server = server_of(place)
    entries = [entry for ref in ledger.sent(place) if (entry := ledger.read(place, ref))]
    waiting = {entry.project: entry.batch for entry in entries if not entry.collected}
    if not waiting:
        say("every batch that was sent from here is collected")
        return
    with hints.listening(server, waiting) as heard, contextlib.suppress(KeyboardInterrupt):
        say(f"listening for {len(waiting)} batches")
        while waiting:
            for batch in heard.wait(every):
                try:
                    state = labeling.status(place, server, batch)
                    click.echo(_describe(state))
                    if state.complete and not state.collected:
                        click.echo(f"  collected: {short(labeling.collect(place, server, batch))}")
                        waiting = {key: ref for key, ref in waiting.items() if ref != batch}
                except WorkbenchError as error:
                    say(f"{short(batch)}: {error}")
            if once:
                return


for _command in label_review.COMMANDS:
    label.add_command(_command)
