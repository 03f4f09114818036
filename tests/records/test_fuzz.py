"""Every kind of file of a workspace damaged in every way: right answer, repair or refusal."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.data.sources import coco_source
from tests.pipeline.conftest import CONTRACT, write_notebook, write_pipeline
from tests.release.conftest import FILES, METRICS, RULES, gate
from workbench import data
from workbench.cli import cli
from workbench.core import digest
from workbench.core.errors import WorkbenchError
from workbench.core.workspace import Workspace
from workbench.detection.preprocessing import load_frame
from workbench.pipeline import cache, graph, plan, runs
from workbench.records import integrity, references
from workbench.records.base import GateReport, Ref, Verdict
from workbench.records.dataset import load_dataset
from workbench.records.model_types import Checkpoint, Environment, ExportBundle, StepRun
from workbench.records.model_types import NotebookSource as Notebook
from workbench.records.repair import check_records
from workbench.records.store import Store
from workbench.release import publishing

MODEL = "front-camera"
CHAMPION = f"champion:{MODEL}"
PIPELINE = f"""
name: trial
steps:
  ingest: {{notebook: ingest}}
  validate:
    notebook: validate
    inputs: {{dataset: ingest.dataset, champion: "{CHAMPION}"}}
"""


@dataclass(frozen=True)
class Fixture:
    """A workspace with one of everything that needs no server, and a copy of it."""

    workspace: Workspace
    pristine: Path
    project: Path
    release: Ref
    marks: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def reset(self) -> None:
        """Make the workspace equal its copy again; only what changed since is copied."""
        root, marks = self.workspace.root, self._stat(self.workspace.root)
        for path in marks.keys() - self.marks.keys():
            (root / path).unlink()
        kept = {path for path in self.marks if marks.get(path) == self.marks[path]}
        for path in self._stat(self.pristine).keys() - kept:
            (root / path).unlink(missing_ok=True)
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.pristine / path, root / path, follow_symlinks=False)
        for folder, _, _ in os.walk(root, topdown=False):
            if not (self.pristine / Path(folder).relative_to(root)).is_dir():
                shutil.rmtree(folder)
        self.marks.clear()
        self.marks.update(self._stat(root))
        for cached in (integrity._notes_of, integrity._frames_of):
            cached.cache_clear()

    @staticmethod
    def _stat(root: Path) -> dict[Path, tuple[int, int]]:
        found = {}
        for folder, folders, names in os.walk(root):
            paths = [Path(folder, name) for name in (*names, *folders)]
            for path in (path for path in paths if path.is_symlink() or not path.is_dir()):
                status = path.lstat()
                found[path.relative_to(root)] = (status.st_ctime_ns, status.st_ino)
        return found

    def pipeline(self) -> graph.Pipeline:
        return graph.load_pipeline(self.project / "pipelines/trial.yaml", {}, base=self.project)


def _finish(workspace: Workspace, planned: plan.PlannedStep, outputs: dict[str, Ref]) -> None:
    """Record a step as done, as the runner does."""
    store, key = Store(workspace), planned.key
    assert key is not None
    index = cache.KeyIndex(workspace)
    run = store.put(
        StepRun(
            step=planned.name,
            key=key.digest,
            notebook=store.put(Notebook(name=planned.name, code="0" * 64)),
            environment=store.put(Environment(python="3", distributions=(), machine={})),
            modules="0" * 64,
            parameters=planned.step.parameters,
            inputs={name: ref for name, ref in planned.inputs.items() if ref},
            outputs=outputs,
        ),
        side={"place": {"folder": "gone"}, "cost": {"seconds": 1.0}},
    )
    index.add(key, run)
    index.set_latest("trial", planned.name, key, run)


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fixture]:
    tmp_path = tmp_path_factory.mktemp("fuzz")
    workspace = Workspace(tmp_path / ".workbench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(workspace.root))
        patch.setattr(os, "fsync", lambda _: None)  # power is not cut here
        yield _make(tmp_path, workspace)


def _make(tmp_path: Path, workspace: Workspace) -> Fixture:
    store, source = Store(workspace), coco_source(tmp_path / "source", frames=6)
    versions = []
    for roles in (False, True):
        found = data.ingest(workspace, source, name="drives")
        chosen = data.assign_roles(found.dataset) if roles else found.dataset
        versions.append(found.save(store, chosen))
        references.register_dataset(workspace, versions[-1])
    network = store.put(
        Checkpoint(
            dataset=versions[1], classes=("car",), architecture={}, training={}, preprocessing={}
        ),
        {"weights.safetensors": b"w" * 64},
    )
    release = ""
    for verdict, content in ((Verdict.PASS, b"1"), (Verdict.FAIL, b"2"), (Verdict.PASS, b"3")):
        bundle = store.put(
            ExportBundle(checkpoint=network, calibration=versions[1], classes=("car",), parity={}),
            {**FILES, "int8.cpu.onnx": content},
        )
        judged = store.put(
            GateReport(
                candidate=bundle,
                reference=None,
                dataset=versions[1],
                rules=digest.of_json(RULES),
                verdict=verdict,
                gates=(gate(verdict),),
            ),
            METRICS,
        )
        release = publishing.publish_release(store, bundle, judged, MODEL).ref
    steps = tmp_path / "notebooks" / "steps"
    inputs = {"dataset": {"kind": "dataset"}, "champion": {"kind": "bundle", "optional": True}}
    made = {"outputs": {"dataset": {"kind": "dataset"}}, "resources": CONTRACT["resources"]}
    judges = {"inputs": inputs, "outputs": {"gates": {"kind": "gates"}}}
    write_notebook(steps / "ingest.ipynb", "", contract=made)
    write_notebook(steps / "validate.ipynb", "", contract={**CONTRACT, **judges})
    write_pipeline(tmp_path, PIPELINE)
    made_of = Fixture(workspace, tmp_path / "pristine", tmp_path, release)
    pipeline = made_of.pipeline()
    _finish(workspace, plan.plan_pipeline(pipeline, workspace)[0], {"dataset": versions[1]})
    _finish(workspace, plan.plan_pipeline(pipeline, workspace)[1], {"gates": judged})
    for _ in range(2):
        journal = runs.RunJournal(workspace, runs.new_run_id(workspace), pipeline)
        journal.step("ingest", "skipped")
        journal.end("succeeded")
    shutil.copytree(workspace.root, made_of.pristine, symlinks=True)
    return made_of


def _command(*arguments: str) -> Any:
    done = CliRunner().invoke(cli, [*arguments, "--json"], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


def _pixels(fixture: Fixture) -> Any:
    dataset = load_dataset(
        Store(fixture.workspace), references.resolve_dataset(fixture.workspace, "drives")
    )
    return [
        digest.of_bytes(load_frame(fixture.workspace, frame).tobytes()) for frame in dataset.frames
    ]


def _plan(fixture: Fixture) -> Any:
    steps = plan.plan_pipeline(fixture.pipeline(), fixture.workspace)
    return [(step.name, step.action, step.inputs, step.cached) for step in steps]


def _resolved(text: str) -> Callable[[Fixture], Any]:
    return lambda fixture: references.resolve_reference(fixture.workspace, text)


PROBES: dict[str, Callable[[Fixture], Any]] = {
    "datasets": lambda _: _command("datasets"),
    "dataset": lambda _: _command("datasets", "show", "drives"),
    "pixels": _pixels,
    "first version": _resolved("drives@1"),
    "newest version": _resolved("drives"),
    "champion": _resolved(f"models:/{MODEL}@champion"),
    "candidate": _resolved(f"models:/{MODEL}@candidate"),
    "release 1": _resolved(f"models:/{MODEL}/1"),
    "verify": lambda fixture: publishing.verify_release(fixture.workspace, fixture.release).files,
    "plan": _plan,
    "runs": lambda _: _command("runs"),
    "latest run": lambda _: _command("runs", "show"),
    "lineage": lambda fixture: _command("lineage", fixture.release),
    "forward": lambda _: _command("lineage", "drives@1", "--forward"),
}


def _damage(path: Path, how: str, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
        return
    if how == "empty" or not content:
        content = bytearray()
    elif how == "truncate":
        content = content[: chance.randrange(len(content))]
    elif how == "deep":
        content = bytearray(b"[" * 100_000)
    elif how == "other":  # JSON of another shape
        content = bytearray(chance.choice([b"null", b"[]", b"{}", b"7", b'"x"', b'[{"a": 1e999}]']))
    elif how == "flip":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _outcome(fixture: Fixture, probe: str) -> Any:
    """What a probe answers; an expected error is its message."""
    try:
        return PROBES[probe](fixture)
    except WorkbenchError as error:
        assert error.what
        return error


def _is_acceptable(probe: str, answer: Any, expected: Any) -> bool:
    if isinstance(answer, WorkbenchError) or answer == expected:
        return True
    if probe == "plan":  # a step may run again, but is never skipped with other outputs
        return all(
            now == before or now[1] in ("run", "omit")
            for now, before in zip(answer, expected, strict=True)
        )
    if probe == "datasets":  # a damaged one is named, and the others are listed
        listed = answer["datasets"]
        return bool(answer["damaged"]) and all(row in expected["datasets"] for row in listed)
    if probe in ("runs", "latest run"):  # a damaged run is said to be so
        listed = answer["runs"] if probe == "runs" else [answer]
        known = expected["runs"] if probe == "runs" else [expected]
        return len(listed) == len(known) and all(
            now == before or (now["run_id"], now["status"]) == (before["run_id"], "unreadable")
            for now, before in zip(listed, known, strict=True)
        )
    # A lineage marks what it could not read.
    marks = ('"damaged":', '"missing": true')
    return probe in ("lineage", "forward") and any(m in json.dumps(answer) for m in marks)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("how", ["delete", "empty", "truncate", "flip", "deep", "other"])
def test_damaged_files_give_the_right_answer_or_a_refusal(
    fixture: Fixture, how: str, seed: int
) -> None:
    if seed and how in ("delete", "empty", "deep"):
        pytest.skip("there is one way to do it")
    expected = {probe: _outcome(fixture, probe) for probe in PROBES}
    assert not [answer for answer in expected.values() if isinstance(answer, Exception)]
    fixture.reset()
    files = sorted(
        path.relative_to(fixture.pristine)
        for path in fixture.pristine.rglob("*")
        if path.is_file() and "locks" not in path.parts
    )
    assert len(files) * 9 >= 1500, "samples of all parameters together"
    chance = random.Random(seed)  # noqa: S311 - not for cryptography
    wrong = []
    for file in files:
        fixture.reset()
        del fixture.marks[file]
        _damage(fixture.workspace.root / file, how, chance)
        for probe in PROBES:
            try:
                answer = _outcome(fixture, probe)
            except Exception as error:
                wrong.append(f"{how} {file}: {probe}: {type(error).__name__}: {error}")
                continue
            if not _is_acceptable(probe, answer, expected[probe]):
                wrong.append(f"{how} {file}: {probe}: another answer")
        try:
            report = check_records(fixture.workspace)
            cache.KeyIndex(fixture.workspace).repair()
        except Exception as error:
            wrong.append(f"{how} {file}: doctor: {type(error).__name__}: {error}")
            continue
        if file.parts[0] in ("records", "media") and "side" not in file.parts:
            changed = (fixture.pristine / file).read_bytes() != _bytes(fixture, file)
            if changed and report.ok:
                wrong.append(f"{how} {file}: doctor did not name it")
    assert not wrong, f"{len(wrong)} wrong answers:\n" + "\n".join(wrong[:60])


def _bytes(fixture: Fixture, file: Path) -> bytes | None:
    path = fixture.workspace.root / file
    return path.read_bytes() if path.is_file() else None
