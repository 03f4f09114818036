"""A dataset version in memory: drives, frames and labels, and how they are kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from workbench.core import digest
from workbench.core.workspace import Workspace
from workbench.records.base import Digest, FrozenModel, Ref
from workbench.records.frames import Drive, Frame, Label, LabelSchema, Role
from workbench.records.store import Store
from workbench.records.types import DatasetVersion, Quarantined

T = TypeVar("T", bound=FrozenModel)


@dataclass(frozen=True)
class Dataset:
    """Frames with their labels. ``frames`` are in order of drive and index.

    Making one checks nothing; `workbench.data` builds them from sources and checks every input.
    """

    name: str
    label_schema: LabelSchema
    drives: tuple[Drive, ...]
    frames: tuple[Frame, ...]
    labels: tuple[Label, ...]
    ref: Ref | None = None
    simulated: bool = False
    split: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def labels_by_frame(self) -> dict[Digest, tuple[Label, ...]]:
        """Labels of every frame; a frame without any has an empty tuple."""
        grouped: dict[Digest, list[Label]] = {frame.id: [] for frame in self.frames}
        for label in self.labels:
            grouped[label.frame].append(label)
        return {frame: tuple(labels) for frame, labels in grouped.items()}

    @cached_property
    def drive_by_id(self) -> dict[str, Drive]:
        return {drive.id: drive for drive in self.drives}

    def where(self, keep: Callable[[Frame], bool]) -> Dataset:
        """The frames for which ``keep`` holds, with their labels and drives; it has no ref."""
        frames = tuple(frame for frame in self.frames if keep(frame))
        ids = {frame.id for frame in frames}
        drives = {frame.drive for frame in frames}
        return Dataset(
            name=self.name,
            label_schema=self.label_schema,
            drives=tuple(drive for drive in self.drives if drive.id in drives),
            frames=frames,
            labels=tuple(label for label in self.labels if label.frame in ids),
            simulated=self.simulated,
            split=self.split,
        )

    def with_roles(self, *roles: Role) -> Dataset:
        return self.where(lambda frame: frame.role in roles)


def media_path(place: Workspace, frame: Frame) -> Path:
    """Where a frame's image lies, by content."""
    return place.media / frame.id[:2] / f"{frame.id}{frame.suffix}"


def save_dataset(
    store: Store,
    dataset: Dataset,
    *,
    made_by: str,
    parents: Sequence[Ref] = (),
    quarantine: Iterable[Quarantined] = (),
    sources: dict[Digest, str] | None = None,
) -> Ref:
    """Keep ``dataset`` as a new immutable version and return its reference.

    Args:
        made_by: The operation in one word, such as ``ingest`` or ``collect``.
        sources: Frame to file name in the source; kept beside the record, outside its digest.
    """
    left_out = sorted(quarantine, key=lambda entry: (entry.file, entry.reason, entry.detail))
    record = DatasetVersion(
        name=dataset.name,
        label_schema=dataset.label_schema,
        frames=len(dataset.frames),
        labels=len(dataset.labels),
        drives=len(dataset.drives),
        parents=tuple(parents),
        made_by=made_by,
        split=dataset.split,
        quarantined=_count_values(entry.reason for entry in left_out),
        simulated=dataset.simulated,
    )
    frames = sorted(dataset.frames, key=lambda frame: (frame.drive, frame.index, frame.id))
    drives = sorted(dataset.drives, key=lambda drive: drive.id)
    payload = {
        "drives.jsonl": to_json_lines(drives),
        "frames.jsonl": to_json_lines(frames),
        "labels.jsonl": _sorted_lines(dataset.labels),
        "quarantine.jsonl": to_json_lines(left_out),
    }
    return store.put(record, payload, side={"sources": sources} if sources else None)


def load_dataset(store: Store, ref: Ref) -> Dataset:
    """Read a dataset version whole."""
    record = store.get(ref, DatasetVersion)
    return Dataset(
        name=record.name,
        label_schema=record.label_schema,
        drives=read_json_lines(store.payload(ref, "drives.jsonl"), Drive),
        frames=read_json_lines(store.payload(ref, "frames.jsonl"), Frame),
        labels=read_json_lines(store.payload(ref, "labels.jsonl"), Label),
        ref=ref,
        simulated=record.simulated,
        split=record.split,
    )


def to_json_lines(rows: Iterable[FrozenModel]) -> bytes:
    """Canonical JSON, a row a line."""
    return b"".join(digest.canonical_json(row.model_dump(mode="json")) + b"\n" for row in rows)


def read_json_lines(path: Path, kind: type[T]) -> tuple[T, ...]:
    with path.open("rb") as stream:
        return tuple(kind.model_validate_json(line) for line in stream)


def _sorted_lines(labels: Iterable[Label]) -> bytes:
    # The text itself is the order: it starts with annotator and box, and never ties unless equal.
    rows = (digest.canonical_json(label.model_dump(mode="json")) + b"\n" for label in labels)
    return b"".join(sorted(rows))


def _count_values(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts
