"""MLflow mirrors the signed release records: every way to change it is reported and undone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.notebooks import load_app
from tests.release.conftest import CHECKPOINT, DATASET, FILES, METRICS, RULES, gate
from workbench import cli, services
from workbench.cli.models import _verify_bundle
from workbench.core import digest
from workbench.core.errors import VerificationError
from workbench.core.workspace import Workspace
from workbench.records.base import GateReport, Ref, Verdict
from workbench.records.model_types import ExportBundle, Release
from workbench.records.references import resolve_reference
from workbench.records.releases import release_folder
from workbench.records.store import Store
from workbench.release import registry
from workbench.release.publishing import publish_release


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace with its MLflow, and three releases of one model: PASS, PASS, FAIL."""
    workspace = Workspace(tmp_path_factory.mktemp("registry") / ".workbench")
    store = Store(workspace)
    for number, verdict in enumerate((Verdict.PASS, Verdict.PASS, Verdict.FAIL)):
        record = ExportBundle(
            checkpoint=CHECKPOINT, calibration=DATASET, classes=("car", str(number)), parity={}
        )
        bundle = store.put(record, {**FILES, "manifest.json": b'{"n": %d}' % number})
        report = GateReport(
            candidate=bundle,
            reference=None,
            dataset=DATASET,
            rules=digest.of_json(RULES),
            verdict=verdict,
            gates=(gate(verdict),),
        )
        publish_release(store, bundle, store.put(report, METRICS), "front-camera")
    try:
        services.up(workspace, ("mlflow",))
        yield workspace
    finally:
        services.down(workspace)


