from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from tests.curation.conftest import CONFIG, SPEC
from tests.training import suppliers
from workbench.core.errors import DataError, ParameterError, WorkbenchError
from workbench.core.workspace import Workspace
from workbench.curation.embedding import compute, embeddings
from workbench.curation.embedding.compute import embed
from workbench.curation.embedding.encoders import (
    MAX_OBJECTS,
    DetectorEncoder,
    EncoderOutput,
    box_means,
)
from workbench.detection import huggingface
from workbench.detection.config import DetectorConfig
from workbench.detection.detector import pool_features
from workbench.detection.predictor import TorchPredictor, load_checkpoint
from workbench.detection.preprocessing import (
    Pixels,
    Preprocessing,
    load_rgb,
    preprocess_batch,
)
from workbench.records.base import Ref
from workbench.records.dataset import Dataset, media_path
from workbench.records.store import Store


class CountingEncoder(DetectorEncoder):
    """Counts the images it embeds, and can be made to fail."""

    count = 0
    fail_after: int | None = None
    return_nan: bool = False

    def embed(self, images: Sequence[Pixels]) -> EncoderOutput:
        if self.fail_after is not None and self.count >= self.fail_after:
            raise KeyboardInterrupt
        self.count += len(images)
        output = super().embed(images)
        if self.return_nan:
            output.frames[0] = np.nan
        return output


@pytest.fixture
def predictor(store: Store, model: Ref) -> TorchPredictor:
    return load_checkpoint(store, model)


def test_rows_are_in_the_order_of_the_frames(
    workspace: Workspace, dataset: Dataset, predictor: TorchPredictor
) -> None:
    forward = embed(workspace, predictor, dataset.frames)
    backward = embed(workspace, predictor, dataset.frames[::-1])
    assert backward.frames == forward.frames[::-1]
    np.testing.assert_array_equal(backward.vectors, forward.vectors[::-1])
    np.testing.assert_array_equal(backward.entropy, forward.entropy[::-1])
    last = forward.owner == len(forward.frames) - 1
    assert last.any()
    np.testing.assert_array_equal(
        backward.object_vectors[backward.owner == 0], forward.object_vectors[last]
    )


def test_embeddings_agree_with_the_predictor(
    workspace: Workspace, dataset: Dataset, predictor: TorchPredictor
) -> None:
    frames = dataset.frames[:5]
    images = [load_rgb(media_path(workspace, frame)) for frame in frames]
    found = embed(workspace, predictor, frames)
    batch, _ = preprocess_batch(images, predictor.preprocessing)
    with torch.inference_mode():
        expected = pool_features(predictor.detector.features(torch.from_numpy(batch))).numpy()
    np.testing.assert_allclose(found.vectors, expected, rtol=2e-3, atol=2e-3)
    for row, detections in enumerate(predictor.predict(images)):
        mine = found.boxes[found.owner == row]
        assert 0 < len(mine) <= MAX_OBJECTS
        np.testing.assert_allclose(mine, detections.boxes[: len(mine)], atol=1e-3)


def test_an_object_vector_is_the_mean_of_the_cells_under_its_box(predictor: TorchPredictor) -> None:
    maps = tuple(
        torch.arange(2 * 3 * SPEC.height // s * (SPEC.width // s), dtype=torch.float32).reshape(
            2, 3, SPEC.height // s, SPEC.width // s
        )
        for s in CONFIG.strides
    )
    boxes = [
        np.array([[9, 1, 30, 20]], np.float32),
        np.array([[90, 60, 96, 64], [0, 0, 1, 1]], np.float32),
    ]
    first, second = box_means(maps, boxes, CONFIG.strides)
    np.testing.assert_allclose(
        first[0, :3], maps[0][0, :, 0:3, 1:4].mean((1, 2)).numpy(), rtol=1e-6
    )
    np.testing.assert_allclose(second[0, :3], maps[0][1, :, 7, 11].numpy(), rtol=1e-6)
    np.testing.assert_allclose(second[1, -3:], maps[2][1, :, 0, 0].numpy(), rtol=1e-6)


