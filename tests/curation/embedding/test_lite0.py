"""EfficientNet-Lite0 as an encoder: tiles, words, boxes, and its shards beside older ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.curation.embedding import embeddings
from workbench.curation.embedding.compute import embed
from workbench.curation.embedding.encoders import (
    MAX_OBJECTS,
    DetectorEncoder,
    tile_boxes,
    tile_count,
)
from workbench.curation.embedding.image_encoders import BoxSource
from workbench.curation.embedding.lite0 import Lite0Encoder
from workbench.detection.efficientnet import EfficientNetLite0, load_pretrained_weights
from workbench.detection.predictor import load_checkpoint
from workbench.detection.preprocessing import Preprocessing, normalise
from workbench.records.base import Ref
from workbench.records.dataset import Dataset
from workbench.records.store import Store

COLUMNS, ROWS = 24, 14
COARSE = COLUMNS * ROWS // 4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def encoder(home: Workspace) -> Lite0Encoder:
    return Lite0Encoder(workspace=home)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)


def test_words_are_the_classifiers_answers_for_the_best_tile(
    home: Workspace, encoder: Lite0Encoder
) -> None:
    image = noise(448, 768)  # the size of the network: a fine tile is a cell of the last map
    output = encoder.embed([image])
    network = EfficientNetLite0(classifier=True)
    network.load_state_dict(load_pretrained_weights(home)[0])
    pixels = normalise(image[None], Preprocessing.imagenet_lite(768, 448))
    with torch.inference_mode():
        logits = network.eval().region_logits(torch.from_numpy(pixels))[0]
    fine = logits.flatten(1).numpy()
    coarse = torch.nn.functional.avg_pool2d(logits, 2).flatten(1).numpy()
    both = torch.from_numpy(np.concatenate([coarse, fine], axis=1))
    both = (both - 1.5 * (both / 1.5).logsumexp(0)).numpy()  # a softmax of temperature 1.5
    assert output.words is not None
    np.testing.assert_allclose(output.words.scores[0], both.max(1), atol=1e-3)
    chosen = both[np.arange(1000), output.words.tiles[0]]
    np.testing.assert_allclose(chosen, both.max(1), atol=1e-3)
    assert (output.words.tiles[0] >= COARSE).mean() > 0.5  # most are seen best in a single cell
    assert (output.words.scores < 0).all()


@pytest.mark.parametrize("shape", [(360, 480), (90, 300), (448, 768)])
def test_a_change_of_pixels_changes_the_tiles_over_them(
    encoder: Lite0Encoder, shape: tuple[int, int]
) -> None:
    """Tiles cover the image and not the padding, whatever its shape."""
    plain = np.full((*shape, 3), 120, np.uint8)
    marked = plain.copy()
    height, width = shape
    marked[-(height // 5) :, -(width // 5) :] = noise(height // 5, width // 5)
    before, after = encoder.embed([plain]).tiles[0], encoder.embed([marked]).tiles[0]
    change = np.linalg.norm(after - before, axis=1)
    boxes = tile_boxes(encoder.grid, np.array([[width, height]]))[0]
    assert len(boxes) == tile_count(encoder.grid) == len(change)
    x1, y1, x2, y2 = boxes[COARSE:][change[COARSE:].argmax()]
    assert (x1 + x2) / 2 > 0.7 * width
    assert (y1 + y2) / 2 > 0.6 * height


def test_a_larger_input_has_more_and_smaller_tiles(home: Workspace) -> None:
    large = Lite0Encoder(workspace=home, size=(1280, 704))
    assert large.grid == ((20, 11), (40, 22))
    output = large.embed([noise(90, 160)])
    assert output.tiles.shape == (1, 1100, 128)
    assert output.words is not None and output.words.tiles.max() > 420
    assert large.preprocessing != Lite0Encoder(workspace=home).preprocessing
    with pytest.raises(ParameterError, match="multiples of 64"):
        Lite0Encoder(workspace=home, size=(1280, 720))


def test_boxes_of_a_detector_get_vectors_in_the_space_of_tiles(
    home: Workspace, store: Store, model: Ref, dataset: Dataset, workspace: Workspace
) -> None:
    boxes = BoxSource(load_checkpoint(store, model), "a" * 64)
    with_boxes, without = Lite0Encoder(boxes, home), Lite0Encoder(workspace=home)
    assert with_boxes.preprocessing != without.preprocessing
    pool = embed(workspace, with_boxes, dataset.frames[:6])
    assert pool.class_names == boxes.predictor.classes
    assert len(pool.scores) == len(pool.object_vectors) > 0
    assert pool.object_vectors.shape[1] == pool.tiles.vectors.shape[1]


def test_words_are_kept_beside_vectors_and_read_by_column(
    home: Workspace, dataset: Dataset, workspace: Workspace
) -> None:
    encoder = Lite0Encoder(workspace=home)
    first = embed(workspace, encoder, dataset.frames[:3])
    pool = embed(workspace, encoder, dataset.frames[2::-1] + dataset.frames[3:5])  # two shards
    assert pool.words.vocabulary == "imagenet-1k"
    scores, tiles = pool.words.scores([670, 3]), pool.words.tiles([670, 3])
    assert scores.shape == tiles.shape == (5, 2)
    np.testing.assert_array_equal(scores[:3], first.words.scores([670, 3])[::-1])
    assert len(np.unique(scores[:, 0])) > 1
    assert tiles.max() < pool.tiles.per_frame
    folder = embeddings.embeddings_folder(workspace, encoder)
    index = json.loads(next(folder.glob("*/shard.json")).read_text())
    assert index["layout"] == 3


def test_shards_of_other_encoders_stay_where_they_were(
    store: Store, model: Ref, dataset: Dataset, workspace: Workspace
) -> None:
    """A pool embedded before there were words is not embedded again."""
    encoder = DetectorEncoder(load_checkpoint(store, model))
    identity = digest.of_json(
        {
            "layout": 2,
            "model": encoder.model,
            "preprocessing": encoder.preprocessing,
            "grid": [list(scale) for scale in encoder.grid],
            "objects": MAX_OBJECTS,
        }
    )
    folder = embeddings.embeddings_folder(workspace, encoder)
    assert folder.name.endswith(digest.shorten(identity))
    pool = embed(workspace, encoder, dataset.frames[:2])
    assert pool.words.vocabulary == ""
    assert json.loads(next(folder.glob("*/shard.json")).read_text())["layout"] == 2
