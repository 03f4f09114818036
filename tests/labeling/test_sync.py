"""Index, lock, answer cache and exports of sent batches, without a server."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.labeling.conftest import Sample
from workbench.core.errors import RecordError, ServiceError
from workbench.core.workspace import Workspace
from workbench.labeling import server, sync
from workbench.labeling.answers import region_id
from workbench.labeling.batches import BatchContents

BATCH = f"batch/{'b' * 64}"


def test_a_second_command_logs_that_it_waits(
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
        (message,) = caplog.messages
        assert "is in use by another command; waiting" in message
        assert not went_on.is_set()
    waiting.join(5)
    assert went_on.is_set()


def task(number: int, frame: str, *annotations: dict[str, Any]) -> dict[str, Any]:
    data = {"frame": frame, "batch": "b" * 64}
    return {"id": number, "updated_at": "t", "data": data, "annotations": annotations, "drafts": []}


def test_a_damaged_cache_is_replaced(workspace: Workspace) -> None:
    path = workspace.root / "labeling" / f"{'b' * 64}.sqlite"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database at all, but long enough to look like one" * 50)
    with sync.open_cache(workspace, 1, BATCH) as cache:
        assert list(cache.frames()) == [] and cache.collected is None


def test_answers_to_duplicate_tasks_of_a_frame_are_joined(workspace: Workspace) -> None:
    with sync.open_cache(workspace, 1, BATCH) as cache, cache._connection:
        cache._store([task(2, "b", {"id": 5}), task(1, "a"), task(3, "b", {"id": 6})])
        other = task(4, "c")
        other["data"]["batch"] = "another"
        cache._store([other])
        cached = list(cache.frames())
    assert [(one.frame, one.task) for one in cached] == [("a", 1), ("b", 2)]
    assert [annotation["id"] for annotation in cached[1].annotations] == [5, 6]


def test_a_change_invalidates_the_collected_label_set(workspace: Workspace) -> None:
    with sync.open_cache(workspace, 1, BATCH) as cache:
        cache.collected = f"label/{'c' * 64}"
        assert cache.collected == f"label/{'c' * 64}"
        cache._store([task(1, "a")])
        assert cache.collected is None


def test_an_export_is_read_task_by_task(tmp_path: Path) -> None:
    rows = [{"a": [1, {"b": "]},ä"}]}, {}, {"c": 1.5, "d": 2}]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    assert list(server.read_export(path)) == rows
    path.write_text("[]")
    assert list(server.read_export(path)) == []


@pytest.mark.parametrize("text", ["{}", "", '[{"a": 1}', '[{"a": 1}, {"b"'])
def test_an_incomplete_export_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "export.json"
    path.write_text(text)
    with pytest.raises(ServiceError):
        list(server.read_export(path))


def test_a_batch_is_read_frame_by_frame(sample: Sample) -> None:
    contents = BatchContents(sample.store, sample.batch())
    for frame in sample.frames:
        assert contents.frame(frame.id) == frame
        mine = [one for one in sample.predictions if one.frame == frame.id]
        assert contents.predictions(frame.id) == {region_id(one): one for one in mine}
    with pytest.raises(RecordError, match="no frame"):
        contents.frame("f" * 64)
