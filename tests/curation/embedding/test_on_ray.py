"""The pass on Ray: the same bytes as on one machine."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil

import numpy as np
import pytest

from workbench.core.errors import ServiceError
from workbench.core.workspace import Workspace
from workbench.curation.embedding import compute
from workbench.curation.embedding.compute import embed
from workbench.detection.predictor import load_checkpoint
from workbench.records.base import Ref
from workbench.records.dataset import Dataset, media_path
from workbench.records.store import Store

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)


def contents(workspace: Workspace) -> dict[str, str]:
    root = workspace.root / "embeddings"
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.mark.slow
def test_workers_write_what_one_machine_writes(
    workspace: Workspace,
    store: Store,
    dataset: Dataset,
    model: Ref,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compute, "_SHARD_FRAMES", 12)
    predictor = load_checkpoint(store, model)
    media_path(workspace, dataset.frames[30]).write_bytes(b"no image")
    here = embed(workspace, predictor, dataset.frames)
    expected = contents(workspace)
    assert len([name for name in expected if name.endswith("shard.json")]) == 4
    shutil.rmtree(workspace.root / "embeddings")
    calls: list[tuple[int, int]] = []
    there = embed(
        workspace,
        predictor,
        dataset.frames,
        lambda done, total: calls.append((done, total)),
        ray="local",
    )
    assert contents(workspace) == expected
    assert there.skipped == here.skipped
    assert calls[-1] == (48, 48)
    np.testing.assert_array_equal(there.vectors, here.vectors)


def test_without_missing_frames_ray_is_not_used(
    workspace: Workspace, store: Store, dataset: Dataset, model: Ref
) -> None:
    embed(workspace, load_checkpoint(store, model), dataset.frames)
    embed(workspace, load_checkpoint(store, model), dataset.frames, ray="127.0.0.1:1")


def test_an_unreachable_cluster_is_an_error(
    workspace: Workspace, store: Store, dataset: Dataset, model: Ref
) -> None:
    with pytest.raises(ServiceError, match="cannot connect to Ray"):
        embed(workspace, load_checkpoint(store, model), dataset.frames, ray="127.0.0.1:1")
