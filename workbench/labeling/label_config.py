"""Label Studio's labeling configuration for a label schema, and the compatibility of schemas.

Every class has a rectangle label with its own colour, and a polygon label where the schema has
polygons. Objects have attributes (occluded, truncated, ignore and those of the schema); frames have
the schema's questions and a comment. Skipping a frame is Label Studio's own button.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from workbench.core.errors import DataError, ParameterError
from workbench.data.drawing import class_colours
from workbench.records.frames import ANY_CLASS, LabelSchema, Question, Shape

__all__ = ()

# Names of the controls in the configuration, as regions refer to them.
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
"""Label of a region that covers objects of every class (`ANY_CLASS`)."""

IGNORE_YES = "do not score"

DEGREES: dict[str, float] = {"no": 0.0, "partly": 0.25, "mostly": 0.75}
"""Answers for occlusion and truncation: none, up to half, more than half of the object.

The fractions are the middle of each answer's range; no answer means unknown.
"""

# In the labeling stream image and questions stand side by side on a screen of 1280x720; beside a
# list of tasks there is less room, and the questions go in rows below.
_PAGE_STYLE = "display:flex;flex-wrap:wrap;gap:4px 16px;align-items:flex-start"
_IMAGE_STYLE = "flex:8 1 560px;min-width:0"
_QUESTIONS_STYLE = "flex:1 1 200px;display:flex;flex-wrap:wrap;gap:0 16px"
_BLOCK_STYLE = "flex:1 1 180px"
_HEADER_STYLE = "font-size:13px;line-height:1.3;margin:6px 0 2px"
_FILL = {"opacity": "0.1", "strokeWidth": "2"}
"""Light, so that the object stays visible under its box."""

_RESERVED_NAMES = frozenset(
    (BOXES, POLYGONS, TRACK, COMMENT, NOTE, IMAGE, OCCLUDED, TRUNCATED, IGNORE)
)
_SCHEMA_HEADER = re.compile(r"^Schema (?P<name>.+) version (?P<version>\d+)\Z")


def labeling_config(schema: LabelSchema) -> str:
    """Labeling configuration (XML) for a schema; equal schemas give equal text.

    Raises:
        ParameterError: Two questions have the same name, or one has a reserved name.
    """
    _check_question_names(schema)
    page = ElementTree.Element("View", style=_PAGE_STYLE)
    view = ElementTree.SubElement(page, "View", style=_IMAGE_STYLE)
    # Shown above the image: what the labeler has to correct; normally empty.
    ElementTree.SubElement(view, "Text", name=NOTE, value=f"${NOTE}")
    rotatable = str("turned" in schema.shapes).lower()
    polygons = "polygon" in schema.shapes
    if polygons:
        ElementTree.SubElement(view, "Header", value="Boxes", size="6")
    _add_labels(
        view, "RectangleLabels", {"name": BOXES, "canRotate": rotatable, **_FILL}, schema.classes
    )
    if polygons:
        ElementTree.SubElement(view, "Header", value="Polygons", size="6")
        _add_labels(view, "PolygonLabels", {"name": POLYGONS, **_FILL}, schema.classes)
    image = {"name": IMAGE, "value": f"${IMAGE}", "zoom": "true", "zoomControl": "true"}
    ElementTree.SubElement(
        view,
        "Image",
        {**image, "rotateControl": "false", "crosshair": "true", "maxWidth": "100%"},
    )
    view = ElementTree.SubElement(page, "View", style=_QUESTIONS_STYLE)
    for name in (OCCLUDED, TRUNCATED):
        _add_question(view, Question(name=name, answers=tuple(DEGREES)), per_region=True)
    ignore = Question(name=IGNORE, answers=(IGNORE_YES,), asked="Too small or unclear to score?")
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
    title = f"Schema {schema.name} version {schema.version}"
    ElementTree.SubElement(view, "Header", value=title, size="6", style=_HEADER_STYLE)
    ElementTree.indent(page)
    return ElementTree.tostring(page, encoding="unicode")


def parse_labeling_config(text: str) -> LabelSchema:
    """The label schema of a labeling configuration, also of an edited or foreign one.

    Without the name of a schema in it, the result is ``unknown`` version 0.

    Raises:
        DataError: The text is not XML, declares entities, or has no rectangle labels.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(
            "labeling configuration declares XML entities, which is not allowed",
            hint="Remove the <!DOCTYPE …>",
        )
    try:
        view = ElementTree.fromstring(text)  # noqa: S314 - entities were refused above
    except ElementTree.ParseError as error:
        raise DataError(f"labeling configuration is not XML: {error}") from error
    boxes = view.find(".//RectangleLabels")
    if boxes is None:
        raise DataError(
            "labeling configuration has no RectangleLabels",
            hint="Create the project with `workbench label send`",
        )
    labels = [label.get("value", "") for label in boxes.iter("Label")]
    choices = [one for one in view.iter("Choices") if one.get("name") not in _RESERVED_NAMES]
    headers = (_SCHEMA_HEADER.match(one.get("value", "")) for one in view.iter("Header"))
    header = next((match for match in headers if match), None)
    shapes: list[Shape] = ["box"]
    if boxes.get("canRotate") == "true":
        shapes.append("turned")
    if view.find(".//PolygonLabels") is not None:
        shapes.append("polygon")
    return LabelSchema(
        name=header["name"] if header else "unknown",
        version=int(header["version"]) if header else 0,
        classes=tuple(name for name in labels if name != IGNORE_AREA),
        shapes=tuple(shapes),
        box_questions=tuple(_parse_question(one) for one in choices if _is_per_region(one)),
        frame_questions=tuple(_parse_question(one) for one in choices if not _is_per_region(one)),
        tracks=any(area.get("name") == TRACK for area in view.iter("TextArea")),
    )


