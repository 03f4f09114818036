"""The modules of a step are those that it can import."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from workbench.pipeline import contract, environment


def test_imports_inside_functions_and_through_packages_count() -> None:
    reached = environment.reachable_modules(["from workbench.records import dataset"])
    assert "workbench.records.dataset" in reached
    assert "workbench.records.store" in reached
    assert "workbench.core.digest" in reached
    assert "workbench.cli" not in reached
    assert "workbench.evaluation" not in reached


def test_lazy_exports_of_a_package_count() -> None:
    assert "workbench.training.trainer" in environment.reachable_modules(
        ["from workbench import training"]
    )


def test_a_notebook_depends_on_the_public_names_it_uses_in_any_cell() -> None:
    reached = environment.reachable_modules(["import workbench as wb", "wb.evaluate(1)"])
    assert "workbench.evaluation.metrics" in reached
    assert "workbench.training" not in reached and "workbench.pipeline.connect" not in reached
    again = environment.reachable_modules(["from workbench import evaluate"])
    assert "workbench.evaluation.metrics" in again


def test_a_step_that_declares_a_model_depends_on_the_code_that_loads_it() -> None:
    declared = contract.Declaration(inputs={"model": contract.Input(kind="checkpoint")})
    step = dataclasses.replace(
        contract.read_contract(Path("notebooks/steps/ingest.ipynb")), declaration=declared, cells=()
    )
    reached = environment.reachable_modules(step.import_sources)
    assert "workbench.detection.predictor" in reached


def test_every_step_depends_on_the_step_interface_but_not_on_the_runner() -> None:
    reached = environment.reachable_modules(["import workbench", "step = workbench.step()"])
    assert "workbench.pipeline.connect" in reached
    assert "workbench.pipeline.runner" not in reached
    assert "workbench.pipeline.interactive" not in reached


def test_magics_do_not_hide_imports() -> None:
    assert "workbench.core.digest" in environment.reachable_modules(
        ["%matplotlib inline\nfrom workbench.core import digest"]
    )


def test_the_digest_depends_on_the_source_of_reachable_modules(monkeypatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    package = tmp_path / "workbench"
    (package / "stage").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "stage/__init__.py": "",
        "stage/used.py": "from workbench.stage import deep",
        "stage/deep.py": "A = 1",
        "stage/other.py": "B = 1",
    }.items():
        (package / name).write_text(text)
    monkeypatch.setattr(environment, "PACKAGE_ROOT", package)
    sources = ["from workbench.stage import used"]
    before = environment.modules_digest(sources)
    (package / "stage/other.py").write_text("B = 2")
    assert environment.modules_digest(sources) == before
    (package / "stage/deep.py").write_text("A = 2")
    assert environment.modules_digest(sources) != before
