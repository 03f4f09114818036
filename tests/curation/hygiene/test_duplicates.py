"""Duplicates in synthetic drives are found, and only those."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from tests.curation.hygiene import synthetic
from workbench.core.errors import WorkbenchError
from workbench.core.workspace import Workspace
from workbench.curation import hygiene
from workbench.curation.hygiene import duplicates
from workbench.curation.hygiene.duplicates import (
    MAX_NEAR_BITS,
    MIN_PAIRS,
    FrameFeatures,
    measure_threshold,
)
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Role


def find(workspace: Workspace, dataset: Dataset) -> duplicates.Duplicates:
    found = hygiene.compute_fingerprints(workspace, dataset.frames)
    return duplicates.find_duplicates(FrameFeatures(dataset.frames, found.hashes), found.pixels)


def test_equal_pixels_in_other_bytes_are_an_exact_duplicate(workspace: Workspace) -> None:
    dataset = synthetic.clean(workspace)
    image = synthetic.scene(2, step=6.0)
    copy = synthetic.frame_of(
        workspace, synthetic.encoded(image, "BMP"), "copies", 0, Role.POOL, ".bmp"
    )
    found = find(workspace, synthetic.with_frames(dataset, copy))
    (cluster,) = found.exact
    assert cluster.exact
    assert copy.id in cluster.frames
    assert len(cluster.frames) == 2
    assert cluster.drives == 2


def test_a_compressed_and_scaled_copy_is_a_near_duplicate(workspace: Workspace) -> None:
    dataset = synthetic.clean(workspace)
    image = synthetic.scene(4, step=9.0)
    brighter = (
        Image.fromarray(image).resize((112, 67), Image.Resampling.BOX).point(lambda v: v * 1.1)
    )
    worse = synthetic.encoded(np.asarray(brighter), "JPEG", quality=60)
    copy = synthetic.frame_of(workspace, worse, "copies", 0, Role.POOL, ".jpg")
    found = find(workspace, synthetic.with_frames(dataset, copy))
    assert not found.exact
    together = next(cluster for cluster in found.near if copy.id in cluster.frames)
    original = next(f for f in dataset.frames if f.drive == "drive-04" and f.index == 3)
    assert original.id in together.frames


def test_a_clean_pool_has_no_duplicates_across_drives(workspace: Workspace) -> None:
    found = find(workspace, synthetic.clean(workspace))
    assert not found.exact
    assert all(cluster.drives == 1 for cluster in found.near)
    assert found.threshold.pairs >= MIN_PAIRS
    assert found.threshold.bits <= MAX_NEAR_BITS


def test_a_pool_of_one_image_is_one_cluster(workspace: Workspace) -> None:
    image = synthetic.scene(1)
    kinds = [("PNG", ".png"), ("BMP", ".bmp"), ("TIFF", ".tiff")]
    frames = [
        synthetic.frame_of(
            workspace, synthetic.encoded(image, kind), "one", number, Role.POOL, suffix
        )
        for number, (kind, suffix) in enumerate(kinds)
    ]
    found = hygiene.compute_fingerprints(workspace, frames)
    result = duplicates.find_duplicates(FrameFeatures(tuple(frames), found.hashes), found.pixels)
    assert [len(cluster.frames) for cluster in result.clusters] == [3]
    assert [len(cluster.frames) for cluster in result.exact] == [3]
    assert "too few" in result.threshold.description


def test_fingerprints_are_read_the_second_time(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = synthetic.clean(workspace, drives=2)
    first = hygiene.compute_fingerprints(workspace, dataset.frames)
    module = sys.modules["workbench.curation.hygiene.fingerprints"]
    monkeypatch.setattr(module, "load_frame", lambda *_: pytest.fail("read again"))
    again = hygiene.compute_fingerprints(workspace, dataset.frames)
    assert again.pixels == first.pixels
    assert (again.hashes == first.hashes).all()


def test_a_damaged_fingerprint_file_is_computed_again(workspace: Workspace) -> None:
    dataset = synthetic.clean(workspace, drives=2)
    first = hygiene.compute_fingerprints(workspace, dataset.frames)
    (kept,) = (workspace.root / "fingerprints").rglob("*.npy")
    content = kept.read_bytes()
    for damaged in (content[:200], content[:-1] + bytes([content[-1] ^ 1])):
        kept.write_bytes(damaged)
        again = hygiene.compute_fingerprints(workspace, dataset.frames)
        assert again.pixels == first.pixels
        assert (again.hashes == first.hashes).all()


def test_an_unreadable_frame_is_skipped_with_its_reason(workspace: Workspace) -> None:
    dataset = synthetic.clean(workspace, drives=2)
    torn = dataset.frames[3]
    media_path(workspace, torn).write_bytes(b"no image")
    found = hygiene.compute_fingerprints(workspace, dataset.frames)
    assert torn.id not in found.frames
    ((frame, why),) = found.skipped
    assert frame == torn.id
    assert "is not the one that was ingested" in why


def test_a_full_disk_is_an_error_and_leaves_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("workbench.core.workspace.os.fsync", full)
    with pytest.raises(WorkbenchError, match="cannot write fingerprints: No space left"):
        hygiene.compute_fingerprints(workspace, synthetic.clean(workspace, drives=1).frames)
    assert not list((workspace.root / "fingerprints").rglob("*.npy"))


def test_one_long_stop_does_not_set_the_threshold(workspace: Workspace) -> None:
    """A drive that stands for 60 frames counts with no more pairs than the others."""
    dataset = synthetic.clean(workspace)
    standing = [
        synthetic.frame_of(
            workspace,
            synthetic.encoded(synthetic.scene(77) + np.uint8(n % 3)),
            "stands",
            n,
            Role.SEED,
        )
        for n in range(3)
    ]
    hashes = hygiene.compute_fingerprints(workspace, dataset.frames).hashes
    moving = measure_threshold(FrameFeatures(dataset.frames, hashes), 0.5)
    still = hygiene.compute_fingerprints(workspace, standing).hashes
    many = tuple(standing[n % 3].model_copy(update={"index": n}) for n in range(60))
    both = FrameFeatures(
        (*dataset.frames, *many), np.concatenate([hashes, still[np.arange(60) % 3]])
    )
    assert measure_threshold(both, 0.5).bits >= moving.bits - 6
