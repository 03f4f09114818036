"""Our training loop beside bare ones: ``python -m benchmarks.training [--quick] [--json]``.

A bare loop is what is left when everything that makes a training useful is taken away: the same
network, loss, optimiser (fused AdamW) and decoded frames, varied as ours are; but it clips nothing,
averages no weights, keeps no curve, checks no loss, and torch may be as unrepeatable as it likes.
It has its frames from torch's DataLoader with 0, 1 or 2 workers, whichever is fastest. The limit is
the same loop with its batches ready in memory as the network takes them: nothing is varied there,
and on a CPU, where the network uses every core, what varying takes is lost to any loop.

Each loop has a process of its own, since what one does to the heap the other would feel. They take
turns; ratios are medians over pairs of turns that followed each other, as a machine that slows down
slows both.

Repeats are trainings in new processes, whose weights are compared by digest. On a machine with CUDA
the last rows train there; elsewhere they say that they were not run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.common import Row, main, row
from benchmarks.training_loops import (
    FRAMES,
    WORKERS,
    Side,
    bare_loop,
    batches,
    compiled,
    frames,
    our_loop,
)
from workbench.core.workspace import Workspace
from workbench.records.dataset import Dataset
from workbench.training.config import TrainingConfig

GOAL, MOST_WAITED = 0.95, 0.02


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` takes fewer and shorter turns."""
    turns, steps = (3, 8) if quick else (12, 24)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / ".workbench")
        dataset = frames(workspace, FRAMES)
        config = TrainingConfig(steps=steps)
        rows = speed(workspace, dataset, config, turns)
        rows.append(repeats(workspace, 2 if quick else 10))
        rows += on_a_gpu(workspace, dataset, quick)
    return rows


def speed(workspace: Workspace, dataset: Dataset, config: TrainingConfig, turns: int) -> list[Row]:
    """Images a second of ours, the bare loop, the DataLoader's and the compiled one."""
    with ExitStack() as stack:
        our = stack.enter_context(Side("our_turn", workspace, config))
        limit = stack.enter_context(Side("bare_turn", workspace, config))
        loaders = [
            stack.enter_context(Side(f"loader_turn_{count}", workspace, config))
            for count in WORKERS
        ]
        ours, bare, loaded = [], [], []
        for _ in range(turns):
            bare.append(limit.turn()["speed"])
            ours.append(our.turn())
            loaded.append([loader.turn()["speed"] for loader in loaders])
    speeds = [one["speed"] for one in ours]
    best = int(np.argmax(np.median(loaded, axis=0)))
    share = median(own / other[best] for own, other in zip(speeds, loaded, strict=True))
    of_limit = median(own / other for own, other in zip(speeds, bare, strict=True))
    waited = median(one["waited"] for one in ours)
    return [
        row(
            "train on decoded frames",
            median(speeds),
            "images/s",
            peer=median(speeds) / share,
            peer_name=f"bare torch loop, DataLoader with {WORKERS[best]} workers",
            goal=f">= {GOAL:g}",
            met=share >= GOAL,
        ),
        row(
            "  beside the limit",
            median(speeds),
            "images/s",
            peer=median(speeds) / of_limit,
            peer_name="bare torch loop, batches ready, nothing varied",
        ),
        row(
            "network and loss compiled",
            median(speeds),
            "images/s",
            peer=compiled(batches(dataset, config), config),
            peer_name="bare loop, torch.compile (after warm-up)",
        ),
        row(
            "time spent waiting for frames",
            waited,
            "of the time",
            goal=f"<= {MOST_WAITED:g}",
            met=waited <= MOST_WAITED,
        ),
        row("peak memory of training", max(one["peak"] for one in ours), "MiB"),
    ]


REPEAT = """
import json, sys
from pathlib import Path
from dataclasses import replace
from functools import partial
from benchmarks.training_loops import CLASSES, frames
from workbench.core import digest
from workbench.detection.preprocessing import Preprocessing
from workbench.training import Augmentation, TrainingConfig, train
from workbench.core.workspace import Workspace
from safetensors.torch import save
workspace = Workspace(Path(sys.argv[1]))
config = TrainingConfig(steps=6, augment=Augmentation.driving())
spec = Preprocessing(width=160, height=96)
trained = train(frames(workspace, 16), config, classes=CLASSES, preprocessing=spec)
print(json.dumps(digest.of_bytes(save(trained.weights))))
"""


def repeats(workspace: Workspace, count: int) -> Row:
    """How many of so many new processes give the weights of the first."""
    frames(workspace, 16)
    said = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", REPEAT, str(workspace.root)],
                check=True,
                capture_output=True,
                text=True,
                cwd=Path(__file__).resolve().parents[1],
            ).stdout
        )
        for _ in range(count)
    ]
    same = sum(one == said[0] for one in said)
    return row(
        "weights that repeat in new processes",
        same,
        f"of {count}",
        goal=f"= {count}",
        met=same == count,
    )


def on_a_gpu(workspace: Workspace, dataset: Dataset, quick: bool) -> list[Row]:
    """Throughput there against a bare loop, and bfloat16 against float32; none without CUDA."""
    if not torch.cuda.is_available():
        print("no CUDA device: rows of the GPU were not run", file=sys.stderr)
        return []
    config = TrainingConfig(steps=20 if quick else 100, batch=32, device="cuda", threads=2)
    our_loop(dataset, config.replace(steps=5))  # the first steps choose kernels
    ours = our_loop(dataset, config).images_per_second
    ready = batches(dataset, config)
    bare_loop(ready, config.replace(steps=5), "cuda")
    bare = bare_loop(ready, config, "cuda")
    half = our_loop(dataset, config.replace(precision="bfloat16")).images_per_second
    return [
        row(
            "GPU: train on decoded frames",
            ours,
            "images/s",
            peer=bare,
            peer_name="bare torch loop, batches on the GPU",
            goal=f">= {GOAL:g}",
            met=ours / bare >= GOAL,
        ),
        row("GPU: bfloat16", half, "images/s", peer=ours, peer_name="float32"),
    ]


if __name__ == "__main__":
    main(measure)
