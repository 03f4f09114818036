"""Incidents: objects that a model missed, kept as regression cases that every candidate must pass.

An incident is a record with its frames pinned by digest. Which incidents are active is read from
the audit log, which is append-only and signed: one that was added there and whose record is gone is
refused, never forgotten, and only an entry with a person and a reason retires one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from workbench.audit import log as audit
from workbench.core import digest
from workbench.core.errors import ParameterError, RecordError, Refusal, VerificationError
from workbench.core.names import check_name, check_person, check_text
from workbench.core.text import counted, did_you_mean
from workbench.records.base import Ref, short_ref
from workbench.records.dataset import Dataset, media_path, read_json_lines, to_json_lines
from workbench.records.evidence_types import FoundIn, Incident, IncidentSuite
from workbench.records.frames import Drive, Frame, Label
from workbench.records.references import list_dataset_versions
from workbench.records.store import Store

__all__ = ["IncidentState", "list_incidents", "retire_incident"]

_MAX_REASON_BYTES = 1000
_EVENTS: tuple[audit.Event, ...] = ("incident-added", "incident-retired")


@dataclass(frozen=True)
class IncidentState:
    """An incident, who added it, and whether it was retired.

    Attributes:
        record: None if the record is gone: then no candidate can pass.
        retired_by: The person, with ``retired_at`` and ``reason``; empty while it is active.
    """

    ref: Ref
    name: str
    record: Incident | None
    added_at: str
    added_by: str
    retired_at: str = ""
    retired_by: str = ""
    reason: str = ""

    @property
    def active(self) -> bool:
        return not self.retired_by


def add_incident(  # noqa: PLR0913 - what was missed, where, and who says so
    store: Store,
    name: str,
    dataset: Dataset,
    missed: Iterable[Label],
    *,
    why: str,
    by: str,
    found_in: FoundIn = "notebook",
    iou: float = 0.5,
    scenario: str = "",
) -> Ref:
    """Keep missed objects as a permanent regression case; a repeated call changes nothing.

    Args:
        name: Unique; lower-case letters, digits and ``._-``.
        dataset: A version, or part of one, with their frames.
        missed: Ground-truth labels of these frames that a model did not find.
        why: What happened, in a sentence.
        by: Who adds it.
        iou: Overlap, in (0, 1], from which on a box of the same class finds an object.
        scenario: Id of the test case that the frames are a real example of.

    Raises:
        ParameterError: A text is invalid, there is no label, a label is of another frame, is
            ignored or a model's own, or another incident has this name.
        VerificationError: An image is missing or is not the one that was ingested.
    """
    check_name(name, "incident name", lower_case=True)
    why, by = _reason(why), check_person(by, "name of who adds the incident")
    labels = tuple(missed)
    by_id = {frame.id: frame for frame in dataset.frames}
    for label in labels:
        if label.frame not in by_id:
            raise ParameterError(f"frame {label.frame[:12]} is not in the dataset", where=name)
        if label.ignore or not label.origin.is_ground_truth:
            what = "is ignored" if label.ignore else "is a model's own box"
            raise ParameterError(f"label {label.id[:12]} {what}: nothing to find", where=name)
    if not labels:
        raise ParameterError(
            "an incident needs a missed object",
            where=name,
            hint="Pass labels of the dataset, such as `miss.label` of `why_missed()`",
        )
    frames = tuple(by_id[one] for one in dict.fromkeys(label.frame for label in labels))
    drives = tuple(dataset.drive_by_id[one] for one in dict.fromkeys(f.drive for f in frames))
    version = dataset.ref or _version_with(store, dataset, frames)
    record = Incident(
        name=name,
        dataset=version,
        label_schema=dataset.label_schema,
        frames=tuple(frame.id for frame in frames),
        objects=len(labels),
        iou=iou,
        why=why,
        by=by,
        found_in=found_in,
        scenario=scenario,
        simulated=dataset.simulated or any(label.origin.is_simulated for label in labels),
    )
    payload = {
        "drives.jsonl": to_json_lines(drives),
        "frames.jsonl": to_json_lines(frames),
        "labels.jsonl": to_json_lines(labels),
    }
    _check_frames(store, name, frames)
    known = {one.name: one.ref for one in list_incidents(store)}
    ref = store.put(record, payload)
    if known.get(name, ref) != ref:
        raise ParameterError(
            f"another incident is named {name!r}",
            where=short_ref(known[name]),
            hint="Choose another",
        )
    if name not in known:
        audit.append(store.workspace, "incident-added", by=by, subjects=(ref, version), name=name)
    return ref


def list_incidents(store: Store) -> tuple[IncidentState, ...]:
    """Every incident that was ever added, oldest first, retired ones included.

    Raises:
        VerificationError: The audit log was changed.
    """
    found: dict[Ref, IncidentState] = {}
    entries = list(audit.read_log(store.workspace, events=_EVENTS))
    if entries and (problems := audit.verify_log(store.workspace).problems):
        raise VerificationError(
            f"audit log was changed: {problems[0]}",
            where=store.workspace.root / "audit",
            hint="`workbench audit verify` lists all; restore it from a backup first",
            reason=Refusal.LOG_CHANGED,
        )
    for entry in entries:
        ref = entry.subjects[0]
        if entry.event == "incident-added":
            name = str(entry.detail["name"])
            found[ref] = IncidentState(ref, name, _read(store, ref), entry.at, entry.by)
        elif ref in found:
            reason = str(entry.detail["reason"])
            found[ref] = replace(
                found[ref], retired_at=entry.at, retired_by=entry.by, reason=reason
            )
    # Without their log, as after a move to another workspace, records still count.
    for ref in store.refs(Incident.KIND):
        record = _read(store, ref) if ref not in found else None
        if record is not None and record.name not in {one.name for one in found.values()}:
            found[ref] = IncidentState(ref, record.name, record, "", record.by)
    return tuple(found.values())


def find_incident(store: Store, name: str) -> IncidentState:
    """An incident by its name.

    Raises:
        RecordError: There is none.
    """
    states = {one.name: one for one in list_incidents(store)}
    if name not in states:
        hint = did_you_mean(name, list(states)) if states else "`workbench incidents add` adds one"
        raise RecordError(f"no incident {name!r}", where=store.workspace.root, hint=hint)
    return states[name]


def retire_incident(store: Store, name: str, *, by: str, reason: str) -> IncidentState:
    """Let candidates be judged without an incident from now on; its record stays.

    Args:
        by: The person who decides.
        reason: Why, in a sentence; kept in the audit log.

    Raises:
        ParameterError: A text is invalid, or it was retired before.
        RecordError: There is no such incident.
    """
    by, reason = check_person(by, "name of who retires the incident"), _reason(reason)
    state = find_incident(store, name)
    if not state.active:
        raise ParameterError(f"{state.retired_by} retired it on {state.retired_at}", where=name)
    if not state.added_at:  # its log was lost: what is retired has to be in the log
        audit.append(store.workspace, "incident-added", subjects=(state.ref,), name=name)
    audit.append(
        store.workspace, "incident-retired", by=by, subjects=(state.ref,), name=name, reason=reason
    )
    return find_incident(store, name)


def active_suite(store: Store) -> Ref | None:
    """The record of all active incidents; None without any.

    Raises:
        VerificationError: The record of an active incident is gone or damaged.
    """
    active = [state for state in list_incidents(store) if state.active]
    for state in active:
        _require_record(state)
    return store.put(IncidentSuite(incidents=tuple(one.ref for one in active))) if active else None


def load_incident(store: Store, ref: Ref) -> Dataset:
    """The pinned frames with the missed objects as their labels.

    Raises:
        VerificationError: The incident, or an image of it, is missing or was changed.
    """
    record = _read(store, ref)
    if record is None:
        raise _missing(short_ref(ref), ref)
    frames = read_json_lines(store.payload(ref, "frames.jsonl"), Frame)
    _check_frames(store, record.name, frames)
    return Dataset(
        name=record.name,
        label_schema=record.label_schema,
        drives=read_json_lines(store.payload(ref, "drives.jsonl"), Drive),
        frames=frames,
        labels=read_json_lines(store.payload(ref, "labels.jsonl"), Label),
        simulated=record.simulated,
        workspace=store.workspace,
    )


def require_replayed(store: Store, replayed: Collection[Ref], schema: str, where: str) -> None:
    """Refuse a report that lacks an active incident, or whose pinned frames were changed since.

    Args:
        replayed: Incidents that the candidate was replayed on.
        schema: Name of the label schema that the candidate was judged with.
        where: The report, for the message.

    Raises:
        VerificationError: With the reason.
    """
    lacking = []
    for state in list_incidents(store):
        if state.active:
            record = _require_record(state)
            if record.label_schema.name == schema:
                load_incident(store, state.ref)
                lacking += [state.name] if state.ref not in replayed else []
    if lacking:
        raise VerificationError(
            f"not replayed on {counted(len(lacking), 'incident')}: {', '.join(lacking[:5])}",
            where=where,
            hint="Run validate again: it replays every active incident",
            reason=Refusal.INCIDENT_NOT_JUDGED,
        )


def _reason(text: str) -> str:
    return check_text(text, "reason", max_bytes=_MAX_REASON_BYTES)


def _read(store: Store, ref: Ref) -> Incident | None:
    try:
        return store.get(ref, Incident)
    except RecordError:
        return None


def _require_record(state: IncidentState) -> Incident:
    if state.record is None:
        raise _missing(state.name, state.ref)
    return state.record


def _missing(name: str, ref: Ref) -> VerificationError:
    return VerificationError(
        f"the record of incident {name} is missing or damaged",
        where=short_ref(ref),
        hint="Restore it from a backup, or retire it: `workbench incidents retire`",
        reason=Refusal.INCIDENT_MISSING,
    )


def _check_frames(store: Store, name: str, frames: Iterable[Frame]) -> None:
    """Refuse frames whose image file is gone or has another digest."""
    for frame in frames:
        path = media_path(store.workspace, frame)
        if not path.is_file():
            what, reason = "is missing", Refusal.INCIDENT_FRAME_MISSING
        elif digest.of_file(path) != frame.id:
            what, reason = "is not the one that was ingested", Refusal.INCIDENT_FRAME_CHANGED
        else:
            continue
        raise VerificationError(
            f"incident {name}: the image of frame {frame.id[:12]} {what}",
            where=path,
            hint="Restore it: `workbench doctor --records` repairs images whose source is there",
            reason=reason,
        )


def _version_with(store: Store, dataset: Dataset, frames: Iterable[Frame]) -> Ref:
    """The newest version of this name that has all the frames."""
    wanted = {frame.id for frame in frames}
    for version in reversed(list_dataset_versions(store.workspace)):
        if version.name == dataset.name:
            content = store.payload(version.ref, "frames.jsonl").read_bytes()
            if all(frame.encode() in content for frame in wanted):
                return version.ref
    raise ParameterError(
        "the frames are in no saved version of this dataset",
        where=dataset.name,
        hint="Pass a dataset of the workspace, see `wb.open().dataset(...)`",
    )
