"""The cases from public bug reports that lie beside the repository, where they are available."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from workbench import data
from workbench.core.errors import DataError
from workbench.core.workspace import Workspace

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "cases"


def _case(name: str) -> Path:
    found = sorted(CASES.glob(f"{name}-*"))
    if not found:
        pytest.skip(f"no case {name} in {CASES}")
    return found[0] / "input"


# Case, format, frames, labels, and words of the quarantine.
_READ: list[tuple[str, str, int, int, tuple[str, ...]]] = [
    ("C03", "coco", 1, 1, ("day/0001.png", "annotation 1")),
    ("C04", "coco", 2, 2, ()),
    ("C05", "auto", 3, 3, ()),
    ("C06", "coco", 2, 2, ()),
    ("C07", "coco", 1, 3, ()),
    ("C08", "coco", 1, 2, ()),
    ("C09", "coco", 1, 3, ()),
    ("C13", "coco", 6, 6, ()),
    ("C14", "coco", 2, 2, ()),
    ("C16", "auto", 2, 2, ()),
    ("Y01", "yolo", 1, 2, ("class '1.5' is not a whole number", "f_0001.png")),
    ("Y02", "yolo", 2, 2, ()),
    ("Y03", "yolo", 2, 1, ()),
    ("Y04", "yolo", 2, 3, ()),
    ("Y10", "yolo", 1, 1, ("f_0001.jpg and", "line 1 (pedestrian)")),
    ("Y11", "yolo", 2, 2, ("class 2",)),
    ("Y12", "yolo", 1, 1, ("commas", "decimal comma", "line 6")),
    ("Y13", "yolo", 2, 3, ()),
    ("Y16", "yolo", 1, 1, ()),
    ("V02", "voc", 3, 3, ("unknown text encoding 'unicode'",)),
    ("V06", "voc", 1, 3, ("object 2", "object 3", "object 6")),
    ("V07", "voc", 1, 1, ("object 2", "object 3")),
    ("K01", "auto", 2, 3, ()),
    ("K02", "kitti", 4, 5, ("its score, not a label",)),
    ("I01", "images", 2, 0, ()),
    ("I04", "images", 9, 0, (".gif", ".ppm", ".heic")),
    ("I05", "images", 2, 0, ("0002", "0003", "0004", "0005", "0007", "0008", "0009")),
    ("I07", "images", 40, 0, ()),
    ("I08", "images", 40, 0, ()),
]


@pytest.mark.parametrize(("name", "format_", "frames", "labels", "words"), _READ)
def test_sources_are_read(
    workspace: Workspace,
    name: str,
    format_: str,
    frames: int,
    labels: int,
    words: tuple[str, ...],
) -> None:
    result = data.ingest(workspace, _case(name), name="case", format=format_, workers=1)
    assert (len(result.dataset.frames), len(result.dataset.labels)) == (frames, labels)
    text = "\n".join(f"{entry.file}: {entry.detail}" for entry in result.quarantine)
    assert [word for word in words if word not in text] == []
    assert bool(result.quarantine) == bool(words)


@pytest.mark.parametrize(
    ("name", "format_", "words"),
    [
        ("C02", "coco", r"a/f_0001.*b/f_0001.*annotation 1.*annotation 2"),
        ("V01", "voc", r"0001\.xml.*0002\.png.*object 1 \(car\).*0002\.xml.*pedestrian"),
        ("Y07", "yolo", r"line 1, column 1\d: found unknown escape character"),
        ("I06/export.zip", "auto", "Unpack it first"),
    ],
)
def test_sources_that_cannot_be_read_are_told_why(
    workspace: Workspace, name: str, format_: str, words: str
) -> None:
    case, _, file = name.partition("/")
    with pytest.raises(DataError, match=words):
        data.ingest(workspace, _case(case) / file, name="case", format=format_, workers=1)


def test_drives_and_times_of_the_cases(workspace: Workspace) -> None:
    def read(folder: Path) -> data.IngestResult:
        return data.ingest(workspace, folder, name="case", workers=1)

    windows = read(_case("C14")).dataset
    assert [drive.id for drive in windows.drives] == ["north"]
    for name in ("I07", "I07b"):
        dataset = read(_case(name)).dataset
        times = [frame.timestamp_us or 0 for frame in dataset.frames]
        assert times == sorted(times)
        steps = {later - earlier for earlier, later in itertools.pairwise(times)}
        assert steps == {100_000}
    seconds = read(_case("I08")).dataset
    assert len(seconds.drives) == 1
    linked = read(_case("I02") / "set")
    assert len(linked.dataset.drives) == 2 or "drive_b" in str(linked.quarantine)


def test_blocks_of_time_do_not_share_neighbours(workspace: Workspace) -> None:
    result = data.ingest(workspace, _case("I07b"), name="case", workers=1)
    frames = data.assign_roles(result.dataset, data.RolePolicy(gap_s=1.0)).frames
    pairs = itertools.pairwise(frames)
    assert not [
        pair
        for pair in pairs
        if None not in {f.role for f in pair} and pair[0].role != pair[1].role
    ]
