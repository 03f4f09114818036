"""A guide page for labelers, made from the schema, with examples cut from labeled frames."""

from __future__ import annotations

import base64
import html
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, UnidentifiedImageError

from workbench import digest, workspace
from workbench.labeling import config, media
from workbench.labeling.server import LabelStudio
from workbench.records.base import Ref
from workbench.records.dataset import media_path
from workbench.records.frames import Box, Frame, Label, LabelSchema
from workbench.records.store import Store
from workbench.workspace import Workspace

FOLDER = "guides"
"""Below the folder that Label Studio serves, so that a project can link to the page."""

EXAMPLES = 3

_LOOKED_AT = 20_000
"""Labels looked through for examples; enough to find some, few enough not to be waited for."""

_SIDE = 160
_MARGIN = 0.35
_SMALLEST = 24.0
_SHAPES = {
    "box": "Draw the smallest upright box that holds all of the object that can be seen.",
    "turned": "Turn the box where the object lies turned; its sides follow the object's.",
    "polygon": "Outline the object with a polygon where a box would hold much else.",
}
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "img{height:120px;margin:0 8px 8px 0;border-radius:4px}"
    ".key{display:inline-block;width:.9em;height:.9em;border-radius:2px;margin-right:.5em}"
)

Crops = Mapping[str, Sequence[bytes]]
"""JPEG examples by class."""


def publish(
    place: Workspace, server: LabelStudio, project: int, dataset: Ref, schema: LabelSchema
) -> str:
    """Put the guide of a schema where a project can link to it; the address to link.

    The page lies beside the frames, below its own digest; nothing is uploaded.

    Args:
        dataset: Whose labeled frames the examples are cut from.
    """
    store = Store(place)
    content = page(schema, examples(store, dataset)).encode()
    name = f"{digest.of_bytes(content)[:16]}.html"
    path = place.served / FOLDER / name
    if not path.exists():
        workspace.write_atomic(path, content)
    server.attach_media(project, path.parent)
    return f"/data/local-files/?d={FOLDER}/{name}"


def page(schema: LabelSchema, crops: Crops) -> str:
    """The guide as one HTML page that needs no other file; equal input gives equal text."""
    colours = config.parse_config(config.labeling_config(schema)).colours
    title = f"Labeling guide: {schema.name} version {schema.version}"
    shapes = "".join(f"<li>{_SHAPES[shape]}</li>" for shape in schema.shapes)
    classes = "".join(
        _class(name, colour, schema, crops.get(name, ()))
        for name, colour in zip(schema.classes, colours, strict=True)
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f"<h2>Every frame</h2><ol><li>Box every object of the classes below, also where it is"
        f" partly hidden or cut by the image's edge.</li>{shapes}"
        "<li>Boxes that are drawn in already come from a model. Check each: keep, mend or delete"
        " it. What you submit is yours.</li>"
        "<li>Submit a frame without boxes when there is nothing to box. Skip a frame only when it"
        " cannot be judged.</li>"
        f"<li>Use <b>{config.IGNORE_AREA}</b> for areas full of objects that cannot be told apart."
        "</li><li>A line above the image says what has to be mended.</li></ol>"
        f"<h2>About each object</h2><ul>{_questions(schema)}</ul>"
        f"{_frame_questions(schema)}<h2>Classes</h2>{classes}</body></html>"
    )


def examples(store: Store, dataset: Ref, count: int = EXAMPLES) -> dict[str, list[bytes]]:
    """Up to ``count`` clear examples of each class that has labels people vouch for.

    Largest first, unhidden first, of different frames; classes whose images cannot be opened
    here have none.
    """
    if media.remote():
        return {}
    found: dict[str, list[Label]] = defaultdict(list)
    for label in islice(_labels(store, dataset), _LOOKED_AT):
        clear = not (label.ignore or label.occluded or label.truncated)
        large = min(label.box.w, label.box.h) >= _SMALLEST
        if clear and large and label.origin.is_ground_truth:
            found[label.cls].append(label)
    chosen = {cls: _best(labels, count) for cls, labels in found.items()}
    wanted = {label.frame for labels in chosen.values() for label in labels}
    frames = {frame.id: frame for frame in _frames(store, dataset) if frame.id in wanted}
    return {
        cls: [
            crop
            for label in labels
            if (crop := _crop(store.workspace, frames[label.frame], label.box)) is not None
        ]
        for cls, labels in sorted(chosen.items())
    }


