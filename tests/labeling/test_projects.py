"""The labeling guide."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

from tests.labeling.conftest import SCHEMA, Sample
from workbench import labeling
from workbench.curation import select_manually
from workbench.labeling import projects
from workbench.records import dataset
from workbench.records.base import digest_of
from workbench.records.frames import Conditions, Light, Question


class Titles:
    """A server that knows projects by title only."""

    def __init__(self, *titles: str) -> None:
        self.titles = titles

    def find_project(self, title: str) -> str | None:
        return title if title in self.titles else None


def test_projects_are_named_by_purpose_condition_and_day(sample: Sample) -> None:
    batch = sample.batch()
    title = projects.project_title(sample.store.workspace, batch, None)
    day = sample.store.side(batch, "created")["at"][:10]
    assert title.startswith("Label tiny") and title.endswith(f"{day} · {digest_of(batch)[:8]}")
    night = [
        frame.model_copy(update={"conditions": Conditions(light=Light.NIGHT, weather="rain")})
        for frame in sample.dataset.frames
    ]
    dark = replace(sample.dataset, name="n" * 40, frames=tuple(night), labels=())
    for name, expected in (("tiny", "Label tiny, night, rain · "), ("n" * 40, "Label nnnn")):
        ref = dataset.save_dataset(sample.store, replace(dark, name=name), made_by="test")
        chosen = select_manually(sample.store, ref, [frame.id for frame in night], "odd")
        title = projects.project_title(
            sample.store.workspace, labeling.make_batch(sample.store, ref, chosen, None, ()), None
        )
        assert title.startswith(expected) and len(title) <= 50


def test_a_project_of_an_earlier_name_is_found(sample: Sample) -> None:
    batch, workspace = sample.batch(), sample.store.workspace
    earlier = f"workbench: tiny {digest_of(batch)[:12]}"
    assert projects.find_project(workspace, Titles(earlier), batch) == earlier  # type: ignore[arg-type]
    now = projects.project_title(workspace, batch, None)
    assert projects.find_project(workspace, Titles(earlier, now), batch) == now  # type: ignore[arg-type]
    assert projects.find_project(workspace, Titles(earlier), batch, "mine") is None  # type: ignore[arg-type]


class Checked(HTMLParser):
    """Counts images and sees that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.images += tag == "img"
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_guide_contains_the_schema_and_escapes_it() -> None:
    schema = SCHEMA.model_copy(
        update={
            "definitions": {"car": "four wheels & <more>"},
            "mapping": {"taxi": "car"},
            "vulnerable": ("pedestrian",),
            "shapes": ("box", "polygon"),
            "frame_questions": (Question(name="weather", answers=("clear", "rain")),),
            "tracks": True,
        }
    )
    text = projects.guide_page(schema, {"car": [b"jpeg"]})
    for part in ("four wheels &amp; &lt;more&gt;", "Includes: taxi", "clear / rain", "track"):
        assert part in text
    assert "look twice" in text and "Outline the object" in text
    assert "same object in other frames" not in projects.guide_page(SCHEMA, {})
    page = Checked(text)
    assert page.images == 1 and page.open == []
    assert projects.guide_page(schema, {"car": [b"jpeg"]}) == text


def test_examples_are_cropped_from_labeled_frames_with_images(sample: Sample) -> None:
    unhidden = [label.model_copy(update={"occluded": None}) for label in sample.dataset.labels]
    large = [label for label in unhidden if min(label.box.w, label.box.h) >= 24]
    ref = dataset.save_dataset(
        sample.store, replace(sample.dataset, labels=tuple(unhidden)), made_by="test"
    )
    crops_by_class = projects.example_crops(sample.store, ref)
    expected = min(3, len({label.frame for label in large}))
    assert {cls: len(crops) for cls, crops in crops_by_class.items()} == {"car": expected}
    assert all(crop.startswith(b"\xff\xd8") for crop in crops_by_class["car"])
    for frame in sample.frames:
        dataset.media_path(sample.workspace, frame).unlink()
    assert projects.example_crops(sample.store, ref) == {"car": []}
