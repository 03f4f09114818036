"""Coverage counts frames, boxes and drives against a target table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.curation.conftest import make_dataset
from workbench.core.errors import ParameterError
from workbench.core.workspace import Workspace
from workbench.curation import hygiene
from workbench.curation.hygiene.coverage import CoverageCell, dataset_coverage
from workbench.records.dataset import Dataset


@pytest.fixture
def dataset(workspace: Workspace) -> Dataset:
    return make_dataset(workspace)


def cell(cells: tuple[CoverageCell, ...], *key: str) -> CoverageCell:
    return next(one for one in cells if (one.side, one.condition, one.cls) == key)


def test_boxes_and_their_drives_are_counted_on_each_side(dataset: Dataset) -> None:
    cells = dataset_coverage(dataset)
    learned = cell(cells, "learned", "day, clear", "car")
    assert (learned.frames, learned.boxes, learned.drives) == (4, 4, 1)
    assert learned.lacks == {"boxes": 96}
    judged = cell(cells, "judged", "night, clear", "cyclist")
    assert judged.lacks == {"boxes": 96, "drives": 9}
    assert judged.filled == pytest.approx(0.04)
    # Frames of the pool have no labels to count.
    assert not [one for one in cells if (one.side, one.condition) == ("learned", "night, clear")]


def test_the_last_matching_entry_applies(dataset: Dataset, tmp_path: Path) -> None:
    table = tmp_path / "target.yaml"
    table.write_text(
        "wanted:\n"
        "  - {least: {boxes: 2}}\n"
        "  - {condition: 'day, clear', cls: cyclist, least: {boxes: 5, drives: 2}}\n"
    )
    cells = dataset_coverage(dataset, hygiene.read_coverage_target(table))
    assert cell(cells, "learned", "day, clear", "cyclist").lacks == {"boxes": 1, "drives": 1}
    assert [one.cls for one in hygiene.thin_cells(cells)] == ["cyclist"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wanted: [{condition: night}]", "wanted.0.least: Field required"),
        ("wanted: [{least: {boxes: -1}}]", "greater than or equal to 0"),
        ("wanted: [{side: left, least: {}}]", "wanted.0.side"),
        ("wanted: [", "is not valid YAML"),
        ("- 3", "valid dictionary"),
    ],
)
def test_an_invalid_table_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "target.yaml"
    table.write_text(text)
    with pytest.raises(ParameterError) as caught:
        hygiene.read_coverage_target(table)
    assert message in str(caught.value)
