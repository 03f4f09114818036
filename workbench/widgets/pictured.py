"""A frame with everything a browser shows of it, and the picture with its boxes drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from workbench.records.dataset import Dataset, media_path
from workbench.records.types import Prediction, Selection
from workbench.workspace import Workspace

_COLOURS = (
    "#e6443c", "#3cb44b", "#ffc928", "#4f83ff", "#f58231",
    "#c35bff", "#42d4f4", "#f032e6", "#bfef45", "#ffd8b1",
)  # fmt: skip


@dataclass(frozen=True)
class DrawnBox:
    """A box in pixels of the frame; ``score`` is None for a label."""

    cls: str
    xyxy: tuple[float, float, float, float]
    score: float | None = None


@dataclass(frozen=True)
class PicturedFrame:
    """One frame as shown: where its image lies, what it is, why it was chosen."""

    frame: str
    image: Path
    drive: str
    light: str
    weather: str
    arm: str = ""
    rank: int = 0
    reasons: tuple[str, ...] = ()
    boxes: tuple[DrawnBox, ...] = ()

    @property
    def classes(self) -> frozenset[str]:
        return frozenset(box.cls for box in self.boxes)


def pictured(
    place: Workspace,
    dataset: Dataset,
    selection: Selection,
    predictions: Sequence[Prediction] = (),
) -> list[PicturedFrame]:
    """The chosen frames in order of rank, with the model's boxes, or labels where it has none."""
    frames = {frame.id: frame for frame in dataset.frames}
    found: dict[str, list[DrawnBox]] = {}
    for one in predictions:
        found.setdefault(one.frame, []).append(DrawnBox(one.cls, one.box.xyxy, one.score))
    shown = []
    for choice in selection.chosen:
        if choice.frame not in frames:
            continue
        frame = frames[choice.frame]
        labels = [DrawnBox(one.cls, one.box.xyxy) for one in dataset.labels_by_frame[frame.id]]
        shown.append(
            PicturedFrame(
                frame=frame.id,
                image=media_path(place, frame),
                drive=frame.drive,
                light=str(frame.conditions.light),
                weather=str(frame.conditions.weather),
                arm=choice.arm,
                rank=choice.rank,
                reasons=choice.reasons,
                boxes=tuple(found.get(frame.id, labels)),
            )
        )
    return shown


def draw(shown: PicturedFrame, width: int) -> bytes:
    """PNG bytes, ``width`` pixels wide, boxes drawn; a grey card where the image is unreadable."""
    try:
        with Image.open(shown.image) as source:
            image = source.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return _png(_missing(width))
    scale = width / image.width
    image = image.resize((width, max(1, round(image.height * scale))), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(9, width // 50))
    for box in shown.boxes:
        colour = _colour(box.cls)
        x1, y1, x2, y2 = (value * scale for value in box.xyxy)
        pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=1 + width // 400)
        if width >= 400:
            text = box.cls if box.score is None else f"{box.cls} {box.score:.2f}"
            left, top, right, bottom = pen.textbbox((x1, max(0, y1 - width // 40)), text, font)
            pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=colour)
            pen.text((x1, max(0, y1 - width // 40)), text, fill="black", font=font)
    return _png(image)


def _colour(cls: str) -> str:
    return _COLOURS[sum(cls.encode()) % len(_COLOURS)]


def _missing(width: int) -> Image.Image:
    image = Image.new("RGB", (width, width * 9 // 16), "#555555")
    ImageDraw.Draw(image).text((8, 8), "image cannot be read", fill="white")
    return image


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
