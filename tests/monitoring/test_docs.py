"""The page about monitoring lists every reason, and the repository's envelope is valid."""

import re
from pathlib import Path

from workbench.core.workspace import Workspace
from workbench.monitoring.envelope import Reason, sign_envelope
from workbench.pipeline.graph import load_pipeline

ROOT = Path(__file__).resolve().parents[2]


def test_every_reason_is_explained_once() -> None:
    page = (ROOT / "docs" / "how-to" / "monitoring.md").read_text()
    rows = "\n".join(re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \|", page, re.M))
    codes = re.findall(r"`([a-z-]+)`", rows)
    assert [code for code in codes if code in set(Reason)] == [reason.value for reason in Reason]


def test_the_envelope_and_its_pipeline_are_valid(workspace: Workspace) -> None:
    signed = sign_envelope(workspace, ROOT / "pipelines" / "retraining.yaml", by="ana")
    given = dict.fromkeys(("alarm", "dataset", "start"), "x/y")
    values = {name: limits.default for name, limits in signed.parameters.items()}
    pipeline = load_pipeline(Path(signed.pipeline), {**given, **values}, base=ROOT)
    assert list(pipeline.steps)[-1] == "release"
    assert pipeline.steps["curate"].sources["alarm"].record == "x/y"
