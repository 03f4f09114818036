"""Label batches: a selection bound to the boxes labelers start from, and frame-by-frame access to it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice, takewhile
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from workbench.core import digest
from workbench.core import digest as digests
from workbench.core.errors import ParameterError, RecordError
from workbench.labeling.answers import region_id
from workbench.labeling.labeling_rules import LabelingOptions, frame_needs
from workbench.labeling.regions import MIN_BOX_PX
from workbench.labeling.review import REVIEW_METHOD
from workbench.labeling.server import read_json_array
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref, digest_of
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Frame, LabelSchema, Role
from workbench.records.store import Store
from workbench.records.types import DatasetVersion, LabelBatch, Prediction, SelectedFrame, Selection

_ROWS_PER_CHUNK = 4096


class BatchContents:
    """A batch with its frames and the boxes that labelers start from."""

    def __init__(self, store: Store, ref: Ref) -> None:
        self.store = store
        self.ref = ref
        batch = store.get(ref, LabelBatch)
        self.batch = batch.model_copy(update={"frames": _PackedDigests(batch.frames)})
        self.dataset_name = store.get(self.batch.dataset, DatasetVersion).name
        self._names = np.sort(_digest_keys(self.batch.frames))
        frames = store.payload(self.batch.dataset, "frames.jsonl").open("rb")
        self._frames = _RowIndex(frames, b"id", self._names)
        self._boxes = _RowIndex(
            store.payload(ref, "predictions.jsonl").open("rb"), b"frame", self._names
        )
        self._choices: _RowIndex | None = None

    def frame(self, digest: Digest) -> Frame:
        """A frame of the batch.

        Raises:
            RecordError: The batch's dataset has no such frame.
        """
        rows = self._frames.of(digest)
        if not rows:
            raise RecordError(f"no frame {digest[:12]} in the batch's dataset", where=self.ref)
        return Frame.model_validate_json(rows[0])

    def choice(self, frame: Digest) -> SelectedFrame | None:
        """Why a frame was chosen; None for one that only measures labelers."""
        if self._choices is None:
            self._choices = _RowIndex(self._chosen(), b"frame", self._names)
        rows = self._choices.of(frame)
        return SelectedFrame.model_validate_json(rows[0]) if rows else None

    def _chosen(self) -> IO[bytes]:
        """The choices of the selection, a row each: a selection as a whole is large in memory."""
        path = self.store.folder(self.batch.selection) / "record.json"
        if digests.of_file(path) != digest_of(self.batch.selection):
            raise RecordError("record does not match its digest: it was changed", where=path)
        rows = tempfile.TemporaryFile()  # noqa: SIM115 - `_Rows` closes it
        for choice in read_json_array(path, "chosen"):
            rows.write(digests.canonical_json(choice) + b"\n")
        rows.seek(0)
        return rows

    def started(self, frame: Digest) -> list[Prediction]:
        """The boxes that labelers of a frame start from."""
        return [Prediction.model_validate_json(row) for row in self._boxes.of(frame)]

    def started_by_name(self, frame: Digest) -> dict[str, Prediction]:
        """The same by the names they are sent under."""
        return {region_id(one): one for one in self.started(frame)}


class _PackedDigests(Sequence[Digest]):
    """Digests in 32 bytes each; as text they take 121."""

    def __init__(self, digests: Sequence[Digest]) -> None:
        self._bytes = bytes.fromhex("".join(digests))

    def __len__(self) -> int:
        return len(self._bytes) // 32

    @overload
    def __getitem__(self, place: int) -> Digest: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Digest, ...]: ...
    def __getitem__(self, place: int | slice) -> Digest | tuple[Digest, ...]:
        if isinstance(place, slice):
            return tuple(self[number] for number in range(len(self))[place])
        start = 32 * range(len(self))[place]
        return self._bytes[start : start + 32].hex()


def _digest_keys(digests: Sequence[Digest]) -> NDArray[Any]:
    """The first half of each digest, 128 bits, as numpy's byte strings: half the memory."""
    return np.frombuffer(bytes.fromhex("".join(digests)), dtype="S32").astype("S16")


