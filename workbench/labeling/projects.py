"""Label Studio projects for batches: image storage, labeling guide, instructions, schema."""

from __future__ import annotations

import base64
import html
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel

from workbench.core import digest
from workbench.core.errors import DataError, ParameterError, ServiceError
from workbench.core.names import check_text
from workbench.core.text import counted
from workbench.core.workspace import Workspace, write_atomic
from workbench.data.drawing import class_colours, draw_box_on_image
from workbench.data.images import open_media
from workbench.data.slices import describe_conditions
from workbench.labeling import label_config, sync
from workbench.labeling.review import REVIEW_METHOD
from workbench.labeling.server import MAX_TITLE_LENGTH, LabelStudio, Project
from workbench.records.base import Ref, digest_of
from workbench.records.dataset import load_dataset, media_path
from workbench.records.frames import Box, Frame, Label, LabelSchema
from workbench.records.integrity import read_media
from workbench.records.store import Store
from workbench.records.types import DatasetVersion, LabelBatch, Selection

__all__ = ()

MEDIA_URL_VARIABLE = "WORKBENCH_MEDIA_URL"

MEDIA_STORAGES = {"s3": "s3", "gs": "gcs", "azure-blob": "azure"}
"""URL scheme to Label Studio's name of that storage."""

_USUAL_SHARE = 0.8
"""Share of a batch's frames from which on a condition stands in the project's title."""

_GUIDE_FOLDER = "guides"
"""Below the folder that Label Studio serves, so that a project can link to the page."""

_MAX_LABELS_READ = 20_000
"""Labels searched for examples."""

_EXAMPLE_SIDE_PX = 160
_EXAMPLE_MARGIN = 0.35
_EXAMPLE_MIN_PX = 24.0
_SHAPE_RULES = {
    "box": "Draw the smallest upright box around the visible part of the object.",
    "turned": "Rotate the box where the object is rotated, so that their sides are parallel.",
    "polygon": "Outline the object with a polygon where a box would contain much background.",
}
_GUIDE_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "img{height:120px;margin:0 8px 8px 0;border-radius:4px}"
    ".key{display:inline-block;width:.9em;height:.9em;border-radius:2px;margin-right:.5em}"
)

_Model = TypeVar("_Model", bound=BaseModel)


# Projects


def find_project(
    workspace: Workspace, server: LabelStudio, batch_ref: Ref, title: str | None = None
) -> Project | None:
    """The project a batch was sent to: by the index of sent batches, else by its title."""
    entry = sync.read_entry(workspace, batch_ref)
    if entry and title in (None, entry.title):
        project = server.project(entry.project)
        if project and project.title == entry.title:
            return project
        title = entry.title
    usual = _default_title(workspace, batch_ref)
    found = server.find_project(title or usual)
    if found is None and title in (None, usual):
        found = server.find_project(_earlier_title(workspace, batch_ref))
    return found


def project_title(workspace: Workspace, batch_ref: Ref, requested: str | None) -> str:
    """The requested title, by default one made from purpose, dataset, conditions and day.

    Raises:
        ParameterError: It is not one line of text, or Label Studio refuses its length.
    """
    if requested is None:
        return _default_title(workspace, batch_ref)
    check_text(requested, "project title", max_bytes=4 * MAX_TITLE_LENGTH)
    if not 3 <= len(requested) <= MAX_TITLE_LENGTH:
        raise ParameterError(
            f"project title has {len(requested)} characters, must have 3 to {MAX_TITLE_LENGTH}",
            where=requested,
        )
    return requested


def create_project(server: LabelStudio, title: str, batch: LabelBatch) -> Project:
    """Create the project for a batch and its label schema."""
    schema = batch.label_schema
    description = (
        f"{counted(len(batch.frames), 'frame')} selected by the workbench, labeled with schema"
        f" {schema.name} version {schema.version}."
        " `workbench label collect` fetches submitted labels."
    )
    try:
        return server.create_project(
            title,
            label_config.labeling_config(schema),
            description=description,
            instruction=_labeler_instruction(batch),
        )
    except ServiceError:
        # Another workbench on the same server may have created it in the meantime.
        existing = server.find_project(title)
        if existing is None:
            raise
        return existing


