"""Is this box a label? Everything that a box from outside has to pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

from workbench.data.schema import DROP, IGNORE
from workbench.data.source import SourceBox, SourceFrame
from workbench.records.frames import ANY_CLASS, Box, Frame, Label, LabelSchema, Origin
from workbench.records.types import Quarantined

EDGE_PX = 1.0
EDGE_SHARE = 0.005
"""A box may stand over the image's edge by one pixel or 0.5 % of that side, whichever is more.

Conventions differ by a pixel and tools round; such a box is cut at the edge. One that stands over
further belongs to another image, scale or convention, and is quarantined.
"""

SMALLEST_PX = 1.0
"""A side below one pixel is no observation."""


@dataclass(frozen=True)
class Rules:
    schema: LabelSchema
    annotator: str
    rendered: bool = False


def labels_of(
    frame: Frame, found: SourceFrame, rules: Rules
) -> tuple[list[Label], list[Quarantined]]:
    """The labels of a frame that hold, and those that do not with the reason for each."""
    labels: dict[tuple[str, Box], Label] = {}
    bad: list[Quarantined] = []
    for source in found.boxes:
        said = _check(source, frame, rules)
        if isinstance(said, Label):
            if (said.cls, said.box) in labels:
                bad.append(_refuse(found, source, "duplicate", f"{said.cls} with this box again"))
            else:
                labels[said.cls, said.box] = said
        elif said is not None:
            bad.append(_refuse(found, source, *said))
    return list(labels.values()), bad


def _check(source: SourceBox, frame: Frame, rules: Rules) -> Label | tuple[str, str] | None:
    """A label, or the reason and detail against it, or None when it is to be dropped."""
    cls = rules.schema.class_of(source.name)
    if cls == DROP:
        return None
    if cls is None:
        return "unknown-class", f"class {source.name!r}"
    box = _box(source, frame)
    if not isinstance(box, Box):
        return box
    return Label(
        frame=frame.id,
        cls=ANY_CLASS if cls == IGNORE else cls,
        box=box,
        origin=Origin.RENDERED if rules.rendered else Origin.IMPORTED,
        annotator=rules.annotator,
        occluded=source.occluded,
        truncated=source.truncated,
        ignore=source.ignore or cls == IGNORE,
        track=source.track,
    )


def _box(source: SourceBox, frame: Frame) -> Box | tuple[str, str]:
    """The box in pixels, cut at the edge, or the reason and detail against it."""
    corners = source.corners
    if not all(math.isfinite(value) for value in corners):
        return "degenerate", f"coordinates are not numbers: {corners}"
    if source.normalised:
        x0, y0, x1, y1 = corners
        corners = (x0 * frame.width, y0 * frame.height, x1 * frame.width, y1 * frame.height)
    if corners[2] <= corners[0] or corners[3] <= corners[1]:
        return "degenerate", f"no area: {_text(corners)}"
    over = _overhang(corners, frame)
    if over is not None:
        return "out-of-bounds", over
    x0, y0 = max(corners[0], 0.0), max(corners[1], 0.0)
    x1, y1 = min(corners[2], float(frame.width)), min(corners[3], float(frame.height))
    if x1 - x0 < SMALLEST_PX or y1 - y0 < SMALLEST_PX:
        return "degenerate", f"a side below {SMALLEST_PX:g} px: {_text(corners)}"
    return Box(x=x0, y=y0, w=x1 - x0, h=y1 - y0)


def _overhang(corners: tuple[float, ...], frame: Frame) -> str | None:
    x0, y0, x1, y1 = corners
    wide = max(EDGE_PX, EDGE_SHARE * frame.width)
    high = max(EDGE_PX, EDGE_SHARE * frame.height)
    if x0 >= -wide and y0 >= -high and x1 <= frame.width + wide and y1 <= frame.height + high:
        return None
    return f"{_text(corners)} in an image of {frame.width}x{frame.height}"


def _text(corners: tuple[float, ...]) -> str:
    return "box " + ", ".join(f"{value:.1f}" for value in corners)


def _refuse(found: SourceFrame, source: SourceBox, reason: str, detail: str) -> Quarantined:
    return Quarantined.model_validate(
        {"file": found.name, "reason": reason, "detail": f"{source.detail}: {detail}"}
    )
