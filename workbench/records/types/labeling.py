"""What goes to labelers and what comes back."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from workbench.records.base import Digest, Record, Ref, Row
from workbench.records.frames import Box, LabelSchema, Point, Turned, added

Json = dict[str, Any]


class Prediction(Row):
    """A model's box on a frame; ``score`` in [0, 1].

    Where people's drawings are shown to others, a turned rectangle stands in ``turned`` and a
    polygon's corners in ``polygon``; ``box`` is then the upright box that just holds it.
    """

    frame: Digest
    cls: str
    box: Box
    score: float
    turned: Turned | None = added(None)
    polygon: tuple[Point, ...] | None = added(None)


class FrameNeed(Row):
    """What a frame of a batch asks of labelers beyond the rule, because of the ``slices`` it is in.

    ``labelers`` so many have to answer it; a higher ``priority`` comes sooner; an answer that took
    less than ``least_s`` seconds is no review.
    """

    frame: Digest
    labelers: int = 1
    priority: int = 0
    least_s: float | None = None
    slices: tuple[str, ...] = ()


class LabelBatch(Record):
    """Frames sent out together. Its digest is the key that makes every retry safe.

    Frames of ``gold`` have trusted labels in the dataset already: they measure labelers, who do
    not know which they are. ``adjudicates`` names the label set whose disagreements this batch
    settles. ``blind`` batches tell nobody why a frame was chosen, for its arms are to be compared.
    Payload: ``predictions.jsonl``, the boxes that labelers start from.
    """

    KIND: ClassVar[str] = "batch"
    dataset: Ref
    selection: Ref
    model: Ref | None
    label_schema: LabelSchema
    frames: tuple[Digest, ...]
    overlap: float = 0.0
    needs: tuple[FrameNeed, ...] = added(())
    gold: tuple[Digest, ...] = added(())
    adjudicates: Ref | None = added(None)
    blind: bool = added(False)


class Annotator(Row):
    """Who labeled: minutes are measured by the server, and None when nobody's time was spent."""

    id: str
    frames: int
    boxes: int
    minutes: float | None = None
    simulated: bool = False


class LabelSet(Record):
    """All that came back for a complete batch.

    Payload: ``labels.jsonl``, ``answers.jsonl`` (an answer a labeler and frame, skips included) and
    ``annotations.jsonl`` (every annotation as the server kept it, also those answered again).
    ``deleted`` are frames whose task somebody deleted, and which the batch goes without.
    """

    KIND: ClassVar[str] = "label"
    batch: Ref
    annotators: tuple[Annotator, ...]
    labels: int
    skipped: tuple[Digest, ...] = ()
    agreement: Json = {}
    simulated: bool = False
    deleted: tuple[Digest, ...] = added(())


class Rate(Row):
    """How far labelers agree on one ``subject``: a class, a slice, a labeler, or all.

    ``against`` tells whom with: other labelers, or the trusted labels of gold frames. ``n`` counts
    boxes compared. Each rate has the interval ``[low, high]`` of 95 % by resampling frames, where
    there are two or more, and is None where nothing could be compared.
    """

    subject: Literal["all", "class", "slice", "labeler"]
    name: str
    against: Literal["labelers", "gold"] = "labelers"
    frames: int
    n: int
    iou: float | None
    iou_interval: tuple[float, float] | None = None
    missed: float | None
    missed_interval: tuple[float, float] | None = None
    kappa: float | None
    kappa_interval: tuple[float, float] | None = None


class Agreement(Record):
    """How far the labelers of a label set agree, and where they do not.

    Payload: ``disagreements.jsonl``.
    """

    KIND: ClassVar[str] = "agreement"
    labels: Ref
    same_object_iou: float
    rule: str
    rates: tuple[Rate, ...]
    frames: int
    disputed: int
    simulated: bool = False


class Withdrawal(Record):
    """Labelers or frames that may no longer be used, and why. Payload: ``models.json``.

    ``models.json`` lists the models that had been trained on them when this was written.
    """

    KIND: ClassVar[str] = "withdrawal"
    dataset: Ref
    annotators: tuple[str, ...] = ()
    frames: tuple[Digest, ...] = ()
    reason: str
    labels_removed: int
