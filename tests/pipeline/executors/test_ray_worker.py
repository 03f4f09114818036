"""A step sent to a worker through a URL, both sides in this process, without Ray."""

from __future__ import annotations

import copy
import tarfile
import threading
from pathlib import Path

import pytest

from tests.pipeline.conftest import CONTRACT, write_notebook
from workbench.cli import main
from workbench.core.errors import RecordError, ServiceError
from workbench.core.workspace import Workspace
from workbench.pipeline.executors import artifacts as step_folder
from workbench.pipeline.executors import ray_executor
from workbench.pipeline.executors.artifacts import ArtifactStore
from workbench.pipeline.executors.ray_executor import RayExecutor
from workbench.pipeline.spec import ExitStatus, StepResult, StepSpec
from workbench.records.store import Store
from workbench.records.types import Selection


@pytest.fixture
def driver(tmp_path: Path) -> Workspace:
    """Where the driver works; ``workspace``, found by the environment, is the worker's."""
    return Workspace(tmp_path / "driver")


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{tmp_path}/by")


def spec_of(driver: Workspace, notebook: Path, **changed: object) -> StepSpec:
    upstream = Selection(dataset="dataset/" + "0" * 64, budget=1, seed=0, method="trial", chosen=())
    spec = StepSpec(
        step="a",
        notebook=str(notebook),
        home=str(driver.root),
        folder=str(driver.runs / "one" / "a"),
        cache=str(driver.scratch / "steps" / "a"),
        parameters={"n": 3},
        inputs={"upstream": Store(driver).put(upstream)},
        declared_inputs=CONTRACT["inputs"],
        declared_outputs=CONTRACT["outputs"],
        threads=1,
        timeout_s=60,
        memory_gib=1,
        environment={},
    )
    return spec.model_copy(update=changed)


def go(artifacts: ArtifactStore, spec: StepSpec) -> StepResult:
    """There and back, as the executor does it."""
    files = ray_executor.send_inputs(artifacts, spec)
    text = Path(spec.notebook).read_text()
    answer = ray_executor.run_remote(spec.model_dump_json(), None, artifacts.url, text, files)
    return ray_executor.receive_outputs(artifacts, spec, answer)


@pytest.mark.usefixtures("workspace")
def test_a_step_and_its_folder_are_sent_back(
    project: Path, workspace: Workspace, driver: Workspace, artifacts: ArtifactStore, tmp_path: Path
) -> None:
    work = (
        "assert step.store.load(step.input('upstream'))\nstep.metric('loss', 0.5)\nprint('hello')"
    )
    spec = spec_of(driver, write_notebook(project / "notebooks/steps/a.ipynb", work))
    result = go(artifacts, spec)
    assert result.status is ExitStatus.OK, result.failure
    assert Store(driver).get(result.outputs["selection"], Selection).budget == 3
    folder = Path(spec.folder)
    assert "hello" in (folder / "output.txt").read_text()
    assert str(workspace.root) in (folder / "executed.ipynb").read_text()
    assert StepResult.model_validate_json((folder / "result.json").read_bytes()) == result
    assert StepSpec.model_validate_json((folder / "spec.json").read_bytes()) == spec
    assert not list((tmp_path / "by" / "steps").iterdir())
    assert not list((workspace.scratch / "ray").iterdir())


@pytest.mark.usefixtures("workspace")
def test_a_failure_names_the_cell_and_the_files_of_the_driver(
    project: Path, workspace: Workspace, driver: Workspace, artifacts: ArtifactStore
) -> None:
    notebook = write_notebook(project / "notebooks/steps/a.ipynb", "raise KeyError('gone')")
    spec = spec_of(driver, notebook)
    result = go(artifacts, spec)
    assert result.status is ExitStatus.USER_ERROR
    assert result.failure is not None
    assert result.failure.cell == 4
    assert str(Path(spec.folder) / "executed.ipynb") in str(result.failure)
    assert str(workspace.root) not in str(result.failure)
    assert (Path(spec.folder) / "executed.ipynb").exists()


@pytest.mark.usefixtures("workspace")
def test_a_path_missing_on_the_worker_is_reported_before_anything_runs(
    project: Path, driver: Workspace, artifacts: ArtifactStore
) -> None:
    notebook = write_notebook(
        project / "notebooks/steps/a.ipynb",
        "raise AssertionError('never run')",
        parameters="rules: str = ''",
        contract={**CONTRACT, "paths": {"rules": {"unless": [""]}}},
    )
    result = go(artifacts, spec_of(driver, notebook, parameters={"rules": "/not/there"}))
    assert result.status is ExitStatus.PARAMETER
    for part in ("rules", "no such folder on worker", "/not/there", "same path"):
        assert part in str(result.failure)