class _RowIndex:
    """A file of JSON rows, those of one frame together; only where they begin is in memory.

    ``names`` are the sorted frames, by `_names`, whose rows may be asked for.
    """

    _NOWHERE = np.iinfo(np.int64).max

    def __init__(self, file: IO[bytes], key: bytes, names: NDArray[Any]) -> None:
        self._file, self._names = file, names
        self._starts = np.full(len(names), self._NOWHERE, np.int64)
        self._named = re.compile(b'"' + key + b'":"([0-9a-f]{64})"')
        position = 0
        while rows := list(islice(file, _ROWS_PER_CHUNK)):
            lengths = np.array([len(row) for row in rows])
            starts = position + np.cumsum(lengths) - lengths
            position += int(lengths.sum())
            named = [(at, name) for at, row in enumerate(rows) if (name := self._frame(row))]
            at = np.array([number for number, _ in named], int)
            self._add(_digest_keys([name for _, name in named]), starts[at])

    def _frame(self, row: bytes) -> Digest | None:
        match = self._named.search(row)
        return match[1].decode() if match else None

    def _add(self, names: NDArray[Any], starts: NDArray[Any]) -> None:
        if not len(self._names):
            return
        places = np.minimum(np.searchsorted(self._names, names), len(self._names) - 1)
        wanted = self._names[places] == names
        np.minimum.at(self._starts, places[wanted], starts[wanted])

    def __del__(self) -> None:
        self._file.close()

    def of(self, frame: Digest) -> list[bytes]:
        [name] = _digest_keys([frame])
        place = int(np.searchsorted(self._names, name))
        if place == len(self._names) or self._names[place] != name:
            return []
        if self._starts[place] == self._NOWHERE:
            return []
        self._file.seek(int(self._starts[place]))
        mine = takewhile(lambda row: self._frame(row) == frame, self._file)
        return [row.rstrip(b"\n") for row in mine]


# ---- Batches: a selection and the boxes that labelers start from, bound into one record.


def make_batch(
    store: Store,
    dataset_ref: Ref,
    selection_ref: Ref,
    model_ref: Ref | None = None,
    predictions: Iterable[Prediction] = (),
    schema: LabelSchema | None = None,
    overlap: float = 0.0,
    care: LabelingOptions | None = None,
) -> Ref:
    """Bind a selection and the boxes that labelers start from into a batch.

    A selection with a control arm makes a blind batch: frames in an order that follows from their
    digests, and no word of why any of them was chosen.

    Args:
        dataset_ref: Holds every frame of the selection.
        model_ref: The checkpoint that made ``predictions``.
        predictions: Boxes in pixels; those of other frames are left out, those that leave the
            image are cut at its edge. Without any, a review of labels starts from the labels.
        schema: What to label, by default the dataset's own.
        overlap: Share of frames, 0 to 1, that two labelers answer.
        care: Which slices get more of labelers' time, and how many gold frames measure them.

    Raises:
        ParameterError: A frame is not in the dataset, a predicted class not in the schema,
            predictions come without their model, or too few frames have trusted labels.
    """
    care = care or LabelingOptions()
    if not 0 <= overlap <= 1:
        raise ParameterError(f"overlap is a share of frames between 0 and 1, got {overlap}")
    dataset = datasets.load_dataset(store, dataset_ref)
    selection = store.get(selection_ref, Selection)
    schema = schema or dataset.label_schema
    known = {frame.id: frame for frame in dataset.frames}
    chosen = [choice.frame for choice in sorted(selection.chosen, key=lambda each: each.rank)]
    if selection.has_control:
        # Whoever meets the ranked frames first knows them: arms are compared on equal terms only.
        chosen.sort(key=lambda frame: digest.of_bytes(f"{selection_ref} {frame}".encode()))
    strangers = [frame for frame in chosen if frame not in known]
    if strangers:
        raise ParameterError(
            f"{len(strangers)} selected frames are not in the dataset",
            where=dataset_ref,
            hint=f"The selection was made from {selection.dataset}",
        )
    trusted = _choose_gold(dataset, selection_ref, care.gold, chosen)
    chosen = _mix_in(chosen, trusted)
    usable = _usable_predictions(predictions, {frame: known[frame] for frame in chosen}, schema)
    if usable and model_ref is None:
        raise ParameterError("predictions need the model that made them", where=selection_ref)
    if not usable and selection.method == REVIEW_METHOD:
        # Whoever looks again starts from what is labeled, not from nothing, nor from a model.
        usable = _labels_as_predictions(dataset, chosen, schema)
        model_ref = None
    classes: dict[Digest, set[str]] = {}
    for one in usable:
        classes.setdefault(one.frame, set()).add(one.cls)
    batch = LabelBatch(
        dataset=dataset_ref,
        selection=selection_ref,
        model=model_ref,
        label_schema=schema,
        frames=tuple(chosen),
        overlap=overlap,
        needs=frame_needs(
            care,
            ((known[frame], classes.get(frame, ())) for frame in chosen),
            schema,
            trusted,
        ),
        gold=tuple(sorted(trusted)),
        blind=selection.has_control,
    )
    return store.put(batch, {"predictions.jsonl": datasets.to_json_lines(usable)})


