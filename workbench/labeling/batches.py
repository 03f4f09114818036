"""Label batches: selected frames, the boxes that labelers start from, per-slice labeling rules."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import ijson
import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from workbench.core import digest
from workbench.core.errors import ParameterError, RecordError
from workbench.core.parsing import read_yaml
from workbench.core.text import short_repr
from workbench.data.slices import Slice, check_slice_name, frame_slices
from workbench.labeling.answers import region_id
from workbench.labeling.regions import MIN_BOX_PX
from workbench.labeling.review import REVIEW_METHOD
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref, digest_of
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Frame, LabelSchema, Role
from workbench.records.held_out import refuse_held_out
from workbench.records.store import Store
from workbench.records.types import (
    FrameRequirement,
    LabelBatch,
    Prediction,
    SelectedFrame,
    Selection,
)

__all__ = ["LabelingOptions", "load_labeling_rules", "make_batch"]

_RULES_HINT = (
    "Write a list such as [{slice: light=night, labelers: 2, priority: 1, min_seconds: 10}]"
)


@dataclass(frozen=True)
class LabelingRule:
    """Requirements for every frame of a slice.

    Attributes:
        slice: ``all``, ``vru``, ``construction``, ``light=…``, ``weather=…``, ``role=…`` or
            ``event=…``, see `frame_slices`; or one of `LabelingOptions.slices`.
        labelers: Number of labelers who answer each frame.
        priority: Frames with a higher priority come first.
        min_seconds: Answers that took less time are returned to the labeler.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    slice: str
    labelers: Annotated[int, Field(ge=1)] = 1
    priority: int = 0
    min_seconds: Annotated[float, Field(gt=0)] | None = None


@short_repr
@dataclass(frozen=True)
class LabelingOptions:
    """Requirements of a batch beyond one answer per frame.

    Attributes:
        rules: Rules by slice.
        gold: Number of frames with ground-truth labels that are mixed in to measure labelers.
        gold_labelers: Number of labelers who answer each gold frame.
        slices: Of a file, see `load_slices`: rules may name those of frames and classes.
    """

    rules: tuple[LabelingRule, ...] = ()
    gold: int = 0
    gold_labelers: int = 2
    slices: tuple[Slice, ...] = ()

    def __post_init__(self) -> None:
        known = {part.name for part in self.slices if part.judges_all_boxes}
        for rule in self.rules:
            if rule.slice not in known:
                check_slice_name(rule.slice)


def make_batch(
    store: Store,
    dataset_ref: Ref,
    selection_ref: Ref,
    model_ref: Ref | None = None,
    predictions: Iterable[Prediction] = (),
    schema: LabelSchema | None = None,
    overlap: float = 0.0,
    options: LabelingOptions | None = None,
) -> Ref:
    """Save a batch: the frames of a selection with the boxes that labelers start from.

    A selection with a control arm makes a blind batch: the order of frames follows their digests,
    and tasks do not show why a frame was selected.

    Args:
        dataset_ref: Contains every frame of the selection.
        model_ref: Checkpoint that made the predictions.
        predictions: Boxes in pixels. Those of other frames are left out, boxes are clipped to the
            image. A review without predictions starts from the existing labels.
        schema: Label schema; by default the dataset's own.
        overlap: Share of frames in [0, 1] that two labelers answer.
        options: Rules by slice, and gold frames.

    Raises:
        ParameterError: A frame is not in the dataset, a predicted class not in the schema,
            predictions have no model, or there are too few frames with ground-truth labels.
    """
    options = options or LabelingOptions()
    if not 0 <= overlap <= 1:
        raise ParameterError(f"overlap must be between 0 and 1, got {overlap}")
    dataset = datasets.load_dataset(store, dataset_ref)
    selection = store.get(selection_ref, Selection)
    schema = schema or dataset.label_schema
    frames = {frame.id: frame for frame in dataset.frames}
    chosen = [choice.frame for choice in sorted(selection.chosen, key=lambda each: each.rank)]
    if selection.has_control:
        # Arms are comparable only if labelers cannot tell the ranked frames by their position.
        chosen.sort(key=lambda frame: digest.of_bytes(f"{selection_ref} {frame}".encode()))
    unknown = [frame for frame in chosen if frame not in frames]
    if unknown:
        raise ParameterError(
            f"{len(unknown)} selected frames are not in the dataset",
            where=dataset_ref,
            hint=f"The selection was made from {selection.dataset}",
        )
    refuse_held_out(store, chosen, "labeling", roles=(Role.BLIND,))
    gold = _choose_gold(dataset, selection_ref, options.gold, chosen)
    chosen = _mix_in(chosen, gold)
    start = _usable_predictions(predictions, {frame: frames[frame] for frame in chosen}, schema)
    if start and model_ref is None:
        raise ParameterError("the predictions' model is missing", where=selection_ref)
    if not start and selection.method == REVIEW_METHOD:
        start = _labels_as_predictions(dataset, chosen, schema)
        model_ref = None
    classes: dict[Digest, set[str]] = {}
    for prediction in start:
        classes.setdefault(prediction.frame, set()).add(prediction.cls)
    batch = LabelBatch(
        dataset=dataset_ref,
        selection=selection_ref,
        model=model_ref,
        label_schema=schema,
        frames=tuple(chosen),
        overlap=overlap,
        needs=frame_requirements(
            options, ((frames[frame], classes.get(frame, ())) for frame in chosen), schema, gold
        ),
        gold=tuple(sorted(gold)),
        blind=selection.has_control,
    )
    return store.put(batch, {"predictions.jsonl": datasets.to_json_lines(start)})


