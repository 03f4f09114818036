"""Label Studio's labeling configuration for a label schema, and what schema changes allow."""

from __future__ import annotations

import colorsys
import re
from collections import Counter
from dataclasses import dataclass, replace
from xml.etree import ElementTree

from workbench.core.errors import DataError, ParameterError
from workbench.records import dataset as datasets
from workbench.records.base import Ref
from workbench.records.frames import ANY_CLASS, Label, LabelSchema, Question, Shape
from workbench.records.store import Store

BOXES = "boxes"
POLYGONS = "polygons"
TRACK = "track"
COMMENT = "comment"
NOTE = "note"
IMAGE = "image"
OCCLUDED = "occluded"
TRUNCATED = "truncated"
IGNORE = "ignore"
IGNORE_AREA = "ignore_area"
"""Name that a region covering objects of every class (`ANY_CLASS`) has on the labeler's screen."""

DEGREES: dict[str, float] = {"no": 0.0, "partly": 0.25, "mostly": 0.75}
"""What a labeler can say of occlusion and truncation: none, up to half, more than half.

The numbers are the middle of each answer's range; nothing chosen means not known.
"""

IGNORE_YES = "do not score"

_RESERVED_NAMES = frozenset(
    (BOXES, POLYGONS, TRACK, COMMENT, NOTE, IMAGE, OCCLUDED, TRUNCATED, IGNORE)
)

_COLOURS = (
    *("#1f77ff", "#ff3b30", "#ffcc00", "#34c759", "#af52de", "#ff9500", "#00c7be", "#ff2d92"),
    *("#8bc34a", "#5856d6", "#a2845e", "#64d2ff"),
)
_SCHEMA_HEADER = re.compile(r"^Schema (?P<name>.+) version (?P<version>\d+)$")


@dataclass(frozen=True)
class LabelingConfig:
    """What a configuration asks labelers for. ``schema`` is (name, version) where it tells.

    ``attributes`` are all per-object questions by name, the built-in ones first.
    """

    classes: tuple[str, ...]
    colours: tuple[str, ...]
    attributes: tuple[str, ...]
    schema: tuple[str, int] | None
    shapes: tuple[Shape, ...] = ("box",)
    box_questions: tuple[Question, ...] = ()
    frame_questions: tuple[Question, ...] = ()
    tracks: bool = False

    def as_schema(self) -> LabelSchema:
        """The schema that this configuration was made from, as far as a project can tell it."""
        name, version = self.schema or ("unknown", 0)
        return LabelSchema(
            name=name,
            version=version,
            classes=self.classes,
            shapes=self.shapes,
            box_questions=self.box_questions,
            frame_questions=self.frame_questions,
            tracks=self.tracks,
        )


def labeling_config(schema: LabelSchema) -> str:
    """The configuration in Label Studio's XML; equal schemas give equal text.

    Raises:
        ParameterError: Two questions share a name, or take one that the workbench needs.
    """
    _check_question_names(schema)
    view = ElementTree.Element("View")
    title = f"Schema {schema.name} version {schema.version}"
    ElementTree.SubElement(view, "Header", value=title, size="5")
    # What a labeler is asked to mend stands above the image; it is empty for everyone else.
    ElementTree.SubElement(view, "Text", name=NOTE, value=f"${NOTE}")
    turned = str("turned" in schema.shapes).lower()
    outlines = "polygon" in schema.shapes
    if outlines:
        ElementTree.SubElement(view, "Header", value="Boxes", size="6")
    _add_labels(view, "RectangleLabels", {"name": BOXES, "canRotate": turned}, schema.classes)
    if outlines:
        ElementTree.SubElement(view, "Header", value="Polygons", size="6")
        _add_labels(view, "PolygonLabels", {"name": POLYGONS}, schema.classes)
    picture = {"name": IMAGE, "value": f"${IMAGE}", "zoom": "true", "zoomControl": "true"}
    ElementTree.SubElement(view, "Image", {**picture, "rotateControl": "false"})
    for name in (OCCLUDED, TRUNCATED):
        _add_question(view, Question(name=name, answers=tuple(DEGREES)), per_region=True)
    asked = "Too small or unclear to score?"
    ignore = Question(name=IGNORE, answers=(IGNORE_YES,), asked=asked)
    _add_question(view, ignore, per_region=True, choice="multiple")
    for question in schema.box_questions:
        _add_question(view, question, per_region=True)
    if schema.tracks:
        block = _add_block(view, "Track: the same object in other frames", per_region=True)
        _add_text_area(block, TRACK, "A number or name", {"perRegion": "true"})
    for question in schema.frame_questions:
        _add_question(view, question, per_region=False)
    block = _add_block(view, "Anything the team should know about this frame?", per_region=False)
    _add_text_area(block, COMMENT, "Comment", {})
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode")


