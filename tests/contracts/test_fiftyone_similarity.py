"""More like this, the map, findings and taken-over tags, on the real mongod and FiftyOne."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from tests.curation.conftest import CONFIG, SPEC, make_dataset
from workbench import curation, services
from workbench.core.errors import DataError, ParameterError, ServiceError
from workbench.core.workspace import Workspace
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.fiftyone import publishing
from workbench.curation.hygiene.duplicates import DuplicateCluster
from workbench.curation.hygiene.inspection import InspectionFindings
from workbench.curation.hygiene.leakage import Leak
from workbench.curation.vectors import unit_vectors
from workbench.detection.detector import Detector
from workbench.detection.label_errors import LabelError
from workbench.detection.predictor import TorchPredictor
from workbench.records import dataset as datasets
from workbench.records.base import Verdict
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Role
from workbench.records.store import Store
from workbench.records.types import Inspection, Prediction, Selection

NAME = "similarity-contract"


@pytest.fixture(scope="module")
def dataset(attached: Workspace) -> Dataset:
    store = Store(attached)
    made = replace(make_dataset(attached, drives=5, per_drive=6), name="similar")
    return datasets.load_dataset(store, datasets.save_dataset(store, made, made_by="test"))


@pytest.fixture(scope="module")
def seen(attached: Workspace, dataset: Dataset) -> Embeddings:
    import torch

    torch.manual_seed(0)
    detector = Detector(CONFIG)
    detector.set_prior(torch.tensor([0.2, 0.1]))
    return curation.embed(attached, TorchPredictor(detector, SPEC), dataset.frames)


def surest(seen: Embeddings) -> list[Prediction]:
    """The model's two most certain boxes of each frame."""
    predictions = []
    for row, frame in enumerate(seen.frames):
        for object_ in np.flatnonzero(seen.owner == row)[:2]:
            x1, y1, x2, y2 = (float(value) for value in seen.boxes[object_])
            cls = seen.class_names[int(seen.classes[object_])]
            box = Box(x=x1, y=y1, w=x2 - x1, h=y2 - y1)
            score = float(seen.scores[object_])
            predictions.append(Prediction(frame=frame, cls=cls, box=box, score=score))
    return predictions


@pytest.fixture(scope="module")
def published(attached: Workspace, dataset: Dataset, seen: Embeddings) -> str:
    """Frames with two boxes each, map and similarity."""
    return curation.publish(attached, dataset, surest(seen), None, NAME, embeddings=seen)


def exact(unit: np.ndarray, row: int) -> list[int]:
    return np.argsort(1 - unit @ unit[row], kind="stable").tolist()


def test_more_like_this_is_the_exact_order_the_first_time_and_the_second(
    published: str, seen: Embeddings
) -> None:
    import fiftyone as fo

    shown = fo.load_dataset(published)
    shown.clear_cache()
    unit = unit_vectors(np.asarray(seen.vectors))
    ids = dict(zip(*shown.values(["frame", "id"]), strict=True))
    for row in (3, 3, 17):
        sorted_ = shown.sort_by_similarity(ids[seen.frames[row]], brain_key=publishing.FRAMES)
        assert sorted_.values("frame") == [seen.frames[other] for other in exact(unit, row)]
    least = shown.sort_by_similarity(
        ids[seen.frames[3]], k=4, reverse=True, brain_key=publishing.FRAMES, dist_field="apart"
    )
    apart = 1 - unit @ unit[3]
    assert least.values("apart") == pytest.approx(sorted(apart, reverse=True)[:4], abs=1e-5)
    part = shown.match(fo.ViewField("light") == "night")
    near = part.sort_by_similarity(ids[seen.frames[3]], brain_key=publishing.FRAMES)
    nights = set(part.values("frame"))
    assert near.values("frame") == [
        seen.frames[r] for r in exact(unit, 3) if seen.frames[r] in nights
    ]