@pytest.fixture
def client(home: Workspace, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's own client; MLflow agrees with the records."""
    from mlflow import MlflowClient

    monkeypatch.setenv("WORKBENCH_HOME", str(home.root))
    tracker = registry.connect(home)
    registry.rebuild_registry(home, tracker)
    assert registry.registry_problems(home, tracker) == []
    return MlflowClient(tracking_uri=tracker.uri, registry_uri=tracker.uri)


def of_version(home: Workspace, number: int) -> Ref:
    return resolve_reference(home, f"models:/front-camera/{number}")


ATTACKS: dict[str, tuple[Callable[[Any, Workspace], object], str]] = {
    "alias moved to a refused candidate": (
        lambda client, _: client.set_registered_model_alias("front-camera", "champion", "3"),
        "alias front-camera@champion points to version 3; the records say 2",
    ),
    "alias removed": (
        lambda client, _: client.delete_registered_model_alias("front-camera", "candidate"),
        "alias front-camera@candidate points to version None; the records say 3",
    ),
    "tag set to another release": (
        lambda client, home: client.set_model_version_tag(
            "front-camera", "2", "workbench.release", of_version(home, 3)
        ),
        "MLflow lacks front-camera@2",
    ),
    "tag set to a release that does not exist": (
        lambda client, _: client.set_model_version_tag(
            "front-camera", "2", "workbench.release", f"release/{'0' * 64}"
        ),
        "no release of it in this workspace",
    ),
    "verdict changed": (
        lambda client, _: client.set_model_version_tag(
            "front-camera", "3", "workbench.verdict", "PASS"
        ),
        r"tag workbench\.verdict of front-camera@3 .* was changed",
    ),
    "version deleted": (
        lambda client, _: client.delete_model_version("front-camera", "1"),
        "MLflow lacks front-camera@1",
    ),
    "registered model renamed": (
        lambda client, _: client.rename_registered_model("front-camera", "side-camera"),
        "version 1 of side-camera claims release/",
    ),
    "registry lost, and numbering restarted": (
        lambda client, home: (
            client.delete_registered_model("front-camera"),
            client.create_registered_model("front-camera"),
            client.create_model_version(
                "front-camera", source="x:/y", tags={"workbench.release": of_version(home, 3)}
            ),
        ),
        r"MLflow numbers front-camera@3 .* as version 1",
    ),
}


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_a_registry_changed_by_hand_is_reported_refused_and_rebuilt(
    attack: str, home: Workspace, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = ATTACKS[attack]
    champion = resolve_reference(home, "models:/front-camera@champion")
    change(client, home)
    # References never move with MLflow.
    assert resolve_reference(home, "models:/front-camera@champion") == champion
    problems = registry.registry_problems(home, registry.connect(home))
    assert any(re.search(message, problem) for problem in problems), problems
    with pytest.raises(SystemExit):
        cli.main(["predict", "models:/front-camera@champion", str(home.root), "--signed"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--rebuild-registry", "--json"])
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["models"] == {"front-camera": {"candidate": 3, "champion": 2, "previous": 1}}
    assert (found["written"], found["problems"]) == (1, [])
    versions = client.search_model_versions("name = 'front-camera'")
    assert {int(v.version): v.tags["workbench.release"] for v in versions} == {
        number: of_version(home, number) for number in (1, 2, 3)
    }
    assert int(client.get_model_version_by_alias("front-camera", "champion").version) == 2
    assert [one.name for one in client.search_registered_models()] == ["front-camera"]


def test_a_folder_called_like_a_reference_puts_no_other_model_in_its_place(
    home: Workspace,
    client: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``models:/NAME@champion`` as a folder with the signed bundle that the gates refused."""
    refused = release_folder(home, Store(home).get(of_version(home, 3), Release))
    shutil.copytree(refused, tmp_path / "models:/front-camera@champion")
    monkeypatch.chdir(tmp_path)
    for signed in (True, False):
        checked = _verify_bundle(home, "models:/front-camera@champion", None, signed=signed)
        assert checked.release is not None
        assert checked.release.version == 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["verify", "models:/front-camera@champion", "--json"])
    assert json.loads(capsys.readouterr().out)["release"]["version"] == 2


def test_under_signed_a_changed_registry_is_refused_by_name(home: Workspace, client: Any) -> None:
    name = "models:/front-camera@champion"
    assert _verify_bundle(home, name, None, signed=True).how == "signature"
    client.set_registered_model_alias("front-camera", "champion", "3")
    with pytest.raises(VerificationError, match="points to version 3; the records say 2"):
        _verify_bundle(home, name, None, signed=True)
    # Without --signed the records decide, too.
    checked = _verify_bundle(home, name, None, signed=False)
    assert checked.release is not None
    assert checked.release.version == 2


def test_the_board_says_where_mlflow_differs(home: Workspace, client: Any) -> None:
    board = load_app("board")
    assert board.registry_note(home) == "MLflow says what the signed records say."
    client.set_registered_model_alias("front-camera", "champion", "3")
    assert "champion points to version 3; the records say 2" in board.registry_note(home)
    rows = {row["release"]: row["aliases"] for row in board.release_rows(Store(home))}
    assert rows["front-camera/2"] == "champion" and rows["front-camera/3"] == "candidate"


def test_the_doctor_reports_and_sends_what_was_signed(
    home: Workspace, client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client.set_registered_model_alias("front-camera", "champion", "3")
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--json"])
    checks = {one["name"]: one for one in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["MLflow's registry"]["ok"] is False
    assert "the records say 2" in checks["MLflow's registry"]["detail"]
    registry.rebuild_registry(home, registry.connect(home))
    run = client.get_model_version_by_alias("front-camera", "champion").run_id
    folder = Path(client.download_artifacts(run, registry.BUNDLE_FOLDER, str(tmp_path)))
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", str(folder), "--model", "front-camera"])
    assert not ended.value.code


def test_a_shared_registry_keeps_the_versions_of_other_workspaces(
    home: Workspace, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_is_shared", lambda _: True)
    theirs = {"workbench.release": f"release/{'7' * 64}"}
    version = client.create_model_version("front-camera", source="x:/y", tags=theirs).version
    client.set_registered_model_alias("front-camera", "champion", str(version))
    client.delete_model_version("front-camera", "1")
    client.set_model_version_tag("front-camera", "3", "workbench.verdict", "PASS")
    tracker = registry.connect(home)
    assert len(registry.registry_problems(home, tracker)) == 3
    registry.rebuild_registry(home, tracker)
    assert registry.registry_problems(home, tracker) == []
    versions = client.search_model_versions("name = 'front-camera'")
    claims = {int(v.version): v.tags["workbench.release"] for v in versions}
    assert claims[int(version)] == theirs["workbench.release"]
    assert sorted(claims.values()) == sorted(
        [*(of_version(home, number) for number in (1, 2, 3)), theirs["workbench.release"]]
    )
