"""Simulated pools with a long tail, and a detector that has never seen it; rendered once, kept.

A pool is 200 drives of 30 frames (profile ``long-tail``): eleven kinds of rare event, each in about
0.15 % of the frames. The detector learned from drives without any of them, as a team's first one.
All of it lies in the scratch folder of the workspace. Drives are rendered one by one and a drive
that is whole is never rendered again, so a killed run goes on.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import note
from workbench.core import digest, processes
from workbench.core.workspace import Workspace, find_workspace, write_atomic
from workbench.detection.predictor import TorchPredictor
from workbench.detection.preprocessing import Preprocessing
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import (
    Box,
    Conditions,
    Drive,
    Frame,
    Label,
    LabelSchema,
    Light,
    Origin,
    Role,
    Weather,
)
from workbench.simulation import drives, traffic
from workbench.simulation.rendering import render_frame
from workbench.simulation.scenario import CLASSES, Scenario
from workbench.training.config import TrainingConfig

SCHEMA = LabelSchema(name="front-camera", version=1, classes=CLASSES)
ORDINARY = traffic.FleetProfile("ordinary", drives=100, frames_per_drive=15, rare=False)
SEED_OF_ORDINARY = 9001
STEPS, CYCLES = 900, 2
"""Optimiser steps of one rise and fall of the learning rate, and how often it rises (SGDR,
Loshchilov and Hutter 2017): the second goes on from what the first learned."""


@dataclass(frozen=True)
class Truth:
    """What is rare in a frame: its kinds, and the box ``x, y, w, h`` of what makes it so."""

    kinds: tuple[str, ...]
    boxes: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class Pool:
    """Frames in order of drive and time, with the truth about each."""

    seed: int
    frames: tuple[Frame, ...]
    truth: tuple[Truth, ...]
    labels: tuple[Label, ...]

    @property
    def conditions(self) -> list[str]:
        """Light and weather, which a vehicle knows; road works are what is sought."""
        return [f"{f.conditions.light}, {f.conditions.weather}" for f in self.frames]


def pool_workspace() -> Workspace:
    """A workspace in the scratch folder, so that rendered and real frames are never mixed."""
    return Workspace(find_workspace().scratch / "mining" / ".workbench")


def smaller(profile: traffic.FleetProfile, drives_: int) -> traffic.FleetProfile:
    """Fewer drives, for a quick look; the shares of the events stay where they can."""
    return replace(profile, name=f"{profile.name}-{drives_}", drives=drives_)


def pool(profile: traffic.FleetProfile, seed: int, workers: int = 2) -> Pool:
    """The frames of a profile, rendering what is not there yet."""
    home = pool_workspace()
    folder = home.root / "drives" / f"{profile.name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    scenarios = traffic.random_fleet(profile, seed)
    missing = [s for s in scenarios if not (folder / f"{s.drive}.json").exists()]
    if missing:
        note(f"rendering {len(missing)} of {len(scenarios)} drives of {folder.name}")
    for done, _ in enumerate(_render(missing, home, folder, workers), start=1):
        if done % 20 == 0:
            note(f"  {done} of {len(missing)}")
    found = [json.loads((folder / f"{s.drive}.json").read_bytes()) for s in scenarios]
    frames = tuple(Frame.model_validate(row) for drive in found for row in drive["frames"])
    labels = tuple(Label.model_validate(row) for drive in found for row in drive["labels"])
    truth = tuple(
        Truth(tuple(row["kinds"]), tuple(tuple(box) for box in row["boxes"]))
        for drive in found
        for row in drive["truth"]
    )
    return Pool(seed, frames, truth, labels)


def _render(
    scenarios: Sequence[Scenario], home: Workspace, folder: Path, workers: int
) -> Iterator[str]:
    if workers == 1 or len(scenarios) < 2:
        for scenario in scenarios:
            yield _render_drive(home, folder, scenario)
        return
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(
        workers, context, initializer=processes.die_with_pool_owner
    ) as running:
        yield from running.map(partial(_render_drive, home, folder), scenarios)


def _render_drive(home: Workspace, folder: Path, scenario: Scenario) -> str:
    """One drive into the workspace's media; its rows are written last. Gives its name."""
    with tempfile.TemporaryDirectory(prefix="drive-", dir=folder) as name:
        (Path(name) / "images").mkdir()
        rows, boxes = drives.write_drive(scenario, Path(name))
        frames = [_keep(home, Path(name) / row["file_name"], row) for row in rows]
    labels = [
        Label(
            frame=frame.id,
            cls=CLASSES[box["category_id"] - 1],
            box=Box(**dict(zip("xywh", box["bbox"], strict=True))),
            ignore=bool(box["iscrowd"]),
            origin=Origin.RENDERED,
        )
        for frame, found in zip(frames, boxes, strict=True)
        for box in found
    ]
    value = {
        "frames": [frame.model_dump(mode="json") for frame in frames],
        "labels": [label.model_dump(mode="json") for label in labels],
        "truth": [_truth(scenario, row) for row in rows],
    }
    write_atomic(folder / f"{scenario.drive}.json", json.dumps(value).encode())
    return scenario.drive


