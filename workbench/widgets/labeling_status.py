"""Labeling progress by batch: a bar, the annotators, and invalid answers to fix.

Everything works from code as well: ``widget.refresh_button.click()``.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ipywidgets as widgets

from workbench.core.errors import WorkbenchError
from workbench.core.text import counted
from workbench.core.workspace import Workspace

if TYPE_CHECKING:
    from workbench.labeling import BatchStatus
    from workbench.labeling.collector import InvalidAnswer

__all__ = ()

_MAX_SHOWN_FIXES = 5


class LabelingStatus(widgets.VBox):  # type: ignore[misc]
    """Progress of the sent batches.

    Args:
        read: Returns the status of each batch; called at once and by "Refresh".
        on_collect: Called with a complete batch by its "Collect" button, returns a message; without
            it, no button.

    Attributes:
        states: The last status of each batch.
        collect_buttons: Button of each complete batch that is not collected yet.
    """

    def __init__(
        self,
        read: Callable[[], Sequence[BatchStatus]],
        *,
        on_collect: Callable[[str], object] | None = None,
    ) -> None:
        self.states: list[BatchStatus] = []
        self.collect_buttons: dict[str, widgets.Button] = {}
        self._read, self._on_collect = read, on_collect
        self.refresh_button = widgets.Button(description="Refresh", icon="refresh")
        self.refresh_button.on_click(lambda _: self.refresh())
        self.rows = widgets.VBox()
        self.message = widgets.HTML()
        super().__init__([self.refresh_button, self.rows, self.message])
        self.refresh()

    def refresh(self) -> None:
        """Read the status again."""
        try:
            self.states = list(self._read())
        except WorkbenchError as error:
            self._show_message(str(error))
            return
        self.collect_buttons = {}
        shown = [self._row(state) for state in self.states]
        self.rows.children = shown or [widgets.HTML("No batches sent from this workspace.")]
        self._show_message("")

    def _row(self, state: BatchStatus) -> widgets.VBox:
        kind, _, name = state.batch.partition("/")
        bar = widgets.IntProgress(
            value=state.done,
            max=max(1, state.total),
            description=f"{kind}/{name[:8]}",
            bar_style="success" if state.complete else "warning" if state.invalid else "info",
        )
        line = [bar, widgets.HTML(_summary(state))]
        if self._on_collect and state.complete and not state.collected:
            button = widgets.Button(description="Collect", icon="download")
            button.on_click(lambda _: self._collect(state.batch))
            self.collect_buttons[state.batch] = button
            line.append(button)
        return widgets.VBox([widgets.HBox(line), widgets.HTML(_details(state))])

    def _collect(self, batch: str) -> None:
        if self._on_collect is None:
            return
        try:
            message = str(self._on_collect(batch))
        except WorkbenchError as error:
            self._show_message(str(error))
            return
        self.refresh()
        self._show_message(message)

    def _show_message(self, text: str) -> None:
        self.message.value = html.escape(text)


def sent_batches(workspace: Workspace) -> LabelingStatus:
    """Progress of all batches sent from a workspace, on its own server.

    Args:
        workspace: The workspace.

    Raises:
        ServiceError: Label Studio was never started here, or does not answer.
    """
    from workbench import labeling, services
    from workbench.labeling import sync

    admin = services.label_studio_admin(workspace)
    server = labeling.connect(admin.url, admin.token)

    def read() -> list[BatchStatus]:
        return [
            labeling.batch_status(workspace, server, batch)
            for batch in sync.sent_batches(workspace)
        ]

    def collect(batch: str) -> str:
        return f"collected: {labeling.collect(workspace, server, batch)}"

    return LabelingStatus(read, on_collect=collect)


def _summary(state: BatchStatus) -> str:
    parts = [f"{state.done} of {counted(state.total, 'frame')}"]
    parts += [f"{state.skipped} skipped"] if state.skipped else []
    parts += [f"{state.partly} waiting for another labeler"] if state.partly else []
    parts += [counted(state.drafts, "draft")] if state.drafts else []
    parts += [f"{len(state.deleted)} deleted in Label Studio"] if state.deleted else []
    parts += ["collected"] if state.collected else []
    url = html.escape(state.url, quote=True)
    return f'{", ".join(parts)} · <a href="{url}" target="_blank">open</a>'


def _details(state: BatchStatus) -> str:
    people = []
    for person in state.annotators:
        time = f", {person.minutes:.1f} min" if person.minutes is not None else ""
        suffix = " (replayed)" if person.simulated else ""
        name = html.escape(person.id)
        counts = f"{counted(person.frames, 'frame')}, {counted(person.boxes, 'box', 'boxes')}"
        people.append(f"{name}{suffix}: {counts}{time}")
    fixes = [_fix_line(answer) for answer in state.invalid[:_MAX_SHOWN_FIXES]]
    if len(state.invalid) > _MAX_SHOWN_FIXES:
        fixes.append(f"and {len(state.invalid) - _MAX_SHOWN_FIXES} more")
    return "".join(f"<div>{line}</div>" for line in (*people, *fixes))


def _fix_line(answer: InvalidAnswer) -> str:
    url = html.escape(answer.url, quote=True)
    who, reason = html.escape(answer.annotator), html.escape(answer.why)
    return f'to fix, {who}: <a href="{url}" target="_blank">{reason}</a>'
