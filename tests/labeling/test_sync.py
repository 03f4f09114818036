"""The ledger's lock: one command at a time, and the other says that it waits."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.labeling.conftest import Sample
from workbench.core import digest
from workbench.core.errors import RecordError, ServiceError
from workbench.core.workspace import Workspace
from workbench.labeling import server, sync
from workbench.labeling.answers import region_id
from workbench.labeling.batches import BatchContents, _digest_keys, _RowIndex


def test_who_has_to_wait_is_told_at_once_and_then_goes_on(
    sample: Sample, caplog: pytest.LogCaptureFixture
) -> None:
    batch = sample.batch()
    went_on = threading.Event()

    def second() -> None:
        with sync.batch_lock(sample.workspace, batch):
            went_on.set()

    with sync.batch_lock(sample.workspace, batch):
        assert not caplog.messages
        waiting = threading.Thread(target=second)
        waiting.start()
        deadline = time.monotonic() + 5
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        (told,) = caplog.messages
        assert "another command is at work on batch/" in told and "waiting" in told
        assert not went_on.is_set()
    waiting.join(5)
    assert went_on.is_set()


# ---- The cache of what a server holds, and the stream it is filled from, without a server.


BATCH = f"batch/{'b' * 64}"


def task(number: int, frame: str, *annotations: dict[str, Any]) -> dict[str, Any]:
    data = {"frame": frame, "batch": "b" * 64}
    return {"id": number, "updated_at": "t", "data": data, "annotations": annotations, "drafts": []}


def test_a_damaged_mirror_is_begun_anew(workspace: Workspace) -> None:
    path = sync.cache_path(workspace, BATCH)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database at all, but long enough to look like one" * 50)
    with sync.open_cache(workspace, 1, BATCH) as kept:
        assert list(kept.frames()) == [] and kept.collected is None


def test_answers_to_doubled_tasks_of_a_frame_are_all_kept(workspace: Workspace) -> None:
    with sync.open_cache(workspace, 1, BATCH) as kept, kept._link:
        kept._keep([task(2, "b", {"id": 5}), task(1, "a"), task(3, "b", {"id": 6})])
        other = task(4, "c")
        other["data"]["batch"] = "another"
        kept._keep([other])
        held = list(kept.frames())
    assert [(one.frame, one.task) for one in held] == [("a", 1), ("b", 2)]
    assert [annotation["id"] for annotation in held[1].annotations] == [5, 6]


def test_what_was_collected_is_forgotten_when_something_changes(workspace: Workspace) -> None:
    with sync.open_cache(workspace, 1, BATCH) as kept:
        kept.collected = f"label/{'c' * 64}"
        assert kept.collected == f"label/{'c' * 64}"
        kept._keep([task(1, "a")])
        assert kept.collected is None


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_a_long_array_comes_object_by_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(server, "_READ_BYTES", chunk)
    rows = [{"a": [1, {"b": "]},ä"}]}, {}, {"c": 1.5}]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    assert list(server.read_json_array(path)) == rows
    path.write_text("[]")
    assert list(server.read_json_array(path)) == []


@pytest.mark.parametrize("text", ["{}", "", '[{"a": 1}', '[{"a": 1}, {"b"'])
def test_an_export_that_broke_off_is_no_short_export(tmp_path: Path, text: str) -> None:
    path = tmp_path / "export.json"
    path.write_text(text)
    with pytest.raises(ServiceError):
        list(server.read_json_array(path))


def test_a_batch_is_read_frame_by_frame(sample: Sample) -> None:
    contents = BatchContents(sample.store, sample.batch())
    for frame in sample.frames:
        assert contents.frame(frame.id) == frame
        mine = [one for one in sample.predictions if one.frame == frame.id]
        assert contents.started_by_name(frame.id) == {region_id(one): one for one in mine}
    with pytest.raises(RecordError, match="no frame"):
        contents.frame("f" * 64)


def test_an_array_inside_an_object_is_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    rows = [{"frame": "ä", "reasons": ["a ] and a } of its own"]}, {"frame": "b"}]
    path.write_bytes(digest.canonical_json({"budget": 2, "chosen": rows, "dataset": [{}]}))
    assert list(server.read_json_array(path, "chosen")) == rows


def test_every_frame_is_found_by_any_name(tmp_path: Path) -> None:
    """Names that end in zero bytes too, which numpy would cut."""
    names = [f"{n:02x}" + "0" * 62 for n in range(1, 9)]
    names += ["ab" * 32, "0" * 30 + "01" + "0" * 32, "0" * 64]
    path = tmp_path / "rows.jsonl"
    lines = [f'{{"frame":"{name}","n":{n}}}\n' for name in names for n in range(2)]
    path.write_text("".join(lines))
    rows = _RowIndex(path.open("rb"), b"frame", np.sort(_digest_keys(names)))
    for name in names:
        assert rows.of(name) == [line.strip().encode() for line in lines if name in line]
    assert rows.of("f" * 64) == []
