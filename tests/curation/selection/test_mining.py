from __future__ import annotations

from pathlib import Path

import pytest

from tests.curation.conftest import make_checkpoint
from workbench.core.errors import DataError, ParameterError
from workbench.curation import mine, newest_selection, plots, read_scores, select_manually
from workbench.curation.embedding.compute import embed
from workbench.detection.predictor import load_checkpoint
from workbench.records import dataset as datasets
from workbench.records.base import Ref
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Role
from workbench.records.store import Store
from workbench.records.types import Selection


def test_mine_chooses_from_the_pool_and_says_why(
    store: Store, dataset: Dataset, model: Ref
) -> None:
    ref = mine(store, dataset.ref or "", model, 10, seed=3)
    selection = store.get(ref, Selection)
    pool = {frame.id for frame in dataset.role(Role.POOL).frames}
    assert {choice.frame for choice in selection.chosen} < pool
    assert len(selection.chosen) == 10
    assert [choice.arm for choice in selection.chosen].count("random") == 2
    assert all(choice.reasons for choice in selection.chosen)
    assert (selection.dataset, selection.model) == (dataset.ref, model)
    assert selection.parameters["pool"] == len(pool)
    scores = read_scores(store, ref)
    assert scores.keys() == pool
    for choice in selection.chosen:
        assert scores[choice.frame]["rarity"] == choice.score


def test_same_seed_same_record_another_seed_another(
    store: Store, dataset: Dataset, model: Ref
) -> None:
    first = mine(store, dataset.ref or "", model, 10, seed=3)
    assert mine(store, dataset.ref or "", model, 10, seed=3) == first
    assert mine(store, dataset.ref or "", model, 10, seed=4) != first


def test_another_model_has_embeddings_of_its_own(
    store: Store, dataset: Dataset, model: Ref, tmp_path: Path
) -> None:
    other = make_checkpoint(store, dataset.ref or "", tmp_path / "other", seed=9)
    mine(store, dataset.ref or "", model, 5)
    mine(store, dataset.ref or "", other, 5)
    assert len(list((store.workspace.root / "embeddings").iterdir())) == 2


def test_a_broken_frame_is_recorded_not_chosen(store: Store, dataset: Dataset, model: Ref) -> None:
    broken = dataset.role(Role.POOL).frames[0]
    media_path(store.workspace, broken).write_bytes(b"no image")
    selection = store.get(mine(store, dataset.ref or "", model, 1000), Selection)
    assert broken.id not in {choice.frame for choice in selection.chosen}
    assert [entry["frame"] for entry in selection.parameters["unreadable"]] == [broken.id]


def test_a_missing_pool_or_budget_is_an_error(store: Store, dataset: Dataset, model: Ref) -> None:
    none = datasets.save_dataset(store, dataset.role(Role.SEED), made_by="test")
    with pytest.raises(DataError, match="no frames of role pool"):
        mine(store, none, model, 5)
    with pytest.raises(ParameterError, match="must be ≥ 1 frame"):
        mine(store, dataset.ref or "", model, 0)


def test_a_choice_by_hand_is_a_selection_but_not_a_mined_one(
    store: Store, dataset: Dataset, model: Ref
) -> None:
    with pytest.raises(DataError, match="no mined selection"):
        newest_selection(store)
    mined = mine(store, dataset.ref or "", model, 5)
    frames = [dataset.frames[4].id, dataset.frames[2].id, dataset.frames[4].id]
    by_hand = store.get(select_manually(store, dataset.ref or "", frames, "odd light"), Selection)
    assert [choice.frame for choice in by_hand.chosen] == frames[:2]
    assert by_hand.chosen[0].reasons == ("odd light",)
    assert newest_selection(store) == mined
    with pytest.raises(DataError, match="1 frame not in the dataset"):
        select_manually(store, dataset.ref or "", ["f" * 64], "typo")
    with pytest.raises(DataError, match="no frames given"):
        select_manually(store, dataset.ref or "", [], "nothing")


def test_plots_show_the_selection(store: Store, dataset: Dataset, model: Ref) -> None:
    import matplotlib.pyplot as plt

    selection = store.get(mine(store, dataset.ref or "", model, 10), Selection)
    pool = dataset.role(Role.POOL)
    seen = embed(store.workspace, load_checkpoint(store, model), pool.frames)
    axes = plots.pool_map(seen, selection, dataset).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["day, clear (24)", "night, clear (8)", "mined (8)", "random (2)"]
    assert len(plots.chosen_frames(store.workspace, pool, selection).axes) == 8
    bars = plots.condition_coverage(dataset, selection).axes[0].patches
    assert [bar.get_width() for bar in bars[:2]] == [0.75, 0.25]
    plt.close("all")
