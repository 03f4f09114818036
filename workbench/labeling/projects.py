"""Label Studio projects for batches: image storage, labeling guide, instructions, schema updates."""

from __future__ import annotations

import base64
import html
import io
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image, UnidentifiedImageError

from workbench.core import digest, workspace
from workbench.core.errors import DataError, ParameterError, ServiceError
from workbench.core.workspace import Workspace
from workbench.data.drawing import draw_box_on_image
from workbench.labeling import label_config, sync
from workbench.labeling.server import TITLE_LENGTH, LabelStudio, Project
from workbench.records.base import Ref, digest_of
from workbench.records.dataset import media_path
from workbench.records.frames import Box, Frame, Label, LabelSchema
from workbench.records.store import Store
from workbench.records.types import DatasetVersion, LabelBatch

MEDIA_URL_VARIABLE = "WORKBENCH_MEDIA_URL"

MEDIA_STORAGES = {"s3": "s3", "gs": "gcs", "azure-blob": "azure"}
"""Scheme of an address to Label Studio's name for that storage."""


def remote_media_url() -> str | None:
    """The folder that frames lie in, if not on this machine.

    Raises:
        ParameterError: Its scheme is none that Label Studio can sign.
    """
    url = os.environ.get(MEDIA_URL_VARIABLE, "").rstrip("/")
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme not in MEDIA_STORAGES or not parts.netloc or parts.query:
        raise ParameterError(
            f"cannot serve frames from {url!r}",
            where=MEDIA_URL_VARIABLE,
            hint=f"Use one of {', '.join(f'{scheme}://BUCKET/FOLDER' for scheme in MEDIA_STORAGES)}",
        )
    return url


def image_address(place: Workspace, frame: Frame) -> str:
    """A frame's image as a task names it.

    Raises:
        DataError: The image is not where it should be.
    """
    base = remote_media_url()
    if base:
        return f"{base}/{frame.id[:2]}/{frame.id}{frame.suffix}"
    path = media_path(place, frame)
    if not path.is_file():
        raise DataError(
            "the image of a frame is missing",
            where=path,
            hint="Ingest the drives again; frames keep their names",
        )
    # Relative to the server, so that it may move to another address.
    return f"/data/local-files/?d={path.relative_to(place.served).as_posix()}"


def attach_images(server: LabelStudio, project: int, place: Workspace) -> None:
    """Let a project show the frames; nothing is copied."""
    base = remote_media_url()
    if base is None:
        server.attach_media(project, place.media.resolve())  # as the server knows it
        return
    parts = urlsplit(base)
    server.attach_bucket(project, MEDIA_STORAGES[parts.scheme], parts.netloc, parts.path.strip("/"))


# ---- A guide page for labelers, made from the schema, with examples cut from labeled frames.


GUIDE_FOLDER = "guides"
"""Below the folder that Label Studio serves, so that a project can link to the page."""

EXAMPLES_PER_CLASS = 3

_MAX_LABELS_READ = 20_000
"""Labels looked through for examples; enough to find some, few enough not to be waited for."""

_EXAMPLE_SIDE_PX = 160
_EXAMPLE_MARGIN = 0.35
_EXAMPLE_MIN_PX = 24.0
_SHAPE_RULES = {
    "box": "Draw the smallest upright box that holds all of the object that can be seen.",
    "turned": "Turn the box where the object lies turned; its sides follow the object's.",
    "polygon": "Outline the object with a polygon where a box would hold much else.",
}
_GUIDE_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "img{height:120px;margin:0 8px 8px 0;border-radius:4px}"
    ".key{display:inline-block;width:.9em;height:.9em;border-radius:2px;margin-right:.5em}"
)

ExampleCrops = Mapping[str, Sequence[bytes]]
"""JPEG examples by class."""


def publish_guide(
    place: Workspace, server: LabelStudio, project: int, dataset: Ref, schema: LabelSchema
) -> str:
    """Put the guide of a schema where a project can link to it; the address to link.

    The page lies beside the frames, below its own digest; nothing is uploaded.

    Args:
        dataset: Whose labeled frames the examples are cut from.
    """
    store = Store(place)
    content = guide_page(schema, example_crops(store, dataset)).encode()
    name = f"{digest.of_bytes(content)[:16]}.html"
    path = place.served / GUIDE_FOLDER / name
    if not path.exists():
        workspace.write_atomic(path, content)
    server.attach_media(project, path.parent)
    return f"/data/local-files/?d={GUIDE_FOLDER}/{name}"


