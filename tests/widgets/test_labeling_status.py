"""The status widget shows what it was given, escapes it, and collects what is complete."""

from __future__ import annotations

from dataclasses import replace

from workbench.core.errors import ServiceError
from workbench.labeling import BatchStatus, InvalidAnswer
from workbench.records.types import Annotator
from workbench.widgets.labeling_status import LabelingStatus

MEND = InvalidAnswer("f" * 64, "<b>ada</b>", "http://here/?task=1", "box leaves the image")
OPEN = BatchStatus(
    batch=f"batch/{'a' * 64}",
    project=1,
    url="http://here/projects/1",
    total=4,
    done=1,
    skipped=1,
    annotators=(Annotator(id="ada", frames=1, boxes=2, minutes=0.5),),
    invalid=(MEND,) * 7,
    drafts=2,
)
DONE = replace(OPEN, batch=f"batch/{'b' * 64}", done=4, invalid=(), drafts=0)


def text(widget: LabelingStatus) -> str:
    return " ".join(
        part.value
        for row in widget.rows.children
        for part in (*row.children[0].children[1:2], row.children[1])
    )


def test_progress_and_invalid_answers_are_shown() -> None:
    widget = LabelingStatus(lambda: [OPEN])
    shown = text(widget)
    assert "1 of 4 frames, 1 skipped, 2 drafts" in shown and "ada: 1 frame, 2 boxes" in shown
    assert "&lt;b&gt;ada" in shown and "<b>ada" not in shown and "and 2 more" in shown
    assert widget.collect_buttons == {}


def test_a_complete_batch_can_be_collected_once() -> None:
    states = [OPEN, DONE]
    collected: list[str] = []

    def collect(batch: str) -> str:
        collected.append(batch)
        states[1] = replace(DONE, collected=f"label/{'c' * 64}")
        return "4 boxes"

    widget = LabelingStatus(lambda: states, on_collect=collect)
    widget.collect_buttons[DONE.batch].click()
    assert collected == [DONE.batch] and widget.message.value == "4 boxes"
    assert widget.collect_buttons == {} and "collected" in text(widget)


def test_an_unreachable_server_is_reported_and_the_last_status_stays() -> None:
    answers: list[list[BatchStatus]] = [[OPEN]]

    def look() -> list[BatchStatus]:
        if not answers:
            raise ServiceError("Label Studio does not answer", hint="Start it")
        return answers.pop()

    widget = LabelingStatus(look)
    widget.refresh_button.click()
    assert "does not answer" in widget.message.value and len(widget.rows.children) == 1
    assert "No batch" in LabelingStatus(lambda: []).rows.children[0].value
