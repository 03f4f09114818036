"""`workbench label`: send frames to Label Studio, collect labels, measure and review them."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from workbench.cli.common import (
    connect_label_studio,
    first_rows,
    info,
    json_option,
    print_result,
    progress_bar,
    resolve_ref,
    warn_of_damaged,
)
from workbench.core import credentials, digest
from workbench.core.errors import ParameterError, WorkbenchError
from workbench.core.text import counted, terminal_text
from workbench.core.types import Json
from workbench.core.workspace import Workspace, find_workspace, write_atomic
from workbench.records.base import Ref, kind_of, short_ref
from workbench.records.store import Store

if TYPE_CHECKING:
    from workbench.labeling import BatchStatus, SentBatch
    from workbench.labeling.review import FirstBoxesEffect
    from workbench.records.types import AgreementRate, Annotator, Prediction

__all__ = ()

_SUSPECTS_LISTED = 10
_EMAIL = re.compile(r"[^@\s\x00-\x1f<>\"']+@[\w.-]+\Z")

_labels_argument = click.argument("reference", metavar="LABELS|BATCH")
_project_option = click.option(
    "--project", help="Title of the Label Studio project.  [default: dataset and batch]"
)


@click.group()
def label() -> None:
    """Send frames to labelers, show progress, collect labels.

    Selections, batches and label sets are named by KIND/PREFIX, such as batch/1f2e, or by
    sha256:DIGEST.
    """


@label.command()
@click.argument("reference", metavar="SELECTION|BATCH")
@click.option("--overlap", default=0.0, show_default=True, help="Share of frames for two labelers.")
@click.option(
    "--rules",
    "rules_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML list of labeling rules: slice, labelers, priority, min_seconds.",
)
@click.option(
    "--slices",
    "slice_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Slices that the rules may name, such as pipelines/slices.yaml.",
)
@click.option(
    "--gold", default=0, show_default=True, help="Number of frames with trusted labels to mix in."
)
@click.option(
    "--boxes",
    is_flag=True,
    help="Pre-annotate with the boxes of the model used for mining, if it is right often enough.",
)
@_project_option
@json_option
def send(
    reference: str,
    overlap: float,
    rules_file: Path | None,
    slice_file: Path | None,
    gold: int,
    boxes: bool,
    project: str | None,
    as_json: bool,
) -> None:
    """Send a selection or batch to Label Studio; frames that are there are not sent again.

    A selection is sent without pre-annotations or, with --boxes, with those predictions of its
    model that are right often enough on the labeled val frames, at most 20 a frame; if none are,
    without. A tenth of the frames starts empty: `label effort` compares their time.
    A batch, as pipelines make it, already has its options. Deleted tasks are sent again.
    """
    from workbench import labeling
    from workbench.api import Selection
    from workbench.data.slice_file import load_slices

    workspace = find_workspace()
    batch = resolve_ref(workspace, reference, ("selection", "batch"))
    if kind_of(batch) == "selection":
        selection = Selection(workspace, batch)
        slices = load_slices(slice_file) if slice_file else ()
        rules = labeling.load_labeling_rules(rules_file, slices) if rules_file else ()
        predictions: Sequence[Prediction] = ()
        if boxes:
            if selection.record.model is None:
                raise ParameterError(
                    "no boxes to start from: the selection has no model",
                    where=selection.record.method,
                    hint="Send it without --boxes",
                )
            with progress_bar("predict") as progress:
                first = selection.first_boxes(progress)
            info(str(first))
            predictions = first.boxes
        batch = labeling.make_batch(
            Store(workspace),
            selection.record.dataset,
            batch,
            selection.record.model if predictions else None,
            predictions,
            overlap=overlap,
            options=labeling.LabelingOptions(rules, gold, slices=slices),
        )
    elif overlap or rules_file or gold or boxes:
        raise ParameterError(
            "a batch already has its labeling options",
            where=batch,
            hint="Give --overlap, --rules, --gold and --boxes with a selection",
        )
    sent = _send_batch(workspace, batch, project)
    lines = [
        f"sent {counted(sent.sent, 'frame')}, {sent.already} were there already",
        f"  batch: {sent.batch}",
        *_several_lines(sent),
        f"  label: {sent.url}",
        f"next: workbench label collect {short_ref(sent.batch)}",
    ]
    print_result(asdict(sent), as_json=as_json, text="\n".join(lines))


def _several_lines(sent: SentBatch) -> list[str]:
    frames = counted(sent.several, "frame")
    return [f"  {frames} for more than one labeler (--overlap, --rules)"] if sent.several else []


def _send_batch(workspace: Workspace, batch: Ref, project: str | None) -> SentBatch:
    from workbench import labeling

    server = connect_label_studio(workspace)
    with progress_bar("send") as progress:
        return labeling.send(workspace, server, batch, project, progress=progress)


@label.command()
@click.argument("emails", metavar="[EMAIL]…", nargs=-1)
@json_option
def invite(emails: tuple[str, ...], as_json: bool) -> None:
    """Make an account in Label Studio for each EMAIL, or show the link to sign up.

    Nothing is sent: pass on the address, and the password from its file or the link. Whoever has
    an account keeps it.
    """
    workspace = find_workspace()
    wrong = [email for email in emails if not _EMAIL.match(email)]
    if wrong:
        raise ParameterError("invalid e-mail address", where=wrong[0], hint="Write NAME@HOST")
    server = connect_label_studio(workspace)
    known = {email.lower() for email in server.users().values()}
    lines, made = [], {}
    for email in dict.fromkeys(email.lower() for email in emails):
        if email in known:
            lines.append(f"{email}: has an account already")
            continue
        name = f"labeler-{digest.of_bytes(email.encode())[:12]}"
        password = credentials.ensure_secret(workspace, f"{name}-password", random_bytes=12)
        server.as_user(email, password, token_file=workspace.secrets / f"{name}-token")
        made[email] = str(credentials.secret_path(workspace, f"{name}-password"))
        lines.append(f"{email}: account made, password in\n  {made[email]}")
    link = None if emails else server.invitation_link()
    lines += [f"sign in at {server.url}"] if link is None else [f"sign up at {link}"]
    address = urlsplit(server.url)
    if address.hostname in ("127.0.0.1", "localhost"):
        port = address.port
        lines.append("from another machine, with an account on this one, first keep open:")
        lines.append(f"  ssh -N -L {port}:127.0.0.1:{port} {socket.gethostname()}")
    lines.append("how labelers start: docs/tutorials/labeler.md")
    value = {"url": server.url, "link": link, "accounts": made}
    print_result(value, as_json=as_json, text="\n".join(lines))


@label.command()
@click.argument("reference", metavar="[BATCH]", required=False)
@json_option
def status(reference: str | None, as_json: bool) -> None:
    """Show the progress of a batch, by default of every batch that was sent."""
    from workbench import labeling
    from workbench.labeling.sync import sent_batches

    workspace = find_workspace()
    batches = (
        [resolve_ref(workspace, reference, ("batch",))] if reference else sent_batches(workspace)
    )
    if not batches:
        print_result({"batches": []}, as_json=as_json, text="no batch was sent from this workspace")
        return
    states, server = [], connect_label_studio(workspace)
    for batch in batches:
        try:
            states.append(labeling.batch_status(workspace, server, batch))
        except ParameterError as error:
            if reference:
                raise
            # A project that was deleted by hand must not hide the others.
            info(f"{short_ref(batch)}: {error}")
    text = "\n".join(_status_text(state) for state in states)
    result: Json = {"batches": [_status_as_json(state) for state in states]}
    print_result(result, as_json=as_json, text=text)


def _status_as_json(state: BatchStatus) -> Json:
    return {
        **{name: getattr(state, name) for name in ("batch", "project", "url", "total", "done")},
        "skipped": state.skipped,
        "complete": state.complete,
        "annotators": [annotator.model_dump() for annotator in state.annotators],
        "to_mend": [asdict(answer) for answer in state.invalid],
        "drafts": state.drafts,
        "comments": state.comments,
        "deleted": list(state.deleted),
        "unsent": state.unsent,
        "partly": state.partly,
        "collected": state.collected,
    }


def _status_text(state: BatchStatus) -> str:
    progress = f"{state.done} of {counted(state.total, 'frame')} done, {state.skipped} skipped"
    if state.partly:
        progress += f", {state.partly} waiting for another labeler"
    lines = [f"{short_ref(state.batch)}: {progress}", f"  {state.url}"]
    lines += [f"  {_annotator_text(annotator)}" for annotator in state.annotators]
    if state.collected:
        lines.append(f"  collected: {short_ref(state.collected)}")
    if state.drafts:
        lines.append(f"  {counted(state.drafts, 'draft')} not submitted")
    if state.comments:
        lines.append(f"  {counted(state.comments, 'frame')} with a comment")
    if state.deleted:
        deleted = counted(len(state.deleted), "deleted task")
        lines.append(f"  {deleted}; `workbench label send` sends them again")
    if state.unsent:
        unsent = counted(state.unsent, "frame")
        lines.append(f"  {unsent} not sent yet; `workbench label send` sends them")
    lines += [
        f"  to fix, {answer.annotator}: {answer.why} ({answer.url})" for answer in state.invalid
    ]
    return "\n".join(lines)


def _annotator_text(annotator: Annotator) -> str:
    minutes = "" if annotator.minutes is None else f", {annotator.minutes:.1f} min"
    origin = " (replayed, not a person)" if annotator.simulated else ""
    frames, boxes = counted(annotator.frames, "frame"), counted(annotator.boxes, "box", "boxes")
    return f"{annotator.id}: {frames}, {boxes}{minutes}{origin}"


@label.command()
@click.argument("reference", metavar="BATCH")
@click.option("--refresh", is_flag=True, help="Collect again what labelers changed since.")
@click.option("--without-deleted", is_flag=True, help="Ignore frames whose task was deleted.")
@click.option(
    "--fewer-labelers",
    is_flag=True,
    help="One answer is enough, also where the batch asks for a second labeler.",
)
@click.option("--merge", is_flag=True, help="Also make a dataset version with the labels.")
@json_option
def collect(
    reference: str,
    refresh: bool,
    without_deleted: bool,
    fewer_labelers: bool,
    merge: bool,
    as_json: bool,
) -> None:
    """Store the labels of a complete batch as a record.

    Exit status: 0 collected, 4 while labelers still have to answer.
    """
    from workbench import labeling
    from workbench.records.dataset import load_dataset
    from workbench.records.references import register_dataset
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
        fewer_labelers=fewer_labelers,
    )
    record = store.get(labels, LabelSet)
    version = None
    if merge:
        batch_record = store.get(batch, LabelBatch)
        parent = load_dataset(store, batch_record.dataset)
        if batch_record.adjudicates:
            version = labeling.merge(
                store, parent, batch_record.adjudicates, adjudication=labels
            ).ref
        else:
            version = labeling.merge(store, parent, labels).ref
    name = None if version is None else str(register_dataset(workspace, version))
    result = {
        "labels": labels,
        "batch": batch,
        "boxes": record.labels,
        "skipped": len(record.skipped),
        "deleted": list(record.deleted),
        "annotators": [annotator.model_dump() for annotator in record.annotators],
        "agreement": record.agreement,
        "simulated": record.simulated,
        "dataset": version,
        "version": name,
    }
    boxes, skipped = counted(record.labels, "box", "boxes"), counted(len(record.skipped), "frame")
    lines = [f"{labels}: {boxes}, {skipped} skipped"]
    lines += [f"  {_annotator_text(annotator)}" for annotator in record.annotators]
    if version:
        lines.append(f"  new dataset version: {name}  {version}")
    print_result(result, as_json=as_json, text="\n".join(lines))


@label.command()
@click.option("--every", default=300.0, show_default=True, help="Maximum polling interval (s).")
@click.option("--once", is_flag=True, help="Stop after the first update.")
def listen(every: float, once: bool) -> None:
    """Show labeling progress as it happens, and collect each batch when it is complete.

    Ctrl-C stops it. Webhooks of Label Studio only trigger an update; the answers are always
    fetched from the server.
    """
    from workbench.labeling import sync

    workspace = find_workspace()
    server = connect_label_studio(workspace)
    entries = [
        entry for ref in sync.sent_batches(workspace) if (entry := sync.read_entry(workspace, ref))
    ]
    waiting = {entry.project: entry.batch for entry in entries if not entry.collected}
    if not waiting:
        info("every batch that was sent from this workspace is collected")
        return
    with sync.listen(server, waiting) as events, contextlib.suppress(KeyboardInterrupt):
        info(f"listening for {counted(len(waiting), 'batch', 'batches')}")
        while waiting:
            for batch in events.wait(every):
                try:
                    collected = _update(workspace, batch)
                except WorkbenchError as error:
                    info(f"{short_ref(batch)}: {error}")
                    continue
                if collected:
                    waiting = {key: ref for key, ref in waiting.items() if ref != batch}
            if once:
                return


def _update(workspace: Workspace, batch: Ref) -> bool:
    """Print the progress of a batch, and collect it when it is complete; true then."""
    from workbench import labeling

    server = connect_label_studio(workspace)
    state = labeling.batch_status(workspace, server, batch)
    click.echo(terminal_text(_status_text(state)))
    if not state.complete or state.collected:
        return False
    click.echo(f"  collected: {short_ref(labeling.collect(workspace, server, batch))}")
    return True


@label.command()
@_labels_argument
@json_option
def agreement(reference: str, as_json: bool) -> None:
    """Show how well labelers agree, by class, slice and labeler, and on gold frames.

    Each rate has a 95 % interval, by resampling frames.
    """
    from workbench import labeling
    from workbench.records.types import Agreement

    workspace = find_workspace()
    store = Store(workspace)
    ref = labeling.assess_agreement(store, resolve_labels(workspace, reference))
    record = store.get(ref, Agreement)
    compared = counted(record.frames, "frame")
    lines = [f"{short_ref(ref)}: {compared} compared, {record.disputed} disputed"]
    lines += [_rate_row(rate) for rate in record.rates]
    if record.disputed:
        lines.append(f"next: workbench label adjudicate {short_ref(record.labels)}")
    result = {"agreement": ref, **record.model_dump(mode="json")}
    print_result(result, as_json=as_json, text="\n".join(lines))


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


@label.command()
@_labels_argument
@_project_option
@json_option
def adjudicate(reference: str, project: str | None, as_json: bool) -> None:
    """Send disputed frames to a project of their own; adjudicators do not see who drew what."""
    from workbench import labeling

    workspace = find_workspace()
    batch = labeling.make_adjudication(Store(workspace), resolve_labels(workspace, reference))
    if batch is None:
        nothing = {"batch": None, "sent": 0, "already": 0, "project": None, "url": None}
        print_result(nothing, as_json=as_json, text="no disputed frames")
        return
    sent = _send_batch(workspace, batch, project)
    lines = [
        f"sent {counted(sent.sent, 'disputed frame')}, {sent.already} were there already",
        f"  label: {sent.url}",
        f"next: workbench label collect {short_ref(batch)} --merge",
    ]
    print_result(asdict(sent), as_json=as_json, text="\n".join(lines))


@label.command()
@click.argument("dataset")
@click.option("--model", help="Checkpoint to compare the labels with.")
@click.option(
    "--agreement", "agreement_ref", help="Agreement record: review disputes and poor labelers."
)
@click.option("--budget", default=50, show_default=True, help="Number of frames to review.")
@json_option
def review(
    dataset: str, model: str | None, agreement_ref: str | None, budget: int, as_json: bool
) -> None:
    """Select labeled frames of DATASET whose labels look wrong, to be labeled again."""
    from workbench import labeling
    from workbench.detection.model import Model
    from workbench.records.dataset import load_dataset
    from workbench.records.types import Selection

    if not model and not agreement_ref:
        raise ParameterError("a review needs --model or --agreement to find wrong labels")
    workspace = find_workspace()
    store = Store(workspace)
    ref = resolve_ref(workspace, dataset, ("dataset",))
    suspects = []
    checkpoint = resolve_ref(workspace, model, ("checkpoint",)) if model else None
    if checkpoint:
        version = load_dataset(store, ref)
        labeled = version.where(lambda frame: frame.role != "pool")
        predictions = Model(workspace, checkpoint).predict(labeled)
        suspects += labeling.suspects_from_model(version, predictions)
    if agreement_ref:
        resolved = resolve_ref(workspace, agreement_ref, ("agreement",))
        suspects += labeling.suspects_from_agreement(store, resolved)
    selection = labeling.select_for_review(store, ref, suspects, budget, checkpoint)
    selected = store.get(selection, Selection).chosen
    frames = len({suspect.frame for suspect in suspects})
    rows = [
        f"{choice.frame[:12]}  {choice.score:5.2f}  {'; '.join(choice.reasons)}"
        for choice in selected
    ]
    lines = [f"{short_ref(selection)}: {len(selected)} of {counted(frames, 'suspect frame')}"]
    lines += first_rows(rows, _SUSPECTS_LISTED, "  ")
    lines.append(f"next: workbench label send {short_ref(selection)}")
    result = {"selection": selection, "frames": len(selected), "suspects": len(suspects)}
    print_result(result, as_json=as_json, text="\n".join(lines))


@label.command()
@click.argument("dataset")
@click.option("--annotator", "annotators", multiple=True, help="Remove their work. Repeatable.")
@click.option("--frame", "frames", multiple=True, help="Remove this frame. Repeatable.")
@click.option("--reason", required=True, help="Reason, stored with the withdrawal.")
@json_option
def withdraw(
    dataset: str,
    annotators: tuple[str, ...],
    frames: tuple[str, ...],
    reason: str,
    as_json: bool,
) -> None:
    """Make a new version of DATASET without a labeler's work or without frames.

    Lists the models that were trained with what was removed.
    """
    from workbench import labeling
    from workbench.records.references import register_dataset

    workspace = find_workspace()
    ref = resolve_ref(workspace, dataset, ("dataset",))
    result = labeling.withdraw(
        Store(workspace), ref, annotators=annotators, frames=frames, reason=reason
    )
    version = str(register_dataset(workspace, result.dataset))
    removed_frames = counted(result.frames_removed, "frame")
    removed_labels = counted(result.labels_removed, "label")
    lines = [
        f"{version}  {short_ref(result.dataset)}: {removed_frames} and {removed_labels} removed,"
        f" {counted(result.frames_back_in_pool, 'frame')} back in the pool",
        *(f"  trained with them: {short_ref(model)}" for model in result.models),
    ]
    value = {**asdict(result), "version": version}
    print_result(value, as_json=as_json, text="\n".join(lines))


@label.command()
@click.argument("dataset")
@click.argument("schema", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def migrate(dataset: str, schema: Path, as_json: bool) -> None:
    """Migrate DATASET to a newer version of its label schema, a YAML file.

    The new schema's `mapping` must say where the labels of a removed class go.
    """
    from workbench import labeling
    from workbench.data.schema import load_schema
    from workbench.records.references import register_dataset

    workspace = find_workspace()
    ref = resolve_ref(workspace, dataset, ("dataset",))
    version, moved = labeling.migrate(Store(workspace), ref, load_schema(schema))
    name = str(register_dataset(workspace, version))
    lines = [f"new dataset version: {name}  {version}"]
    lines += [f"  {change}: {counted(count, 'label')}" for change, count in sorted(moved.items())]
    value = {"dataset": version, "version": name, "moved": moved}
    print_result(value, as_json=as_json, text="\n".join(lines))


@label.command()
@click.argument("references", metavar="[LABELS]…", nargs=-1)
@json_option
def effort(references: tuple[str, ...], as_json: bool) -> None:
    """Show the labeling time of people, by default over everything collected in this workspace."""
    from workbench import labeling
    from workbench.records.types import LabelSet

    workspace = find_workspace()
    store = Store(workspace)
    refs = [resolve_labels(workspace, text) for text in references]
    result = labeling.labeling_effort(store, refs or list(store.refs(LabelSet.KIND)))
    warn_of_damaged(result.damaged)
    answers, boxes = counted(result.frames, "answer"), counted(result.boxes, "box", "boxes")
    lines = [f"{answers} with {boxes} in {result.minutes:.1f} min"]
    if result.seconds_per_frame is not None:
        lines.append(
            f"  {result.seconds_per_frame:.1f} s per frame"
            f" and {result.seconds_per_box:.1f} s per box"
        )
    if result.changed_per_minute is not None:
        lines.append(f"  {result.changed_per_minute:.2f} boxes drawn or changed per minute")
    if result.first_boxes is not None:
        lines.append(_first_boxes_text(result.first_boxes))
    print_result(asdict(result), as_json=as_json, text="\n".join(lines))


def _first_boxes_text(effect: FirstBoxesEffect) -> str:
    interval = "" if effect.interval is None else " [{:.2f}, {:.2f}]".format(*effect.interval)
    return (
        f"  first boxes: {effect.verdict}: {effect.seconds_with:.1f} s per frame with them"
        f" (n {effect.with_boxes}), {effect.seconds_without:.1f} s without"
        f" (n {effect.without_boxes}), ratio {effect.ratio:.2f}{interval}, {effect.units}"
    )


@label.command()
@click.argument("dataset")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("labeling-guide.html"),
    show_default=True,
    help="File to write.",
)
@json_option
def guide(dataset: str, output: Path, as_json: bool) -> None:
    """Write the labelers' guide: class definitions of DATASET's schema with example crops.

    Every Label Studio project links to it already.
    """
    from workbench.labeling import projects
    from workbench.records.types import DatasetVersion

    workspace = find_workspace()
    store = Store(workspace)
    ref = resolve_ref(workspace, dataset, ("dataset",))
    crops = projects.example_crops(store, ref)
    page = projects.guide_page(store.get(ref, DatasetVersion).label_schema, crops)
    write_atomic(output, page.encode())
    examples = {name: len(some) for name, some in crops.items()}
    count = counted(sum(examples.values()), "example")
    text = f"{output}: {count} of {counted(len(examples), 'class', 'classes')}"
    print_result({"page": str(output), "examples": examples}, as_json=as_json, text=text)


def resolve_labels(workspace: Workspace, reference: str) -> Ref:
    """The label set that ``reference`` names, directly or as the batch it was collected from.

    Raises:
        ParameterError: The batch was not collected yet.
    """
    from workbench.labeling.sync import read_entry

    ref = resolve_ref(workspace, reference, ("label", "batch"))
    if kind_of(ref) == "label":
        return ref
    entry = read_entry(workspace, ref)
    if entry is None or entry.collected is None:
        raise ParameterError(
            "this batch was not collected yet",
            where=ref,
            hint=f"Run `workbench label collect {short_ref(ref)}` first",
        )
    return entry.collected
