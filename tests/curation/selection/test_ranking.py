"""Mining by example, in minutes, with a control arm; and parsing of exemplars."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.curation.conftest import make_checkpoint, make_dataset
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.curation import (
    Budget,
    LabelingPace,
    MiningQuery,
    SelectionRules,
    dataset_of_arm,
    mine,
)
from workbench.curation.embedding.lite0 import Lite0Encoder
from workbench.curation.selection.ranking import parse_exemplar
from workbench.curation.signals.probe import Answers
from workbench.curation.signals.similarity import Exemplar
from workbench.records import dataset as datasets
from workbench.records.base import Ref
from workbench.records.dataset import Dataset
from workbench.records.frames import Box, Label, Origin, Role
from workbench.records.store import Store
from workbench.records.types import Selection

RARITY = SelectionRules(typical_below=0)


def mined(store: Store, dataset: Dataset, model: Ref, **options: object) -> Selection:
    budget = options.pop("budget", 6)
    ref = mine(store, dataset.ref or "", model, budget, **options)  # type: ignore[arg-type]
    return store.get(ref, Selection)


def test_a_search_by_a_frame_of_the_pool_starts_with_it(
    store: Store, dataset: Dataset, model: Ref
) -> None:
    frame = dataset.role(Role.POOL).frames[3]
    rules = SelectionRules(random_share=0)
    selection = mined(
        store, dataset, model, query=MiningQuery(like=(Exemplar(frame.id),)), rules=rules
    )
    first, second = selection.chosen[:2]
    assert first.frame == frame.id
    assert first.reasons[:2] == (
        "among the 2 % of the pool most similar to the query",
        "the exemplar itself",
    )
    assert "a scene similar to exemplar" in second.reasons[1]
    assert selection.parameters["query"] == {"like": [{"frame": frame.id}]}
    assert selection.parameters["rules"]["diversity"] == 0
    assert second.signals.keys() == {"likeness"}


def test_a_labelled_exemplar_is_not_chosen(store: Store, dataset: Dataset, model: Ref) -> None:
    known = dataset.role(Role.SEED).frames[0]
    box = dataset.labels_by_frame[known.id][0].box
    one = Exemplar(known.id, (box.x, box.y, box.w, box.h))
    selection = mined(store, dataset, model, query=MiningQuery(like=(one,)))
    assert known.id not in {choice.frame for choice in selection.chosen}
    assert any("similar to exemplar" in choice.reasons[1] for choice in selection.chosen[:1])
    query = selection.parameters["query"]["like"][0]
    assert query == {"frame": known.id, "box": list(one.box or ())}


def test_a_text_query_without_a_text_encoder_is_one_for_words(
    store: Store, dataset: Dataset, model: Ref
) -> None:
    selection = mined(store, dataset, model, query=MiningQuery(text="a deer"))
    assert selection.method == "words: a deer"
    assert all(choice.box for choice in selection.chosen if choice.arm == "mined")
    with pytest.raises(ParameterError, match="unknown word"):
        mined(store, dataset, model, query=MiningQuery(text="a unicorn"))


def test_real_drives_are_mined_by_the_watch_list_rendered_ones_are_not(
    store: Store, dataset: Dataset, model: Ref
) -> None:
    assert "watch" not in mined(store, dataset, model).parameters["signals"]
    real = datasets.save_dataset(
        store, replace(dataset, name="real", simulated=False, ref=None), made_by="test"
    )
    selection = store.get(mine(store, real, model, 6), Selection)
    assert selection.parameters["signals"] == {"watch": 1.0}
    assert "motorcycle" in selection.parameters["query"]["watch"]
    assert selection.model == model
    cold = store.get(mine(store, real, None, 6), Selection)
    assert cold.parameters["signals"] == {"watch": 1.0}


def test_another_model_that_disagrees_is_a_signal(
    store: Store, dataset: Dataset, model: Ref, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = make_checkpoint(store, dataset.ref or "", tmp_path_factory.mktemp("w"), seed=5)
    selection = mined(store, dataset, model, query=MiningQuery(other_models=(other,)), rules=RARITY)
    assert "disagreement" in selection.parameters["signals"]
    assert selection.parameters["query"] == {"other_models": [other]}
    assert "disagreement" in selection.chosen[0].signals


def test_typical_frames_are_chosen_while_almost_nothing_is_labelled(
    store: Store, dataset: Dataset, model: Ref
) -> None:
    early = mined(store, dataset, model)  # eight frames are labelled
    assert early.parameters["signals"] == {"typicality": 1.0}
    assert early.chosen[0].reasons[0].startswith("most typical")
    later = mined(store, dataset, model, rules=RARITY)
    assert "typicality" not in later.parameters["signals"]
    assert later.chosen[0].reasons[0].startswith("rarest")


def test_minutes_are_turned_into_frames_by_the_boxes_expected(
    store: Store, dataset: Dataset, model: Ref
) -> None:
    pace = LabelingPace(seconds_per_frame=30, seconds_per_box=10, source="measured over 12 answers")
    selection = mined(store, dataset, model, budget=Budget(minutes=5, pace=pace))
    assert selection.minutes == 5
    assert 0 < selection.budget == len(selection.chosen) <= 10
    assert selection.parameters["expected_minutes"] <= 5
    assert selection.parameters["pace"]["source"] == "measured over 12 answers"


def test_a_control_arm_is_recorded(store: Store, dataset: Dataset, model: Ref) -> None:
    rules = SelectionRules(control=True, typical_below=0)
    selection = mined(store, dataset, model, rules=rules, seed=4)
    assert [choice.arm for choice in selection.chosen] == ["mined"] * 6 + ["control"] * 6
    assert selection.parameters["control"] == {"frames": 6, "probability": 6 / 32}
    assert selection.parameters["rules"]["control"] is True
    assert selection.has_control


def test_each_arm_alone_is_a_version_in_which_the_other_is_not_labelled(
    store: Store, dataset: Dataset, model: Ref
) -> None:
    rules = SelectionRules(control=True)
    chosen = mine(store, dataset.ref or "", model, 6, rules=rules)
    arms = {choice.frame: choice.arm for choice in store.get(chosen, Selection).chosen}
    box = Box(x=1, y=1, w=9, h=9)
    labelled = Dataset(
        name=dataset.name,
        label_schema=dataset.label_schema,
        drives=dataset.drives,
        frames=tuple(
            frame.model_copy(update={"role": Role.TRAIN}) if frame.id in arms else frame
            for frame in dataset.frames
        ),
        labels=(
            *dataset.labels,
            *(Label(frame=one, cls="car", box=box, origin=Origin.HUMAN) for one in arms),
        ),
    )
    both = datasets.save_dataset(store, labelled, made_by="collect")
    for arm in ("mined", "control"):
        alone = datasets.load_dataset(store, dataset_of_arm(store, both, chosen, arm))  # type: ignore[arg-type]
        trained_on = {frame.id for frame in alone.role(Role.TRAIN).frames}
        assert trained_on == {frame for frame, own in arms.items() if own == arm}
        assert {one.frame for one in alone.labels} & set(arms) == trained_on
        assert alone.name == f"drawn-{arm}"
    with pytest.raises(ParameterError, match="no frame of the mined arm is labelled"):
        dataset_of_arm(store, dataset.ref or "", chosen, "mined")


def test_parse_exemplar(dataset: Dataset) -> None:
    frame = dataset.frames[10]
    assert parse_exemplar(dataset.frames, frame.id) == Exemplar(frame.id)
    assert parse_exemplar(dataset.frames, frame.id[:10].upper()) == Exemplar(frame.id)
    by_position = parse_exemplar(dataset.frames, f"{frame.drive}@{frame.index}:3,4,20,10.5")
    assert by_position == Exemplar(frame.id, (3, 4, 20, 10.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zzzz", "unknown frame"),
        ("", "unknown frame"),
        ("drive-1@99", "unknown frame"),
        ("drive-1@2:0,0,500,5", "exceeds the image"),
        ("drive-1@2:5,5,0,5", "exceeds the image"),
        ("drive-1@2:a,b,c,d", "invalid box"),
    ],
)
def test_an_invalid_exemplar_is_rejected(dataset: Dataset, text: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parse_exemplar(dataset.frames, text)


def test_similar_names_are_suggested_and_ambiguous_ones_rejected(dataset: Dataset) -> None:
    frame = dataset.frames[0]
    wrong = frame.id[:6] + ("0" if frame.id[6] != "0" else "1") + "z"
    with pytest.raises(ParameterError) as caught:
        parse_exemplar(dataset.frames, wrong)
    assert frame.id[:12] in str(caught.value.hint)
    with pytest.raises(ParameterError) as caught:
        parse_exemplar(dataset.frames, "drive-1@99")
    assert "drive-1@7" in str(caught.value.hint)
    clusters = [frame, frame.model_copy(update={"id": frame.id[:8] + "f" * 56})]
    with pytest.raises(ParameterError, match="2 matches"):
        parse_exemplar(clusters, frame.id[:5])


def test_parameters_are_json(store: Store, dataset: Dataset, model: Ref) -> None:
    selection = mined(store, dataset, model, rules=RARITY)
    parameters = json.loads(json.dumps(selection.parameters))
    assert parameters.keys() >= {
        "rules",
        "quality_gate",
        "signals",
        "embedding",
        "pool",
        "labelled",
    }
    assert sum(parameters["signals"].values()) == pytest.approx(1)


def test_exemplars_and_answers_are_in_the_record(
    store: Store, dataset: Dataset, model: Ref
) -> None:
    pool = dataset.role(Role.POOL).frames
    yes, no = pool[3], pool[9]
    like = (Exemplar(pool[0].id, (5.0, 5.0, 30.0, 30.0)), Exemplar(pool[1].id, (5, 5, 30, 30)))
    query = MiningQuery(
        like=like, unlike=(Exemplar(pool[20].id),), answers=(Answers((yes.id,), (no.id,)),)
    )
    rules = SelectionRules(random_share=0.0, gap_frames=0, gap_s=0.0, event_likeness=1.0)
    selection = mined(store, dataset, model, query=query, rules=rules)
    kept = selection.parameters["query"]
    assert [one["frame"] for one in kept["like"]] == [pool[0].id, pool[1].id]
    assert kept["unlike"] == [{"frame": pool[20].id}]
    assert kept["answers"] == [{"yes": [yes.id], "no": [no.id]}]
    chosen = {choice.frame: choice for choice in selection.chosen}
    assert no.id not in chosen
    assert selection.parameters["kept_out"]["answered no"] == 1
    assert "confirmed by a person" in chosen[yes.id].reasons
    with pytest.raises(ParameterError, match="no exemplar to search for"):
        mined(store, dataset, model, query=MiningQuery(unlike=like), rules=rules)


def test_exemplars_of_real_drives_are_searched_with_pretrained_regions(
    store: Store, workspace: Workspace
) -> None:
    """No detector is loaded: the checkpoint does not exist."""
    made = make_dataset(workspace, drives=4, per_drive=2, simulated=False)
    ref = datasets.save_dataset(store, made, made_by="test")
    frame = made.role(Role.POOL).frames[0]
    query = MiningQuery(like=(Exemplar(frame.id, (5.0, 5.0, 30.0, 30.0)),))
    selection = store.get(mine(store, ref, f"checkpoint/{'0' * 64}", 2, query=query), Selection)
    assert selection.chosen[0].frame == frame.id
    encoder = Lite0Encoder(workspace=workspace)
    assert selection.parameters["embedding"] == {
        "model": encoder.model,
        "preprocessing": encoder.preprocessing,
    }
