"""A frame with its answer drawn on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from workbench.deployment.answers import Answer, Status
from workbench.perception.preprocessing import Pixels

_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
_LEAST = 0.25


class Drawer:
    """Writes ``FOLDER/FILE.jpg`` for each answer; boxes of the rule are drawn thin.

    Args:
        score: Boxes below are not drawn: they are answers too, but hide the picture.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...], *, score: float = _LEAST) -> None:
        self._folder, self._score = folder, score
        self._colour = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(classes)}

    def __call__(self, image: Pixels, answer: Answer) -> None:
        picture = Image.fromarray(np.ascontiguousarray(image))
        pen = ImageDraw.Draw(picture)
        ours = answer.status is Status.OK
        for box in answer.boxes:
            if box.score >= self._score:
                colour = self._colour[box.cls]
                pen.rectangle(box.xyxy, outline=colour, width=2 if ours else 1)
                pen.text(
                    (box.xyxy[0] + 2, box.xyxy[1] + 1), f"{box.cls} {box.score:.2f}", fill=colour
                )
        if not ours:
            pen.text((4, 4), f"{answer.status}: {answer.by}, {answer.age} frames old", fill="red")
        path = self._folder / f"{Path(answer.file).with_suffix('')}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)