def _truth(scenario: Scenario, row: dict[str, Any]) -> dict[str, Any]:
    """The box of what makes a frame rare; it may be of no class, so the labels cannot tell."""
    if not row["events"]:
        return {"kinds": [], "boxes": []}
    tracks = {event.track for event in scenario.events if event.name in row["events"]}
    seen = render_frame(scenario, row["index"]).boxes
    boxes = [(box.x, box.y, box.w, box.h) for box in seen if box.track in tracks]
    return {"kinds": row["events"], "boxes": boxes}


def _keep(home: Workspace, path: Path, row: dict[str, Any]) -> Frame:
    frame = Frame(
        id=digest.of_file(path),
        drive=row["drive"],
        index=row["index"],
        timestamp_us=row["timestamp_us"],
        width=row["width"],
        height=row["height"],
        suffix=".jpg",
        conditions=Conditions(light=Light(row["light"]), weather=Weather(row["weather"])),
        role=Role.POOL,
    )
    target = media_path(home, frame)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)
    return frame


def ordinary(drives_: int = ORDINARY.drives, workers: int = 2) -> Pool:
    """What is labelled already: drives without any rare event."""
    profile = ORDINARY if drives_ == ORDINARY.drives else smaller(ORDINARY, drives_)
    return pool(profile, SEED_OF_ORDINARY, workers)


def detector(known: Pool, steps: int = STEPS) -> TorchPredictor:
    """Trained on ``known`` alone on one thread, kept; a killed training goes on."""
    model: TorchPredictor | None = None
    for cycle in range(CYCLES):
        config = TrainingConfig(steps=steps, seed=cycle, threads=1)
        model = learned(pool_workspace(), _dataset(known), config, model)
    assert model is not None
    return model


def learned(
    home: Workspace,
    known: Dataset,
    config: TrainingConfig,
    start: TorchPredictor | None = None,
) -> TorchPredictor:
    """A detector of ``known``, kept below ``home`` by what shaped it; a killed training goes on."""
    import safetensors.torch

    from workbench.detection.config import DetectorConfig
    from workbench.detection.detector import Detector
    from workbench.training.trainer import train

    shape = {"steps": config.steps, "seed": config.seed, "threads": config.threads}
    name = digest.shorten(digest.of_json([shape, [frame.id for frame in known.frames]]))
    folder = home.root / "detectors" / name
    kept = folder / "weights.safetensors"
    if not kept.exists():
        note(f"training on {len(known.frames)} frames, {config.steps} steps, seed {config.seed}")
        folder.mkdir(parents=True, exist_ok=True)
        trained = train(
            replace(known, workspace=home), config, start=start, checkpoint_dir=folder / "state"
        )
        write_atomic(kept, safetensors.torch.save(trained.weights))
    model = Detector(DetectorConfig(classes=known.label_schema.classes))
    model.load_state_dict(safetensors.torch.load(kept.read_bytes()))
    return TorchPredictor(model, Preprocessing())


def _dataset(known: Pool) -> Dataset:
    frames = tuple(frame.model_copy(update={"role": Role.SEED}) for frame in known.frames)
    names = sorted({frame.drive for frame in frames})
    return Dataset(
        name="ordinary",
        label_schema=SCHEMA,
        drives=tuple(Drive(id=name, simulated=True) for name in names),
        frames=frames,
        labels=known.labels,
        simulated=True,
    )
