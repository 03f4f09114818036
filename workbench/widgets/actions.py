"""What the buttons of a frame browser do: tag in FiftyOne, send to Label Studio.

Both take frame digests and return the words that the browser shows. They are for people at a
notebook, so they start the server they need; a step in production never does.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Sequence

from workbench import curation, labeling, services
from workbench.records.store import Store
from workbench.records.types import Prediction, Selection
from workbench.workspace import Workspace

Action = Callable[[Sequence[str]], str]


def tagging(place: Workspace, dataset: str, tag: str) -> Action:
    """Tag frames of FiftyOne's ``dataset``, with who did it and when."""

    def act(frames: Sequence[str]) -> str:
        new = curation.tag(dataset, frames, tag, by=getpass.getuser(), place=place)
        return f"{new} frames tagged {tag!r} in FiftyOne ({len(frames) - new} had the tag)"

    return act


def sending(place: Workspace, selection: Selection, predictions: Sequence[Prediction]) -> Action:
    """Send frames of ``selection``'s dataset to labelers, with ``predictions`` to start from."""

    def act(frames: Sequence[str]) -> str:
        store, dataset, model = Store(place), selection.dataset, selection.model
        why = "picked in the long-tail notebook"
        chosen = curation.choose(store, dataset, frames, why, model)
        batch = labeling.make_batch(store, dataset, chosen, model, predictions)
        services.up(place, ("label-studio",))
        admin = services.label_studio_admin(place)
        sent = labeling.send(place, labeling.connect(admin.url, admin.token), batch)
        link = f'<a href="{sent.url}" target="_blank">{sent.title}</a>'
        return f"{sent.sent} frames sent, {sent.already} there already: {link}"

    return act
