"""Models by name, through the hub's real client, in processes that know no other hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training import hub, suppliers

ROOT = Path(__file__).resolve().parents[2]
NAME = "acme/tiny-detr"
LOAD = """
import sys
from workbench.detection import huggingface
from workbench.detection.preprocessing import Preprocessing
spec = huggingface.pretrained_preprocessing(sys.argv[1], width=96, height=64)
model = huggingface.load_pretrained(sys.argv[1], ("car", "cyclist"), spec)
print(model.supplier.model_dump_json())
"""
FETCH = """
import sys
from workbench.core.errors import DataError
from workbench.detection.huggingface import _resolve_model_source
try:
    print(*_resolve_model_source(sys.argv[1], None)[1:])
except DataError as error:
    sys.exit(str(error))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = suppliers.make("detr", tmp_path_factory.mktemp("hub") / "detr")
    (made / "run_me.py").write_text("raise SystemExit('a model came with code')")
    return made


def ask(code: str, address: str, home: Path, name: str = NAME) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", code, name],
        cwd=ROOT,
        env={**kept, "HF_ENDPOINT": address, "HF_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_model_of_the_hub_comes_with_its_commit(folder: Path, tmp_path: Path) -> None:
    with hub.serve(folder, NAME) as (address, asked):
        done = ask(LOAD, address, tmp_path)
        unknown = ask(FETCH, address, tmp_path, "acme/nothing")
    assert done.returncode == 0, done.stderr
    supplier = json.loads(done.stdout)
    assert supplier["origin"] == f"hub:{NAME}"
    assert supplier["revision"] == hub.COMMIT
    assert supplier["licence"] == "apache-2.0"
    assert supplier["weights"]
    assert f"GET {NAME}/resolve/{hub.COMMIT}/model.safetensors" in asked
    assert not any("run_me" in path for path in asked)  # code that comes along is never fetched
    assert not any("telemetry" in path for path in asked)
    assert unknown.returncode
    assert "cannot be downloaded from the hub" in unknown.stderr
    assert "Traceback" not in unknown.stderr
    away = ask(FETCH, address, tmp_path)  # the hub is gone by now, what was fetched is still here
    assert away.stdout.split() == [f"hub:{NAME}", hub.COMMIT]


def test_a_hub_that_is_away_is_said_so(folder: Path, tmp_path: Path) -> None:
    with hub.serve(folder, NAME) as (address, _):
        pass
    done = ask(FETCH, address, tmp_path)
    assert done.returncode
    assert "cannot be downloaded from the hub" in done.stderr
    assert NAME in done.stderr
    assert "give a folder" in done.stderr
    assert "Traceback" not in done.stderr
