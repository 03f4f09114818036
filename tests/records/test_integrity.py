"""Attacks on files of a workspace: every one is noticed, and repaired or named."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.data.sources import coco_source, picture
from workbench import data
from workbench.cli import cli
from workbench.core import digest
from workbench.core.errors import DataError, RecordError
from workbench.core.workspace import Workspace
from workbench.data.images import open_media
from workbench.detection.preprocessing import load_frame
from workbench.records import integrity
from workbench.records.base import Ref
from workbench.records.dataset import load_dataset, media_path
from workbench.records.frames import Frame
from workbench.records.repair import check_records
from workbench.records.store import Store
from workbench.records.types import DatasetVersion, Withdrawal


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return coco_source(tmp_path / "source", frames=6)


@pytest.fixture
def ingested(workspace: Workspace, source: Path) -> Ref:
    return data.ingest(workspace, source, name="drives").save(Store(workspace))


def frames_of(workspace: Workspace, ref: Ref) -> tuple[Frame, ...]:
    return load_dataset(Store(workspace), ref).frames


def overwrite(path: Path, content: bytes) -> None:
    """Other bytes of the same size in the same inode, with the times that the file had."""
    status = path.stat()
    padded = content[: status.st_size].ljust(status.st_size, b"\0")
    with path.open("r+b") as stream:
        stream.write(padded)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_another_image_in_place_of_a_frame_is_never_decoded(
    workspace: Workspace, ingested: Ref
) -> None:
    frame = frames_of(workspace, ingested)[2]
    path = media_path(workspace, frame)
    assert load_frame(workspace, frame).shape == (48, 64, 3)
    overwrite(path, picture(99))
    with pytest.raises(DataError, match=f"{frame.id[:12]} is not the one that was ingested"):
        load_frame(workspace, frame)
    path.unlink()
    with pytest.raises(DataError, match="is missing") as error:
        open_media(path, frame.id)
    assert "doctor --records" in str(error.value)
    path.mkdir()
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        open_media(path, frame.id)


def test_a_frame_swapped_with_its_neighbour_is_named(workspace: Workspace, ingested: Ref) -> None:
    frames = frames_of(workspace, ingested)
    one, other = (media_path(workspace, frame) for frame in frames[:2])
    assert not integrity.damaged_media(workspace, frames)
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    assert integrity.damaged_media(workspace, frames) == list(frames[:2])
    with pytest.raises(DataError, match="2 images of 6 missing or not as ingested") as error:
        integrity.check_media(workspace, frames)
    assert all(frame.id[:12] in str(error.value) for frame in frames[:2])


def test_files_are_digested_once_and_again_when_their_status_differs(
    workspace: Workspace, ingested: Ref, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = frames_of(workspace, ingested)
    monkeypatch.setattr(integrity, "_CLOCK_RESOLUTION_NS", 0)
    assert not integrity.damaged_media(workspace, frames)
    read: list[Path] = []
    of_file = integrity.digest.of_file
    monkeypatch.setattr(
        integrity.digest, "of_file", lambda path: read.append(path) or of_file(path)
    )
    integrity._notes_of.cache_clear()  # as another process
    assert not integrity.damaged_media(workspace, frames)
    assert read == []
    changed = media_path(workspace, frames[3])
    overwrite(changed, picture(7))
    assert integrity.damaged_media(workspace, frames) == [frames[3]]
    assert read == [changed]
    assert integrity.damaged_media(workspace, frames) == [frames[3]], "it is not noted as right"


@pytest.mark.parametrize("damage", [b"", b"[]\n", b"\xff\n", b'["a"]\n', b"[" * 100_000 + b"\n"])
def test_damaged_notes_only_cost_a_digest(
    workspace: Workspace, ingested: Ref, damage: bytes
) -> None:
    frames = frames_of(workspace, ingested)
    notes = workspace.index / "verified.jsonl"
    notes.parent.mkdir(parents=True, exist_ok=True)
    notes.write_bytes(damage)
    integrity._notes_of.cache_clear()
    assert not integrity.damaged_media(workspace, frames)


def damage_record(store: Store, ref: Ref, how: str) -> None:
    folder = store.folder(ref)
    record, payload = folder / "record.json", folder / "payload" / "frames.jsonl"
    match how:
        case "empty record":
            record.write_bytes(b"")
        case "no record":
            record.unlink()
        case "record is a folder":
            record.unlink()
            record.mkdir()
        case "flipped payload":
            overwrite(payload, payload.read_bytes().replace(b"a", b"b", 1))
        case "truncated payload":
            payload.write_bytes(payload.read_bytes()[:-3])
        case "no payload":
            shutil.rmtree(payload.parent)
        case "no mark":
            (folder / "COMPLETE").unlink()


DAMAGES = (
    "empty record",
    "no record",
    "flipped payload",
    "truncated payload",
    "no payload",
    "no mark",
)


@pytest.mark.parametrize("how", [*DAMAGES, "record is a folder"])
def test_a_damaged_record_is_refused_in_words(
    workspace: Workspace, ingested: Ref, how: str
) -> None:
    store = Store(workspace)
    damage_record(store, ingested, how)
    with pytest.raises(RecordError) as error:
        load_dataset(store, ingested)
    assert str(store.folder(ingested)) in str(error.value) or ingested in str(error.value)
    assert integrity.damaged_files(store, ingested)


@pytest.mark.parametrize("how", DAMAGES)
def test_writing_a_record_again_repairs_it(
    workspace: Workspace, source: Path, ingested: Ref, how: str
) -> None:
    whole = load_dataset(Store(workspace), ingested)
    damage_record(Store(workspace), ingested, how)
    assert data.ingest(workspace, source, name="drives").save(Store(workspace)) == ingested
    assert load_dataset(Store(workspace), ingested) == whole
    assert integrity.damaged_files(Store(workspace), ingested) == []


def test_ingesting_again_repairs_an_image_of_the_same_size(
    workspace: Workspace, source: Path, ingested: Ref
) -> None:
    frames = frames_of(workspace, ingested)
    for frame in frames[:2]:
        overwrite(media_path(workspace, frame), b"not an image")
    data.ingest(workspace, source, name="drives")
    assert not integrity.damaged_media(workspace, frames, full=True)


def test_a_record_of_another_kind_or_shape_is_refused(workspace: Workspace, ingested: Ref) -> None:
    store = Store(workspace)
    moved = store.root / "withdrawal" / ingested.partition("/")[2]
    shutil.copytree(store.folder(ingested), moved)
    with pytest.raises(RecordError, match="invalid format"):
        store.get(f"withdrawal/{moved.name}", Withdrawal)
    for body in (b"[]", b"1", b'{"payload":1}', b'{"kind":"dataset","payload":{"../x":{}}}'):
        digest = integrity.digest.of_bytes(body)
        folder = store.root / "dataset" / digest
        folder.mkdir()
        (folder / "record.json").write_bytes(body)
        (folder / "COMPLETE").touch()
        with pytest.raises(RecordError, match="invalid format"):
            store.get(f"dataset/{digest}", DatasetVersion)


@pytest.mark.parametrize("content", ["", "[]", "3", '"x"', '{"at"', "null", "\udcff", "[" * 90_000])
def test_side_files_of_another_shape_count_as_missing(
    workspace: Workspace, ingested: Ref, content: str
) -> None:
    store = Store(workspace)
    path = store.folder(ingested) / "side" / "created.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert store.side(ingested, "created") is None
    assert [finding.repaired for finding in check_records(workspace).findings] == [True]
    assert not check_records(workspace).findings


def doctor(workspace: Workspace) -> tuple[int, dict[str, object]]:
    done = CliRunner().invoke(cli, ["doctor", "--records", "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_doctor_restores_images_from_their_source_or_names_them(
    workspace: Workspace, source: Path, ingested: Ref
) -> None:
    assert doctor(workspace) == (0, {"ok": True, "records": 1, "images": 6, "findings": []})
    frames = frames_of(workspace, ingested)
    for frame in frames:
        overwrite(media_path(workspace, frame), picture(99))
    status, report = doctor(workspace)
    assert (status, report["ok"], len(report["findings"])) == (0, True, 6)  # type: ignore[arg-type]
    assert not integrity.damaged_media(workspace, frames, full=True)

    lost = Store(workspace).side(ingested, "sources")[frames[0].id]  # type: ignore[index]
    (source / lost).write_bytes(picture(99))
    media_path(workspace, frames[0]).unlink()
    status, report = doctor(workspace)
    (finding,) = report["findings"]  # type: ignore[misc]
    assert (status, finding["repaired"]) == (1, False)
    assert frames[0].id in finding["where"] and lost in finding["fix"]
    assert not media_path(workspace, frames[0]).exists(), "other bytes are not taken"


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_doctor_calls_nothing_damaged_because_it_cannot_write(
    workspace: Workspace, ingested: Ref, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr("workbench.records.repair.write_atomic", refuse)
    assert check_records(workspace).findings == []
    overwrite(media_path(workspace, frames_of(workspace, ingested)[0]), picture(99))
    (Store(workspace).folder(ingested) / "COMPLETE").unlink()
    for finding in check_records(workspace).findings:
        assert not finding.repaired
        assert finding.fix.startswith("It can be repaired, but ")
        assert "remove" not in finding.fix and "backup" not in finding.fix


def test_a_process_without_free_files_calls_nothing_damaged(
    workspace: Workspace, ingested: Ref, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(digest, "of_file", refuse)
    for check in (check_records, lambda _: integrity.damaged_files(Store(workspace), ingested)):
        with pytest.raises(OSError, match="Too many open files"):
            check(workspace)


def test_doctor_leaves_erased_frames_alone(
    workspace: Workspace, source: Path, ingested: Ref
) -> None:
    store, frame = Store(workspace), frames_of(workspace, ingested)[0]
    store.put(Withdrawal(dataset=ingested, frames=(frame.id,), reason="consent", labels_removed=1))
    media_path(workspace, frame).unlink()
    assert check_records(workspace).findings == []
    assert integrity.damaged_files(store, ingested) == []
    assert not media_path(workspace, frame).exists()


@pytest.mark.parametrize("how", DAMAGES)
def test_doctor_repairs_or_names_records(workspace: Workspace, ingested: Ref, how: str) -> None:
    store = Store(workspace)
    damage_record(store, ingested, how)
    status, report = doctor(workspace)
    assert report["findings"]
    for finding in report["findings"]:  # type: ignore[attr-defined]
        assert finding["where"] == ingested
        assert finding["repaired"] == (how == "no mark") == (status == 0)
        assert finding["repaired"] or str(store.folder(ingested)) in finding["fix"]


def test_doctor_takes_payload_files_from_other_records(workspace: Workspace, ingested: Ref) -> None:
    store = Store(workspace)
    record = store.get(ingested, DatasetVersion).model_copy(update={"name": "twin"})
    names = store.payload_names(ingested)
    twin = store.put(record, {name: store.payload(ingested, name) for name in names})
    damage_record(store, twin, "flipped payload")
    assert [finding.repaired for finding in check_records(workspace).findings] == [True]
    assert load_dataset(Store(workspace), twin).frames == frames_of(workspace, ingested)


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux calls a status change")
def test_a_forged_modification_time_does_not_hide_a_change(
    workspace: Workspace, ingested: Ref, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "_CLOCK_RESOLUTION_NS", 0)
    frame = frames_of(workspace, ingested)[0]
    path = media_path(workspace, frame)
    assert not integrity.damaged_media(workspace, [frame])
    pixels = np.asarray(Image.open(path)).copy()
    overwrite(path, b"\xff" + pixels.tobytes()[1:])
    assert integrity.damaged_media(workspace, [frame]) == [frame]


def test_what_is_not_a_file_is_named_and_never_read(workspace: Workspace, ingested: Ref) -> None:
    """A pipe has no end, nor has a device; a folder cannot be replaced by an image."""
    store, frames = Store(workspace), frames_of(workspace, ingested)
    (store.folder(ingested).parent / ("A" * 64)).mkdir()  # not a digest
    pipe, device, folder = (media_path(workspace, frame) for frame in frames[:3])
    for path in (pipe, device, folder):
        path.unlink()
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    folder.mkdir()
    for path, frame in zip((pipe, device, folder), frames, strict=False):
        with pytest.raises(DataError, match="cannot be read"):
            integrity.read_media(path, frame.id)
    assert integrity.damaged_media(workspace, frames) == list(frames[:3])
    findings = check_records(workspace).findings
    assert [one.repaired for one in findings] == [True, True, False]
    payload = store.folder(ingested) / "payload" / "frames.jsonl"
    payload.unlink()
    os.mkfifo(payload)
    assert integrity.damaged_files(store, ingested)
