"""The command ``workbench predict``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from workbench.cli.models import predict
from workbench.core.errors import ParameterError, RecordError, VerificationError
from workbench.core.workspace import Workspace
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


def test_errors_name_the_problem(whole: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no such image"):
        asked(whole, tmp_path / "nothing")
    with pytest.raises(RecordError):
        asked("bundle/0123456789", images)
    with pytest.raises(ParameterError, match="above 0"):
        asked(whole, images, "--budget-ms", "0")
