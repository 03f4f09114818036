"""Two models that were trained alike but for which frames were labelled: which learned more."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.evaluation.figures import EVERY_CLASS, MetricName
from workbench.evaluation.metrics import Evaluated, compare
from workbench.records.types import Beaten, Verdict

OVERALL: tuple[MetricName, ...] = ("ap", "ap50", "recall")


def versus(mined: Evaluated, control: Evaluated, classes: Sequence[str] = ()) -> tuple[Beaten, ...]:
    """The mined arm's model less the control arm's, on the same frames, draw by draw.

    Args:
        classes: Of these AP50 and recall are compared, too: the rare ones.

    Raises:
        ParameterError: They were not evaluated on the same frames, truth and settings.
    """
    wanted: list[tuple[MetricName, str]] = [(metric, EVERY_CLASS) for metric in OVERALL]
    for cls in dict.fromkeys(classes):
        wanted += [("ap50", cls), ("recall", cls)]
    return tuple(_one(mined, control, metric, cls) for metric, cls in wanted)


def _one(mined: Evaluated, control: Evaluated, metric: MetricName, cls: str) -> Beaten:
    change = compare(mined, control, metric, cls=cls)
    row = mined.metrics.at(cls=cls)
    theirs = control.metrics.at(cls=cls)
    figure = change.figure
    verdict, why = Verdict.INSUFFICIENT, ""
    if figure.value is None:
        why = f"the {row.frames} safety frames hold none" if not row.boxes else "nothing was found"
    elif not change.usable:
        why = f"{row.drives} drives are too few to speak of others"
    elif figure.low is not None and figure.low > 0:
        verdict = Verdict.PASS
    elif figure.high is not None and figure.high < 0:
        verdict = Verdict.FAIL
    else:
        why = "the interval holds 0: they may as well be equal"
    return Beaten(
        figure=f"{metric} of {'all classes' if cls == EVERY_CLASS else cls}, retrained",
        change="difference",
        mined=getattr(row, metric).value,
        control=getattr(theirs, metric).value,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        verdict=verdict,
        drives=row.drives,
        unit=f"{row.drives} drives" if change.usable else f"blocks of time of {row.drives} drives",
        why=why,
    )
