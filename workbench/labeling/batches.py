"""Batches: a selection and the boxes that labelers start from, bound into one record."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from workbench import digest
from workbench.errors import ParameterError
from workbench.labeling.answers import region_id
from workbench.labeling.attention import Care, needs
from workbench.labeling.quality import REVIEW
from workbench.labeling.regions import SMALLEST_PX
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Frame, LabelSchema, Role
from workbench.records.store import Store
from workbench.records.types import LabelBatch, Prediction, Selection


def make_batch(
    store: Store,
    dataset_ref: Ref,
    selection_ref: Ref,
    model_ref: Ref | None = None,
    predictions: Iterable[Prediction] = (),
    schema: LabelSchema | None = None,
    overlap: float = 0.0,
    care: Care | None = None,
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
    care = care or Care()
    if not 0 <= overlap <= 1:
        raise ParameterError(f"overlap is a share of frames between 0 and 1, got {overlap}")
    dataset = datasets.load(store, dataset_ref)
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
    trusted = _gold(dataset, selection_ref, care.gold, chosen)
    chosen = _mixed(chosen, trusted)
    usable = _usable(predictions, {frame: known[frame] for frame in chosen}, schema)
    if usable and model_ref is None:
        raise ParameterError("predictions need the model that made them", where=selection_ref)
    if not usable and selection.method == REVIEW:
        # Whoever looks again starts from what is labeled, not from nothing, nor from a model.
        usable = _labeled(dataset, chosen, schema)
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
        needs=needs(
            care,
            ((known[frame], classes.get(frame, ())) for frame in chosen),
            schema,
            trusted,
        ),
        gold=tuple(sorted(trusted)),
        blind=selection.has_control,
    )
    return store.put(batch, {"predictions.jsonl": datasets.lines(usable)})


def sent_predictions(store: Store, batch_ref: Ref) -> dict[Digest, list[Prediction]]:
    """The boxes that labelers start from, by frame."""
    grouped: dict[Digest, list[Prediction]] = {}
    rows = datasets.read_lines(store.payload(batch_ref, "predictions.jsonl"), Prediction)
    for prediction in rows:
        grouped.setdefault(prediction.frame, []).append(prediction)
    return grouped


def _gold(dataset: Dataset, selection: Ref, count: int, chosen: Collection[Digest]) -> list[Digest]:
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


def _mixed(chosen: list[Digest], gold: list[Digest]) -> list[Digest]:
    """Gold frames spread evenly among the others, so that nobody meets them in a row."""
    mixed = list(chosen)
    for number, frame in enumerate(gold):
        mixed.insert((number + 1) * (len(mixed) + 1) // (len(gold) + 1), frame)
    return mixed


def _labeled(dataset: Dataset, frames: Collection[Digest], schema: LabelSchema) -> list[Prediction]:
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


def _usable(
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
        box = _inside(prediction.box, frame)
        if box.w >= SMALLEST_PX and box.h >= SMALLEST_PX:
            inside = prediction.model_copy(update={"box": box})
            kept[region_id(inside)] = inside
    return sorted(kept.values(), key=lambda one: (one.frame, -one.score, region_id(one)))


def _inside(box: Box, frame: Frame) -> Box:
    x1, y1, x2, y2 = box.xyxy
    if min(x1, y1) >= 0 and x2 <= frame.width and y2 <= frame.height:
        return box  # as it came: cutting would cost its last digits, and with them its name
    x1, x2 = (min(max(x, 0.0), frame.width) for x in (x1, x2))
    y1, y2 = (min(max(y, 0.0), frame.height) for y in (y1, y2))
    return Box(x=x1, y=y1, w=x2 - x1, h=y2 - y1)
