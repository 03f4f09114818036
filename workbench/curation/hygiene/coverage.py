"""Coverage: frames, boxes and drives by condition and class, against a target.

Counts of boxes alone mislead, as two hundred pedestrians of one drive are one street. So frames,
boxes and drives are counted, separately for what is learned from and what is judged by.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from workbench.core.errors import ParameterError
from workbench.core.parsing import read_yaml
from workbench.curation.hygiene.leakage import split_side
from workbench.data.slices import describe_conditions
from workbench.records.base import FrozenModel
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame

__all__ = ["CoverageTarget", "read_coverage_target", "thin_cells"]

_ANY = "all"
_CoverageSide = Literal["learned", "judged"]


class _MinimumCounts(FrozenModel):
    """Minimum counts of a cell; 0 requires nothing."""

    frames: int = Field(default=0, ge=0)
    boxes: int = Field(default=0, ge=0)
    drives: int = Field(default=0, ge=0)


class _TargetEntry(FrozenModel):
    """Minimum counts for the cells of a condition, class and side; ``all`` matches any."""

    condition: str = _ANY
    cls: str = _ANY
    side: _CoverageSide | Literal["all"] = "all"
    least: _MinimumCounts


class CoverageTarget(FrozenModel):
    """A target table; the last matching entry applies to a cell.

    The default requires ten drives where frames are judged by, below which no gate decides, and a
    hundred boxes everywhere. It comes from no standard: set your own.
    """

    wanted: tuple[_TargetEntry, ...] = (
        _TargetEntry(side="learned", least=_MinimumCounts(boxes=100)),
        _TargetEntry(side="judged", least=_MinimumCounts(boxes=100, drives=10)),
    )

    def least(self, condition: str, cls: str, side: _CoverageSide) -> _MinimumCounts:
        """Minimum counts of one cell."""
        minimum = _MinimumCounts()
        for entry in self.wanted:
            if all(
                wanted in (_ANY, value)
                for wanted, value in (
                    (entry.condition, condition),
                    (entry.cls, cls),
                    (entry.side, side),
                )
            ):
                minimum = entry.least
        return minimum


class CoverageCell(FrozenModel):
    """Counts of one condition and class on one side, with the minimum."""

    side: _CoverageSide
    condition: str
    cls: str
    frames: int
    boxes: int
    drives: int
    least: _MinimumCounts

    @property
    def lacks(self) -> dict[str, int]:
        """Missing frames, boxes and drives; empty when there are enough."""
        have = {"frames": self.frames, "boxes": self.boxes, "drives": self.drives}
        short = {name: getattr(self.least, name) - count for name, count in have.items()}
        return {name: count for name, count in short.items() if count > 0}

    @property
    def filled(self) -> float:
        """The smallest ratio of actual to required counts, at most 1."""
        shares = [
            have / required
            for have, required in (
                (self.frames, self.least.frames),
                (self.boxes, self.least.boxes),
                (self.drives, self.least.drives),
            )
            if required
        ]
        return min([1.0, *shares])


def dataset_coverage(
    dataset: Dataset, target: CoverageTarget | None = None
) -> tuple[CoverageCell, ...]:
    """Count every condition that occurs by every class, for frames learned from and judged by.

    Ignored regions and model labels do not count.

    Args:
        dataset: The dataset version.
        target: Required counts.

    Returns:
        Cells by side, emptiest first.
    """
    target = target or CoverageTarget()
    sides: tuple[_CoverageSide, ...] = ("learned", "judged")
    cells = []
    for side in sides:
        frames_of_side = [frame for frame in dataset.frames if _is_counted(frame, side)]
        by_condition: dict[str, list[Frame]] = {}
        for frame in frames_of_side:
            by_condition.setdefault(describe_conditions(frame), []).append(frame)
        for condition, frames in by_condition.items():
            for cls in dataset.label_schema.classes:
                cells.append(_make_cell(dataset, frames, target, (side, condition, cls)))
    order = {side: number for number, side in enumerate(sides)}
    return tuple(sorted(cells, key=lambda c: (order[c.side], c.filled, c.condition, c.cls)))


def thin_cells(cells: Iterable[CoverageCell]) -> tuple[CoverageCell, ...]:
    """Cells with less than required."""
    return tuple(cell for cell in cells if cell.lacks)


def read_coverage_target(path: Path) -> CoverageTarget:
    """Read a target table from YAML, with entries as in `_TargetEntry`.

    Raises:
        ParameterError: The file cannot be read or is invalid.
    """
    try:
        content = read_yaml(path)
        return CoverageTarget.model_validate(content)
    except OSError as error:
        raise ParameterError(
            f"cannot read the target table: {error.strerror}", where=path
        ) from error
    except yaml.YAMLError as error:
        raise ParameterError(
            "the target table is not valid YAML", where=f"{path}: {error}"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"]) or "the table"
        raise ParameterError(
            f"{location}: {first['msg']}",
            where=path,
            hint="Write wanted: [{condition: night, cls: pedestrian, least: {boxes: 200}}]",
        ) from error


def _is_counted(frame: Frame, side: _CoverageSide) -> bool:
    # The pool may be learned from later, but is not labelled yet.
    return split_side(frame) == side and frame.role != "pool"


def _make_cell(
    dataset: Dataset,
    frames: Sequence[Frame],
    target: CoverageTarget,
    key: tuple[_CoverageSide, str, str],
) -> CoverageCell:
    side, condition, cls = key
    boxes = 0
    holding = []
    for frame in frames:
        count = sum(
            label.cls == cls and not label.ignore and label.origin.is_ground_truth
            for label in dataset.labels_by_frame[frame.id]
        )
        boxes += count
        if count:
            holding.append(frame)
    drives = len({frame.drive for frame in holding})
    return CoverageCell(
        side=side,
        condition=condition,
        cls=cls,
        frames=len(holding),
        boxes=boxes,
        drives=drives,
        least=target.least(condition, cls, side),
    )
