"""Every step notebook: readable, strict, and the same by hand as in the pipeline."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data.sources import coco_box, coco_image, write_coco, write_picture
from tests.tiny_run import ROOT, TinyRun
from workbench.core.workspace import Workspace
from workbench.pipeline import contract as contracts
from workbench.records import references
from workbench.records.base import kind_of
from workbench.records.dataset import load_dataset
from workbench.records.store import Store
from workbench.records.types import DatasetVersion
from workbench.training import TrainingConfig

NOTEBOOKS = sorted((ROOT / "notebooks" / "steps").glob("*.ipynb"))
NAMES = [notebook.stem for notebook in NOTEBOOKS]
PROOF = {"arms", "compare", "sweep"}
"""Steps of pipelines/mining_proof.yaml alone; tests/e2e/test_mining_proof.py runs them."""
IN_THE_ENGINE = [notebook for notebook in NOTEBOOKS if notebook.stem not in PROOF]
STEP_OF = {"train": "baseline"}
PLOTTING = {"matplotlib", "pandas", "numpy", "ipywidgets", "IPython"}
STANDARD = {"typing", "pathlib", "pydantic", "shutil", "json"}
QUICK = {"release", "validate", "ingest"}


def cells(notebook: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(notebook.read_text())["cells"]
    return content


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_the_steps_of_the_design_are_all_here() -> None:
    assert set(NAMES) == {
        "ingest",
        "train",
        "curate",
        "send",
        "collect",
        "inspect",
        "export",
        "validate",
        "release",
        *PROOF,
    }


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_it_reads_as_a_page(notebook: Path) -> None:
    page = cells(notebook)
    assert page[0]["cell_type"] == "markdown"
    opening = source(page[0])
    assert opening.startswith("# ")
    for part in ("**Question.**", "| reads |", "| writes |"):
        assert part in opening
    code = [cell for cell in page if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert "parameters" in code[1]["metadata"]["tags"], "imports come first, then parameters"
    assert "workbench.step()" in source(code[2])
    assert "step.output(" in source(code[-1]) or "step.save(" in source(code[-1]), (
        "outputs come last"
    )
    assert any("assert " in source(cell) for cell in code), "a step checks what it made"
    if notebook.stem != "release":
        assert any("step.figure(" in source(cell) for cell in code), "a picture or two"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_it_imports_only_the_workbench_and_plotting(notebook: Path) -> None:
    roots = set()
    for cell in cells(notebook):
        if cell["cell_type"] == "code":
            for node in ast.walk(ast.parse(source(cell))):
                if isinstance(node, ast.Import):
                    roots |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    roots.add((node.module or "").split(".")[0])
    assert roots <= {"workbench"} | PLOTTING | STANDARD


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_its_contract_is_whole_and_its_defaults_are_valid(notebook: Path) -> None:
    contract = contracts.read_contract(notebook)
    assert contract.declaration.outputs
    contract.validate({})
    contract.validate(contract.declaration.fixture.parameters)
    contract.validate(contract.declaration.fixture.other)


def test_options_that_are_not_given_are_left_to_the_model() -> None:
    """A whole `config` would undo what a model's own defaults set, such as frozen layers."""
    contract = contracts.read_contract(ROOT / "notebooks" / "steps" / "train.ipynb")
    for given in ({}, {"ema": 0.9}):
        options = contract.validate({"model": "lite0", "config": given})["config"]
        assert options == given
        config = TrainingConfig.sized("lite0", **options)
        assert (config.heads_first, config.freeze_norm) == (1.0, True)


@pytest.mark.parametrize("notebook", IN_THE_ENGINE, ids=[one.stem for one in IN_THE_ENGINE])
def test_in_the_pipeline_it_kept_its_promises(notebook: Path, tiny_run: TinyRun) -> None:
    step = STEP_OF.get(notebook.stem, notebook.stem)
    folder = tiny_run.folder(step)
    declared = contracts.read_contract(notebook).declaration
    outputs = json.loads((folder / "outputs.json").read_text())
    assert {name: kind_of(ref) for name, ref in outputs.items()} == {
        name: output.kind for name, output in declared.outputs.items()
    }
    assert all(tiny_run.store.exists(ref) for ref in outputs.values())
    executed = json.loads((folder / "executed.ipynb").read_text())
    counts = [c["execution_count"] for c in executed["cells"] if c["cell_type"] == "code"]
    assert all(counts)
    result = json.loads((folder / "result.json").read_text())
    assert result["peak_memory_mib"] < 4096
    figures = list((folder / "figures").glob("*.png")) if (folder / "figures").exists() else []
    assert notebook.stem == "release" or figures
    assert all(figure.stat().st_size > 2000 for figure in figures)


@pytest.mark.parametrize(
    "notebook",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else [pytest.mark.slow])
        for path in IN_THE_ENGINE
    ],
)
def test_by_hand_it_runs_on_the_newest_inputs(
    notebook: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    """As JupyterLab runs it: no spec, only the notebook's own path in the environment."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "jupyter",
            "execute",
            str(notebook),
            f"--output={tmp_path / notebook.name}",
        ],
        check=False,
        env={
            **os.environ,
            "WORKBENCH_HOME": str(tiny_run.workspace.root),
            "WORKBENCH_NOTEBOOK": str(notebook),
        },
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    scratch = tiny_run.workspace.scratch / notebook.stem
    assert json.loads((scratch / "outputs.json").read_text())


def test_a_run_takes_a_schema_and_a_mapping(tmp_path: Path) -> None:
    source, boxes, images = tmp_path / "drives", [], []
    for number in range(12):
        file = f"drive{chr(97 + number)}_0001.jpg"
        write_picture(source / file, number)
        images.append(coco_image(number, file))
        boxes.append(coco_box(2 * number, number, [4, 5, 20, 10], 2))
        boxes.append(coco_box(2 * number + 1, number, [30, 5, 20, 10], 3))
    write_coco(source, images, boxes)
    schema = tmp_path / "schema.yaml"
    schema.write_text("name: harbour\nversion: 1\nclasses: [Person, ship]\n")
    arguments = (f"data={source}", f"schema={schema}", "map=hovercraft=ship", "name=harbour")
    given = [word for pair in arguments for word in ("-p", pair)]
    pipeline = str(ROOT / "pipelines" / "data_engine.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "run", pipeline, "--only", "ingest", *given],
        check=False,
        env={**os.environ, "WORKBENCH_HOME": str(tmp_path / ".workbench")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    workspace = Workspace(tmp_path / ".workbench")
    (version, *_) = references.list_dataset_versions(workspace)
    dataset = load_dataset(Store(workspace), version.ref)
    assert dataset.label_schema.classes == ("Person", "ship")
    # The pool's labels are withheld.
    assert {label.cls for label in dataset.labels} == {"Person", "ship"}
    assert not Store(workspace).get(version.ref, DatasetVersion).quarantined