def parse_labeling_config(text: str) -> LabelingConfig:
    """Read a configuration back, also one that Label Studio or a person has rewritten.

    Raises:
        DataError: The text is not XML, declares entities, or has no rectangle labels.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(
            "labeling configuration declares entities, which could expand without end",
            hint="Take the <!DOCTYPE …> out of it",
        )
    try:
        view = ElementTree.fromstring(text)  # noqa: S314 - entities were refused above
    except ElementTree.ParseError as error:
        raise DataError(f"labeling configuration is not XML: {error}") from error
    boxes = view.find(".//RectangleLabels")
    if boxes is None:
        raise DataError(
            "labeling configuration has no RectangleLabels",
            hint="The workbench draws boxes; make the project with `workbench label send`",
        )
    labels = [label for label in boxes.iter("Label") if label.get("value") != IGNORE_AREA]
    of_boxes = [one for one in view.iter("Choices") if one.get("perRegion") == "true"]
    of_frames = [one for one in view.iter("Choices") if one.get("perRegion") != "true"]
    return LabelingConfig(
        classes=tuple(label.get("value", "") for label in labels),
        colours=tuple(label.get("background", "") for label in labels),
        attributes=tuple(choices.get("name", "") for choices in of_boxes),
        schema=_schema_of(view),
        shapes=_shapes_of(view, boxes),
        box_questions=tuple(_read_question(one) for one in of_boxes if _is_schema_question(one)),
        frame_questions=tuple(_read_question(one) for one in of_frames if _is_schema_question(one)),
        tracks=any(area.get("name") == TRACK for area in view.iter("TextArea")),
    )


def class_to_label(cls: str) -> str:
    """The rectangle label that stands for a class."""
    return IGNORE_AREA if cls == ANY_CLASS else cls


def label_to_class(name: str) -> str:
    """The class that a rectangle label stands for."""
    return ANY_CLASS if name == IGNORE_AREA else name


def fraction_to_degree(fraction: float) -> str:
    """The answer whose range a fraction in [0, 1] falls into."""
    if fraction <= 0:
        return "no"
    return "partly" if fraction <= 0.5 else "mostly"


def _check_question_names(schema: LabelSchema) -> None:
    names = [question.name for question in (*schema.box_questions, *schema.frame_questions)]
    for name in names:
        if name in _RESERVED_NAMES or names.count(name) > 1:
            raise ParameterError(
                f"a question cannot be named {name!r}: the name is taken",
                where=f"schema {schema.name}",
                hint=f"The workbench itself uses {', '.join(sorted(_RESERVED_NAMES))}",
            )


def _add_labels(
    view: ElementTree.Element, tag: str, control: dict[str, str], classes: tuple[str, ...]
) -> None:
    shown = {**control, "toName": IMAGE, "showInline": "true"}
    labels = ElementTree.SubElement(view, tag, shown)
    for position, name in enumerate(classes):
        ElementTree.SubElement(labels, "Label", value=name, background=_class_colour(position))
    ElementTree.SubElement(labels, "Label", value=IGNORE_AREA, background="#8e8e93")


def _add_block(view: ElementTree.Element, text: str, *, per_region: bool) -> ElementTree.Element:
    when = {"visibleWhen": "region-selected"} if per_region else {}
    block = ElementTree.SubElement(view, "View", when)
    ElementTree.SubElement(block, "Header", value=text, size="6")
    return block


def _add_question(
    view: ElementTree.Element, question: Question, *, per_region: bool, choice: str = "single"
) -> None:
    text = question.asked or f"{question.name.replace('_', ' ').capitalize()}?"
    block = _add_block(view, text, per_region=per_region)
    asked = {"name": question.name, "toName": IMAGE, "choice": choice, "showInline": "true"}
    if per_region:
        asked["perRegion"] = "true"
    if question.asked:
        asked["hint"] = question.asked  # so that the question can be read back
    choices = ElementTree.SubElement(block, "Choices", asked)
    for answer in question.answers:
        ElementTree.SubElement(choices, "Choice", value=answer)


def _add_text_area(
    block: ElementTree.Element, name: str, placeholder: str, more: dict[str, str]
) -> None:
    shown = {"name": name, "toName": IMAGE, "placeholder": placeholder, "rows": "1"}
    ElementTree.SubElement(block, "TextArea", {**shown, "maxSubmissions": "1", **more})


def _is_schema_question(choices: ElementTree.Element) -> bool:
    """Whether the schema asks this, and not the workbench by itself."""
    return choices.get("name") not in _RESERVED_NAMES


def _read_question(choices: ElementTree.Element) -> Question:
    name = re.sub(r"[^a-z0-9_]", "_", choices.get("name", "").lower())
    return Question(
        name=name if name[:1].isalpha() else f"q{name}",
        answers=tuple(choice.get("value", "") for choice in choices.iter("Choice")),
        asked=choices.get("hint", ""),
    )


def _shapes_of(view: ElementTree.Element, boxes: ElementTree.Element) -> tuple[Shape, ...]:
    shapes: list[Shape] = ["box"]
    if boxes.get("canRotate") == "true":
        shapes.append("turned")
    if view.find(".//PolygonLabels") is not None:
        shapes.append("polygon")
    return tuple(shapes)


def _class_colour(position: int) -> str:
    if position < len(_COLOURS):
        return _COLOURS[position]
    # Steps of the golden angle never bring two hues close together.
    red, green, blue = colorsys.hsv_to_rgb(position * 0.61803398875 % 1.0, 0.75, 0.9)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def _schema_of(view: ElementTree.Element) -> tuple[str, int] | None:
    for header in view.iter("Header"):
        match = _SCHEMA_HEADER.match(header.get("value", ""))
        if match:
            return match["name"], int(match["version"])
    return None


# ---- What a change of the label schema does to a project, and to a dataset that is labeled already.
#
# A new version may add classes, questions and shapes: everything drawn before still means the same.
# A class that is gone needs a place to go to, which the new version's ``mapping`` names: another
# class, ``ignore`` or ``drop``. Anything else is refused, and the refusal says why.


_MAP_TO_IGNORE, _MAP_TO_DROP = "ignore", "drop"


def incompatible_changes(old: LabelSchema, new: LabelSchema) -> list[str]:
    """Why ``new`` does more than add to ``old``; nothing when whatever was drawn stays valid."""
    gone = [name for name in old.classes if name not in new.classes]
    why = [f"class {name!r} is gone" for name in gone]
    why += [f"{shape} shapes are gone" for shape in old.shapes if shape not in new.shapes]
    why += _removed_questions("box", old.box_questions, new.box_questions)
    why += _removed_questions("frame", old.frame_questions, new.frame_questions)
    if old.tracks and not new.tracks:
        why.append("tracks are gone")
    return why


def same_questions(one: LabelSchema, other: LabelSchema) -> bool:
    """Whether labelers are asked the same, whatever else the schemas say."""
    return (
        one.classes == other.classes
        and not incompatible_changes(one, other)
        and not incompatible_changes(other, one)
    )


def migrate(store: Store, dataset_ref: Ref, schema: LabelSchema) -> tuple[Ref, dict[str, int]]:
    """A dataset under a newer version of its schema, and how many labels went where.

    Raises:
        ParameterError: The new schema is no later version of the old one, or does not say what
            becomes of labels that there are.
    """
    dataset = datasets.load_dataset(store, dataset_ref)
    old = dataset.label_schema
    _check_newer_version(old, schema)
    homeless = sorted(
        {
            label.cls
            for label in dataset.labels
            if label.cls != ANY_CLASS and schema.class_of(label.cls) is None
        }
    )
    if homeless:
        counts = Counter(label.cls for label in dataset.labels)
        told = ", ".join(f"{name} ({counts[name]} labels)" for name in homeless)
        raise ParameterError(
            f"schema {schema.name} version {schema.version} has no place for {told}",
            where=dataset_ref,
            hint="Name in its `mapping` the class each goes to, or `ignore`, or `drop`",
        )
    moved: Counter[str] = Counter()
    labels = [_migrate_label(label, schema, moved) for label in dataset.labels]
    kept = tuple(label for label in labels if label is not None)
    result = replace(dataset, label_schema=schema, labels=kept, ref=None)
    return datasets.save_dataset(store, result, made_by="migrate", parents=(dataset_ref,)), dict(
        moved
    )


def _check_newer_version(old: LabelSchema, new: LabelSchema) -> None:
    if old.name != new.name or new.version <= old.version:
        raise ParameterError(
            f"{new.name} version {new.version} is no later version of {old.name}"
            f" version {old.version}",
            hint="Keep the schema's name and raise its version",
        )


def _migrate_label(label: Label, schema: LabelSchema, moved: Counter[str]) -> Label | None:
    target = label.cls if label.cls == ANY_CLASS else schema.class_of(label.cls)
    if target == label.cls:
        return label
    moved[f"{label.cls} -> {target}"] += 1
    if target == _MAP_TO_DROP:
        return None
    if target == _MAP_TO_IGNORE:
        return label.model_copy(update={"cls": ANY_CLASS, "ignore": True})
    return label.model_copy(update={"cls": target})


def _removed_questions(
    what: str, old: tuple[Question, ...], new: tuple[Question, ...]
) -> list[str]:
    later = {question.name: set(question.answers) for question in new}
    why = []
    for question in old:
        if question.name not in later:
            why.append(f"the {what} question {question.name!r} is gone")
        elif gone := [one for one in question.answers if one not in later[question.name]]:
            why.append(f"{what} question {question.name!r} lost the answer {', '.join(gone)}")
    return why