@pytest.mark.parametrize("kind", suppliers.KINDS)
def test_a_pretrained_detector_is_an_encoder_too(
    kind: str, workspace: Workspace, dataset: Dataset, tmp_path: Path
) -> None:
    spec = Preprocessing(width=96, height=64)
    folder = suppliers.make(kind, tmp_path / kind)
    network = huggingface.load_pretrained(folder, ("car", "person"), spec)
    predictor = TorchPredictor(network, spec)
    seen = embed(workspace, predictor, dataset.frames)
    assert len(seen.frames) == len(dataset.frames)
    first = seen.vectors[0]
    assert first.size and np.isfinite(seen.vectors).all()
    image = load_rgb(media_path(workspace, dataset.frames[0]))
    assert DetectorEncoder(predictor).embed([image]).tiles.shape == (1, 75, first.size // 2)
    batch = torch.zeros(1, 3, 64, 96)
    with torch.inference_mode():
        maps, outputs = network.features_and_outputs(batch)
        assert all(map(torch.equal, outputs, network(batch)))
    assert all(level.shape[2] * 96 == level.shape[3] * 64 for level in maps)


def test_a_sequence_of_cells_is_a_map_row_by_row() -> None:
    cells = torch.arange(6).reshape(1, 6, 1)
    expected = [[[[0, 1, 2], [3, 4, 5]]]]
    assert huggingface.sequence_to_map(cells, height=64, width=96).tolist() == expected
    with pytest.raises(DataError, match="does not fit an input"):
        huggingface.sequence_to_map(cells, height=64, width=64)


def test_a_model_without_features_is_rejected(predictor: TorchPredictor) -> None:
    predictor_without = TorchPredictor(
        cast("Any", WithoutFeatures(predictor.config)), predictor.preprocessing
    )
    with pytest.raises(ParameterError, match="provides no features"):
        DetectorEncoder(predictor_without)


class WithoutFeatures(nn.Module):
    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config


def test_shards_on_disk_are_not_computed_again(
    workspace: Workspace, dataset: Dataset, predictor: TorchPredictor
) -> None:
    encoder = CountingEncoder(predictor)
    embed(workspace, encoder, dataset.frames[:10])
    assert encoder.count == 10
    both = embed(workspace, encoder, dataset.frames[:14])
    assert encoder.count == 14
    assert both.frames == tuple(frame.id for frame in dataset.frames[:14])


def test_a_killed_pass_keeps_its_finished_shards(
    workspace: Workspace,
    dataset: Dataset,
    predictor: TorchPredictor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compute, "_SHARD_FRAMES", 8)
    killed = CountingEncoder(predictor)
    killed.fail_after = 20
    with pytest.raises(KeyboardInterrupt):
        embed(workspace, killed, dataset.frames, batch=4)
    again = CountingEncoder(predictor)
    whole = embed(workspace, again, dataset.frames, batch=4)
    assert again.count == len(dataset.frames) - 16  # two shards of eight were kept
    unbroken = embed(Workspace(workspace.root), predictor, dataset.frames)
    np.testing.assert_array_equal(whole.vectors, unbroken.vectors)


def test_half_a_shard_is_never_read(
    workspace: Workspace, dataset: Dataset, predictor: TorchPredictor
) -> None:
    encoder = CountingEncoder(predictor)
    folder = embeddings.embeddings_folder(workspace, encoder)
    (folder / ".writing-left").mkdir(parents=True)
    (folder / ".writing-left" / "shard.json").write_text('{"frames": ["0"]}')
    assert embeddings.read_shards(folder) == []
    assert len(embed(workspace, encoder, dataset.frames[:3]).frames) == 3


def test_a_full_disk_leaves_nothing_behind(
    workspace: Workspace, dataset: Dataset, model: Ref, tmp_path: object
) -> None:
    """A file size limit stands in for a full disk: the write itself fails, as there."""
    code = (
        "import resource, signal, sys; import numpy as np\n"
        "from workbench.core.errors import WorkbenchError\n"
        "from workbench.core.workspace import find_workspace\n"
        "from workbench.curation.embedding.embeddings import ARRAY_NAMES, write_shard\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "folder = find_workspace().root / 'embeddings' / 'x'\n"
        "arrays = {name: np.zeros((64, 64)) for name in ARRAY_NAMES}\n"
        "try: write_shard(folder, ['a'] * 64, arrays)\n"
        "except WorkbenchError as error: print(error); print(list(folder.iterdir()))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=True,
    ).stdout
    assert "cannot write embeddings" in output
    assert "Free disk space" in output
    assert output.rstrip().endswith("[]")


def test_unreadable_frames_are_skipped_with_the_reason(
    workspace: Workspace, dataset: Dataset, predictor: TorchPredictor
) -> None:
    broken, gone = dataset.frames[1], dataset.frames[2]
    media_path(workspace, broken).write_bytes(b"no image")
    media_path(workspace, gone).unlink()
    found = embed(workspace, predictor, dataset.frames)
    assert [frame for frame, _ in found.skipped] == [broken.id, gone.id]
    assert all("the image of frame" in why for _, why in found.skipped)
    assert len(found.frames) == len(dataset.frames) - 2


def test_vectors_with_nan_are_skipped(
    workspace: Workspace, dataset: Dataset, predictor: TorchPredictor
) -> None:
    encoder = CountingEncoder(predictor)
    encoder.return_nan = True
    found = embed(workspace, encoder, dataset.frames[:8], batch=4)
    assert [frame for frame, _ in found.skipped] == [dataset.frames[0].id, dataset.frames[4].id]
    assert np.isfinite(found.vectors).all()


def test_no_readable_frame_is_an_error(
    workspace: Workspace, dataset: Dataset, predictor: TorchPredictor
) -> None:
    media_path(workspace, dataset.frames[0]).write_bytes(b"")
    with pytest.raises(DataError, match="is not the one that was ingested"):
        embed(workspace, predictor, dataset.frames[:1])
    with pytest.raises(DataError, match="no frames given"):
        embed(workspace, predictor, [])


def flipped(content: bytes) -> bytes:
    """One bit of the last value: the file has its size, and the array its shape."""
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:40], lambda _: b""])
@pytest.mark.parametrize("name", ["vectors", "sizes", "counts"])
def test_a_damaged_file_is_named(
    workspace: Workspace,
    dataset: Dataset,
    predictor: TorchPredictor,
    name: str,
    damage: Callable[[bytes], bytes],
) -> None:
    frames = dataset.frames[:6]
    embed(workspace, predictor, frames)
    folder = embeddings.embeddings_folder(workspace, DetectorEncoder(predictor))
    damaged = next(folder.glob(f"*/{name}.npy"))
    damaged.write_bytes(damage(damaged.read_bytes()))
    with pytest.raises(WorkbenchError, match="embedding file") as caught:
        embed(workspace, predictor, frames)
    assert caught.value.where == str(damaged)


@pytest.mark.parametrize("index", ["", "[]", "[" * 100_000, '{"frames": [1]}', '{"frames": 3}'])
def test_a_damaged_index_of_a_shard_is_named(tmp_path: Path, index: str) -> None:
    (tmp_path / "shard").mkdir()
    (tmp_path / "shard" / "shard.json").write_text(index)
    with pytest.raises(DataError, match="cannot read shard"):
        embeddings.read_shards(tmp_path)
