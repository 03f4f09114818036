"""Sending and collecting compared with the bare SDK: ``python -m benchmarks.labeling``.

A separate Label Studio is started in a temporary workspace. The peers are one bulk import of the
SDK with the same tasks, the SDK's own export, both without checking what the server has already,
and FiftyOne's own Label Studio integration. Both sides run alternately, and the best time of each
counts.
"""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import labeling_fiftyone
from benchmarks.common import Row, main, row, seconds
from workbench import labeling, services
from workbench.core import digest
from workbench.core.workspace import Workspace
from workbench.labeling import LabelStudio, projects, sync
from workbench.labeling.batches import BatchContents
from workbench.labeling.label_config import labeling_config
from workbench.labeling.regions import DrawnObject, to_regions
from workbench.labeling.sender import TASKS_PER_CALL, make_tasks, priority_order, task_chunks
from workbench.records import dataset as datasets
from workbench.records.base import Ref, digest_of
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Drive, Frame, Label, LabelSchema, Role
from workbench.records.store import Store
from workbench.records.types import Prediction, SelectedFrame, Selection

BOXES = 5
_MODEL = f"checkpoint/{'0' * 64}"
_SCHEMA = LabelSchema(name="benchmark", version=1, classes=("car", "pedestrian"))
_WIDTH, _HEIGHT = 483, 287
_IMPORT = "raw SDK bulk import"
_EXPORT = "raw SDK export"


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` is a small size, each thing once."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / ".workbench")
        services.up(workspace, ("label-studio", "mongod"))
        try:
            admin = services.label_studio_admin(workspace)
            bench = Bench(workspace, labeling.connect(admin.url, admin.token), admin.token)
            # Label Studio's first import also warms it up, for either.
            labeling.send(workspace, bench.server, make_batch(workspace, "warm-up", 20))
            rows = []
            for count in (200,) if quick else (2000, 5000):
                rows += bench.sending(count, rounds=1 if quick else 2)
            rows += [bench.beside_fiftyone(count) for count in ((100,) if quick else (100, 500))]
            boxes = 2000 if quick else 100_000
            rows += bench.round_trip(boxes // BOXES)
            rows.append(bench.memory(*((2000, 6000) if quick else (5000, 20_000))))
            return rows
        finally:
            services.down(workspace)


class Bench:
    """One server and the SDK's own client beside ours."""

    def __init__(self, workspace: Workspace, server: LabelStudio, token: str) -> None:
        from label_studio_sdk import LabelStudio as Client

        self.workspace = workspace
        self.server = server
        self.token = token
        client: Any = Client
        self.sdk = client(base_url=server.url, api_key=token, timeout=600)

    def sending(self, count: int, rounds: int) -> list[Row]:
        what = f"{count} tasks with {BOXES} predicted boxes"
        ours, raw = [], []
        for number in range(rounds):
            batch = make_batch(self.workspace, f"send-{count}-{number}", count)
            tasks = list(_tasks(self.workspace, batch))
            peer = self.sdk.projects.create(title="raw", label_config=labeling_config(_SCHEMA))
            ours.append(once(lambda: labeling.send(self.workspace, self.server, batch)))  # noqa: B023
            raw.append(once(lambda: self.sdk.projects.import_tasks(peer.id, request=tasks)))  # noqa: B023
            self.sdk.projects.delete(peer.id)
        before = self._totals(batch)
        again = seconds(lambda: labeling.send(self.workspace, self.server, batch))
        untouched = self._totals(batch) == before
        return [
            _speed(f"send {what}", count, min(ours), min(raw), _IMPORT),
            row(
                f"second send of {what}",
                again,
                "s",
                peer=min(raw),
                peer_name=f"{_IMPORT}, which doubles every task",
                goal="< 2 s, nothing written",
                met=again < 2 and untouched,
            ),
        ]

    def beside_fiftyone(self, count: int) -> Row:
        """It uploads images; over a hundred at once only where the server's limit was raised."""
        batch = make_batch(self.workspace, f"fiftyone-{count}", count)
        contents = BatchContents(Store(self.workspace), batch)
        frames = contents.batch.frames
        order = labeling_fiftyone.Order(
            url=self.server.url,
            images=tuple(
                str(datasets.media_path(self.workspace, contents.frame(f))) for f in frames
            ),
            boxes=tuple(
                tuple(_share(one.box) for one in contents.predictions(f).values()) for f in frames
            ),
            width=_WIDTH,
            height=_HEIGHT,
            classes=_SCHEMA.classes,
        )
        lead = services.environment(self.workspace, ("mongod",))
        peer = labeling_fiftyone.send(order, self.token, lead, self.workspace.root)
        ours = once(lambda: labeling.send(self.workspace, self.server, batch))
        assert (peer.tasks, self._totals(batch)[0]) == (count, count)
        return _speed(
            f"send {count} tasks with {BOXES} predicted boxes beside FiftyOne",
            count,
            ours,
            peer.seconds,
            f"its integration, which uploads images; {peer.predictions} predictions",
        )

    def round_trip(self, count: int) -> list[Row]:
        """Annotations come by bulk import: people would take months."""
        batch = make_batch(self.workspace, f"trip-{count}", count)
        drawn = self._import_answers(batch)
        project = sync.read_entry(self.workspace, batch)
        assert project
        raw = once(lambda: self.sdk.projects.exports.as_json(project.project))
        ours = once(lambda: labeling.collect(self.workspace, self.server, batch))
        labels = labeling.collect(self.workspace, self.server, batch)
        lost, doubled, moved = _compare(Store(self.workspace), labels, drawn)
        before = self._totals(batch)
        time.sleep(11)  # nobody answers thousands of frames in the seconds before a look
        again = once(lambda: labeling.collect(self.workspace, self.server, batch, refresh=True))
        untouched = self._totals(batch) == before
        what = f"{count * BOXES} boxes on {count} frames"
        return [
            _speed(f"collect {what}", count, ours, raw, _EXPORT),
            row(
                f"second collect --refresh of {what}",
                again,
                "s",
                peer=raw,
                peer_name=_EXPORT,
                goal="< 2 s, nothing written",
                met=again < 2 and untouched,
            ),
            row(
                f"{what} there and back: lost {lost}, doubled {doubled}, farthest moved",
                moved,
                "px",
                goal="none lost, none doubled, < 1e-6 px",
                met=lost == doubled == 0 and moved < 1e-6,
            ),
        ]

    def memory(self, small: int, large: int) -> Row:
        """Peak of what a send holds at once: a chunk of tasks, and the batch's index.

        A batch's record names its frames, which takes some 120 bytes a task by itself.
        """
        peaks = []
        for count in (small, large):
            batch = make_batch(self.workspace, f"memory-{count}", count)
            tracemalloc.start()
            for some in task_chunks(_tasks(self.workspace, batch), TASKS_PER_CALL):
                assert some
            peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
            tracemalloc.stop()
        return row(
            f"memory of sending {large} tasks with {BOXES} boxes",
            peaks[1],
            "MiB",
            peer=peaks[0],
            peer_name=f"the same with {small} tasks",
            goal="flat: ratio <= 1.2",
            met=peaks[1] <= 1.2 * peaks[0],
        )

    def _totals(self, batch: Ref) -> tuple[int, int]:
        entry = sync.read_entry(self.workspace, batch)
        assert entry
        totals = self.server.totals(entry.project, digest_of(batch))
        return totals.tasks, totals.annotations

    def _import_answers(self, batch: Ref) -> dict[str, list[Box]]:
        """Put a batch on the server with an answer to every frame; the boxes by frame."""
        title = projects.project_title(self.workspace, batch, None)
        contents = BatchContents(Store(self.workspace), batch)
        project = projects.create_project(self.server, title, contents.batch)
        drawn: dict[str, list[Box]] = {}
        for some in task_chunks(_tasks(self.workspace, batch), 1000):
            for task in some:
                frame = task["data"]["frame"]
                drawn[frame] = [one.box for one in contents.predictions(frame).values()]
                result = [
                    part
                    for number, box in enumerate(drawn[frame])
                    for part in to_regions(
                        DrawnObject(f"own-{number}", "car", box), _WIDTH, _HEIGHT
                    )
                ]
                task["annotations"] = [{"result": result, "lead_time": 20.0}]
            self.server.import_tasks(project.id, some)
        sync.write_entry(
            self.workspace,
            sync.IndexEntry(batch=batch, project=project.id, title=title, complete=True),
        )
        return drawn


def make_batch(workspace: Workspace, name: str, count: int) -> Ref:
    """A batch of frames with five predicted boxes each; the server never opens the files."""
    store = Store(workspace)
    random = np.random.default_rng(0)
    frames = []
    for index in range(count):
        content = f"{name} {index}".encode()
        frame = Frame(
            id=digest.of_bytes(content),
            drive=name,
            index=index,
            width=_WIDTH,
            height=_HEIGHT,
            suffix=".jpg",
            role=Role.POOL,
        )
        image = datasets.media_path(workspace, frame)
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(content)
        frames.append(frame)
    dataset = Dataset(name, _SCHEMA, (Drive(id=name),), tuple(frames), ())
    ref = datasets.save_dataset(store, dataset, made_by="benchmark")
    chosen = tuple(
        SelectedFrame(frame=frame.id, rank=rank, score=0.0) for rank, frame in enumerate(frames)
    )
    selection = store.put(Selection(dataset=ref, budget=count, seed=0, method="all", chosen=chosen))
    predictions = [
        Prediction(
            frame=frame.id, cls="car", box=Box(x=float(x), y=float(y), w=40.0, h=30.0), score=0.5
        )
        for frame in frames
        for x, y in random.uniform((0, 0), (_WIDTH - 40, _HEIGHT - 30), (BOXES, 2))
    ]
    return labeling.make_batch(store, ref, selection, _MODEL, predictions)


def _tasks(workspace: Workspace, batch: Ref) -> Iterator[dict[str, Any]]:
    contents = BatchContents(Store(workspace), batch)
    return make_tasks(contents, priority_order(contents.batch))


def _share(box: Box) -> tuple[float, float, float, float]:
    return box.x / _WIDTH, box.y / _HEIGHT, box.w / _WIDTH, box.h / _HEIGHT


def _compare(store: Store, labels: Ref, drawn: dict[str, list[Box]]) -> tuple[int, int, float]:
    """Boxes lost, boxes too many, and how far the farthest edge of any other was moved, in px."""
    found: dict[str, list[Box]] = {frame: [] for frame in drawn}
    for label in datasets.read_json_lines(store.payload(labels, "labels.jsonl"), Label):
        found[label.frame].append(label.box)
    lost = sum(max(0, len(boxes) - len(found[frame])) for frame, boxes in drawn.items())
    doubled = sum(max(0, len(found[frame]) - len(boxes)) for frame, boxes in drawn.items())
    moved = 0.0
    for frame, boxes in drawn.items():
        ours, theirs = (sorted(box.xyxy for box in some) for some in (boxes, found[frame]))
        for one, other in zip(ours, theirs, strict=False):
            moved = max(moved, *(abs(a - b) for a, b in zip(one, other, strict=True)))
    return lost, doubled, moved


def _speed(name: str, count: int, ours: float, peer: float, peer_name: str) -> Row:
    return row(
        name,
        count / ours,
        "tasks/s",
        peer=count / peer,
        peer_name=peer_name,
        goal=">= 0.9 of the peer's speed",
        met=peer / ours >= 0.9,
    )


def once(work: Callable[[], object]) -> float:
    return seconds(work, repeat=1)


if __name__ == "__main__":
    main(measure)
