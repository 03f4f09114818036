"""The command ``workbench predict``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from workbench.cli.models import predict
from workbench.core.errors import ParameterError, RecordError, VerificationError
from workbench.core.workspace import Workspace
from workbench.deployment import runtime
from workbench.records.model_types import ExportBundle
from workbench.records.store import Store
from workbench.release import signing


@pytest.fixture(autouse=True)
def _home(car: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(car.root))


def asked(*arguments: object) -> dict:
    done = CliRunner().invoke(predict, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict = json.loads(done.stdout)
    return found


def test_folder_is_answered_drawn_and_resumed(
    whole: Path, other: Path, images: Path, tmp_path: Path
) -> None:
    output, drawn = tmp_path / "out" / "answers.jsonl", tmp_path / "drawn"
    found = asked(whole, images, "--with", other, "-o", output, "--draw", drawn, "--score", 0.2)
    assert found["statuses"] == {"ok": 4, "late": 0, "fallback": 0, "unreadable": 1}
    assert [entry["checked"] for entry in found["bundles"]] == ["manifest", "manifest"]
    assert found["simulated"] is True
    assert len(list(drawn.rglob("*.jpg"))) == 4
    lines = output.read_text().splitlines()
    assert len(lines) == 6
    again = asked(whole, images, "--with", other, "-o", output, "--score", 0.2)
    assert (again["resumed"], again["latency_ms"]) == (5, None)
    assert output.read_text().splitlines() == lines


def test_a_drive_of_a_dataset_is_answered(
    whole: Path, car: Workspace, drives: object, tmp_path: Path
) -> None:
    ref = drives.ref  # type: ignore[attr-defined]
    output = tmp_path / "a.jsonl"
    found = asked(whole, "drawn:drive", "-o", output)
    assert found["frames"] == len(drives.frames)  # type: ignore[attr-defined]
    first = json.loads(output.read_text().splitlines()[1])
    assert first["frame"] in {frame.id for frame in drives.frames}  # type: ignore[attr-defined]
    assert Store(car).exists(ref)


def test_signature_is_verified_and_can_be_required(
    bundle: Path, images: Path, car: Workspace
) -> None:
    with pytest.raises(VerificationError, match="is not signed"):
        asked(bundle, images, "--signed")
    signing.sign_folder(bundle, signing.signing_key(car))
    assert asked(bundle, images, "--signed")["bundles"][0]["checked"] == "signature"
    (bundle / "parity.json").write_text("{}")
    with pytest.raises(VerificationError):
        asked(bundle, images)


def test_a_key_means_that_a_signature_is_wanted(bundle: Path, images: Path, car: Workspace) -> None:
    key = signing.signing_key(car)
    with pytest.raises(VerificationError, match="is not signed"):
        asked(bundle, images, "--key", key.public)
    assert asked(bundle, images)["bundles"][0]["checked"] == "manifest"


def test_a_folder_swapped_after_its_check_is_not_run(
    bundle: Path, images: Path, car: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    signing.sign_folder(bundle, signing.signing_key(car))
    expected = asked(bundle, images)
    load = runtime.load_bundle

    def swapped(folder: Path, **options: object) -> object:
        for path in folder.iterdir():
            path.write_bytes(b"swapped")
        return load(folder, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(runtime, "load_bundle", swapped)
    found = asked(bundle, images)
    assert found["bundles"] == expected["bundles"]
    assert found["boxes"] == expected["boxes"]


def test_a_bundle_of_the_store_is_checked_by_its_record(
    whole: Path, images: Path, car: Workspace
) -> None:
    record = ExportBundle(
        checkpoint=f"checkpoint/{'c' * 64}",
        calibration=f"dataset/{'d' * 64}",
        classes=("car",),
        parity={},
    )
    store = Store(car)
    ref = store.put(record, {path.name: path for path in whole.iterdir()})
    assert asked(ref, images)["bundles"][0]["checked"] == "record"
    with pytest.raises(VerificationError, match="is not signed"):
        asked(ref, images, "--key", signing.signing_key(car).public)
    # Consistent with its own manifest, but not with the record.
    manifest = store.folder(ref) / "payload" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(RecordError, match="changed"):
        asked(ref, images)


def test_errors_name_the_problem(whole: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no such image"):
        asked(whole, tmp_path / "nothing")
    with pytest.raises(RecordError):
        asked("bundle/0123456789", images)
    with pytest.raises(ParameterError, match="above 0"):
        asked(whole, images, "--budget-ms", "0")
