"""Label Studio's labeling configuration, made from a label schema and read back.

Every class is a rectangle label with a colour of its own. Each box may carry how far it is
occluded and truncated, and whether it is to be ignored when scoring. Skipping a frame is Label
Studio's own button.
"""

from __future__ import annotations

import colorsys
import re
from dataclasses import dataclass
from xml.etree import ElementTree

from workbench.errors import DataError
from workbench.records.frames import ANY_CLASS, LabelSchema

BOXES = "boxes"
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

_COLOURS = (
    *("#1f77ff", "#ff3b30", "#ffcc00", "#34c759", "#af52de", "#ff9500", "#00c7be", "#ff2d92"),
    *("#8bc34a", "#5856d6", "#a2845e", "#64d2ff"),
)
_HEADER = re.compile(r"^Schema (?P<name>.+) version (?P<version>\d+)$")


@dataclass(frozen=True)
class LabelingConfig:
    """What a configuration asks labelers for. ``schema`` is (name, version) where it tells."""

    classes: tuple[str, ...]
    colours: tuple[str, ...]
    attributes: tuple[str, ...]
    schema: tuple[str, int] | None


def labeling_config(schema: LabelSchema) -> str:
    """The configuration in Label Studio's XML; equal schemas give equal text."""
    view = ElementTree.Element("View")
    title = f"Schema {schema.name} version {schema.version}"
    ElementTree.SubElement(view, "Header", value=title, size="5")
    boxes = ElementTree.SubElement(
        view,
        "RectangleLabels",
        # A turned box cannot be kept as an axis-aligned one, so turning is not offered.
        {"name": BOXES, "toName": IMAGE, "canRotate": "false", "showInline": "true"},
    )
    for position, name in enumerate(schema.classes):
        ElementTree.SubElement(boxes, "Label", value=name, background=_colour(position))
    ElementTree.SubElement(boxes, "Label", value=IGNORE_AREA, background="#8e8e93")
    picture = {"name": IMAGE, "value": f"${IMAGE}", "zoom": "true", "zoomControl": "true"}
    ElementTree.SubElement(view, "Image", {**picture, "rotateControl": "false"})
    for name in (OCCLUDED, TRUNCATED):
        _question(view, name, f"{name.capitalize()}?", tuple(DEGREES), "single")
    _question(view, IGNORE, "Too small or unclear to score?", (IGNORE_YES,), "multiple")
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
    return LabelingConfig(
        classes=tuple(label.get("value", "") for label in labels),
        colours=tuple(label.get("background", "") for label in labels),
        attributes=tuple(
            choices.get("name", "")
            for choices in view.iter("Choices")
            if choices.get("perRegion") == "true"
        ),
        schema=_schema_of(view),
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


def _question(
    view: ElementTree.Element, name: str, text: str, answers: tuple[str, ...], choice: str
) -> None:
    block = ElementTree.SubElement(view, "View", visibleWhen="region-selected")
    ElementTree.SubElement(block, "Header", value=text, size="6")
    asked = {"name": name, "toName": IMAGE, "perRegion": "true", "choice": choice}
    choices = ElementTree.SubElement(block, "Choices", {**asked, "showInline": "true"})
    for answer in answers:
        ElementTree.SubElement(choices, "Choice", value=answer)


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