def fit_schema(server: LabelStudio, project: Project, schema: LabelSchema) -> None:
    """Update a project's labeling configuration for a schema, if existing labels stay valid.

    Raises:
        ParameterError: The schema removes something that the project has.
    """
    current = label_config.parse_labeling_config(project.config)
    older = schema.version <= current.version and not label_config.incompatible_changes(
        schema, current
    )
    if older or label_config.same_questions(current, schema):
        return
    changes = label_config.incompatible_changes(current, schema)
    if changes:
        raise ParameterError(
            f"project {project.title!r} has classes {', '.join(current.classes)};"
            f" in this batch {'; '.join(changes)}",
            where=project.url,
            hint="Send to another project; `workbench label migrate` migrates datasets",
        )
    server.update_config(project.id, label_config.labeling_config(schema))


def _default_title(workspace: Workspace, batch_ref: Ref) -> str:
    """Such as ``Label bdd, night · 2026-11-30 · 1a2b3c4d``; the digits tell batches apart."""
    store = Store(workspace)
    batch = store.get(batch_ref, LabelBatch)
    dataset = store.get(batch.dataset, DatasetVersion).name
    day = store.side(batch_ref, "created")["at"][:10]
    end = f" · {day} · {digest_of(batch_ref)[:8]}"
    condition = _usual_condition(store, batch)
    middle = f", {condition}" if condition else ""
    start = f"{_purpose(store, batch)} "
    room = MAX_TITLE_LENGTH - len(start) - len(end)
    if len(dataset) + len(middle) > room:
        middle = ""
    return f"{start}{dataset[:room]}{middle}{end}"


def _purpose(store: Store, batch: LabelBatch) -> str:
    if batch.adjudicates:
        return "Decide"
    method = store.get(batch.selection, Selection).method
    return "Review" if method == REVIEW_METHOD else "Label"


def _usual_condition(store: Store, batch: LabelBatch) -> str:
    """Light and weather of nearly all frames; empty where they differ or are unknown."""
    chosen = set(batch.frames)
    frames = load_dataset(store, batch.dataset).where(lambda frame: frame.id in chosen).frames
    counts = Counter(describe_conditions(frame, "") for frame in frames)
    condition, count = counts.most_common(1)[0]
    return condition if count >= _USUAL_SHARE * len(frames) else ""


def _earlier_title(workspace: Workspace, batch_ref: Ref) -> str:
    """As projects were named before; batches that were sent then are found by it."""
    store = Store(workspace)
    dataset = store.get(store.get(batch_ref, LabelBatch).dataset, DatasetVersion).name
    prefix, suffix = "workbench: ", f" {digest_of(batch_ref)[:12]}"
    return f"{prefix}{dataset[: MAX_TITLE_LENGTH - len(prefix) - len(suffix)]}{suffix}"


def _labeler_instruction(batch: LabelBatch) -> str:
    classes = html.escape(", ".join(batch.label_schema.classes))
    if batch.adjudicates:
        start = "Labelers disagreed here; all their boxes are shown. Keep the correct ones. "
    elif batch.model:
        start = "Boxes of the current model are shown; check every one. "
    else:
        start = ""
    return (
        f"<p>{start}Draw a tight box around every <b>{classes}</b>, also where"
        " it is partly hidden, and say so beside the image. Submit a frame without boxes when"
        " there is nothing to box. Skip only a frame that cannot be judged: it gets no labels from"
        " you. A line above the image names what has to be corrected.</p>"
    )


# Image storage: tasks name a canonical address, never a signed one. Images on this machine are
# served from their folder. With WORKBENCH_MEDIA_URL set, Label Studio signs the object's URL with
# its own credentials when a labeler opens the task, so no export contains a signature.


_NOT_SHOWN_BY_BROWSERS = frozenset({".tif", ".tiff"})


def remote_media_url() -> str | None:
    """Remote folder of the images (``s3://``, ``gs://`` or ``azure-blob://``), None if local.

    Raises:
        ParameterError: Label Studio cannot sign URLs of this scheme.
    """
    url = os.environ.get(MEDIA_URL_VARIABLE, "").rstrip("/")
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme not in MEDIA_STORAGES or not parts.netloc or parts.query:
        examples = ", ".join(f"{scheme}://BUCKET/FOLDER" for scheme in MEDIA_STORAGES)
        raise ParameterError(
            f"cannot serve images from {url!r}",
            where=MEDIA_URL_VARIABLE,
            hint=f"Use one of {examples}",
        )
    return url


