"""Loading a pipeline: fan-outs, inputs, conditions, environment references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.test_hostile_sources import HOSTILE
from tests.pipeline.conftest import CONTRACT, write_notebook, write_pipeline
from workbench.core import digest
from workbench.core.errors import ContractError, ParameterError, WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline import graph, plan

MANY: dict[str, Any] = {
    **CONTRACT,
    "inputs": {"upstream": {"kind": "selection", "many": True}},
}
GATED: dict[str, Any] = {"outputs": {"gates": {"kind": "gates"}}}


@pytest.fixture
def fanned(project: Path) -> Path:
    """``a`` for each of a list, ``b`` after each, ``c`` of all of them."""
    steps = project / "notebooks/steps"
    write_notebook(steps / "c.ipynb", "", contract=MANY)
    write_notebook(steps / "gate.ipynb", "", contract=GATED)
    write_pipeline(
        project,
        """
name: trial
parameters:
  numbers: {type: list, items: int, default: [1, 2], minimum: 0}
steps:
  a: {for_each: {n: "${numbers}"}, parameters: {n: "${each.n}"}}
  b: {for_each: a, inputs: {upstream: a.selection}, parameters: {word: "as ${each.n}"}}
  c: {inputs: {upstream: b.selection}}
""",
    )
    return project


def load(project: Path, **given: Any) -> graph.Pipeline:
    return graph.load_pipeline(project / "pipelines/trial.yaml", given, base=project)


def write_steps(project: Path, steps: str, parameters: str = "{}") -> None:
    write_pipeline(project, f"name: trial\nparameters: {parameters}\nsteps:\n  {steps}\n")


def test_a_fan_out_is_a_step_for_each_value(fanned: Path) -> None:
    pipeline = load(fanned)
    assert list(pipeline.steps) == ["a[1]", "a[2]", "b[1]", "b[2]", "c"]
    assert [pipeline.steps[f"a[{n}]"].parameters["n"] for n in (1, 2)] == [1, 2]
    assert pipeline.steps["b[2]"].needs == ("a[2]",)
    assert pipeline.steps["b[2]"].parameters["word"] == "as 2"
    assert pipeline.steps["c"].needs == ("b[1]", "b[2]")
    assert pipeline.named("a") == ["a[1]", "a[2]"]
    assert pipeline.below(["a[1]"]) == {"a[1]", "b[1]", "c"}


@pytest.mark.parametrize("text", ["3,4", "[3, 4]", " 3 , 4 "])
def test_a_list_is_parsed_from_text(fanned: Path, text: str) -> None:
    assert list(load(fanned, numbers=text).steps)[:2] == ["a[3]", "a[4]"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3,x", r"'[^']*\[1\]' must be a valid integer"),
        ("-1", "must be ≥"),
        ("", "empty list"),
        ("[1", "JSON"),
    ],
)
def test_items_of_a_list_are_checked(fanned: Path, text: str, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        load(fanned, numbers=text)


def test_several_keys_give_every_combination_with_unique_names(project: Path) -> None:
    over = '{n: [1, 2], w: ["x/y", "x y"]}'
    write_steps(project, f'a: {{for_each: {over}, parameters: {{n: "${{each.n}}"}}}}')
    names = list(load(project).steps)
    assert len(set(names)) == 4
    assert all(name.startswith(("a[1,x-y-", "a[2,x-y-")) for name in names)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ("a: {for_each: {n: 3}}", "needs a list"),
        ("a: {for_each: {n: []}}", "needs a list"),
        ('a: {parameters: {n: "${each.n}"}}', "is not defined for this step"),
        ("a: {}\n  b: {for_each: a, inputs: {upstream: a.selection}}", "run only once"),
        ("a: {for_each: {n: [1, 2]}}\n  b: {inputs: {upstream: a.selection}}", "run 2 times"),
        ("a: {}\n  b: {after: [c]}", "no earlier step 'c'"),
        ("a: {}\n  b: {when: {gates: a.selection}}", "is not a gate report"),
        ("a: {}\n  b: {when: {gates: a.gates, verdict: [GOOD]}}", "verdict"),
        ("a: {retries: {bad-luck: 1}}", "retries"),
        ("a: {cache: sometimes}", "cache"),
        ("a: {notebook: a@9}", "a@9|no promoted|promoted"),
    ],
)
def test_errors_are_found_before_anything_starts(project: Path, steps: str, words: str) -> None:
    write_steps(project, steps)
    with pytest.raises(ContractError, match=words):
        load(project)


def test_environment_variables_are_substituted_except_secrets(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = '{n: {type: int, default: "${env:N_HERE|7}"}}'
    write_steps(project, 'a: {parameters: {n: "${n}"}}', number)
    assert load(project).parameters == {"n": 7}
    monkeypatch.setenv("N_HERE", "8")
    assert load(project).parameters == {"n": 8}
    write_steps(project, "a: {}", '{n: {default: "${env:NOT_SET_HERE}"}}')
    with pytest.raises(ParameterError, match="NOT_SET_HERE is not set"):
        load(project)
    write_steps(project, "a: {}", '{n: {default: "x${env:SOME_TOKEN}"}}')
    with pytest.raises(ContractError, match="looks like a secret"):
        load(project)
    write_steps(project, "a: {}", '{n: {default: "${env:SOME_TOKEN}"}}')
    assert load(project).parameters == {"n": "${env:SOME_TOKEN}"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("db_password", "hunter2"),
        ("dbPassword", "hunter2"),
        ("api_token", "abc-def-1"),
        ("stripe_key", "q8w7e6r5t4y3u2"),
        ("n", "postgres://me:hunter2@db.example/x"),
        ("n", "https://store.example/file?sig=abc1230909"),
        ("n", "Server=db;User=me;Password=hunter2;"),
        ("n", "AKIA" + "Z7Q2M4X8B1C3D5E6"),
        ("n", "open sesame 77"),
        ("n", "b3BlbiBzZXNhbWUgNzc="),
    ],
)
def test_a_secret_is_no_parameter(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("DOOR_SECRET", "open sesame 77")
    write_steps(project, "a: {}", f"{{{name}: {{default: ''}}}}")
    with pytest.raises(ParameterError, match="stored in records and logs") as refused:
        load(project, **{name: value})
    assert value not in str(refused.value)
    monkeypatch.setenv("SOME_ADDRESS", value)
    write_steps(project, "a: {}", f'{{{name}: {{default: "${{env:SOME_ADDRESS}}"}}}}')
    with pytest.raises(ParameterError, match="stored in records and logs"):
        load(project)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenizer", "bert-base-uncased-77"),
        ("max_tokens", "512"),
        ("sort_key", "score"),
        ("keyframes", "every-10th"),
        ("password_file", "secrets/db"),
        ("data", "https://example.org:8080/a@b"),
        ("db_password", "${env:DB_PASSWORD}"),
        ("model", "models:/front-camera@champion"),
        ("name", "night-drives@3"),
    ],
)
def test_ordinary_parameters_are_no_secrets(project: Path, name: str, value: str) -> None:
    write_steps(project, "a: {}", f"{{{name}: {{default: ''}}}}")
    assert load(project, **{name: value}).parameters == {name: value}


def test_only_and_from_report_what_they_skip(fanned: Path, workspace: Workspace) -> None:
    pipeline = load(fanned)
    only = plan.plan_pipeline(pipeline, workspace, plan.select_steps(pipeline, only=("a",)))
    assert [step.action for step in only] == ["run", "run", "omit", "omit", "omit"]
    assert only[-1].reasons == ("not selected",)
    below = plan.select_steps(pipeline, start="b[2]").fresh
    assert below == {"b[2]", "c"}
    with pytest.raises(ContractError, match="Did you mean 'b'"):
        plan.select_steps(pipeline, start="bb")


def test_resources_of_the_pipeline_override_the_contract(project: Path) -> None:
    write_steps(project, "a: {resources: {threads: 3, timeout_s: 5}}")
    step = load(project).steps["a"]
    assert (step.resources.threads, step.resources.timeout_s) == (3, 5)
    assert step.resources.memory_gib == 4


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_values_of_parameters_are_kept_or_refused(project: Path, number: int) -> None:
    value = HOSTILE[number]
    write_steps(
        project,
        'a: {parameters: {n: "${n}"}}',
        '{text: {default: "x"}, items: {type: list, default: [a]}, n: {type: int, default: 1}}',
    )
    for name in ("text", "items", "n"):
        try:
            parameters = load(project, **{name: value}).parameters
        except WorkbenchError as error:
            assert len(str(error)) < 20_000
            continue
        digest.canonical_json(parameters)
        if name == "text" and isinstance(value, str):
            assert parameters["text"] == value
