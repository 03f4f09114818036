"""A pass that is killed with SIGKILL, and the command that people start it by."""

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
from workbench.curation.embedding import DetectorEncoder, embed, one_pass
from workbench.detection.predictor import load_checkpoint
from workbench.records import dataset as datasets
from workbench.records.store import Store

class Slow(DetectorEncoder):
    def look(self, images):
        with Path(sys.argv[1]).open("a") as log:
            log.write(f"{len(images)}\\n")
        time.sleep(float(sys.argv[4]))
        return super().look(images)

one_pass.SHARD = 8
store = Store(find_workspace())
encoder = Slow(load_checkpoint(store, sys.argv[3]))
embed(store.workspace, encoder, datasets.load(store, sys.argv[2]).frames, batch=4)
"""


def test_a_pass_killed_outright_goes_on_without_redoing_a_shard(
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
    unbroken = encoder.look([_image(workspace, dataset, row) for row in range(4)])
    np.testing.assert_allclose(whole.vectors[:4], unbroken.frames, atol=2e-2)


def _image(workspace: Workspace, dataset: Dataset, row: int) -> np.ndarray:
    from workbench.detection.preprocessing import load_rgb

    return load_rgb(media_path(workspace, dataset.frames[row]))


def test_the_command_tells_what_it_kept(
    workspace: Workspace, dataset: Dataset, model: Ref, capsys: pytest.CaptureFixture[str]
) -> None:
    media_path(workspace, dataset.frames[9]).write_bytes(b"no image")
    with pytest.raises(SystemExit) as done:
        main(["embed", dataset.ref or "", "--role", "pool", "--model", model, "--json"])
    assert done.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["frames"] == 31
    assert told["tiles_per_frame"] == 75
    assert Path(told["folder"]).is_dir()
    assert [one["frame"] for one in told["left_out"]] == [dataset.frames[9].id]
    with pytest.raises(SystemExit):
        main(["embed", dataset.ref or "", "--role", "pool", "--model", model])
    words = capsys.readouterr()
    assert "31 frames embedded" in words.out
    assert "left out: 1" in words.out
    assert "next: workbench mine" in words.out


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--role", "pond"], "no such role"),
        (["--role", "train"], "has no such frames"),
        (["--encoder", "/no/such/folder"], "no such folder"),
        (["--encoder", "/no/such.onnx"], "cannot load the model"),
    ],
)
def test_nonsense_is_told(
    workspace: Workspace,
    dataset: Dataset,
    model: Ref,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    says: str,
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["embed", dataset.ref or "", "--model", model, *given])
    assert done.value.code != 0
    assert says in capsys.readouterr().err