def sent_predictions(store: Store, batch_ref: Ref) -> dict[Digest, list[Prediction]]:
    """The boxes that labelers start from, by frame."""
    grouped: dict[Digest, list[Prediction]] = {}
    rows = datasets.read_json_lines(store.payload(batch_ref, "predictions.jsonl"), Prediction)
    for prediction in rows:
        grouped.setdefault(prediction.frame, []).append(prediction)
    return grouped


def _choose_gold(
    dataset: Dataset, selection: Ref, count: int, chosen: Collection[Digest]
) -> list[Digest]:
    """Frames with labels that people vouch for and that gates do not need; the same every time."""
    if not count:
        return []
    spared = (Role.SAFETY, Role.BLIND)
    labeled = {label.frame for label in dataset.labels if label.origin.is_ground_truth}
    fit = [
        frame.id
        for frame in dataset.frames
        if frame.id in labeled and frame.id not in chosen and frame.role not in spared
    ]
    if len(fit) < count:
        raise ParameterError(
            f"{count} gold frames are asked for, and {len(fit)} have labels to trust",
            where=dataset.ref,
            hint="Ask for fewer, or label more frames first",
        )
    return sorted(fit, key=lambda frame: digest.of_bytes(f"{selection} {frame}".encode()))[:count]


def _mix_in(chosen: list[Digest], gold: list[Digest]) -> list[Digest]:
    """Gold frames spread evenly among the others, so that nobody meets them in a row."""
    mixed = list(chosen)
    for number, frame in enumerate(gold):
        mixed.insert((number + 1) * (len(mixed) + 1) // (len(gold) + 1), frame)
    return mixed


def _labels_as_predictions(
    dataset: Dataset, frames: Collection[Digest], schema: LabelSchema
) -> list[Prediction]:
    """The labels that frames have, to start from; in the shapes that the schema lets one draw."""
    wanted = set(frames)
    found = [
        Prediction(
            frame=label.frame,
            cls=label.cls,
            box=label.box,
            score=1.0,
            turned=label.turned if "turned" in schema.shapes else None,
            polygon=label.polygon if "polygon" in schema.shapes else None,
        )
        for label in dataset.labels
        if label.frame in wanted and label.origin.is_ground_truth
    ]
    return sorted(found, key=lambda one: (one.frame, region_id(one)))


def _usable_predictions(
    predictions: Iterable[Prediction], frames: Mapping[Digest, Frame], schema: LabelSchema
) -> list[Prediction]:
    kept: dict[str, Prediction] = {}
    for prediction in predictions:
        frame = frames.get(prediction.frame)
        if frame is None:
            continue
        if prediction.cls not in schema.classes:
            raise ParameterError(
                f"predicted class {prediction.cls!r} is not in the label schema",
                where=f"{schema.name} version {schema.version}",
                hint=f"Its classes are {', '.join(schema.classes)}",
            )
        box = _clip_box(prediction.box, frame)
        if box.w >= MIN_BOX_PX and box.h >= MIN_BOX_PX:
            inside = prediction.model_copy(update={"box": box})
            kept[region_id(inside)] = inside
    return sorted(kept.values(), key=lambda one: (one.frame, -one.score, region_id(one)))


def _clip_box(box: Box, frame: Frame) -> Box:
    x1, y1, x2, y2 = box.xyxy
    if min(x1, y1) >= 0 and x2 <= frame.width and y2 <= frame.height:
        return box  # as it came: cutting would cost its last digits, and with them its name
    x1, x2 = (min(max(x, 0.0), frame.width) for x in (x1, x2))
    y1, y2 = (min(max(y, 0.0), frame.height) for y in (y1, y2))
    return Box(x=x1, y=y1, w=x2 - x1, h=y2 - y1)
