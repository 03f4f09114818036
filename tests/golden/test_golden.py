"""Records that were written by earlier code can still be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.golden import make
from workbench.core.workspace import Workspace
from workbench.records import dataset as stored
from workbench.records.store import Store
from workbench.records.types import RECORD_TYPES, Quarantined

KNOWN: dict[str, str] = json.loads(make.INDEX.read_text())


@pytest.fixture
def golden(workspace: Workspace) -> Store:
    """A store whose records are the golden files."""
    store = Store(workspace)
    for kind, ref in KNOWN.items():
        shutil.copytree(make.HERE / kind, store.folder(ref))
        (store.folder(ref) / "COMPLETE").touch()
    return store


def test_every_kind_has_a_golden_record() -> None:
    assert set(KNOWN) == set(RECORD_TYPES), "run python -m tests.golden.make"


@pytest.mark.parametrize("kind", KNOWN)
def test_records_are_read(golden: Store, kind: str) -> None:
    ref = KNOWN[kind]
    record = golden.load(ref)
    assert type(record) is RECORD_TYPES[kind]
    for name in golden.payload_names(ref):
        golden.payload(ref, name)
    body = json.loads((golden.folder(ref) / "record.json").read_bytes())
    written = {k: v for k, v in body.items() if k not in ("kind", "payload")}
    read = record.model_dump(mode="json")
    # A field may have been added since; what was written must come back as it was.
    assert {name: read[name] for name in written} == written


def test_the_golden_dataset_has_its_old_content(golden: Store) -> None:
    ref = KNOWN["dataset"]
    dataset = stored.load_dataset(golden, ref)
    frame, drive, label = dataset.frames[0], dataset.drives[0], dataset.labels[0]
    assert (frame.role, frame.conditions.light, frame.timestamp_us) == ("safety", "night", 100000)
    assert (drive.vehicle_type, drive.calibration.fx, drive.simulated) == ("truck", 700.0, True)
    assert (label.box.xyxy, label.origin, label.occluded) == ((1.5, 2, 31.75, 14), "replayed", 0.25)
    entries = stored.read_json_lines(golden.payload(ref, "quarantine.jsonl"), Quarantined)
    assert [entry.reason for entry in entries] == ["unreadable"]


def test_the_generator_does_not_change_existing_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "golden"
    shutil.copytree(make.HERE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "release" / "record.json").write_text("kept")
    shutil.rmtree(folder / "run")
    index = dict(KNOWN)
    del index["run"]
    (folder / "golden.json").write_text(json.dumps(index))
    monkeypatch.setattr(make, "HERE", folder)
    monkeypatch.setattr(make, "INDEX", folder / "golden.json")
    assert make.main() == 0
    assert (folder / "release" / "record.json").read_text() == "kept"
    assert (folder / "run" / "record.json").exists()
    (folder / "golden.json").write_text(json.dumps(index))
    assert make.main() == 1, "a folder that the index has lost is not overwritten either"
