"""A dataset version in memory: drives, frames and labels; how it is saved and loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.names import check_name
from workbench.core.text import counted, html_table
from workbench.core.types import Json
from workbench.core.workspace import Workspace
from workbench.records.base import Digest, FrozenModel, Ref, short_ref
from workbench.records.frames import (
    CONDITION_VALUES,
    Drive,
    Frame,
    Label,
    LabelSchema,
    Role,
    condition_values,
)
from workbench.records.held_out import refuse_new_roles
from workbench.records.store import Store
from workbench.records.types import DatasetVersion, Quarantined

__all__ = [
    "Dataset",
    "load_dataset",
    "media_path",
    "read_json_lines",
    "save_dataset",
    "to_json_lines",
]

T = TypeVar("T", bound=FrozenModel)

_FRAME_CONDITIONS = ("light", "weather", "construction", "event", "role", "drive", "redaction")


@dataclass(frozen=True, repr=False)
class Dataset:
    """Frames with their labels. ``frames`` are in order of drive and index.

    A dataset is a view: `where` and `role` return another one, and images are not read. The
    constructor checks nothing; `workbench.data` builds datasets from sources and checks them.

    Attributes:
        ref: The dataset version; None for a part of one.
        simulated: Whether the drives were rendered rather than recorded.
        split: How roles were assigned.
        workspace: Where the images are stored; None for a dataset that was built in memory.
    """

    name: str
    label_schema: LabelSchema
    drives: tuple[Drive, ...]
    frames: tuple[Frame, ...]
    labels: tuple[Label, ...]
    ref: Ref | None = None
    simulated: bool = False
    split: Json = field(default_factory=dict)
    workspace: Workspace | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the label schema, in its order."""
        return self.label_schema.classes

    @cached_property
    def labels_by_frame(self) -> dict[Digest, tuple[Label, ...]]:
        """Labels by frame id; a frame without labels has an empty tuple."""
        grouped: dict[Digest, list[Label]] = {frame.id: [] for frame in self.frames}
        for label in self.labels:
            grouped[label.frame].append(label)
        return {frame: tuple(labels) for frame, labels in grouped.items()}

    @cached_property
    def drive_by_id(self) -> dict[str, Drive]:
        """Drives by id."""
        return {drive.id: drive for drive in self.drives}

    def where(
        self, keep: Callable[[Frame], bool] | None = None, **conditions: str | bool | Iterable[str]
    ) -> Dataset:
        """The frames that meet every condition, with all their labels and their drives.

        Args:
            keep: Any predicate over a frame.
            **conditions: ``light``, ``weather``, ``construction`` (a bool), ``event``, ``role``,
                ``drive`` or any of the frames' own attributes; ``cls`` keeps frames that have a
                label of that class. A value is one string or several, of which one has to hold.

        Returns:
            A dataset without a ``ref``, since it is a part of a version.

        Raises:
            ParameterError: No frame has such a condition, or it never takes that value.

        Example:
            ``dataset.where(light="night", cls=["pedestrian", "cyclist"])``
        """
        tests = [self._condition(name, value) for name, value in conditions.items()]
        if keep is not None:
            tests.append(keep)
        frames = tuple(frame for frame in self.frames if all(test(frame) for test in tests))
        ids = {frame.id for frame in frames}
        drives = {frame.drive for frame in frames}
        return replace(
            self,
            drives=tuple(drive for drive in self.drives if drive.id in drives),
            frames=frames,
            labels=tuple(label for label in self.labels if label.frame in ids),
            ref=None,
        )

    def role(self, *roles: Role | str) -> Dataset:
        """The frames of these roles, such as ``seed``, ``pool``, ``train`` or ``safety``."""
        return self.where(role=roles)

    def to_pandas(self) -> Any:
        """One row per frame: id, drive, index, time, size, role, conditions, number of labels."""
        import pandas as pd

        rows = [
            {
                "frame": frame.id,
                "drive": frame.drive,
                "index": frame.index,
                "timestamp_us": frame.timestamp_us,
                "width": frame.width,
                "height": frame.height,
                "role": frame.role and str(frame.role),
                **frame.conditions.model_dump(mode="json"),
                "labels": len(self.labels_by_frame[frame.id]),
            }
            for frame in self.frames
        ]
        return pd.DataFrame(rows).astype({"timestamp_us": "Int64"}) if rows else pd.DataFrame()

    def __repr__(self) -> str:
        counts = (
            counted(len(self.frames), "frame"),
            counted(len(self.labels), "label"),
            counted(len(self.drives), "drive"),
        )
        origin = ", simulated" if self.simulated else ""
        return f"Dataset({self.name!r}: {', '.join(counts)}{origin})"

    def _repr_html_(self) -> str:
        roles = Counter(str(frame.role or "none") for frame in self.frames)
        classes = Counter(label.cls for label in self.labels)
        facts = {
            "version": short_ref(self.ref) if self.ref else "part of a version",
            "origin": "simulated drives" if self.simulated else "recorded drives",
            "frames": f"{len(self.frames):,} of {counted(len(self.drives), 'drive')}",
            "roles": ", ".join(f"{name} {count:,}" for name, count in sorted(roles.items())),
            "labels": ", ".join(f"{name} {count:,}" for name, count in classes.most_common())
            or "none",
        }
        return html_table(self.name, facts)

    def _condition(self, name: str, value: str | bool | Iterable[str]) -> Callable[[Frame], bool]:
        if isinstance(value, bool):
            value = "yes" if value else "no"
        wanted = {str(value)} if isinstance(value, str) else {str(one) for one in value}
        known: Collection[str]
        if name == "cls":
            known = self.label_schema.classes
            labelled = {label.frame for label in self.labels if label.cls in wanted}

            def test(frame: Frame) -> bool:
                return frame.id in labelled
        else:
            known = {one for frame in self.frames for one in condition_values(frame, name)}
            known |= set(CONDITION_VALUES.get(name, ()))
            if self.frames and not known and name not in _FRAME_CONDITIONS:
                attributes = sorted({key for frame in self.frames for key in frame.attributes})
                raise ParameterError(
                    f"unknown condition {name!r}",
                    where=f"dataset {self.name}",
                    hint=f"Conditions: {', '.join([*_FRAME_CONDITIONS, 'cls', *attributes])}",
                )

            def test(frame: Frame) -> bool:
                return not wanted.isdisjoint(condition_values(frame, name))

        for one in sorted(wanted - set(known)) if self.frames else ():
            raise ParameterError(
                f"no frame has {name}={one!r}",
                where=f"dataset {self.name}",
                hint=f"Values of {name}: {', '.join(sorted(known)[:20])}",
            )
        return test


