"""Planning: everything is checked first, every decision has a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.conftest import write_notebook, write_pipeline
from workbench.core.errors import ContractError, ParameterError, RecordError
from workbench.core.workspace import Workspace
from workbench.pipeline import cache, graph, plan
from workbench.records.model_types import Environment, NotebookSource, StepRun
from workbench.records.store import Store
from workbench.records.types import Selection


def load(project: Path, **given: str) -> graph.Pipeline:
    return graph.load_pipeline(project / "pipelines" / "trial.yaml", given, base=project)


def finish(workspace: Workspace, pipeline: graph.Pipeline, step: plan.PlannedStep) -> str:
    """Record a step as done, as the runner does."""
    store = Store(workspace)
    assert step.key is not None
    made = store.put(
        Selection(dataset="dataset/" + "0" * 64, budget=1, seed=0, method=step.name, chosen=())
    )
    run = store.put(
        StepRun(
            step=step.name,
            key=step.key.digest,
            notebook=store.put(NotebookSource(name="a", code="0" * 64)),
            environment=store.put(Environment(python="3", distributions=(), machine={})),
            modules="0" * 64,
            parameters=step.step.parameters,
            inputs={},
            outputs={"selection": made},
        )
    )
    index = cache.KeyIndex(workspace)
    index.add(step.key, run)
    index.set_latest(pipeline.name, step.name, step.key, run)
    return made


def test_a_new_pipeline_runs_everything_with_reasons(project: Path, workspace: Workspace) -> None:
    a, b = plan.plan_pipeline(load(project), workspace)
    assert (a.action, a.reasons) == ("run", ("never run before",))
    assert (b.action, b.reasons) == ("run", ("after a",))


def test_a_finished_step_is_skipped_until_something_changes(
    project: Path, workspace: Workspace
) -> None:
    pipeline = load(project)
    finish(workspace, pipeline, plan.plan_pipeline(pipeline, workspace)[0])
    a, b = plan.plan_pipeline(pipeline, workspace)
    assert a.action == "skip"
    assert b.reasons == ("never run before",)
    changed = plan.plan_pipeline(load(project, n="4"), workspace)[0]
    assert (changed.action, changed.reasons) == ("run", ("a parameter changed: n",))
    write_notebook(project / "notebooks/steps/a.ipynb", "step.metric('loss', 0.25)")
    assert plan.plan_pipeline(load(project), workspace)[0].reasons == (
        "a cell of the notebook changed: cell2",
    )


def test_a_missing_output_reruns_the_step(project: Path, workspace: Workspace) -> None:
    pipeline = load(project)
    made = finish(workspace, pipeline, plan.plan_pipeline(pipeline, workspace)[0])
    (Store(workspace).folder(made) / "COMPLETE").unlink()
    a = plan.plan_pipeline(pipeline, workspace)[0]
    assert (a.action, a.reasons) == ("run", ("output 'selection' is missing from the store",))


def test_a_folder_that_changed_is_named(project: Path, workspace: Workspace) -> None:
    data = project / "drives"
    data.mkdir()
    (data / "one.txt").write_text("1")
    contract = {
        "outputs": {"selection": {"kind": "selection"}},
        "paths": {"data": {"unless": ["builtin"]}},
    }
    steps = project / "notebooks" / "steps"
    write_notebook(
        steps / "a.ipynb", "", parameters="n: int = 1\ndata: str = 'builtin'", contract=contract
    )
    write_pipeline(
        project,
        "name: trial\nparameters: {data: {default: builtin}}\n"
        'steps:\n  a: {parameters: {data: "${data}"}}\n',
    )
    assert plan.plan_pipeline(load(project), workspace)[0].step.parameters["data"] == "builtin"
    pipeline = load(project, data="drives")
    assert plan.plan_pipeline(pipeline, workspace)[0].step.parameters["data"] == str(data)
    finish(workspace, pipeline, plan.plan_pipeline(pipeline, workspace)[0])
    assert plan.plan_pipeline(load(project, data="drives"), workspace)[0].action == "skip"
    (data / "two.txt").write_text("2")
    reasons = plan.plan_pipeline(load(project, data="drives"), workspace)[0].reasons
    assert reasons == ("a file or folder that it reads changed: data",)
    with pytest.raises(ParameterError, match="no such file or folder"):
        load(project, data="nowhere")


def test_a_parameter_can_be_a_name_or_a_path(project: Path, workspace: Workspace) -> None:
    contract = {
        "outputs": {"selection": {"kind": "selection"}},
        "paths": {"data": {"unless": ["[!./]*"]}},
    }
    steps = project / "notebooks" / "steps"
    write_notebook(steps / "a.ipynb", "", parameters="data: str = 'small'", contract=contract)
    write_pipeline(
        project,
        "name: trial\nparameters: {data: {default: small}}\n"
        'steps:\n  a: {parameters: {data: "${data}"}}\n',
    )
    (project / "drives").mkdir()
    for given, expected in (
        ("acme/tiny", "acme/tiny"),
        ("drives", "drives"),
        ("./drives", str(project / "drives")),
        (str(project / "drives"), str(project / "drives")),
    ):
        planned = plan.plan_pipeline(load(project, data=given), workspace)[0]
        assert planned.step.parameters["data"] == expected
    with pytest.raises(ParameterError, match="no such file or folder"):
        load(project, data="./nowhere")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"nn": "3"}, "Did you mean 'n'"),
        ({"n": "three"}, "must be a valid integer"),
        ({"n": "10"}, "must be ≤ 9, got 10"),
        ({"word": "laud"}, "Did you mean 'loud'"),
    ],
)
def test_pipeline_parameters_are_checked(project: Path, given: dict[str, str], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        load(project, **given)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ("b: {inputs: {upstream: a.selection}}", "no earlier step 'a'"),
        ("a: {}\n  b: {inputs: {upstreem: a.selection}}", "Did you mean 'upstream'"),
        ("a: {}\n  b: {inputs: {upstream: a.selektion}}", "Did you mean 'selection'"),
        ("a: {notebook: missing}", "no such notebook"),
        ("a: {paramters: {}}", "paramters"),
    ],
)
def test_inputs_are_checked(project: Path, steps: str, words: str) -> None:
    write_pipeline(project, f"name: trial\nsteps:\n  {steps}\n")
    with pytest.raises(ContractError, match=words):
        load(project)


def test_an_input_of_the_wrong_kind_is_rejected(project: Path) -> None:
    contract = {"inputs": {"upstream": {"kind": "dataset"}}, "outputs": {}}
    write_notebook(project / "notebooks/steps/b.ipynb", "", contract=contract)
    write_pipeline(
        project, "name: trial\nsteps:\n  a: {}\n  b: {inputs: {upstream: a.selection}}\n"
    )
    with pytest.raises(ContractError, match="takes a dataset, but"):
        load(project)


def test_a_notebook_without_parameters_cell_is_rejected(project: Path) -> None:
    path = project / "notebooks/steps/a.ipynb"
    content = json.loads(path.read_text())
    content["cells"] = content["cells"][1:]
    path.write_text(json.dumps(content))
    with pytest.raises(ContractError, match="exactly one cell tagged `parameters`"):
        load(project)


def _damage(workspace: Workspace, how: str, ref: str) -> None:
    folder = Store(workspace).folder(ref)
    match how:
        case "flipped record":
            content = bytearray((folder / "record.json").read_bytes())
            content[10] ^= 1
            (folder / "record.json").write_bytes(content)
        case "empty record":
            (folder / "record.json").write_bytes(b"")
        case "no record":
            (folder / "record.json").unlink()


@pytest.mark.parametrize("how", ["flipped record", "empty record", "no record"])
def test_a_step_with_a_damaged_output_or_run_is_not_skipped(
    project: Path, workspace: Workspace, how: str
) -> None:
    pipeline = load(project)
    made = finish(workspace, pipeline, plan.plan_pipeline(pipeline, workspace)[0])
    _damage(workspace, how, made)
    a = plan.plan_pipeline(pipeline, workspace)[0]
    assert a.action == "run"
    assert a.reasons[0].startswith("output 'selection' is damaged: record ")
    finish(workspace, pipeline, a)
    assert plan.plan_pipeline(pipeline, workspace)[0].action == "skip", "running it repairs it"
    (run,) = Store(workspace).refs("run")
    _damage(workspace, how, run)
    assert plan.plan_pipeline(pipeline, workspace)[0].action == "run"
    finish(workspace, pipeline, a)
    assert plan.plan_pipeline(pipeline, workspace)[0].action == "skip"


def test_a_damaged_output_of_a_step_that_is_not_selected_is_named(
    project: Path, workspace: Workspace
) -> None:
    pipeline = load(project)
    made = finish(workspace, pipeline, plan.plan_pipeline(pipeline, workspace)[0])
    _damage(workspace, "empty record", made)
    a = plan.plan_pipeline(pipeline, workspace, plan.select_steps(pipeline, only=("b",)))[0]
    assert a.action == "omit" and "output 'selection' is damaged" in a.reasons[1]


def test_a_key_that_points_at_another_run_is_not_believed(
    project: Path, workspace: Workspace
) -> None:
    one, other = load(project), load(project, n="4")
    first = plan.plan_pipeline(one, workspace)[0]
    second = plan.plan_pipeline(other, workspace)[0]
    assert first.key and second.key
    finish(workspace, one, first)
    finish(workspace, other, second)
    steps = workspace.index / "steps"
    theirs = (steps / f"{second.key.digest}.json").read_bytes()
    ours = steps / f"{first.key.digest}.json"
    before = plan.plan_pipeline(one, workspace)[0].cached
    for content in (theirs, b"", b"[]", b"{}", b'{"run": 3}', b'{"run": "run/x"}', b"\xff"):
        ours.write_bytes(content)
        again = plan.plan_pipeline(one, workspace)[0]
        assert (again.action, again.cached) == ("skip", before), content
        assert ours.read_bytes() not in (theirs, content), "the entry is corrected"
    stranger = steps / f"{'0' * 64}.json"
    stranger.write_bytes(theirs)
    ours.write_bytes(theirs)
    assert len(cache.KeyIndex(workspace).repair()) == 2
    assert not stranger.exists() and ours.read_bytes() != theirs


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b'{"run": 1}', b'{"parts": 1, "run": "x"}']
)
def test_a_latest_key_of_another_shape_counts_as_missing(
    project: Path, workspace: Workspace, content: bytes
) -> None:
    pipeline = load(project)
    finish(workspace, pipeline, plan.plan_pipeline(pipeline, workspace)[0])
    latest = workspace.index / "latest" / "trial.a.json"
    entry = json.loads(latest.read_bytes())
    latest.write_bytes(content)
    assert cache.KeyIndex(workspace).latest("trial", "a") is None
    assert plan.plan_pipeline(load(project, n="4"), workspace)[0].reasons == ("never run before",)
    entry["parts"]["parameters"] = {}
    latest.write_text(json.dumps(entry))
    assert cache.KeyIndex(workspace).latest("trial", "a") is None, "not the parts of that run"


def test_a_pipeline_may_begin_from_a_record(project: Path, workspace: Workspace) -> None:
    store = Store(workspace)
    made = store.put(
        Selection(dataset="dataset/" + "0" * 64, budget=1, seed=0, method="by hand", chosen=())
    )
    file = project / "pipelines" / "trial.yaml"

    def planned(reference: str) -> plan.PlannedStep:
        text = file.read_text().replace("a.selection", f'"record:{reference}"')
        other = file.with_name("other.yaml")
        other.write_text(text)
        pipeline = graph.load_pipeline(other, {}, base=project)
        return next(one for one in plan.plan_pipeline(pipeline, workspace) if one.step.name == "b")

    assert list(planned(made[:22]).inputs.values()) == [made]
    assert list(planned("").inputs.values()) == [None]  # it is optional
    with pytest.raises(RecordError):
        planned("selection/0000")