def class_to_label(cls: str) -> str:
    """Label Studio's label for a class."""
    return IGNORE_AREA if cls == ANY_CLASS else cls


def label_to_class(name: str) -> str:
    """The class of one of Label Studio's labels."""
    return ANY_CLASS if name == IGNORE_AREA else name


def fraction_to_degree(fraction: float) -> str:
    """The answer of `DEGREES` whose range contains a fraction in [0, 1]."""
    if fraction <= 0:
        return "no"
    return "partly" if fraction <= 0.5 else "mostly"


def _check_question_names(schema: LabelSchema) -> None:
    names = [question.name for question in (*schema.box_questions, *schema.frame_questions)]
    for name in names:
        if name in _RESERVED_NAMES or names.count(name) > 1:
            raise ParameterError(
                f"question name {name!r} is already in use",
                where=f"schema {schema.name}",
                hint=f"Reserved names: {', '.join(sorted(_RESERVED_NAMES))}",
            )


def _add_labels(
    view: ElementTree.Element, tag: str, control: dict[str, str], classes: tuple[str, ...]
) -> None:
    shown = {**control, "toName": IMAGE, "showInline": "true"}
    labels = ElementTree.SubElement(view, tag, shown)
    for name, colour in class_colours((*classes, ANY_CLASS)).items():
        ElementTree.SubElement(labels, "Label", value=class_to_label(name), background=colour)


def _add_block(view: ElementTree.Element, text: str, *, per_region: bool) -> ElementTree.Element:
    when = {"visibleWhen": "region-selected"} if per_region else {}
    block = ElementTree.SubElement(view, "View", {"style": _BLOCK_STYLE, **when})
    ElementTree.SubElement(block, "Header", value=text, size="6", style=_HEADER_STYLE)
    return block


def _add_question(
    view: ElementTree.Element, question: Question, *, per_region: bool, choice: str = "single"
) -> None:
    text = question.asked or f"{question.name.replace('_', ' ').capitalize()}?"
    block = _add_block(view, text, per_region=per_region)
    control = {"name": question.name, "toName": IMAGE, "choice": choice, "showInline": "true"}
    if per_region:
        control["perRegion"] = "true"
    if question.asked:
        control["hint"] = question.asked  # for parsing the question back
    choices = ElementTree.SubElement(block, "Choices", control)
    for answer in question.answers:
        ElementTree.SubElement(choices, "Choice", value=answer)


def _add_text_area(
    block: ElementTree.Element, name: str, placeholder: str, more: dict[str, str]
) -> None:
    shown = {"name": name, "toName": IMAGE, "placeholder": placeholder, "rows": "1"}
    ElementTree.SubElement(block, "TextArea", {**shown, "maxSubmissions": "1", **more})


def _is_per_region(choices: ElementTree.Element) -> bool:
    return choices.get("perRegion") == "true"


def _parse_question(choices: ElementTree.Element) -> Question:
    name = re.sub(r"[^a-z0-9_]", "_", choices.get("name", "").lower())
    return Question(
        name=name if name[:1].isalpha() else f"q{name}",
        answers=tuple(choice.get("value", "") for choice in choices.iter("Choice")),
        asked=choices.get("hint", ""),
    )


def incompatible_changes(old: LabelSchema, new: LabelSchema) -> list[str]:
    """What a new schema removes from an old one; empty if all existing labels stay valid."""
    removed = [name for name in old.classes if name not in new.classes]
    changes = [f"class {name!r} is removed" for name in removed]
    changes += [f"{shape} shapes are removed" for shape in old.shapes if shape not in new.shapes]
    changes += _removed_answers("box", old.box_questions, new.box_questions)
    changes += _removed_answers("frame", old.frame_questions, new.frame_questions)
    if old.tracks and not new.tracks:
        changes.append("tracks are removed")
    return changes


def same_questions(first: LabelSchema, second: LabelSchema) -> bool:
    """Whether two schemas have the same classes, shapes and questions."""
    return (
        first.classes == second.classes
        and not incompatible_changes(first, second)
        and not incompatible_changes(second, first)
    )


def _removed_answers(
    subject: str, old: tuple[Question, ...], new: tuple[Question, ...]
) -> list[str]:
    answers = {question.name: set(question.answers) for question in new}
    changes = []
    for question in old:
        if question.name not in answers:
            changes.append(f"{subject} question {question.name!r} is removed")
        elif removed := [one for one in question.answers if one not in answers[question.name]]:
            changes.append(f"{subject} question {question.name!r} lost {', '.join(removed)}")
    return changes