def load_labeling_rules(path: Path, slices: Sequence[Slice] = ()) -> tuple[LabelingRule, ...]:
    """Read labeling rules from a YAML file, which is a list::

        - slice: light=night
          labelers: 2
          priority: 1
          min_seconds: 10

    Args:
        path: The file.
        slices: That rules may name beside the standard ones.

    Raises:
        ParameterError: The file is missing or invalid.
    """
    try:
        content = read_yaml(path)
        rules = tuple(TypeAdapter(list[LabelingRule]).validate_python(content))
        return LabelingOptions(rules, slices=tuple(slices)).rules  # which checks the names
    except OSError as error:
        raise ParameterError(f"cannot read the file: {error.strerror}", where=path) from error
    except yaml.YAMLError as error:
        raise ParameterError("invalid YAML", where=path, hint=_RULES_HINT) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "list"
        raise ParameterError(
            f"invalid labeling rule {field}: {first['msg']}",
            where=path,
            hint=_RULES_HINT,
        ) from error


def sent_predictions(store: Store, batch_ref: Ref) -> dict[Digest, list[Prediction]]:
    """The boxes that labelers start from, by frame."""
    by_frame: dict[Digest, list[Prediction]] = {}
    rows = datasets.read_json_lines(store.payload(batch_ref, "predictions.jsonl"), Prediction)
    for prediction in rows:
        by_frame.setdefault(prediction.frame, []).append(prediction)
    return by_frame


def frame_requirements(
    options: LabelingOptions,
    frames: Iterable[tuple[Frame, Iterable[str]]],
    schema: LabelSchema,
    gold: Iterable[Digest] = (),
) -> tuple[FrameRequirement, ...]:
    """Frames that need more than one answer, an earlier turn or a minimum time.

    Where several rules apply to a frame, the highest value of each requirement counts.

    Args:
        frames: Each with the classes predicted in it.
        gold: Frames that measure labelers.
    """
    gold_frames = set(gold)
    requirements = []
    for frame, predicted in frames:
        classes = tuple(predicted)
        names = {*frame_slices(frame, classes, schema), "all"}
        names |= {one.name for one in options.slices if one.may_hold(frame, classes, schema)}
        rules = [rule for rule in options.rules if rule.slice in names]
        labelers = max(
            [options.gold_labelers if frame.id in gold_frames else 1]
            + [rule.labelers for rule in rules]
        )
        priority = max((rule.priority for rule in rules), default=0)
        min_seconds = max((rule.min_seconds for rule in rules if rule.min_seconds), default=None)
        if labelers > 1 or priority or min_seconds:
            requirements.append(
                FrameRequirement(
                    frame=frame.id,
                    labelers=labelers,
                    priority=priority,
                    least_s=min_seconds,
                    slices=tuple(sorted({rule.slice for rule in rules})),
                )
            )
    return tuple(requirements)


def _choose_gold(
    dataset: Dataset, selection: Ref, count: int, chosen: Collection[Digest]
) -> list[Digest]:
    """Frames with ground-truth labels that gates do not use; chosen by digest."""
    if not count:
        return []
    labeled = {label.frame for label in dataset.labels if label.origin.is_ground_truth}
    candidates = [
        frame.id
        for frame in dataset.frames
        if frame.id in labeled
        and frame.id not in chosen
        and frame.role not in (Role.SAFETY, Role.BLIND)
    ]
    if len(candidates) < count:
        raise ParameterError(
            f"{count} gold frames requested, only {len(candidates)} have ground-truth labels",
            where=dataset.ref,
            hint="Request fewer, or label more frames first",
        )
    candidates.sort(key=lambda frame: digest.of_bytes(f"{selection} {frame}".encode()))
    return candidates[:count]