@pytest.mark.usefixtures("workspace")
def test_a_file_that_a_parameter_names_is_sent(
    project: Path, driver: Workspace, artifacts: ArtifactStore, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("least: 3")
    notebook = write_notebook(
        project / "notebooks/steps/a.ipynb",
        f"text = open(rules).read()\nassert text == 'least: 3' and rules != {str(rules)!r}",
        parameters="rules: str = ''\nn: int = 1",
        contract={**CONTRACT, "paths": {"rules": {"unless": [""]}}},
    )
    spec = spec_of(driver, notebook, parameters={"rules": str(rules), "n": 1})
    result = go(artifacts, spec)
    assert result.status is ExitStatus.OK, result.failure
    [kept] = (tmp_path / "by" / "files").iterdir()
    kept.write_text("least: 0")
    changed = go(artifacts, spec)
    assert changed.status is ExitStatus.CONTRACT
    assert "rules.yaml was changed during the transfer" in str(changed.failure)


@pytest.mark.usefixtures("workspace")
def test_a_worker_that_differs_fetches_nothing(
    project: Path, workspace: Workspace, driver: Workspace, artifacts: ArtifactStore
) -> None:
    spec = spec_of(driver, write_notebook(project / "notebooks/steps/a.ipynb", "pass"))
    ray_executor.send_inputs(artifacts, spec)
    ours = copy.deepcopy(ray_executor.worker_environment())
    ours["environment"]["distributions"].append("numpy==0#0")
    text = Path(spec.notebook).read_text()
    answer = ray_executor.run_remote(spec.model_dump_json(), ours, artifacts.url, text, {})
    assert ray_executor.receive_outputs(artifacts, spec, answer).status is ExitStatus.CONTRACT
    assert not workspace.records.exists()


def test_a_step_that_needs_servers_or_the_key_runs_on_the_driver(
    project: Path, driver: Workspace, artifacts: ArtifactStore, tmp_path: Path
) -> None:
    notebook = write_notebook(project / "notebooks/steps/a.ipynb", "pass")
    spec = spec_of(driver, notebook)
    serves = spec.model_copy(update={"environment": {"LABEL_STUDIO_URL": "http://127.0.0.1:1"}})
    signs = spec.model_copy(update={"declared_outputs": {"release": {"kind": "release"}}})
    assert [ray_executor.must_run_on_driver(one) for one in (spec, serves, signs)] == [
        False,
        True,
        True,
    ]
    executor = RayExecutor("127.0.0.1:9", driver, artifacts)
    result = executor.execute(serves, lambda: None, threading.Event())  # Ray is not even asked
    executor.close()
    assert result.status is ExitStatus.OK, result.failure
    assert not (tmp_path / "by").exists()


@pytest.mark.usefixtures("workspace")
def test_a_folder_modified_during_the_transfer_is_rejected(
    project: Path, driver: Workspace, artifacts: ArtifactStore, tmp_path: Path
) -> None:
    spec = spec_of(driver, write_notebook(project / "notebooks/steps/a.ipynb", "pass"))
    ray_executor.send_inputs(artifacts, spec)
    text = Path(spec.notebook).read_text()
    answer = ray_executor.run_remote(spec.model_dump_json(), None, artifacts.url, text, {})
    next((tmp_path / "by" / "steps").iterdir()).write_bytes(b"other")
    with pytest.raises(RecordError, match="was changed"):
        ray_executor.receive_outputs(artifacts, spec, answer)
    with pytest.raises(ServiceError, match="cannot be read"):
        ray_executor.receive_outputs(artifacts, spec, answer)
    assert not (Path(spec.folder) / "result.json").exists()


@pytest.mark.usefixtures("workspace")
def test_a_secret_of_the_driver_is_redacted_in_returned_files(
    project: Path, driver: Workspace, artifacts: ArtifactStore
) -> None:
    secret = "a-key-that-only-the-driver-has-7781"
    driver.secrets.mkdir(parents=True)
    (driver.secrets / "server-key").write_text(secret)
    notebook = write_notebook(project / "notebooks/steps/a.ipynb", f"print('{secret}'[:])")
    spec = spec_of(driver, notebook)
    result = go(artifacts, spec)
    assert result.status is ExitStatus.CONTRACT
    assert result.outputs == {}
    assert "server-key" in str(result.failure)
    assert all(
        secret.encode() not in path.read_bytes()
        for path in Path(spec.folder).rglob("*")
        if path.is_file()
    )


def test_a_folder_too_large_is_packed_without_its_largest_files(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "one.png").write_bytes(b"1" * 10)
    (folder / "huge.bin").write_bytes(b"2" * 1000)
    (folder / "link").symlink_to("/etc/hostname")
    step_folder.pack_folder(folder, tmp_path / "a.tar.gz", max_bytes=100)
    step_folder.unpack_folder(tmp_path / "a.tar.gz", tmp_path / "out", max_bytes=100)
    came = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert came == {"figures/one.png", "left-out.txt"}
    assert "huge.bin (1000 bytes)" in (tmp_path / "out" / "left-out.txt").read_text()


@pytest.mark.parametrize("name", ["../beside.txt", "link"])
def test_an_archive_writes_nothing_outside_its_folder(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo(name)
        if name == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(member)
    with pytest.raises(RecordError, match="cannot be unpacked"):
        step_folder.unpack_folder(tmp_path / "a.tar.gz", tmp_path / "out")
    assert not (tmp_path / "beside.txt").exists()
    assert not list((tmp_path / "out").iterdir())


def test_options_that_do_not_apply_are_rejected(
    project: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = str(project / "pipelines/trial.yaml")
    for options, message in (
        (["--artifacts", "file:///x"], "--artifacts requires --executor ray"),
        (["--executor", "ray", "--artifacts", "nosuch://x"], "invalid artifacts URL"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["run", pipeline, *options])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    assert not workspace.runs.exists()
