"""Pipelines in Python and in files are one thing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.tiny_run import PIPELINE, ROOT
from workbench.core.errors import ContractError
from workbench.pipeline import pipeline_file
from workbench.pipeline.builder import PipelineBuilder, champion, each

SCHEMA = ROOT / "docs" / "pipeline.schema.json"


def test_what_is_built_reads_back_the_same(tmp_path: Path) -> None:
    built = PipelineBuilder("trial", help="Some seeds.")
    seeds = built.parameter("seeds", type="list", items="int", default=[0, 1])
    ingest = built.step("ingest")
    train = built.step(
        "train",
        for_each={"seed": seeds},
        inputs={"dataset": ingest["dataset"]},
        parameters={"seed": each("seed")},
        retries={"kernel-died": 2},
    )
    built.step("export", for_each=train, inputs={"checkpoint": train["checkpoint"]})
    built.step("validate", inputs={"champion": champion("m")}, after=[train])
    built.write(tmp_path / "trial.yaml")
    read = pipeline_file.read_pipeline_file(tmp_path / "trial.yaml")
    assert read == built.definition()
    assert read.steps["train"].for_each == {"seed": "${seeds}"}
    assert read.steps["export"].for_each == "train"
    assert read.steps["validate"].after == ("train",)
    assert read.steps["train"].retries == {"kernel-died": 2}


def test_the_data_engine_built_in_python_is_the_file(tmp_path: Path) -> None:
    content = yaml.safe_load(PIPELINE.read_text())
    about = {key: content[key] for key in ("schema_version", "help")}
    built = PipelineBuilder(content["name"], **about)
    for name, parameter in content["parameters"].items():
        built.parameter(name, **parameter)
    for name, step in content["steps"].items():
        built.step(name, **(step or {}))
    assert built.definition() == pipeline_file.read_pipeline_file(PIPELINE)


def test_mistakes_name_the_key() -> None:
    built = PipelineBuilder("trial")
    built.step("a", retries={"bad-luck": 1})
    with pytest.raises(ContractError, match=r"steps\.a\.retries"):
        built.definition()
    with pytest.raises(ContractError, match="a step 'a' already"):
        built.step("a")


def test_the_schema_for_editors_is_that_of_the_code() -> None:
    assert json.loads(SCHEMA.read_text()) == pipeline_file.pipeline_json_schema(), (
        "write it again: workbench plan --schema > docs/pipeline.schema.json"
    )
    assert "docs/pipeline.schema.json" in PIPELINE.read_text().splitlines()[0]
