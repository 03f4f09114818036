from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from workbench.core import digest
from workbench.widgets.frames import DrawnBox, ShownFrame

TRUTH = (10.0, 10.0, 40.0, 30.0)


def drawn_frames(folder: Path, count: int = 20) -> list[ShownFrame]:
    """Frames of three drives with one label each, and two models' boxes.

    The first model finds every label, the second those of even frames; frame 7 is a cyclist.
    """
    made = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.new("RGB", (120, 80), (number * 10 % 256, 40, 40)).save(path)
        cls = "cyclist" if number == 7 else "car"
        boxes = [
            DrawnBox(cls, TRUTH, origin="human" if number < 4 else "imported", occluded=0.4),
            DrawnBox(cls, (11, 10, 41, 30), 0.7, model="first"),
            DrawnBox(cls, (11, 10, 41, 30), 0.6 if number % 2 == 0 else 0.1, model="second"),
        ]
        if number == 3:
            boxes.append(DrawnBox("car", (80, 50, 100, 70), 0.9, model="first"))
        made.append(
            ShownFrame(
                frame=digest.of_file(path),
                image=path,
                drive=f"d{number % 3}",
                light="night" if number % 2 else "day",
                weather="clear",
                arm="random" if number >= 18 else "mined",
                rank=number + 1,
                reasons=(f"reason <{number}>",),
                boxes=tuple(boxes),
                role="pool",
                index=number // 3,
                seconds=float(number // 3) + (5 if number > 10 else 0),
                size=(120, 80),
                slices=("light=night",) if number % 2 else ("light=day",),
            )
        )
    return made


@pytest.fixture
def frames(tmp_path: Path) -> list[ShownFrame]:
    return drawn_frames(tmp_path)
