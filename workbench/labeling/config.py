"""Label Studio's labeling configuration, made from a label schema and read back.

Every class is a rectangle label with a colour of its own, and a polygon label where the schema asks
for polygons. Each object may carry how far it is occluded and truncated, whether it is to be
ignored when scoring, and what else the schema asks of it; a frame has its own questions, and room
for a comment. Skipping a frame is Label Studio's own button.
"""

from __future__ import annotations

import colorsys
import re
from dataclasses import dataclass
from xml.etree import ElementTree

from workbench.errors import DataError, ParameterError
from workbench.records.frames import ANY_CLASS, LabelSchema, Question, Shape

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

_TAKEN = frozenset((BOXES, POLYGONS, TRACK, COMMENT, NOTE, IMAGE, OCCLUDED, TRUNCATED, IGNORE))

_COLOURS = (
    *("#1f77ff", "#ff3b30", "#ffcc00", "#34c759", "#af52de", "#ff9500", "#00c7be", "#ff2d92"),
    *("#8bc34a", "#5856d6", "#a2845e", "#64d2ff"),
)
_HEADER = re.compile(r"^Schema (?P<name>.+) version (?P<version>\d+)$")


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
    _check_names(schema)
    view = ElementTree.Element("View")
    title = f"Schema {schema.name} version {schema.version}"
    ElementTree.SubElement(view, "Header", value=title, size="5")
    # What a labeler is asked to mend stands above the image; it is empty for everyone else.
    ElementTree.SubElement(view, "Text", name=NOTE, value=f"${NOTE}")
    turned = str("turned" in schema.shapes).lower()
    outlines = "polygon" in schema.shapes
    if outlines:
        ElementTree.SubElement(view, "Header", value="Boxes", size="6")
    _labels(view, "RectangleLabels", {"name": BOXES, "canRotate": turned}, schema.classes)
    if outlines:
        ElementTree.SubElement(view, "Header", value="Polygons", size="6")
        _labels(view, "PolygonLabels", {"name": POLYGONS}, schema.classes)
    picture = {"name": IMAGE, "value": f"${IMAGE}", "zoom": "true", "zoomControl": "true"}
    ElementTree.SubElement(view, "Image", {**picture, "rotateControl": "false"})
    for name in (OCCLUDED, TRUNCATED):
        _question(view, Question(name=name, answers=tuple(DEGREES)), per_region=True)
    asked = "Too small or unclear to score?"
    ignore = Question(name=IGNORE, answers=(IGNORE_YES,), asked=asked)
    _question(view, ignore, per_region=True, choice="multiple")
    for question in schema.box_questions:
        _question(view, question, per_region=True)
    if schema.tracks:
        block = _block(view, "Track: the same object in other frames", per_region=True)
        _text_area(block, TRACK, "A number or name", {"perRegion": "true"})
    for question in schema.frame_questions:
        _question(view, question, per_region=False)
    block = _block(view, "Anything the team should know about this frame?", per_region=False)
    _text_area(block, COMMENT, "Comment", {})
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode")


def parse_config(text: str) -> LabelingConfig:
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
        box_questions=tuple(_read_question(one) for one in of_boxes if _is_asked(one)),
        frame_questions=tuple(_read_question(one) for one in of_frames if _is_asked(one)),
        tracks=any(area.get("name") == TRACK for area in view.iter("TextArea")),
    )


def name_on_screen(cls: str) -> str:
    """The rectangle label that stands for a class."""
    return IGNORE_AREA if cls == ANY_CLASS else cls


def class_on_record(name: str) -> str:
    """The class that a rectangle label stands for."""
    return ANY_CLASS if name == IGNORE_AREA else name


def degree_of(fraction: float) -> str:
    """The answer whose range a fraction in [0, 1] falls into."""
    if fraction <= 0:
        return "no"
    return "partly" if fraction <= 0.5 else "mostly"


def _check_names(schema: LabelSchema) -> None:
    names = [question.name for question in (*schema.box_questions, *schema.frame_questions)]
    for name in names:
        if name in _TAKEN or names.count(name) > 1:
            raise ParameterError(
                f"a question cannot be named {name!r}: the name is taken",
                where=f"schema {schema.name}",
                hint=f"The workbench itself uses {', '.join(sorted(_TAKEN))}",
            )


def _labels(
    view: ElementTree.Element, tag: str, control: dict[str, str], classes: tuple[str, ...]
) -> None:
    shown = {**control, "toName": IMAGE, "showInline": "true"}
    labels = ElementTree.SubElement(view, tag, shown)
    for position, name in enumerate(classes):
        ElementTree.SubElement(labels, "Label", value=name, background=_colour(position))
    ElementTree.SubElement(labels, "Label", value=IGNORE_AREA, background="#8e8e93")


def _block(view: ElementTree.Element, text: str, *, per_region: bool) -> ElementTree.Element:
    when = {"visibleWhen": "region-selected"} if per_region else {}
    block = ElementTree.SubElement(view, "View", when)
    ElementTree.SubElement(block, "Header", value=text, size="6")
    return block


def _question(
    view: ElementTree.Element, question: Question, *, per_region: bool, choice: str = "single"
) -> None:
    text = question.asked or f"{question.name.replace('_', ' ').capitalize()}?"
    block = _block(view, text, per_region=per_region)
    asked = {"name": question.name, "toName": IMAGE, "choice": choice, "showInline": "true"}
    if per_region:
        asked["perRegion"] = "true"
    if question.asked:
        asked["hint"] = question.asked  # so that the question can be read back
    choices = ElementTree.SubElement(block, "Choices", asked)
    for answer in question.answers:
        ElementTree.SubElement(choices, "Choice", value=answer)


def _text_area(
    block: ElementTree.Element, name: str, placeholder: str, more: dict[str, str]
) -> None:
    shown = {"name": name, "toName": IMAGE, "placeholder": placeholder, "rows": "1"}
    ElementTree.SubElement(block, "TextArea", {**shown, "maxSubmissions": "1", **more})


def _is_asked(choices: ElementTree.Element) -> bool:
    """Whether the schema asks this, and not the workbench by itself."""
    return choices.get("name") not in _TAKEN


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


def _colour(position: int) -> str:
    if position < len(_COLOURS):
        return _COLOURS[position]
    # Steps of the golden angle never bring two hues close together.
    red, green, blue = colorsys.hsv_to_rgb(position * 0.61803398875 % 1.0, 0.75, 0.9)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def _schema_of(view: ElementTree.Element) -> tuple[str, int] | None:
    for header in view.iter("Header"):
        match = _HEADER.match(header.get("value", ""))
        if match:
            return match["name"], int(match["version"])
    return None
