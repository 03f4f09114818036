"""Images and names as people give them to `workbench predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.sources import write_picture
from workbench import data
from workbench.cli.models import _open_sources
from workbench.core.errors import DataError, ParameterError, RecordError
from workbench.core.workspace import Workspace
from workbench.deployment import session, video
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


def test_turned_images_are_refused_as_ingest_refuses_them(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 6))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "upright.jpg")
    assert "EXIF orientation 6" in session._orientation_note(tmp_path / "turned.jpg")
    sources = session.frames_from_path(tmp_path)
    turned, upright = (image for _, image in session.decode_ahead(sources))
    assert isinstance(turned, DataError) and "save it upright" in str(turned)
    assert not isinstance(upright, DataError) and upright.shape == (6, 8, 3)


@pytest.mark.parametrize("error", [Image.DecompressionBombError, EOFError, KeyError, IndexError])
def test_no_image_file_stops_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    Image.new("1", (20, 20)).save(tmp_path / "bomb.png")
    Image.new("CMYK", (8, 6)).save(tmp_path / "cmyk.jpg")
    (tmp_path / "damaged.jpg").write_bytes(b"")
    opened = Image.open

    def damaged(file: Path, *given: Any) -> Any:  # decoders raise anything on damaged files
        if Path(file).name == "damaged.jpg":
            raise error("what")
        return opened(file, *given)

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(Image, "open", damaged)
    images = [image for _, image in session.decode_ahead(session.frames_from_path(tmp_path))]
    assert ["bomb" in str(images[0]), "what" in str(images[2])] == [True, True]
    assert not isinstance(images[1], DataError) and images[1].shape == (6, 8, 3)


def _write_clip(path: Path, frames: int) -> None:
    """A clip whose frames grow brighter."""
    writer = video.VideoWriter(path, 5)
    for number in range(frames):
        writer.write(Image.new("RGB", (64, 48), (20 * number, 20 * number, 20 * number)))
    writer.close()


def test_frames_of_a_video_come_in_order_between_images(tmp_path: Path) -> None:
    _write_clip(tmp_path / "clip.avi", 10)
    write_picture(tmp_path / "b.png", 1)
    sources = session.frames_from_path(tmp_path)
    assert [one.file for one in sources][:2] == ["b.png", "clip.avi/000000"]
    assert [one.position for one in sources] == [None, *range(10)]
    assert {one.sequence for one in sources} == {".", "clip.avi"}
    images = [image for source, image in session.decode_ahead(sources[1:])]
    assert all(not isinstance(one, DataError) and one.shape == (48, 64, 3) for one in images)
    means = [float(np.mean(one)) for one in images if not isinstance(one, DataError)]
    assert means == sorted(means) and means[-1] > 150
    # A session that continues starts in the middle.
    ((_, late),) = session.decode_ahead(sources[8:9])
    assert float(np.mean(late)) == pytest.approx(means[7], abs=1)  # type: ignore[arg-type]
    assert video.frames_per_second(tmp_path / "clip.avi") == 5


def test_answers_become_a_video(tmp_path: Path) -> None:
    _write_clip(tmp_path / "clip.avi", 4)
    sources = session.frames_from_path(tmp_path / "clip.avi")
    film = session.AnswerVideo(tmp_path / "out" / "seen.webm", sources, ("car",))
    for source, image in session.decode_ahead(sources):
        assert not isinstance(image, DataError)
        film(image, _answer(source.file))
    film(np.zeros((30, 90, 3), np.uint8), _answer("another size"))
    film.close()
    assert video.count_frames(tmp_path / "out" / "seen.webm") == 5
    with pytest.raises(ParameterError, match="cannot write a video"):
        session.AnswerVideo(tmp_path / "seen.gif", sources)
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    with pytest.raises(ParameterError, match="no frame of the video"):
        session.frames_from_path(tmp_path / "broken.mp4")


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
    with pytest.raises(ParameterError, match="no such image, video, folder or dataset"):
        _open_sources(workspace, "away/a.png")
    with pytest.raises(RecordError, match="unknown dataset name"):
        _open_sources(workspace, "nightdrive")
