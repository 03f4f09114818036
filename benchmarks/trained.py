"""A trained detector for benchmarks that need one, kept in a scratch folder from run to run.

``BENCHMARK_CACHE`` names the folder; otherwise it lies in the system's temporary one. The name of
what is kept says what shaped it, so that another size never finds the wrong model.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.common import note
from workbench import data
from workbench.core.errors import RecordError
from workbench.core.workspace import Workspace, write_atomic
from workbench.detection.predictor import TorchPredictor, load_checkpoint
from workbench.records import dataset as datasets
from workbench.records.dataset import Dataset
from workbench.records.frames import Role
from workbench.records.store import Store

LEARNED = (Role.SEED, Role.TRAIN)


def cache() -> Path:
    named = os.environ.get("BENCHMARK_CACHE")
    return Path(named) if named else Path(tempfile.gettempdir()) / "workbench-benchmarks"


def on_builtin(*, quick: bool = False) -> tuple[Workspace, Dataset, TorchPredictor]:
    """Simulated drives, half of them learned from, the others of role safety."""
    from workbench.simulation.drives import write_drives

    profile, steps = ("tiny", 60) if quick else ("standard", 1200)
    workspace = Workspace(cache() / f"builtin-{profile}-{steps}" / ".workbench")
    source = workspace.root.parent / "source"
    return _trained(workspace, lambda: write_drives(source, profile), "builtin", steps)


def on_folder(source: Path, *, quick: bool = False) -> tuple[Workspace, Dataset, TorchPredictor]:
    """Real drives in a folder that `workbench.data` reads; the media stay in the scratch folder."""
    steps = 60 if quick else 900
    workspace = Workspace(cache() / f"{source.name}-{steps}" / ".workbench")
    return _trained(workspace, lambda: source, source.name, steps)


def _trained(
    workspace: Workspace, source: object, name: str, steps: int
) -> tuple[Workspace, Dataset, TorchPredictor]:
    store, known = Store(workspace), workspace.root / "trained.txt"
    if known.exists():
        version, checkpoint = known.read_text().split()
        try:
            return (
                workspace,
                datasets.load_dataset(store, version),
                load_checkpoint(store, checkpoint),
            )
        except RecordError:
            note(f"what was kept in {workspace.root} is not whole: it is made again")
    version = _ingested(workspace, source, name)
    dataset = datasets.load_dataset(store, version)
    checkpoint = _train(workspace, dataset, steps)
    write_atomic(known, f"{version} {checkpoint}".encode())
    return workspace, dataset, load_checkpoint(store, checkpoint)


def _ingested(workspace: Workspace, source: object, name: str) -> str:
    assert callable(source)
    found = data.ingest(workspace, source(), name=name)
    shares = {Role.TRAIN: 0.5, Role.SAFETY: 0.5}
    assigned = data.assign_roles(found.dataset, data.RolePolicy(shares=shares))
    return found.save(Store(workspace), replace(assigned, name=name))


def _train(workspace: Workspace, dataset: Dataset, steps: int) -> str:
    from workbench.training import TrainingConfig, save_checkpoint, train

    note(f"training {steps} steps on {dataset.name}; kept for the next run in {workspace.root}")
    lessons = dataset.role(*LEARNED)
    trained = train(
        lessons, TrainingConfig(steps=steps), checkpoint_dir=workspace.root / "training"
    )
    assert dataset.ref
    return save_checkpoint(Store(workspace), trained, dataset.ref)