def image_address(workspace: Workspace, frame: Frame) -> str:
    """Address of a frame's image in a task.

    Raises:
        DataError: The image is missing, or is not the one that was ingested.
    """
    base = remote_media_url()
    if base and frame.suffix in _NOT_SHOWN_BY_BROWSERS:
        raise DataError(
            f"browsers cannot show the {frame.suffix} image of a frame",
            where=f"{frame.drive} #{frame.index}",
            hint="Save the images as PNG and ingest again, or label with images on this machine",
        )
    if base:
        return f"{base}/{frame.id[:2]}/{frame.id}{frame.suffix}"
    path = media_path(workspace, frame)
    read_media(path, frame.id)  # labels of other pixels would be wrong for ever
    if frame.suffix in _NOT_SHOWN_BY_BROWSERS:
        path = _png_of(path, frame)
    # Relative to the server, so that the server may move to another address.
    return f"/data/local-files/?d={path.relative_to(workspace.served).as_posix()}"


def _png_of(path: Path, frame: Frame) -> Path:
    """A PNG of the same pixels beside an image; one that differs is written again."""
    png, content = path.with_suffix(".view.png"), io.BytesIO()
    open_media(path, frame.id).save(content, "PNG")
    if not png.is_file() or png.read_bytes() != content.getvalue():
        write_atomic(png, content.getvalue())
    return png


def attach_images(server: LabelStudio, project_id: int, workspace: Workspace) -> None:
    """Let a project show the workspace's images; nothing is copied."""
    base = remote_media_url()
    if base is None:
        server.attach_folder(project_id, workspace.media.resolve())  # as the server sees it
        return
    parts = urlsplit(base)
    server.attach_bucket(
        project_id, MEDIA_STORAGES[parts.scheme], parts.netloc, parts.path.strip("/")
    )


# The guide: an HTML page for labelers, with examples cut from labeled frames.


def link_guide(
    workspace: Workspace, server: LabelStudio, project: Project, batch: LabelBatch
) -> None:
    """Link the guide page of a batch's schema from its project's instruction, if possible.

    The page is stored beside the images under its own digest. A server that does not see this
    machine's files cannot show it; then there is no link, and `workbench label guide` writes the
    page for other channels.
    """
    store, schema = Store(workspace), batch.label_schema
    content = guide_page(schema, example_crops(store, batch.dataset)).encode()
    name = f"{digest.of_bytes(content)[:16]}.html"
    path = workspace.served / _GUIDE_FOLDER / name
    if not path.exists():
        write_atomic(path, content)
    try:
        server.attach_folder(project.id, path.parent)
    except ServiceError:
        return
    address = f"/data/local-files/?d={_GUIDE_FOLDER}/{name}"
    link = f'<p><a href="{address}" target="_blank">Guide with examples</a></p>'
    server.update_instruction(project.id, _labeler_instruction(batch) + link)


def guide_page(schema: LabelSchema, crops: Mapping[str, Sequence[bytes]]) -> str:
    """Labeling guide as one self-contained HTML page; equal input gives equal text.

    Args:
        crops: JPEG examples by class.
    """
    title = html.escape(f"Labeling guide: {schema.name} version {schema.version}")
    shapes = "".join(f"<li>{_SHAPE_RULES[shape]}</li>" for shape in schema.shapes)
    classes = "".join(
        _class_section(name, colour, schema, crops.get(name, ()))
        for name, colour in class_colours(schema.classes).items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_GUIDE_STYLE}</style></head><body><h1>{title}</h1>"
        f"<h2>Every frame</h2><ol><li>Box every object of the classes below, also where it is"
        f" partly hidden or cut off by the image's edge.</li>{shapes}"
        "<li>Boxes that are already there come from a model. Check each one: keep, correct or"
        " delete it. You are responsible for what you submit.</li>"
        "<li>Submit a frame without boxes when there is nothing to box. Skip a frame only when it"
        " cannot be judged.</li>"
        f"<li>Use <b>{label_config.IGNORE_AREA}</b> for areas full of objects that cannot be told"
        " apart.</li><li>A line above the image names what has to be corrected.</li></ol>"
        f"<h2>About each object</h2><ul>{_object_questions(schema)}</ul>"
        f"{_frame_questions(schema)}<h2>Classes</h2>{classes}</body></html>"
    )