def _best(labels: Sequence[Label], count: int) -> list[Label]:
    ranked = sorted(labels, key=lambda label: (-label.box.w * label.box.h, label.frame))
    by_frame: dict[str, Label] = {}
    for label in ranked:
        by_frame.setdefault(label.frame, label)
    return list(by_frame.values())[:count]


def _crop(place: Workspace, frame: Frame, box: Box) -> bytes | None:
    margin = _MARGIN * max(box.w, box.h)
    x1, y1, x2, y2 = box.xyxy
    view = (
        max(0, round(x1 - margin)),
        max(0, round(y1 - margin)),
        min(frame.width, round(x2 + margin)),
        min(frame.height, round(y2 + margin)),
    )
    try:
        with Image.open(media_path(place, frame)) as image:
            cut = image.convert("RGB").crop(view)
    except (OSError, UnidentifiedImageError):
        return None
    drawing = ImageDraw.Draw(cut)
    drawn = (x1 - view[0], y1 - view[1], x2 - view[0], y2 - view[1])
    drawing.rectangle(drawn, outline=(255, 204, 0), width=max(1, round(max(cut.size) / 100)))
    scale = _SIDE / max(cut.size)
    cut = cut.resize((max(1, round(cut.width * scale)), max(1, round(cut.height * scale))))
    content = io.BytesIO()
    cut.save(content, "JPEG", quality=85)
    return content.getvalue()


def _class(name: str, colour: str, schema: LabelSchema, crops: Sequence[bytes]) -> str:
    also = sorted(source for source, target in schema.mapping.items() if target == name)
    told = html.escape(schema.definitions.get(name, ""))
    means = f" Also for: {html.escape(', '.join(also))}." if also else ""
    urgent = " Vulnerable: look twice." if name in schema.vulnerable else ""
    images = "".join(
        f'<img alt="example of {html.escape(name)}" src="data:image/jpeg;base64,'
        f'{base64.b64encode(crop).decode()}">'
        for crop in crops
    )
    key = f'<span class="key" style="background:{colour}"></span>'
    return f"<h3>{key}{html.escape(name)}</h3><p>{told}{means}{urgent}</p>{images}"


def _questions(schema: LabelSchema) -> str:
    degrees = "no: all of it; partly: up to half is missing; mostly: more than half"
    asked = [
        f"<b>occluded</b>, by another object ({degrees})",
        f"<b>truncated</b>, by the image's edge ({degrees})",
        "<b>ignore</b>: too small or unclear for anybody to be sure",
    ]
    asked += [
        f"<b>{html.escape(one.name)}</b>: {html.escape(one.asked or ' / '.join(one.answers))}"
        for one in schema.box_questions
    ]
    if schema.tracks:
        asked.append("<b>track</b>: the same number for the same object in every frame")
    return "".join(f"<li>{one}</li>" for one in asked)


def _frame_questions(schema: LabelSchema) -> str:
    if not schema.frame_questions:
        return ""
    rows = "".join(
        f"<li><b>{html.escape(one.name)}</b>: {html.escape(one.asked or ' / '.join(one.answers))}"
        "</li>"
        for one in schema.frame_questions
    )
    return f"<h2>About the whole frame</h2><ul>{rows}</ul>"


def _labels(store: Store, dataset: Ref) -> Iterator[Label]:
    with Path(store.payload(dataset, "labels.jsonl")).open("rb") as file:
        for line in file:
            yield Label.model_validate_json(line)


def _frames(store: Store, dataset: Ref) -> Iterator[Frame]:
    with Path(store.payload(dataset, "frames.jsonl")).open("rb") as file:
        for line in file:
            yield Frame.model_validate_json(line)
