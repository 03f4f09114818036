"""Rebuilding from lineage with real kernels: same, different, missing, killed, leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.pipeline.conftest import CONTRACT, write_notebook
from workbench import digest
from workbench.commands.reproduce import reproduce as command
from workbench.errors import ParameterError, RecordError
from workbench.pipeline import contract as contracts
from workbench.pipeline import environment, keys, modules, sources
from workbench.pipeline.executors.local import execute_once
from workbench.pipeline.reproduction import compare, folders, trace
from workbench.pipeline.spec import ExitStatus, StepSpec
from workbench.records import dataset as datasets
from workbench.records import frames as f
from workbench.records.base import Ref
from workbench.records.store import Store
from workbench.records.types import Annotator, LabelBatch, LabelSet, NotebookSource, StepRun
from workbench.workspace import Workspace

DICE = "import uuid\nprint('rolled')\nn = uuid.uuid4().int % 10**6\nprint('budget', n)"


def record(
    place: Workspace, notebook: Path, paths: dict[str, str] | None = None, **inputs: Ref
) -> StepRun:
    """Run a notebook for real and keep its run as the pipeline does, without any server."""
    store, contract = Store(place), contracts.read(notebook)
    declared, folder = contract.declaration, place.runs / "one" / notebook.stem
    spec = StepSpec(
        step=notebook.stem,
        notebook=str(notebook),
        home=str(place.root),
        folder=str(folder),
        cache=str(place.scratch / notebook.stem),
        parameters=contract.validate({"n": 2 if inputs else 3}),
        inputs=dict(inputs),
        declared_inputs={n: d.model_dump() for n, d in declared.inputs.items()},
        declared_outputs={n: d.model_dump() for n, d in declared.outputs.items()},
        threads=1,
        timeout_s=60,
        memory_gib=4,
        environment={},
    )
    spec = spec.model_copy(update={"parameters": {**spec.parameters, **(paths or {})}})
    result = execute_once(spec)
    assert result.status is ExitStatus.OK, result.failure
    source = NotebookSource(name=contract.name, code=contract.code)
    run = StepRun(
        step=notebook.stem,
        key=digest.of_bytes(notebook.stem.encode()),
        notebook=store.put(source, {"notebook.ipynb": contracts.without_outputs(notebook)}),
        environment=store.put(environment.current()),
        modules=modules.digest_of(contract.sources),
        parameters=spec.parameters,
        inputs=dict(inputs),
        outputs=result.outputs,
        threads=1,
    )
    named = keys.path_parameters(contract, spec.parameters)
    files = {name: keys.fingerprint(spec.parameters[name]) for name in named}
    store.put(run, sources.kept(spec.parameters, files), side={"place": {"folder": str(folder)}})
    return run


def made(place: Workspace, project: Path) -> StepRun:
    """The runs of ``a → b``; returns b's."""
    steps = project / "notebooks" / "steps"
    first = record(place, steps / "a.ipynb")
    return record(place, steps / "b.ipynb", upstream=first.outputs["selection"])


def reproduce(ref: Ref, *more: str) -> tuple[int, dict[str, Any], str]:
    done = CliRunner().invoke(command, [ref, "--json", *more])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout), done.stderr


def test_every_step_is_rebuilt_in_a_clean_folder_and_is_the_same(
    project: Path, place: Workspace, tmp_path: Path
) -> None:
    run = made(place, project)
    (project / "notebooks/steps/a.ipynb").unlink()  # the lineage alone has to do
    status, report, said = reproduce(run.outputs["selection"], "-o", str(tmp_path / "clean"))
    assert (status, report["status"]) == (0, "reproduced"), said
    assert [(step["name"], step["status"]) for step in report["steps"]] == [
        ("a", "same"),
        ("b", "same"),
    ]
    assert report["environment"] == [] and report["leaves"] == []
    clean = Store(Workspace(tmp_path / "clean" / ".workbench"))
    assert clean.exists(run.outputs["selection"])
    with pytest.raises(ParameterError, match="finished reproduction"):
        folders.choose(place, run.outputs["selection"], tmp_path / "clean")


