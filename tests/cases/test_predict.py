"""Images and names as people give them to `workbench predict`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.sources import write_picture
from workbench import data
from workbench.cli.models import _open_sources
from workbench.core.errors import ParameterError, RecordError
from workbench.core.workspace import Workspace
from workbench.deployment import session
from workbench.deployment.runtime import Answer, AnswerStatus
from workbench.records import references
from workbench.records.store import Store


def _answer(file: str) -> Answer:
    return Answer(file=file, sequence="", status=AnswerStatus.OK, boxes=(), by="model")


def test_files_that_differ_in_their_suffixes_are_drawn_apart(tmp_path: Path) -> None:
    files = ["a.png", "a.jpg", "b.png", "x.y/000001", "../../c/000002"]
    draw = session.AnswerDrawer(tmp_path / "seen", files=files)
    for file in files:
        draw(np.zeros((8, 8, 3), np.uint8), _answer(file))
    drawn = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg")]
    assert sorted(drawn) == [
        "seen/a.jpg.jpg",
        "seen/a.png.jpg",
        "seen/b.jpg",
        "seen/c/000002.jpg",
        "seen/x.y/000001.jpg",
    ]


def test_turned_images_are_told(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 6))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "upright.jpg")
    assert "EXIF orientation 6" in session._orientation_note(tmp_path / "turned.jpg")
    assert not session._orientation_note(tmp_path / "upright.jpg")


@pytest.mark.parametrize("name", ["10²5.png", "٣.png", "½ x.png", "a\u00a01.png"])
def test_any_name_is_answered(tmp_path: Path, name: str) -> None:
    write_picture(tmp_path / name, 1)
    write_picture(tmp_path / "._hidden.png", 2)
    assert [source.file for source in session.frames_from_path(tmp_path)] == [name]


def test_datasets_and_drives_of_any_name_are_found(workspace: Workspace, tmp_path: Path) -> None:
    for seed, folder in enumerate(("north/route 7", "south")):
        write_picture(tmp_path / "source" / folder / "f_0001.png", seed)
    for name in ("nightdrives", "night.drives"):
        store = Store(workspace)
        ref = data.ingest(workspace, tmp_path / "source", name=name).save(store)
        references.register_dataset(workspace, ref)
    (one,) = _open_sources(workspace, "nightdrives@1:north/route 7/f")
    assert one.file == "north/route 7/f/000001"
    assert len(_open_sources(workspace, "night.drives@1")) == 2
    assert len(_open_sources(workspace, f"sha256:{ref.rpartition('/')[2]}:south/f")) == 1
    with pytest.raises(ParameterError, match="no such image, folder or dataset"):
        _open_sources(workspace, "away/a.png")
    with pytest.raises(RecordError, match="unknown dataset name"):
        _open_sources(workspace, "nightdrive")
