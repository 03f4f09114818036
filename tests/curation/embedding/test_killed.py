"""A pass killed with SIGKILL, and the embed command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from workbench.cli import main
from workbench.core.workspace import Workspace
from workbench.curation.embedding import embeddings
from workbench.curation.embedding.compute import embed
from workbench.curation.embedding.encoders import DetectorEncoder
from workbench.detection.predictor import load_checkpoint
from workbench.records.base import Ref
from workbench.records.dataset import Dataset, media_path
from workbench.records.store import Store

PASS = """
import sys, time
from pathlib import Path
from workbench.core.workspace import find_workspace
from workbench.curation.embedding import compute
from workbench.curation.embedding.encoders import DetectorEncoder
from workbench.detection.predictor import load_checkpoint
from workbench.records.dataset import load_dataset
from workbench.records.store import Store

class Slow(DetectorEncoder):
    def embed(self, images):
        with Path(sys.argv[1]).open("a") as log:
            log.write(f"{len(images)}\\n")
        time.sleep(float(sys.argv[4]))
        return super().embed(images)

compute._SHARD_FRAMES = 8
store = Store(find_workspace())
encoder = Slow(load_checkpoint(store, sys.argv[3]))
compute.embed(store.workspace, encoder, load_dataset(store, sys.argv[2]).frames, batch=4)
"""


def test_a_killed_pass_resumes_without_recomputing_a_shard(
    workspace: Workspace, store: Store, dataset: Dataset, model: Ref, tmp_path: Path
) -> None:
    log = tmp_path / "forwards"
    command = [sys.executable, "-c", PASS, str(log), dataset.ref or "", model]
    encoder = DetectorEncoder(load_checkpoint(store, model))
    folder = embeddings.embeddings_folder(workspace, encoder)
    running = subprocess.Popen([*command, "0.3"], env=dict(os.environ))
    deadline = time.monotonic() + 120
    while len(embeddings.read_shards(folder)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = embeddings.read_shards(folder)
    assert 2 <= len(kept) < 6
    log.write_text("")
    subprocess.run([*command, "0"], env=dict(os.environ), check=True)
    redone = sum(int(line) for line in log.read_text().split())
    assert redone == len(dataset.frames) - 8 * len(kept)
    whole = embed(workspace, encoder, dataset.frames)
    assert whole.frames == tuple(frame.id for frame in dataset.frames)
    unbroken = encoder.embed([_image(workspace, dataset, row) for row in range(4)])
    np.testing.assert_allclose(whole.vectors[:4], unbroken.frames, atol=2e-2)


def _image(workspace: Workspace, dataset: Dataset, row: int) -> np.ndarray:
    from workbench.detection.preprocessing import load_rgb

    return load_rgb(media_path(workspace, dataset.frames[row]))


def test_the_command_reports_what_it_wrote(
    workspace: Workspace, dataset: Dataset, model: Ref, capsys: pytest.CaptureFixture[str]
) -> None:
    media_path(workspace, dataset.frames[9]).write_bytes(b"no image")
    with pytest.raises(SystemExit) as exit_info:
        main(["embed", dataset.ref or "", "--role", "pool", "--model", model, "--json"])
    assert exit_info.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["frames"] == 31
    assert result["tiles_per_frame"] == 75
    assert Path(result["folder"]).is_dir()
    assert [one["frame"] for one in result["left_out"]] == [dataset.frames[9].id]
    with pytest.raises(SystemExit):
        main(["embed", dataset.ref or "", "--role", "pool", "--model", model])
    output = capsys.readouterr()
    assert "31 frames embedded" in output.out
    assert "skipped: 1" in output.out
    assert "next: workbench mine" in output.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--role", "pond"], "unknown role"),
        (["--role", "train"], "no frames with these roles"),
        (["--encoder", "/no/such/folder"], "no such folder"),
        (["--encoder", "/no/such.onnx"], "cannot load the model"),
    ],
)
def test_invalid_arguments_are_reported(
    workspace: Workspace,
    dataset: Dataset,
    model: Ref,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["embed", dataset.ref or "", "--model", model, *arguments])
    assert exit_info.value.code != 0
    assert message in capsys.readouterr().err
