"""Records at a URL: sent once, fetched completely, rejected if modified or incomplete."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from workbench.core.errors import ParameterError, RecordError, ServiceError
from workbench.core.workspace import Workspace
from workbench.pipeline.executors.artifacts import ArtifactStore
from workbench.records import dataset as datasets
from workbench.records.base import Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Drive, Frame, LabelSchema
from workbench.records.store import Store
from workbench.records.types import Selection


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/shared/artifacts"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "shared" / "artifacts"


@pytest.fixture
def worker(tmp_path: Path) -> Store:
    return Store(Workspace(tmp_path / "worker"))


def images(workspace: Workspace, count: int = 3) -> tuple[Frame, ...]:
    """Frames whose images, any bytes, are in the media folder."""
    frames = []
    for index in range(count):
        content = f"image {index}".encode()
        frame = Frame(
            id=hashlib.sha256(content).hexdigest(),
            drive="d",
            index=index,
            width=4,
            height=3,
            suffix=".jpg",
        )
        path = datasets.media_path(workspace, frame)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        frames.append(frame)
    return tuple(frames)


def chosen(store: Store, frames: tuple[Frame, ...]) -> tuple[Ref, Ref]:
    """A dataset of ``frames``, and a selection that names it."""
    schema = LabelSchema(name="s", version=1, classes=("car",))
    dataset = Dataset("d", schema, (Drive(id="d"),), frames, ())
    ref = datasets.save_dataset(store, dataset, made_by="test", sources={frames[0].id: "a.jpg"})
    selection = Selection(dataset=ref, budget=1, seed=0, method="trial", chosen=())
    return ref, store.put(selection)


def test_a_record_is_copied_with_everything_it_refers_to(
    store: Store, worker: Store, url: str
) -> None:
    frames = images(store.workspace)
    dataset, selection = chosen(store, frames)
    assert ArtifactStore(url).push(store, [selection]) == 2
    assert ArtifactStore(url).pull(worker, [selection]) == 2
    assert worker.load(selection) == store.load(selection)
    assert datasets.load_dataset(worker, dataset) == datasets.load_dataset(store, dataset)
    for frame in frames:
        copied = datasets.media_path(worker.workspace, frame).read_bytes()
        assert hashlib.sha256(copied).hexdigest() == frame.id
    for name in ("sources", "created"):
        assert worker.side(dataset, name) == store.side(dataset, name)


def test_existing_records_are_not_sent_again(
    store: Store, worker: Store, url: str, there: Path
) -> None:
    _, selection = chosen(store, images(store.workspace))
    artifacts = ArtifactStore(url)
    artifacts.push(store, [selection])
    written = {path: path.stat().st_mtime_ns for path in there.rglob("*") if path.is_file()}
    assert artifacts.push(store, [selection]) == 0
    assert artifacts.pull(worker, [selection]) == 2
    assert artifacts.pull(worker, [selection]) == 0
    after = {path: path.stat().st_mtime_ns for path in there.rglob("*") if path.is_file()}
    assert after == written
    assert not [path for path in after if path.name.endswith(".part")]


def test_a_killed_push_is_resumed_by_the_next(
    store: Store, worker: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, selection = chosen(store, images(store.workspace))
    artifacts, left = ArtifactStore(url), 7
    send = artifacts.send

    def dies(source: Path, name: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        send(source, name)

    monkeypatch.setattr(artifacts, "send", dies)
    with pytest.raises(KeyboardInterrupt):
        artifacts.push(store, [selection])
    again = ArtifactStore(url)
    assert again.exists(f"records/{dataset}/payload")
    for ref in (selection, dataset):
        with pytest.raises(RecordError, match="missing or incomplete"):
            again.pull(worker, [ref])
    assert not list(worker.root.rglob("COMPLETE"))
    again.push(store, [selection])
    again.pull(worker, [selection])
    assert worker.exists(dataset)


@pytest.mark.parametrize("what", ["record.json", "payload/frames.jsonl", "image"])
def test_a_modified_artifact_is_rejected(
    store: Store, worker: Store, url: str, there: Path, what: str
) -> None:
    dataset, selection = chosen(store, images(store.workspace))
    ArtifactStore(url).push(store, [selection])
    victim = there / "records" / dataset / what
    if what == "image":
        victim = next((there / "media").rglob("*.jpg"))
    victim.write_bytes(victim.read_bytes().replace(b"d", b"e").replace(b"image", b"other"))
    with pytest.raises(RecordError, match="modified"):
        ArtifactStore(url).pull(worker, [selection])
    assert not worker.exists(dataset)
    assert not worker.exists(selection)


def test_a_modified_image_is_never_sent(store: Store, url: str) -> None:
    frames = images(store.workspace)
    dataset, _ = chosen(store, frames)
    datasets.media_path(store.workspace, frames[1]).write_bytes(b"other")
    with pytest.raises(RecordError, match="missing or was modified"):
        ArtifactStore(url).push(store, [dataset])
    assert not ArtifactStore(url).holds(dataset)


def test_concurrent_pushes_and_pulls(store: Store, tmp_path: Path, url: str) -> None:
    _, selection = chosen(store, images(store.workspace, 20))
    worker, failed = Workspace(tmp_path / "worker"), []

    def both() -> None:
        try:
            ArtifactStore(url).push(store, [selection])
            ArtifactStore(url).pull(Store(worker), [selection])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=both) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert datasets.load_dataset(
        Store(worker), Store(worker).get(selection, Selection).dataset
    ).frames


def test_missing_referenced_records_are_skipped(store: Store, worker: Store, url: str) -> None:
    gone = "dataset/" + "0" * 64
    ref = store.put(Selection(dataset=gone, budget=1, seed=0, method="trial", chosen=()))
    ArtifactStore(url).push(store, [ref])
    ArtifactStore(url).pull(worker, [ref])
    assert worker.exists(ref)
    with pytest.raises(RecordError, match="no such record"):
        ArtifactStore(url).push(store, [gone])


def test_a_long_chain_of_references_is_copied(store: Store, worker: Store, url: str) -> None:
    ref = "dataset/" + "0" * 64
    for budget in range(1, 60):
        ref = store.put(Selection(dataset=ref, budget=budget, seed=0, method="m", chosen=()))
    assert ArtifactStore(url).push(store, [ref]) == 59
    assert ArtifactStore(url).pull(worker, [ref]) == 59


def test_an_invalid_url_is_rejected_at_once(tmp_path: Path) -> None:
    for url, message in (
        ("nosuch://x", "invalid artifacts URL"),
        ("memory://x", "cannot be in memory"),
    ):
        with pytest.raises(ParameterError, match=message):
            ArtifactStore(url)
    with pytest.raises(ParameterError) as raised:
        ArtifactStore("ftp://ann:hush@127.0.0.1:9/x")
    assert "hush" not in str(raised.value)
    assert ArtifactStore(f"{tmp_path}/plain").url == f"file://{tmp_path}/plain"


def test_a_url_that_cannot_be_written_is_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    _, selection = chosen(store, images(store.workspace))
    artifacts = ArtifactStore(f"file://{tmp_path}/file/below")
    with pytest.raises(ServiceError, match="cannot be written") as raised:
        artifacts.push(store, [selection])
    assert "file/below" in str(raised.value)