def test_a_step_that_depends_on_chance_is_named_with_output_and_cell(
    project: Path, place: Workspace
) -> None:
    steps = project / "notebooks" / "steps"
    write_notebook(steps / "a.ipynb", DICE)
    run = made(place, project)
    status, report, said = reproduce(run.outputs["selection"])
    assert (status, report["status"]) == (3, "differs")
    found = report["difference"]
    assert (found["step"], found["output"], found["fields"]) == ("a", "selection", ["budget"])
    assert [cell["number"] for cell in found["cells"]] == [3]
    assert found["cells"][0]["recorded"].startswith("budget ")
    assert [step["status"] for step in report["steps"]] == ["differs", "not-reached"]
    assert "first difference: step a, output selection" in said
    assert Path(report["folder"]).parent == place.root / "reproduce"


def test_what_differs_around_the_steps_is_said_first(
    project: Path, place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record(place, project / "notebooks/steps/a.ipynb")
    now = environment.current()
    other = [name for name in now.distributions if not name.startswith("numpy==")]
    changed = now.model_copy(update={"distributions": ("numpy==0.1#abc", *other)})
    monkeypatch.setattr(environment, "current", lambda: changed)
    monkeypatch.setattr(modules, "digest_of", lambda _: digest.of_bytes(b"other code"))
    status, report, said = reproduce(run.outputs["selection"])
    assert status == 0
    assert len(report["environment"]) == 1
    assert report["environment"][0].endswith("here 0.1#abc")
    assert not report["steps"][0]["code_same"]
    assert said.index("numpy") < said.index("→ a")
    assert "not those recorded" in said


def test_a_missing_notebook_or_maker_is_said_before_anything_runs(
    project: Path, place: Workspace, store: Store
) -> None:
    run = record(place, project / "notebooks/steps/a.ipynb")
    (store.folder(run.notebook) / "payload/notebook.ipynb").unlink()
    with pytest.raises(RecordError, match="notebook of step 'a'") as told:
        trace(store, run.outputs["selection"])
    assert "backup" in str(told.value)
    with pytest.raises(RecordError, match="nothing to rebuild"):
        trace(store, run.environment)
    assert not (place.root / "reproduce").exists()


def test_a_file_that_was_read_comes_back_from_the_lineage(project: Path, place: Workspace) -> None:
    rules = project / "rules.txt"
    rules.write_text("7")
    notebook = write_notebook(
        project / "notebooks/steps/a.ipynb",
        "n = int(step.path(rules).read_text())",
        parameters="n: int = 1\nrules: str = 'rules.txt'",
        contract={**CONTRACT, "paths": {"rules": {}}},
    )
    run = record(place, notebook, paths={"rules": str(rules)})
    rules.write_text("8")
    status, report, _ = reproduce(run.outputs["selection"])
    assert (status, report["notes"]) == (0, [])


def test_what_must_not_be_kept_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    key = digest.of_bytes(b"fine")
    for content, expected in {"fine": ["files/f"], "changed": [], "x" * 2**21: []}.items():
        path.write_text(content)
        assert list(sources.kept({"f": str(path)}, {"f": key})) == expected
    path.write_text("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END")
    assert sources.kept({"f": str(path)}, {"f": digest.of_file(path)}) == {}
    assert sources.kept({"f": str(tmp_path)}, {"f": key}) == {}


def test_a_killed_reproduction_goes_on_where_it_was(project: Path, place: Workspace) -> None:
    flag = project / "go"
    flag.touch()
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(flag)!r}).exists(): time.sleep(0.05)"
    write_notebook(project / "notebooks/steps/b.ipynb", wait)
    target = made(place, project).outputs["selection"]
    flag.unlink()
    folder = folders.choose(place, target, None)
    arguments = [sys.executable, "-m", "workbench", "reproduce", target]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (folder / "steps/02-b/spec.json").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    first = (folder / "steps/01-a/result.json").stat().st_mtime_ns
    flag.touch()
    status, report, _ = reproduce(target)
    assert (status, report["folder"]) == (0, str(folder))
    assert report["steps"][0]["seconds"] is None
    assert (folder / "steps/01-a/result.json").stat().st_mtime_ns == first
    assert folders.choose(place, target, None) != folder  # this one has ended


