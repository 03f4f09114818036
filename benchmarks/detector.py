"""The default detector on real rides: ``python -m benchmarks.detector [--quick] [--json]``.

``BENCHMARK_DRIVES`` names a folder of labelled drives, by default ``../shared/data/bdd`` where it
exists. Drives are split as in a pipeline: detectors learn from frames of the roles seed and pool,
and are judged on safety, which decided nothing. Beside the default stands an RT-DETRv2 with a
ResNet-18 of the transformers library with random weights, trained on the same frames for the same
CPU time. Two curves show what more steps and more labelled frames bring; every point is a training
of its own. Intervals resample drives.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import Row, main, note, row
from workbench import data
from workbench.core.workspace import Workspace
from workbench.detection import huggingface
from workbench.detection.model import Predictions
from workbench.detection.predictor import predict_frames
from workbench.detection.preprocessing import Preprocessing
from workbench.evaluation.metrics import Evaluation, evaluate
from workbench.evaluation.results import EvaluationSettings
from workbench.records.dataset import Dataset
from workbench.records.frames import Role
from workbench.training import TrainingConfig, TrainingResult, train

DRIVES = "BENCHMARK_DRIVES"
DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "bdd"
FRAMES = 284
"""About as many as a default run has labelled when it trains again."""
STEP_SHARES = (0.25, 0.5)
FRAME_COUNTS = (71, 142, 568)
GOALS = {"AP50": 0.25, "recall of pedestrians": 0.35}


@dataclass(frozen=True)
class Judged:
    """A training: its CPU time and its evaluation on safety."""

    cpu_s: float
    evaluation: Evaluation


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` takes hasty trainings and leaves out the curves."""
    folder = Path(os.environ.get(DRIVES) or DEFAULT)
    if not folder.is_dir():
        note(f"detector on real drives skipped: {DRIVES} names no folder of drives")
        return []
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Workspace(Path(temporary) / "workspace")
        found = data.ingest(workspace, folder, name="real", schema=data.FRONT_CAMERA)
        dataset = data.assign_roles(found.dataset, data.RolePolicy(seed=0))
        config = TrainingConfig.sized("lite0", threads=os.cpu_count() or 1)
        if quick:
            config = config.replace(steps=20)
        default = _learn(dataset, FRAMES, config)
        peer = _learn_peer(dataset, config, default.cpu_s, Path(temporary) / "peer")
        rows = _compare(default, peer)
        if not quick:
            for share in STEP_SHARES:
                shorter = config.replace(steps=round(share * config.steps))
                rows += _point(_learn(dataset, FRAMES, shorter), f"{shorter.steps} steps")
            for count in FRAME_COUNTS:
                rows += _point(_learn(dataset, count, config), f"{count} labelled frames")
    return rows


def _compare(ours: Judged, peer: Judged) -> list[Row]:
    rows = []
    for (name, goal), cls, metric in zip(
        GOALS.items(), ("all", "pedestrian"), ("ap50", "recall"), strict=True
    ):
        value, other = (_estimate(one, cls, metric) for one in (ours, peer))
        about = f"RT-DETRv2-R18, random weights, {peer.cpu_s:,.0f} CPU-s; {other}"
        rows.append(
            row(
                f"{name} on safety, {FRAMES} labelled frames, {ours.cpu_s:,.0f} CPU-s ({value})",
                value.value or 0.0,
                "",
                peer=other.value or 0.0,
                peer_name=about,
                goal=f"≥ {goal}",
                met=(value.value or 0.0) >= goal,
            )
        )
    return rows


def _point(judged: Judged, what: str) -> list[Row]:
    """Rows of one point of a curve."""
    return [
        row(
            f"{name}, {what}, {judged.cpu_s:,.0f} CPU-s ({estimate})",
            estimate.value or 0.0,
            "",
        )
        for name, cls, metric in (
            ("AP50", "all", "ap50"),
            ("recall of pedestrians", "pedestrian", "recall"),
        )
        if (estimate := _estimate(judged, cls, metric))
    ]


def _estimate(judged: Judged, cls: str, metric: str) -> Any:
    return getattr(judged.evaluation.metrics.at("all", cls), metric)


def _learn(dataset: Dataset, count: int, config: TrainingConfig) -> Judged:
    result, cpu_s = _train(dataset, count, config)
    return Judged(cpu_s, _judge(dataset, result))


def _train(
    dataset: Dataset,
    count: int,
    config: TrainingConfig,
    *,
    model: Any = None,
    spec: Preprocessing | None = None,
) -> tuple[TrainingResult, float]:
    """Train on the first ``count`` frames of the roles seed and pool; the result and its CPU-s."""
    frames = [*dataset.role(Role.SEED).frames, *dataset.role(Role.POOL).frames][:count]
    picked = {frame.id for frame in frames}
    part = dataset.where(lambda frame: frame.id in picked)
    part = replace(
        part,
        frames=tuple(frame.model_copy(update={"role": Role.TRAIN}) for frame in part.frames),
    )
    note(f"training on {len(picked)} frames, {config.steps} steps")
    began = time.process_time()
    result = train(
        part,
        config,
        classes=dataset.classes,
        preprocessing=spec or config.preprocessing(),
        model=model,
    )
    return result, time.process_time() - began


def _judge(dataset: Dataset, result: TrainingResult) -> Evaluation:
    safety = dataset.role(Role.SAFETY)
    assert dataset.workspace is not None
    boxes = predict_frames(dataset.workspace, result.predictor(), safety.frames)
    return evaluate(Predictions(safety, boxes), settings=EvaluationSettings(resamples=200))


def _learn_peer(dataset: Dataset, config: TrainingConfig, cpu_s: float, folder: Path) -> Judged:
    """The peer, for as many steps as take the same CPU time."""
    import transformers

    library: Any = transformers  # its types leave out_features away
    backbone = library.RTDetrResNetConfig(
        layer_type="basic",
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        out_features=["stage2", "stage3", "stage4"],
    )
    library.RTDetrV2Config(
        backbone_config=backbone, encoder_in_channels=[128, 256, 512], decoder_layers=3
    ).save_pretrained(folder)
    settings = TrainingConfig(
        steps=3, batch=config.batch, lr=2e-4, threads=config.threads, clip_norm=0.1
    )
    spec = settings.preprocessing(config.preprocessing().width, config.preprocessing().height)

    def learn(steps: int) -> tuple[TrainingResult, float]:
        model = huggingface.load_pretrained(
            folder, dataset.classes, spec, licence="Apache-2.0", fresh=True
        )
        return _train(dataset, FRAMES, settings.replace(steps=steps), model=model, spec=spec)

    # Of two short trainings, because both also decode every frame once.
    begin, more = learn(2)[1], learn(8)[1]
    a_step = max((more - begin) / 6, 1e-3)
    result, spent = learn(max(1, round((cpu_s - begin) / a_step)))
    return Judged(spent, _judge(dataset, result))


if __name__ == "__main__":
    main(measure)