def _mix_in(chosen: list[Digest], gold: list[Digest]) -> list[Digest]:
    """Gold frames spread evenly among the others."""
    mixed = list(chosen)
    for number, frame in enumerate(gold):
        mixed.insert((number + 1) * (len(mixed) + 1) // (len(gold) + 1), frame)
    return mixed


def _labels_as_predictions(
    dataset: Dataset, frames: Collection[Digest], schema: LabelSchema
) -> list[Prediction]:
    """Existing labels as boxes to start from, in the shapes that the schema allows."""
    wanted = set(frames)
    predictions = [
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
    return sorted(predictions, key=lambda one: (one.frame, region_id(one)))


def _usable_predictions(
    predictions: Iterable[Prediction], frames: Mapping[Digest, Frame], schema: LabelSchema
) -> list[Prediction]:
    usable: dict[str, Prediction] = {}
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
            clipped = prediction.model_copy(update={"box": box})
            usable[region_id(clipped)] = clipped
    return sorted(usable.values(), key=lambda one: (one.frame, -one.score, region_id(one)))


def _clip_box(box: Box, frame: Frame) -> Box:
    x1, y1, x2, y2 = box.xyxy
    if min(x1, y1) >= 0 and x2 <= frame.width and y2 <= frame.height:
        return box  # unchanged: computing it again would change its last digits, and so its id
    x1, x2 = (min(max(x, 0.0), frame.width) for x in (x1, x2))
    y1, y2 = (min(max(y, 0.0), frame.height) for y in (y1, y2))
    return Box(x=x1, y=y1, w=x2 - x1, h=y2 - y1)


class BatchContents:
    """A batch with its frames, selection reasons and predictions, read frame by frame.

    Rows are in a temporary SQLite database on disk, so memory does not grow with the batch.
    """

    def __init__(self, store: Store, ref: Ref) -> None:
        self.store = store
        self.ref = ref
        self.batch = store.get(ref, LabelBatch)
        self._wanted = frozenset(self.batch.frames)
        self._rows = sqlite3.connect("")  # a temporary file that SQLite deletes
        self._rows.execute("CREATE TABLE entry (kind TEXT, frame TEXT, body TEXT)")
        self._rows.execute("CREATE INDEX by_frame ON entry (kind, frame)")
        self._add("frame", _keyed_lines(store.payload(self.batch.dataset, "frames.jsonl"), "id"))
        self._add("prediction", _keyed_lines(store.payload(ref, "predictions.jsonl"), "frame"))
        self._selection_loaded = False

    def frame(self, frame: Digest) -> Frame:
        """A frame of the batch.

        Raises:
            RecordError: The batch's dataset has no such frame.
        """
        rows = self._get("frame", frame)
        if not rows:
            raise RecordError(f"no frame {frame[:12]} in the batch's dataset", where=self.ref)
        return Frame.model_validate_json(rows[0])

    def selected(self, frame: Digest) -> SelectedFrame | None:
        """Rank and reasons of a selected frame; None for a gold frame."""
        if not self._selection_loaded:
            self._add("selected", self._read_selection())
            self._selection_loaded = True
        rows = self._get("selected", frame)
        return SelectedFrame.model_validate_json(rows[0]) if rows else None

    def predictions(self, frame: Digest) -> dict[str, Prediction]:
        """The boxes that labelers of a frame start from, by `region_id`."""
        rows = self._get("prediction", frame)
        predictions = [Prediction.model_validate_json(row) for row in rows]
        return {region_id(one): one for one in predictions}

    def _read_selection(self) -> Iterator[tuple[Digest, str]]:
        # Streamed: as an object, a large selection would need much memory.
        path = self.store.folder(self.batch.selection) / "record.json"
        if digest.of_file(path) != digest_of(self.batch.selection):
            raise RecordError("record does not match its digest: it was changed", where=path)
        with path.open("rb") as file:
            for row in ijson.items(file, "chosen.item", use_float=True):
                yield row["frame"], json.dumps(row)

    def _add(self, kind: str, rows: Iterable[tuple[Digest, str]]) -> None:
        self._rows.executemany(
            "INSERT INTO entry VALUES (?, ?, ?)",
            ((kind, frame, body) for frame, body in rows if frame in self._wanted),
        )

    def _get(self, kind: str, frame: Digest) -> list[str]:
        query = "SELECT body FROM entry WHERE kind = ? AND frame = ? ORDER BY rowid"
        return [body for (body,) in self._rows.execute(query, (kind, frame))]


def _keyed_lines(path: Path, key: str) -> Iterator[tuple[Digest, str]]:
    """Lines of a JSON-lines file with the digest that each has under ``key``.

    A pattern instead of a parser: a dataset has many more frames than a batch.
    """
    pattern = re.compile(f'"{key}":"([0-9a-f]{{64}})"')
    with path.open(encoding="utf-8") as file:
        for line in file:
            if match := pattern.search(line):
                yield match[1], line