def test_another_process_answers_the_same(published: str, attached: Workspace) -> None:
    """It loads the index by the name of its class alone, as FiftyOne's App does."""
    import fiftyone as fo

    shown = fo.load_dataset(published)
    first = shown.first().id
    here = shown.sort_by_similarity(first, k=9, brain_key=publishing.FRAMES).values("frame")
    code = (
        "import fiftyone as fo, sys\n"
        f"shown = fo.load_dataset({published!r})\n"
        f"index = shown.load_brain_results({publishing.FRAMES!r})\n"
        f"print(type(index).__name__, *shown.sort_by_similarity({first!r}, k=9,"
        f" brain_key={publishing.FRAMES!r}).values('frame'))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert ran.stdout.split()[-10:] == ["WorkbenchSimilarityIndex", *here]


def test_the_app_is_answered_the_same(published: str, seen: Embeddings) -> None:
    """The way the App's magnifier goes: its server builds the view from the stage's fields."""
    import fiftyone as fo
    from fiftyone.server.view import get_view

    shown = fo.load_dataset(published)
    ids = dict(zip(*shown.values(["frame", "id"]), strict=True))
    asked = {
        "query": [ids[seen.frames[5]]],
        "k": 6,
        "reverse": False,
        "brain_key": publishing.FRAMES,
    }
    stage = {"fiftyone.core.stages.SortBySimilarity": asked}
    view = get_view(published, stages=None, filters={}, extended_stages=stage)
    unit = unit_vectors(np.asarray(seen.vectors))
    assert view.values("frame") == [seen.frames[other] for other in exact(unit, 5)[:6]]


def test_objects_like_this_one(published: str, seen: Embeddings) -> None:
    import fiftyone as fo

    patches = fo.load_dataset(published).to_patches("predictions")
    assert len(patches) > 10
    index = fo.load_dataset(published).load_brain_results(publishing.OBJECTS)
    assert index.total_index_size == len(patches)
    first = patches.first().id
    found = patches.sort_by_similarity(first, k=5, brain_key=publishing.OBJECTS)
    vectors, _, labels = index.get_embeddings()
    row = labels.tolist().index(first)
    order = np.argsort(1 - vectors @ vectors[row], kind="stable")[:5]
    assert found.values("id") == [labels[other] for other in order]
    by_frames = fo.load_dataset(published).sort_by_similarity(
        first, k=5, brain_key=publishing.OBJECTS
    )
    assert by_frames.count("predictions.detections") == 5


def test_what_cannot_be_asked_says_why(published: str, attached: Workspace) -> None:
    import fiftyone as fo

    shown = fo.load_dataset(published)
    index = shown.load_brain_results(publishing.FRAMES)
    with pytest.raises(DataError, match="cannot compare vectors of width 3"):
        index.sort_by_similarity(np.ones(3), k=2)
    with pytest.raises(DataError, match="1 of 1 queries have no vector"):
        index.sort_by_similarity(["0" * 24], k=2)
    from workbench.curation.fiftyone import similarity

    with pytest.raises(DataError, match="are missing"):
        similarity.read_vectors(attached.root / "nowhere", "0" * 64)


def test_vectors_that_were_changed_are_refused(attached: Workspace) -> None:
    from workbench.curation.fiftyone import similarity

    unit = unit_vectors(np.random.default_rng(0).normal(size=(20, 4)))
    folder, content = similarity.write_vectors(
        attached.root / "changed", unit, [str(n) for n in range(20)]
    )
    assert np.array_equal(similarity.read_vectors(folder, content)[0], unit)
    np.save(folder / "vectors.npy", unit[::-1])
    with pytest.raises(DataError, match="not those that were published"):
        similarity.read_vectors(folder, content)


def test_the_map_has_a_point_for_every_frame(published: str, seen: Embeddings) -> None:
    import fiftyone as fo

    shown = fo.load_dataset(published)
    results = shown.load_brain_results(publishing.MAP)
    assert results.config.method == "manual"
    assert sorted(results.sample_ids) == sorted(shown.values("id"))
    assert np.isfinite(results.points).all()
    assert np.ptp(results.points, axis=0).min() > 0.1


@pytest.mark.parametrize("count", [1, 2, 50])
def test_a_pool_of_identical_frames_has_a_map_too(count: int) -> None:
    points = publishing.project_points(unit_vectors(np.ones((count, 8))))
    assert np.isfinite(points).all()
    assert len(np.unique(points, axis=0)) == count


def test_findings_have_views_and_leave_when_mended(
    attached: Workspace, dataset: Dataset, published: str
) -> None:
    import fiftyone as fo

    a, b, c = (frame.id for frame in dataset.frames[:3])
    error = LabelError(
        frame=a, kind="missed", box=Box(x=1, y=2, w=30, h=20), cls="car", weight=0.8, why="look"
    )
    record = Inspection(
        dataset=dataset.ref or "", verdict=Verdict.FAIL, gates=(), exact=0, near=1, thin=0
    )
    leak = Leak(kind="time", first=b, second=c, value=1.0, why="1.0 s apart")
    cluster = DuplicateCluster(frames=(a, c), exact=False, drives=1)
    found = InspectionFindings(record, (leak,), (cluster,), (), (error,))
    curation.publish(attached, dataset, (), None, NAME, findings=found)
    shown = fo.load_dataset(NAME)
    assert shown.load_saved_view("suspected label errors").values("frame") == [a]
    assert set(shown.load_saved_view("duplicates").values("frame")) == {a, c}
    assert set(shown.load_saved_view("leaks between roles").values("leak")) == {"1.0 s apart"}
    box = shown.load_saved_view("suspected label errors").first().label_errors.detections[0]
    assert (box.label, box.why, box.confidence) == ("missed", "look", 0.8)
    assert set(shown.load_saved_view("condition: night, clear").values("light")) == {"night"}
    clean = InspectionFindings(record, (), (), (), ())
    curation.publish(attached, dataset, (), None, NAME, findings=clean)
    left = fo.load_dataset(NAME).list_saved_views()
    assert not {"suspected label errors", "duplicates", "leaks between roles"} & set(left)


def test_a_tag_comes_back_as_a_selection_with_who_and_when(
    attached: Workspace, dataset: Dataset, published: str
) -> None:
    import fiftyone as fo

    store = Store(attached)
    first, second = dataset.frames[4].id, dataset.frames[5].id
    curation.tag_frames(NAME, [first], "odd", by="mia", workspace=attached)
    shown = fo.load_dataset(NAME)
    shown.match(fo.ViewField("frame") == second).tag_samples("odd")  # what the App does
    ref = curation.selection_from_tag(store, NAME, "odd", "tom")
    selection = store.get(ref, Selection)
    assert selection.dataset == dataset.ref
    assert {choice.frame for choice in selection.chosen} == {first, second}
    who = selection.parameters["tagged"]
    assert (who[first]["by"], who[first]["through"]) == ("mia", "workbench")
    assert (who[second]["by"], who[second]["through"]) == ("tom", "app")
    assert who[second]["at"].startswith("20")
    assert any("tagged 'odd' by mia" in c.reasons[0] for c in selection.chosen)
    with pytest.raises(DataError, match=r"no frame .* has the tag 'never'.*Tags: odd"):
        curation.selection_from_tag(store, NAME, "never", "tom")
    with pytest.raises(ParameterError, match="'mined' was set by mining, not by people"):
        curation.selection_from_tag(store, NAME, "mined", "tom")


def test_frames_have_the_larger_share_of_the_app(published: str) -> None:
    """In a narrow panel the App hides its buttons to tag and to sort by likeness."""
    import fiftyone as fo

    from workbench.curation.fiftyone import publishing

    layout = publishing.app_layout(fo, fo.load_dataset(NAME))
    assert [space.children[0].type for space in layout.children] == ["Samples", "Embeddings"]
    assert layout.sizes[0] > 0.6
    assert sum(layout.sizes) == pytest.approx(1)


def test_what_was_tagged_in_the_app_keeps_its_time_when_a_pool_is_published_again(
    attached: Workspace, dataset: Dataset
) -> None:
    """As the step that mines publishes it: the pool alone, which is no version of its own."""
    import fiftyone as fo

    store, name = Store(attached), f"{NAME}-pool"
    pool = dataset.role(Role.POOL)
    frame = pool.frames[0].id
    mined = store.get(
        curation.select_manually(store, dataset.ref or "", [frame], "look"), Selection
    )
    curation.publish(attached, pool, (), mined, name)
    shown = fo.load_dataset(name)
    shown.match(fo.ViewField("frame") == frame).tag_samples("odd")
    at = shown.match_tags("odd").values("last_modified_at")[0]
    time.sleep(1.1)  # times are told to the second
    curation.publish(attached, pool, (), mined, name)
    selection = store.get(curation.selection_from_tag(store, name, "odd", "tom"), Selection)
    assert selection.dataset == dataset.ref
    who = selection.parameters["tagged"][frame]
    assert (who["by"], who["through"]) == ("tom", "app")
    assert datetime.fromisoformat(who["at"]) == at.replace(microsecond=0, tzinfo=UTC)
    assert curation.read_tag_log(name, workspace=attached) == []


def test_boxes_that_were_replaced_are_no_longer_sorted_by_likeness(
    attached: Workspace, dataset: Dataset, seen: Embeddings
) -> None:
    import fiftyone as fo

    name = f"{NAME}-replaced"
    curation.publish(attached, dataset, surest(seen), None, name, embeddings=seen)
    assert publishing.OBJECTS in fo.load_dataset(name).list_brain_runs()
    curation.publish(attached, dataset, surest(seen)[::2], None, name)
    runs = fo.load_dataset(name).list_brain_runs()
    assert set(runs) == {publishing.MAP, publishing.FRAMES}


@pytest.mark.slow
def test_a_mongod_that_went_and_came_back_leaves_no_wrong_state(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """In a process of its own: published, mongod gone, said so, back, tagged, published again."""
    workspace = Workspace(tmp_path_factory.mktemp("restart") / ".workbench")
    code = """
import sys
from pathlib import Path
from tests.curation.conftest import make_dataset
from workbench import curation, services
from workbench.core.errors import ServiceError
from workbench.core.workspace import Workspace
place = Workspace(Path(sys.argv[1]))
services.up(place, ("mongod",))
dataset = make_dataset(place, drives=1, per_drive=4)
curation.publish(place, dataset, name="one")
frame = dataset.frames[0].id
curation.tag_frames("one", [frame], "before", workspace=place)
services.down(place)
for act in (lambda: curation.publish(place, dataset, name="one"),
            lambda: curation.tag_frames("one", [frame], "lost", workspace=place)):
    try: act()
    except ServiceError as error: print("SAID", error.what)
services.up(place, ("mongod",))
curation.tag_frames("one", [frame], "after", workspace=place)
curation.publish(place, dataset, name="one")
import fiftyone as fo
shown = fo.load_dataset("one")
print("TAGS", sorted(shown.match_tags("before").first().tags), len(shown))
services.down(place)
"""
    clean = {key: value for key, value in os.environ.items() if "FIFTYONE" not in key}
    ran = subprocess.run(
        [sys.executable, "-c", code, str(workspace.root)],
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    services.down(workspace)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("SAID mongod does not answer") == 2
    assert "TAGS ['after', 'before'] 4" in ran.stdout


def test_without_a_server_the_map_says_what_to_run(
    attached: Workspace, dataset: Dataset, seen: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIFTYONE_DATABASE_URI", "mongodb://127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"mongod does not answer.*workbench up"):
        curation.publish(attached, dataset, name=NAME, embeddings=seen)
