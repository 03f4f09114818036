"""Labeling progress by batch."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ipywidgets as widgets

from workbench.core.errors import WorkbenchError
from workbench.core.workspace import Workspace

if TYPE_CHECKING:
    from workbench.labeling import BatchStatus
    from workbench.labeling.collector import InvalidAnswer

_MAX_SHOWN_FIXES = 5


class LabelingStatus(widgets.VBox):  # type: ignore[misc]
    """The batches that are out, as they are now.

    Args:
        look: Gives the state of each batch; called at once and by "Refresh".
        on_collect: Called with a complete batch by its "Collect" and returns what to tell the
            person; without it, no button.

    Attributes:
        states: What was seen last.
        collect_buttons: One a complete batch that was not collected yet, by batch.
    """

    def __init__(
        self,
        look: Callable[[], Sequence[BatchStatus]],
        *,
        on_collect: Callable[[str], object] | None = None,
    ) -> None:
        self.states: list[BatchStatus] = []
        self.collect_buttons: dict[str, widgets.Button] = {}
        self._look, self._on_collect = look, on_collect
        self.refresh_button = widgets.Button(description="Refresh", icon="refresh")
        self.refresh_button.on_click(lambda _: self.refresh())
        self.rows = widgets.VBox()
        self.told = widgets.HTML()
        super().__init__([self.refresh_button, self.rows, self.told])
        self.refresh()

    def refresh(self) -> None:
        """Look again."""
        try:
            self.states = list(self._look())
        except WorkbenchError as error:
            self._tell(str(error))
            return
        self.collect_buttons = {}
        shown = [self._row(state) for state in self.states]
        self.rows.children = shown or [widgets.HTML("No batch was sent from here.")]
        self._tell("")

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
            said = str(self._on_collect(batch))
        except WorkbenchError as error:
            self._tell(str(error))
            return
        self.refresh()
        self._tell(said)

    def _tell(self, text: str) -> None:
        self.told.value = html.escape(text)


def sent_batches(place: Workspace) -> LabelingStatus:
    """The batches sent from a workspace, at its own server.

    Raises:
        ServiceError: Label Studio was never started here, or is away.
    """
    from workbench import labeling, services
    from workbench.labeling import sync

    admin = services.label_studio_admin(place)
    server = labeling.connect(admin.url, admin.token)

    def look() -> list[BatchStatus]:
        return [labeling.batch_status(place, server, batch) for batch in sync.sent_batches(place)]

    def collect(batch: str) -> str:
        return f"collected: {labeling.collect(place, server, batch)}"

    return LabelingStatus(look, on_collect=collect)


def _summary(state: BatchStatus) -> str:
    parts = [f"{state.done} of {state.total} frames"]
    parts += [f"{state.skipped} skipped"] if state.skipped else []
    parts += [f"{state.drafts} drafts"] if state.drafts else []
    parts += [f"{len(state.deleted)} deleted there"] if state.deleted else []
    parts += ["collected"] if state.collected else []
    url = html.escape(state.url, quote=True)
    return f'{", ".join(parts)} · <a href="{url}" target="_blank">open</a>'


def _details(state: BatchStatus) -> str:
    people = []
    for person in state.annotators:
        time = f", {person.minutes:.1f} min" if person.minutes is not None else ""
        told = " (replayed)" if person.simulated else ""
        name = html.escape(person.id)
        people.append(f"{name}{told}: {person.frames} frames, {person.boxes} boxes{time}")
    mends = [_fix_line(mend) for mend in state.invalid[:_MAX_SHOWN_FIXES]]
    if len(state.invalid) > _MAX_SHOWN_FIXES:
        mends.append(f"and {len(state.invalid) - _MAX_SHOWN_FIXES} more")
    return "".join(f"<div>{line}</div>" for line in (*people, *mends))


def _fix_line(mend: InvalidAnswer) -> str:
    url = html.escape(mend.url, quote=True)
    who, why = html.escape(mend.annotator), html.escape(mend.why)
    return f'to mend, {who}: <a href="{url}" target="_blank">{why}</a>'