def media_path(workspace: Workspace, frame: Frame) -> Path:
    """The file of a frame's image in the media folder."""
    return workspace.media / frame.id[:2] / f"{frame.id}{frame.suffix}"


def save_dataset(
    store: Store,
    dataset: Dataset,
    *,
    made_by: str,
    parents: Sequence[Ref] = (),
    quarantine: Iterable[Quarantined] = (),
    sources: dict[Digest, str] | None = None,
    source_root: Path | None = None,
    licence: str = "",
) -> Ref:
    """Save ``dataset`` as a new immutable version.

    Args:
        made_by: The operation in one word, such as ``ingest`` or ``collect``.
        parents: Versions that it was derived from.
        quarantine: Inputs that were left out.
        sources: File name in the source by frame id; stored beside the record, not in its digest.
        source_root: The folder of ``sources``, from which damaged images are restored.
        licence: Of the source.

    Returns:
        The reference of the version.

    Raises:
        ParameterError: The dataset's name cannot be a name, see `check_name`.
        VerificationError: A frame that is held out would get another role.
    """
    check_name(dataset.name, "dataset name")
    refuse_new_roles(store, dataset.frames, parents)
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
        quarantined=dict(Counter(entry.reason for entry in left_out)),
        simulated=dataset.simulated,
        licence=licence,
    )
    frames = sorted(dataset.frames, key=lambda frame: (frame.drive, frame.index, frame.id))
    drives = sorted(dataset.drives, key=lambda drive: drive.id)
    payload = {
        "drives.jsonl": to_json_lines(drives),
        "frames.jsonl": to_json_lines(frames),
        "labels.jsonl": _sorted_lines(dataset.labels),
        "quarantine.jsonl": to_json_lines(left_out),
    }
    side: dict[str, Json] = {"sources": dict(sources)} if sources else {}
    if source_root is not None:
        side["source_root"] = {"folder": str(source_root.resolve())}
    return store.put(record, payload, side=side)


def load_dataset(store: Store, ref: Ref) -> Dataset:
    """Load a dataset version.

    Raises:
        RecordError: It does not exist, or a file of it was changed.
    """
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
        workspace=store.workspace,
    )


def to_json_lines(rows: Iterable[FrozenModel]) -> bytes:
    """One line of canonical JSON per row, as bytes."""
    return b"".join(digest.canonical_json(row.model_dump(mode="json")) + b"\n" for row in rows)


def read_json_lines(path: Path, kind: type[T]) -> tuple[T, ...]:
    """The rows of a JSON-lines file, validated."""
    with path.open("rb") as stream:
        return tuple(kind.model_validate_json(line) for line in stream)


def _sorted_lines(labels: Iterable[Label]) -> bytes:
    # Sorted as text, so that the order depends on the content only.
    rows = (digest.canonical_json(label.model_dump(mode="json")) + b"\n" for label in labels)
    return b"".join(sorted(rows))