def guide_page(schema: LabelSchema, crops: ExampleCrops) -> str:
    """The guide as one HTML page that needs no other file; equal input gives equal text."""
    colours = label_config.parse_labeling_config(label_config.labeling_config(schema)).colours
    title = f"Labeling guide: {schema.name} version {schema.version}"
    shapes = "".join(f"<li>{_SHAPE_RULES[shape]}</li>" for shape in schema.shapes)
    classes = "".join(
        _class_section(name, colour, schema, crops.get(name, ()))
        for name, colour in zip(schema.classes, colours, strict=True)
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{_GUIDE_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f"<h2>Every frame</h2><ol><li>Box every object of the classes below, also where it is"
        f" partly hidden or cut by the image's edge.</li>{shapes}"
        "<li>Boxes that are drawn in already come from a model. Check each: keep, mend or delete"
        " it. What you submit is yours.</li>"
        "<li>Submit a frame without boxes when there is nothing to box. Skip a frame only when it"
        " cannot be judged.</li>"
        f"<li>Use <b>{label_config.IGNORE_AREA}</b> for areas full of objects that cannot be told apart."
        "</li><li>A line above the image says what has to be mended.</li></ol>"
        f"<h2>About each object</h2><ul>{_object_questions(schema)}</ul>"
        f"{_frame_questions(schema)}<h2>Classes</h2>{classes}</body></html>"
    )


def example_crops(
    store: Store, dataset: Ref, count: int = EXAMPLES_PER_CLASS
) -> dict[str, list[bytes]]:
    """Up to ``count`` clear examples of each class that has labels people vouch for.

    Largest first, unhidden first, of different frames; classes whose images cannot be opened
    here have none.
    """
    if remote_media_url():
        return {}
    found: dict[str, list[Label]] = defaultdict(list)
    for label in islice(_read_labels(store, dataset), _MAX_LABELS_READ):
        clear = not (label.ignore or label.occluded or label.truncated)
        large = min(label.box.w, label.box.h) >= _EXAMPLE_MIN_PX
        if clear and large and label.origin.is_ground_truth:
            found[label.cls].append(label)
    chosen = {cls: _best_examples(labels, count) for cls, labels in found.items()}
    wanted = {label.frame for labels in chosen.values() for label in labels}
    frames = {frame.id: frame for frame in _read_frames(store, dataset) if frame.id in wanted}
    return {
        cls: [
            crop
            for label in labels
            if (crop := _crop_example(store.workspace, frames[label.frame], label.box)) is not None
        ]
        for cls, labels in sorted(chosen.items())
    }


def _best_examples(labels: Sequence[Label], count: int) -> list[Label]:
    ranked = sorted(labels, key=lambda label: (-label.box.w * label.box.h, label.frame))
    by_frame: dict[str, Label] = {}
    for label in ranked:
        by_frame.setdefault(label.frame, label)
    return list(by_frame.values())[:count]


def _crop_example(place: Workspace, frame: Frame, box: Box) -> bytes | None:
    margin = _EXAMPLE_MARGIN * max(box.w, box.h)
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
    drawn = (x1 - view[0], y1 - view[1], x2 - view[0], y2 - view[1])
    draw_box_on_image(cut, drawn, "#ffcc00", width=max(1, round(max(cut.size) / 100)))
    scale = _EXAMPLE_SIDE_PX / max(cut.size)
    cut = cut.resize((max(1, round(cut.width * scale)), max(1, round(cut.height * scale))))
    content = io.BytesIO()
    cut.save(content, "JPEG", quality=85)
    return content.getvalue()


def _class_section(name: str, colour: str, schema: LabelSchema, crops: Sequence[bytes]) -> str:
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


def _object_questions(schema: LabelSchema) -> str:
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


def _read_labels(store: Store, dataset: Ref) -> Iterator[Label]:
    with Path(store.payload(dataset, "labels.jsonl")).open("rb") as file:
        for line in file:
            yield Label.model_validate_json(line)


def _read_frames(store: Store, dataset: Ref) -> Iterator[Frame]:
    with Path(store.payload(dataset, "frames.jsonl")).open("rb") as file:
        for line in file:
            yield Frame.model_validate_json(line)


# ---- The project a batch lives in: found, made, or brought up to a newer schema.


def find_project(
    place: Workspace, server: LabelStudio, batch_ref: Ref, title: str | None = None
) -> Project | None:
    """The project that a batch was sent to: by the ledger, else by its title on the server."""
    entry = sync.read_entry(place, batch_ref)
    if entry and title in (None, entry.title):
        project = server.project(entry.project)
        if project and project.title == entry.title:
            return project
    return server.find_project(
        title or (entry.title if entry else None) or _default_title(place, batch_ref)
    )


def project_title(place: Workspace, batch_ref: Ref, wanted: str | None) -> str:
    """The title asked for, or the batch's own.

    Raises:
        ParameterError: Label Studio would not take it.
    """
    if wanted is None:
        return _default_title(place, batch_ref)
    if not 3 <= len(wanted) <= TITLE_LENGTH:
        raise ParameterError(f"a project's title has 3 to {TITLE_LENGTH} characters", where=wanted)
    return wanted


def create_project(server: LabelStudio, title: str, batch: LabelBatch) -> Project:
    """A project that asks for a batch's schema."""
    schema = batch.label_schema
    description = (
        f"{len(batch.frames)} frames chosen by the workbench, labeled with schema {schema.name}"
        f" version {schema.version}. `workbench label collect` fetches what is submitted."
    )
    try:
        return server.create_project(
            title,
            label_config.labeling_config(schema),
            description=description,
            instruction=_labeler_instruction(batch),
        )
    except ServiceError:
        # Another workbench on the same server may have been quicker.
        existing = server.find_project(title)
        if existing is None:
            raise
        return existing


def link_guide(place: Workspace, server: LabelStudio, project: Project, batch: LabelBatch) -> None:
    """Link the guide page of a batch's schema from its project's instruction, where it can be.

    A server that does not see this machine's files cannot show the page; labelers then have the
    instruction alone, and whoever wants to hand them `workbench label guide`.
    """
    try:
        address = publish_guide(place, server, project.id, batch.dataset, batch.label_schema)
    except ServiceError:
        return
    link = f'<p><a href="{address}" target="_blank">Guide with examples</a></p>'
    server.update_instruction(project.id, _labeler_instruction(batch) + link)


def fit_schema(server: LabelStudio, project: Project, schema: LabelSchema) -> None:
    """Let a project ask for a schema, as long as nothing drawn in it loses its meaning.

    Raises:
        ParameterError: The schema takes something away, and what that is.
    """
    there = label_config.parse_labeling_config(project.config).as_schema()
    older = schema.version <= there.version and not label_config.incompatible_changes(schema, there)
    if older or label_config.same_questions(there, schema):
        return
    lost = label_config.incompatible_changes(there, schema)
    if lost:
        raise ParameterError(
            f"project {project.title!r} asks for classes {', '.join(there.classes)};"
            f" in this batch {'; '.join(lost)}",
            where=project.url,
            hint="Send to another project; `workbench label migrate` brings datasets along",
        )
    server.update_config(project.id, label_config.labeling_config(schema))


def _default_title(place: Workspace, batch_ref: Ref) -> str:
    store = Store(place)
    dataset = store.get(store.get(batch_ref, LabelBatch).dataset, DatasetVersion).name
    name, batch = "workbench: ", f" {digest_of(batch_ref)[:12]}"
    return f"{name}{dataset[: TITLE_LENGTH - len(name) - len(batch)]}{batch}"


def _labeler_instruction(batch: LabelBatch) -> str:
    classes = ", ".join(batch.label_schema.classes)
    if batch.adjudicates:
        start = "Labelers disagreed here; all their boxes are drawn in. Keep what is right. "
    elif batch.model:
        start = "Boxes of the present model are drawn in; check every one. "
    else:
        start = ""
    return (
        f"<p>{start}Draw a tight box around every <b>{classes}</b>, also where"
        " it is partly hidden, and say so below the image. Submit a frame without boxes when"
        " there is nothing to box. Skip a frame that cannot be judged. A line above the image"
        " means that something has to be mended.</p>"
    )
