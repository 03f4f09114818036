"""`workbench run` ends with what was quarantined, by reason."""

from __future__ import annotations

from workbench.cli.runs import quarantined_inputs, run_summary
from workbench.core.workspace import Workspace
from workbench.pipeline.run import RunReport
from workbench.records.base import Ref
from workbench.records.frames import LabelSchema
from workbench.records.store import Store
from workbench.records.types import DatasetVersion

SCHEMA = LabelSchema(name="s", version=1, classes=("car",))


def save_dataset(workspace: Workspace, quarantined: dict[str, int]) -> Ref:
    record = DatasetVersion(
        name="fleet",
        label_schema=SCHEMA,
        frames=1,
        labels=0,
        drives=1,
        made_by="test",
        quarantined=quarantined,
    )
    return Store(workspace).put(record, {})


def summary(workspace: Workspace, **outputs: Ref) -> str:
    named = {name.replace("_", "."): ref for name, ref in outputs.items()}
    report = RunReport(pipeline="p", run_id="1", status="succeeded", steps=(), outputs=named)
    return run_summary(workspace, report, quarantined_inputs(workspace, report))


def test_quarantined_inputs_are_counted_by_reason(workspace: Workspace) -> None:
    ref = save_dataset(workspace, {"unreadable": 3, "unknown class": 1_200})
    text = summary(workspace, ingest_dataset=ref)
    assert f"1,203 inputs quarantined (`workbench datasets show {ref[:20]}`)" in text
    assert text.index("1,200  unknown class") < text.index("3  unreadable")


def test_a_dataset_that_two_steps_return_is_counted_once(workspace: Workspace) -> None:
    ref = save_dataset(workspace, {"unreadable": 1})
    text = summary(workspace, ingest_dataset=ref, merge_dataset=ref)
    assert text.count("1 input quarantined") == 1


def test_nothing_quarantined_is_not_mentioned(workspace: Workspace) -> None:
    assert "quarantined" not in summary(workspace, ingest_dataset=save_dataset(workspace, {}))