def example_crops(store: Store, dataset: Ref, count: int = 3) -> dict[str, list[bytes]]:
    """Examples of each class for the guide, cropped from frames with ground-truth labels.

    Args:
        count: Most examples of a class; each from another frame, large objects first.

    Returns:
        JPEG crops by class; empty for classes whose images cannot be read here.
    """
    if remote_media_url():
        return {}
    by_class: dict[str, list[Label]] = defaultdict(list)
    for label in islice(_read_rows(store, dataset, "labels.jsonl", Label), _MAX_LABELS_READ):
        clear = not (label.ignore or label.occluded or label.truncated)
        large = min(label.box.w, label.box.h) >= _EXAMPLE_MIN_PX
        if clear and large and label.origin.is_ground_truth:
            by_class[label.cls].append(label)
    chosen = {cls: _largest(labels, count) for cls, labels in by_class.items()}
    wanted = {label.frame for labels in chosen.values() for label in labels}
    rows = _read_rows(store, dataset, "frames.jsonl", Frame)
    frames = {frame.id: frame for frame in rows if frame.id in wanted}
    return {
        cls: [
            crop
            for label in labels
            if (crop := _crop_example(store.workspace, frames[label.frame], label.box)) is not None
        ]
        for cls, labels in sorted(chosen.items())
    }


def _largest(labels: Sequence[Label], count: int) -> list[Label]:
    ranked = sorted(labels, key=lambda label: (-label.box.w * label.box.h, label.frame))
    by_frame: dict[str, Label] = {}
    for label in ranked:
        by_frame.setdefault(label.frame, label)
    return list(by_frame.values())[:count]


def _crop_example(workspace: Workspace, frame: Frame, box: Box) -> bytes | None:
    margin = _EXAMPLE_MARGIN * max(box.w, box.h)
    x1, y1, x2, y2 = box.xyxy
    view = (
        max(0, round(x1 - margin)),
        max(0, round(y1 - margin)),
        min(frame.width, round(x2 + margin)),
        min(frame.height, round(y2 + margin)),
    )
    try:
        crop = open_media(media_path(workspace, frame), frame.id).crop(view)
    except DataError:
        return None
    outline = (x1 - view[0], y1 - view[1], x2 - view[0], y2 - view[1])
    draw_box_on_image(crop, outline, "#ffcc00", width=max(1, round(max(crop.size) / 100)))
    scale = _EXAMPLE_SIDE_PX / max(crop.size)
    crop = crop.resize((max(1, round(crop.width * scale)), max(1, round(crop.height * scale))))
    content = io.BytesIO()
    crop.save(content, "JPEG", quality=85)
    return content.getvalue()


def _class_section(name: str, colour: str, schema: LabelSchema, crops: Sequence[bytes]) -> str:
    aliases = sorted(source for source, target in schema.mapping.items() if target == name)
    definition = html.escape(schema.definitions.get(name, ""))
    includes = f" Includes: {html.escape(', '.join(aliases))}." if aliases else ""
    vulnerable = " Vulnerable road user: look twice." if name in schema.vulnerable else ""
    images = "".join(
        f'<img alt="example of {html.escape(name)}" src="data:image/jpeg;base64,'
        f'{base64.b64encode(crop).decode()}">'
        for crop in crops
    )
    key = f'<span class="key" style="background:{colour}"></span>'
    return f"<h3>{key}{html.escape(name)}</h3><p>{definition}{includes}{vulnerable}</p>{images}"


def _object_questions(schema: LabelSchema) -> str:
    degrees = "no: fully visible; partly: up to half is missing; mostly: more than half is missing"
    questions = [
        f"<b>occluded</b>, by another object ({degrees})",
        f"<b>truncated</b>, by the image's edge ({degrees})",
        "<b>ignore</b>: too small or unclear for anybody to be sure",
    ]
    questions += [
        f"<b>{html.escape(one.name)}</b>: {html.escape(one.asked or ' / '.join(one.answers))}"
        for one in schema.box_questions
    ]
    if schema.tracks:
        questions.append("<b>track</b>: the same number for the same object in every frame")
    return "".join(f"<li>{question}</li>" for question in questions)


def _frame_questions(schema: LabelSchema) -> str:
    if not schema.frame_questions:
        return ""
    rows = "".join(
        f"<li><b>{html.escape(one.name)}</b>: {html.escape(one.asked or ' / '.join(one.answers))}"
        "</li>"
        for one in schema.frame_questions
    )
    return f"<h2>About the whole frame</h2><ul>{rows}</ul>"


def _read_rows(store: Store, dataset: Ref, name: str, model: type[_Model]) -> Iterator[_Model]:
    """Rows of a payload file, one at a time."""
    with Path(store.payload(dataset, name)).open("rb") as file:
        for line in file:
            yield model.model_validate_json(line)
