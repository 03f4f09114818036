"""What sending and fetching cost beside the bare SDK: ``python -m benchmarks.labeling``.

A Label Studio of its own is started in a temporary workspace. The peer is one bulk call of the
SDK with the very same tasks, without a ledger, without looking what is there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from workbench import digest, labeling, services
from workbench.labeling import LabelStudio
from workbench.labeling.config import labeling_config
from workbench.records import dataset as datasets
from workbench.records.base import Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Drive, Frame, LabelSchema, Role
from workbench.records.store import Store
from workbench.records.types import Choice, Prediction, Selection
from workbench.workspace import Workspace

BOXES = 5
ROUNDS = 2
_MODEL = f"checkpoint/{'0' * 64}"
_SCHEMA = LabelSchema(name="benchmark", version=1, classes=("car", "pedestrian"))


def measure(quick: bool) -> list[dict[str, Any]]:
    """Rows of the benchmark; ``quick`` sends a tenth of the tasks, once."""
    count, rounds = (200, 1) if quick else (2000, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        place = Workspace(Path(folder) / ".workbench")
        services.up(place, ("label-studio",))
        try:
            admin = services.label_studio_admin(place)
            server = labeling.connect(admin.url, admin.token)
            return _rows(place, server, admin.token, count, rounds)
        finally:
            services.down(place)


def _rows(
    place: Workspace, server: LabelStudio, token: str, count: int, rounds: int
) -> list[dict[str, Any]]:
    from label_studio_sdk import LabelStudio as Client

    client: Any = Client(base_url=server.url, api_key=token, timeout=600)
    # Label Studio's first import also warms it up, for either.
    labeling.send(place, server, make_batch(place, "warm-up", 20))
    sent, raw, again, state, export = [], [], [], [], []
    written = 0
    for number in range(rounds):
        batch = make_batch(place, f"round-{number}", count)
        sent.append(seconds(lambda: labeling.send(place, server, batch)))  # noqa: B023
        project = labeling.status(place, server, batch).project
        tasks = [
            {"data": task["data"], "predictions": task["predictions"]}
            for task in _as_sent(client, project)
        ]
        peer = client.projects.create(
            title=f"raw {number}", label_config=labeling_config(_SCHEMA)
        ).id
        raw.append(seconds(lambda: client.projects.import_tasks(peer, request=tasks)))  # noqa: B023
        before = server.project(project)
        again.append(seconds(lambda: labeling.send(place, server, batch)))  # noqa: B023
        after = server.project(project)
        assert before and after
        written += after.tasks - before.tasks
        state.append(seconds(lambda: labeling.status(place, server, batch)))  # noqa: B023
        export.append(seconds(lambda: client.projects.exports.as_json(project)))  # noqa: B023
    what = f"{count} tasks with {BOXES} predicted boxes"
    return [
        row(
            f"send {what}", min(sent), min(raw), "raw SDK bulk import", ">= 0.9", lambda r: r >= 0.9
        ),
        row(
            f"second send of {what}, {written} tasks written",
            min(again),
            min(raw),
            "raw SDK bulk import, which doubles every task",
            "< 2 s, 0 written",
            lambda _: min(again) < 2 and written == 0,
        ),
        row(
            f"status of {what}",
            min(state),
            min(export),
            "raw SDK export",
            ">= 0.9",
            lambda r: r >= 0.9,
        ),
    ]


def _as_sent(client: Any, project: int) -> list[dict[str, Any]]:
    listed = client.tasks.list(project=project, fields="all", page_size=200)
    return [
        {
            "data": task.data,
            "predictions": [
                {"model_version": one.model_version, "score": one.score, "result": one.result}
                for one in task.predictions or []
            ],
        }
        for task in listed
    ]


def make_batch(place: Workspace, name: str, count: int) -> Ref:
    """A batch of frames with five predicted boxes each; the server never opens the files."""
    store = Store(place)
    random = np.random.default_rng(0)
    frames = []
    for index in range(count):
        content = f"{name} {index}".encode()
        frame = Frame(
            id=digest.of_bytes(content),
            drive=name,
            index=index,
            width=480,
            height=288,
            suffix=".jpg",
            role=Role.POOL,
        )
        image = datasets.media_path(place, frame)
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(content)
        frames.append(frame)
    dataset = Dataset(name, _SCHEMA, (Drive(id=name),), tuple(frames), ())
    ref = datasets.save(store, dataset, made_by="benchmark")
    chosen = tuple(
        Choice(frame=frame.id, rank=rank, score=0.0) for rank, frame in enumerate(frames)
    )
    selection = store.put(Selection(dataset=ref, budget=count, seed=0, method="all", chosen=chosen))
    predictions = [
        Prediction(
            frame=frame.id,
            cls="car",
            box=Box(x=float(x), y=float(y), w=40.0, h=30.0),
            score=0.5,
        )
        for frame in frames
        for x, y in random.uniform((0, 0), (440, 258), (BOXES, 2))
    ]
    return labeling.make_batch(store, ref, selection, _MODEL, predictions)


def row(
    name: str,
    ours: float,
    peer: float,
    peer_name: str,
    goal: str,
    met: Callable[[float], bool],
) -> dict[str, Any]:
    """A row as every benchmark prints it; ``ratio`` is the peer's time over ours."""
    ratio = peer / ours
    return {
        "name": name,
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "peer_name": peer_name,
        "peer_method": "measured",
        "ratio": round(ratio, 3),
        "unit": "s",
        "goal": goal,
        "met": met(ratio),
    }


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.quick)
    if options.json:
        print(json.dumps(rows))
        return
    for one in rows:
        mark = "met" if one["met"] else "MISSED"
        print(
            f"{one['name']}: {one['ours']} s, {one['peer_name']} {one['peer']} s,"
            f" ratio {one['ratio']} (goal {one['goal']}: {mark})"
        )


if __name__ == "__main__":
    main()