def test_rubbish_in_the_folder_is_never_taken_for_a_reproduction(
    place: Workspace, tmp_path: Path
) -> None:
    target = "selection/" + "0" * 64
    full = tmp_path / "full"
    full.mkdir()
    (full / "letter.txt").write_text("dear reader")
    with pytest.raises(ParameterError, match="other files"):
        folders.choose(place, target, full)
    (full / folders.STATE).write_text("{half")
    with pytest.raises(ParameterError):
        folders.choose(place, target, full)


def test_what_a_server_or_people_gave_is_copied(project: Path, place: Workspace) -> None:
    steps = project / "notebooks" / "steps"
    contract = {**CONTRACT, "services": ["label-studio"]}
    write_notebook(steps / "a.ipynb", "raise_if_run_again = 1", contract=contract)
    run = made(place, project)
    status, report, _ = reproduce(run.outputs["selection"])
    assert status == 0
    assert [step["name"] for step in report["steps"]] == ["b"]
    assert "label-studio" in report["leaves"][0]["why"]
    clean = Store(Workspace(Path(report["folder"]) / ".workbench"))
    assert clean.load(report["leaves"][0]["ref"])
    with pytest.raises(RecordError, match="works with label-studio"):
        trace(Store(place), report["leaves"][0]["ref"])


MERGE = """
from workbench.labeling import merge
from workbench.records import dataset as datasets
merged = merge(step.store, datasets.load(step.store, step.input('dataset')), step.input('labels'))
step.output('dataset', merged.ref)
"""


def test_labels_join_a_dataset_again_without_the_server(
    project: Path, place: Workspace, store: Store
) -> None:
    dataset, labels = _labeled(place, store)
    contract = {
        "inputs": {"dataset": {"kind": "dataset"}, "labels": {"kind": "label"}},
        "outputs": {"dataset": {"kind": "dataset"}, "selection": {"kind": "selection"}},
        "services": ["label-studio"],
    }
    notebook = write_notebook(project / "notebooks/steps/c.ipynb", MERGE, contract=contract)
    run = record(place, notebook, dataset=dataset, labels=labels)
    status, report, _ = reproduce(run.outputs["dataset"])
    assert status == 0
    assert [(step["name"], step["how"]) for step in report["steps"]] == [("c", "merged")]
    batch = store.get(labels, LabelSet).batch
    assert {leaf["ref"] for leaf in report["leaves"]} == {dataset, labels, batch}
    clean = Workspace(Path(report["folder"]) / ".workbench")
    frame = datasets.load(Store(clean), dataset).frames[0]
    assert digest.of_file(datasets.media_path(clean, frame)) == frame.id
    image = datasets.media_path(place, frame)
    image.unlink()
    image.write_bytes(b"another picture")
    with pytest.raises(RecordError, match="image of the dataset"):
        reproduce(run.outputs["dataset"])


def _labeled(place: Workspace, store: Store) -> tuple[Ref, Ref]:
    """A dataset of one image, and labels that somebody gave it."""
    content = b"a picture"
    frame = f.Frame(
        id=digest.of_bytes(content),
        drive="d1",
        index=0,
        width=64,
        height=48,
        suffix=".jpg",
        role=f.Role.POOL,
    )
    image = datasets.media_path(place, frame)
    image.parent.mkdir(parents=True)
    image.write_bytes(content)
    schema = f.LabelSchema(name="one", version=1, classes=("car",))
    dataset = datasets.Dataset(
        name="one",
        label_schema=schema,
        drives=(f.Drive(id="d1"),),
        frames=(frame,),
        labels=(),
    )
    ref = datasets.save(store, dataset, made_by="ingest")
    batch = LabelBatch(
        dataset=ref,
        selection="selection/" + "0" * 64,
        model=None,
        label_schema=schema,
        frames=(frame.id,),
    )
    people = (Annotator(id="ann", frames=1, boxes=0),)
    labelset = LabelSet(batch=store.put(batch), annotators=people, labels=0)
    return ref, store.put(labelset, {"labels.jsonl": b"", "answers.jsonl": b""})


