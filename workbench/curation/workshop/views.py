"""Saved views and the App's layout: where to look first."""

from __future__ import annotations

from typing import Any

from workbench.curation.workshop import embedding_map
from workbench.curation.workshop.tags import ARMS

SUSPECTS, TWINS, LEAKS = "suspected label errors", "duplicates", "leaks between roles"
CONDITION = "condition: "


def save(fo: Any, shown: Any) -> None:
    """Views of each arm, each condition and each kind of finding; those of nothing are dropped.

    Views that people saved under other names stay.
    """
    field = fo.ViewField
    ranked = shown.has_sample_field("rank")
    wanted = {}
    for arm in ARMS:
        chosen = shown.match_tags(arm)
        wanted[arm] = chosen.sort_by("rank") if ranked else chosen
    for condition in shown.distinct("condition"):
        wanted[f"{CONDITION}{condition}"] = shown.match(field("condition") == condition)
    if shown.has_sample_field("suspicion"):
        suspects = shown.match(field("suspicion") != None)  # noqa: E711 - an expression
        wanted[SUSPECTS] = suspects.sort_by("suspicion", reverse=True)
    if shown.has_sample_field("twins"):
        wanted[TWINS] = shown.match(field("twins") != None).sort_by("twins")  # noqa: E711
    if shown.has_sample_field("leak"):
        wanted[LEAKS] = shown.match(field("leak") != None)  # noqa: E711
    empty = {name for name, view in wanted.items() if name not in ("mined", "random") and not view}
    for name in shown.list_saved_views():
        ours = name in (*ARMS, SUSPECTS, TWINS, LEAKS) or name.startswith(CONDITION)
        if ours and (name not in wanted or name in empty):
            shown.delete_saved_view(name)
    for name, view in wanted.items():
        if name not in empty:
            shown.save_view(name, view, overwrite=True)


def spaces(fo: Any, shown: Any) -> Any:
    """Frames on the left and maps on the right; None, FiftyOne's own layout, without a map.

    Frames have the larger share: the App's buttons to tag and to sort by likeness hide in a narrow
    panel, and its list of searches takes half of it.

    The panel of maps opens on its list, where one click opens a map: FiftyOne 1.22 forgets which
    one was to be open whenever a page is loaded.
    """
    if embedding_map.MAP not in shown.list_brain_runs():
        return None
    frames = fo.Panel(type="Samples", pinned=True)
    points = fo.Panel(type="Embeddings")
    # Without an active child a panel stays blank.
    return fo.Space(
        children=[
            fo.Space(children=[frames], active_child=frames.component_id),
            fo.Space(children=[points], active_child=points.component_id),
        ],
        orientation="horizontal",
        sizes=[0.64, 0.36],
    )
