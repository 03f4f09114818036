"""A step on a worker that does not see the driver's workspace: all it needs goes by a URL.

The driver sends the records of the inputs, the task carries spec and notebook, the worker runs the
step in its own workspace and sends back the outputs and the step's folder. Before that folder has
come back nothing of the step is to be seen: its progress shows at its end. Steps that need more of
the driver's machine than records do not go (see `stays`).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench import digest, workspace
from workbench.errors import ParameterError, RecordError, WorkbenchError
from workbench.pipeline.contracts import contract as contracts
from workbench.pipeline.planning import keys
from workbench.pipeline.running import step_folder
from workbench.pipeline.running.artifacts import Artifacts
from workbench.pipeline.running.executors import ray_worker
from workbench.pipeline.steps import leaks, unit
from workbench.pipeline.steps.spec import ExitStatus, Failure, StepResult, StepSpec
from workbench.records.base import refs_in
from workbench.records.store import Store
from workbench.records.types import Release
from workbench.workspace import Workspace

Json = dict[str, Any]

_STATUS = {"parameter": ExitStatus.PARAMETER, "service": ExitStatus.SERVICE}


def stays(spec: StepSpec) -> bool:
    """Whether a step runs beside the driver: it talks to this workspace's servers, or it signs.

    The servers may listen on this machine only and show its media; the signing key never leaves it.
    """
    signs = any(output["kind"] == Release.KIND for output in spec.declared_outputs.values())
    return bool(spec.environment) or signs


def send(artifacts: Artifacts, spec: StepSpec) -> dict[str, str]:
    """Driver, before the task: the step's inputs with all that they name, and files it reads.

    Returns:
        Digests of the files that parameters name. A folder may hold a fleet's drives, and stays.

    Raises:
        RecordError: An input is missing or damaged.
        ServiceError: The URL cannot be written.
    """
    unit.write_spec(spec)
    artifacts.push(Store(Workspace(Path(spec.home))), refs_in(spec.inputs))
    files: dict[str, str] = {}
    contract = contracts.read(Path(spec.notebook))
    for name in keys.path_parameters(contract, spec.parameters):
        path = Path(str(spec.parameters[name]))
        if path.is_file():
            files[name] = digest.of_file(path)
            artifacts.send_once(path, f"files/{files[name]}")
    return files


def run(
    spec_json: str, driver: Json | None, url: str, notebook: str, files: Mapping[str, str]
) -> str:
    """Worker: fetch the inputs, run the step, send what it made.

    Args:
        spec_json: The step as the driver sees it, with the driver's paths.
        driver: See `ray_worker.run`.
        notebook: The text of the notebook.
        files: What `send` returned.

    Returns:
        JSON: ``result`` with the driver's paths, and ``folder``, the name and digest of the
        archive of the step's folder, None when the step was never begun.
    """
    theirs = StepSpec.model_validate_json(spec_json)
    refused = ray_worker.refusal(driver)
    if refused is not None:
        return _answer(refused)
    place = _place()
    apart = place.scratch / "ray" / secrets.token_hex(8)
    try:
        artifacts = Artifacts(url)
        spec = _moved(theirs, place, apart, notebook)
        spec = _with_files(spec, artifacts, files, apart / "files")
        artifacts.pull(Store(place), refs_in(spec.inputs))
        result = ray_worker.execute(spec)
        artifacts.push(Store(place), result.outputs.values())
        folder = _send_folder(artifacts, Path(spec.folder), apart / "folder.tar.gz")
        return _answer(_as_driver_sees_it(result, spec, theirs), folder)
    except WorkbenchError as error:
        return _answer(failed(error))
    finally:
        shutil.rmtree(apart, ignore_errors=True)


def receive(artifacts: Artifacts, spec: StepSpec, answer: str) -> StepResult:
    """Driver, after the task: the outputs into the store, the step's files into its folder.

    Raises:
        RecordError: What came is not what the worker sent.
        ServiceError: The URL cannot be read.
    """
    told = json.loads(answer)
    result = StepResult.model_validate(told["result"])
    place, folder = Workspace(Path(spec.home)), Path(spec.folder)
    if told["folder"] is not None:
        _fetch_folder(artifacts, told["folder"], folder)
    # The worker knows the step's own secrets; those of our servers are known here.
    leaked = leaks.take_out(folder, leaks.known_secrets(place, spec.secrets))
    if leaked:
        failure = unit.leaked(leaked)
        result = result.model_copy(
            update={"status": ExitStatus.CONTRACT, "outputs": {}, "failure": failure}
        )
    artifacts.pull(Store(place), result.outputs.values())
    workspace.write_atomic(folder / unit.RESULT, result.model_dump_json(indent=1).encode())
    return result


def failed(error: WorkbenchError) -> StepResult:
    """A step whose way there or back broke; the run's policy decides on a retry."""
    return StepResult.unrun(_STATUS.get(error.kind, ExitStatus.CONTRACT), Failure.of(error))