def test_a_champion_is_not_rebuilt(store: Store) -> None:
    from workbench.records.types import ExportBundle, GateReport, Verdict

    none = "0" * 64
    old, new = (
        store.put(
            ExportBundle(
                checkpoint=f"checkpoint/{none}",
                calibration=f"dataset/{none}",
                classes=(name,),
                parity={},
            )
        )
        for name in ("old", "new")
    )
    gates = store.put(
        GateReport(
            candidate=new,
            reference=old,
            dataset=f"dataset/{none}",
            rules=none,
            verdict=Verdict.PASS,
            gates=(),
        )
    )
    notebook = store.put(
        NotebookSource(name="trial", code=none),
        {"notebook.ipynb": json.dumps(_bare_notebook()).encode()},
    )
    common: dict[str, Any] = {
        "key": none, "notebook": notebook, "environment": store.put(environment.current()),
        "modules": none, "parameters": {},
    }  # fmt: skip
    store.put(StepRun(step="export", inputs={}, outputs={"bundle": old}, **common))
    store.put(StepRun(step="export", inputs={}, outputs={"bundle": new}, **common))
    given = {"bundle": new, "champion": old}
    store.put(StepRun(step="validate", inputs=given, outputs={"gates": gates}, **common))
    found = trace(store, gates)
    assert [(step.name, list(step.record.outputs)) for step in found.steps] == [
        ("export", ["bundle"]),
        ("validate", ["gates"]),
    ]
    assert [(leaf.ref, "compared with" in leaf.why) for leaf in found.leaves] == [(old, True)]


def _bare_notebook() -> dict[str, Any]:
    cell = {
        "cell_type": "code",
        "id": "one",
        "metadata": {"tags": ["parameters"]},
        "source": "n: int = 1",
        "execution_count": None,
        "outputs": [],
    }
    return {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def test_addresses_places_and_warnings_are_no_difference(tmp_path: Path) -> None:
    def executed(name: str, *texts: tuple[str, str]) -> Path:
        content = _bare_notebook()
        content["cells"][0]["outputs"] = [
            {"output_type": "stream", "name": stream, "text": text} for stream, text in texts
        ]
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path

    one = executed("one", ("stdout", "<Thing at 0x7f01>\n/x/run\n"), ("stderr", "slow\n"))
    other = executed("other", ("stdout", "<Thing at 0x7fff>\n/y/run\n"))
    places = {"/x/run": "<run>", "/y/run": "<run>"}
    assert compare.notebooks(one, other, places)[0] == ()
    assert "is gone" in compare.notebooks(tmp_path / "none", other, places)[1]
    longer = executed("longer", ("stdout", "<Thing at 0x1>\n/x/run\nmore\n"))
    cells, _ = compare.notebooks(one, longer, places)
    assert (cells[0].recorded, cells[0].rebuilt) == ("nothing", "more")


@pytest.mark.slow
def test_the_tiny_loop_is_rebuilt_digest_for_digest(tiny_run: Any, tmp_path: Path) -> None:
    from tests.tiny_run import workbench

    release = tiny_run.output("release.release")
    done = workbench(
        tiny_run.place, "reproduce", release, "-o", str(tmp_path / "clean"), "--json", timeout=900
    )
    report = json.loads(done.stdout)
    assert (done.returncode, report["status"]) == (0, "reproduced"), done.stderr
    rebuilt = {step["name"]: step["how"] for step in report["steps"]}
    assert rebuilt == {
        "ingest": "rebuilt",
        "baseline": "rebuilt",
        "collect": "merged",
        "retrain": "rebuilt",
        "export": "rebuilt",
        "validate": "rebuilt",
    }
    assert not (tmp_path / "clean/.workbench/services").exists()  # no server was started