def _moved(theirs: StepSpec, place: Workspace, apart: Path, notebook: str) -> StepSpec:
    """The same step in this machine's folders."""
    path = apart / "notebooks" / Path(theirs.notebook).name
    path.parent.mkdir(parents=True)
    path.write_text(notebook, encoding="utf-8")
    return theirs.model_copy(
        update={
            "notebook": str(path),
            "project": theirs.project or str(workspace.project_of(Path(theirs.notebook))),
            "home": str(place.root),
            "folder": str(apart / "run" / Path(theirs.folder).name),
            "cache": str(place.scratch / "steps" / Path(theirs.cache).name),
        }
    )


def _with_files(
    spec: StepSpec, artifacts: Artifacts, files: Mapping[str, str], folder: Path
) -> StepSpec:
    """The step with its path parameters naming what is here."""
    parameters = dict(spec.parameters)
    contract = contracts.read(Path(spec.notebook))
    for name in keys.path_parameters(contract, parameters):
        theirs = Path(str(parameters[name]))
        if name in files:
            here = folder / name / theirs.name
            here.parent.mkdir(parents=True)
            artifacts.fetch(f"files/{files[name]}", here)
            if digest.of_file(here) != files[name]:
                raise RecordError(f"file {theirs.name} was changed on the way", where=name)
            parameters[name] = str(here)
        elif not theirs.exists():
            raise ParameterError(
                f"parameter {name!r}: no such folder on worker {socket.gethostname()}",
                where=theirs,
                hint="Records and single files travel to workers, folders do not: put it at the "
                "same path there, or run this step with --executor local",
            )
    return spec.model_copy(update={"parameters": parameters})


def _place() -> Workspace:
    """The worker's own workspace; without a name for it, one that may be thrown away."""
    if os.environ.get(workspace.HOME_VARIABLE):
        return workspace.find()
    return Workspace(Path.home() / ".cache" / "workbench" / "worker")


def _send_folder(artifacts: Artifacts, folder: Path, archive: Path) -> Json:
    step_folder.pack(folder, archive)
    name = f"steps/{secrets.token_hex(16)}.tar.gz"
    artifacts.send(archive, name)
    return {"name": name, "sha256": digest.of_file(archive)}


def _fetch_folder(artifacts: Artifacts, told: Json, folder: Path) -> None:
    archive = folder / "folder.tar.gz"
    try:
        artifacts.fetch(told["name"], archive)
        if digest.of_file(archive) != told["sha256"]:
            raise RecordError("a worker's step folder was changed", where=artifacts.shown)
        step_folder.unpack(archive, folder)
    finally:
        archive.unlink(missing_ok=True)
        with contextlib.suppress(WorkbenchError):
            artifacts.remove(told["name"])


def _as_driver_sees_it(result: StepResult, ours: StepSpec, theirs: StepSpec) -> StepResult:
    """Messages name files where the driver finds them."""
    if result.failure is None:
        return result
    changed = {}
    for field in ("message", "where", "hint", "traceback"):
        text = getattr(result.failure, field)
        if text is not None:
            text = text.replace(ours.folder, theirs.folder)
            changed[field] = text.replace(ours.notebook, theirs.notebook)
    return result.model_copy(update={"failure": result.failure.model_copy(update=changed)})


def _answer(result: StepResult, folder: Json | None = None) -> str:
    return json.dumps({"result": result.model_dump(mode="json"), "folder": folder})
