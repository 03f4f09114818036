"""Operators in FiftyOne's App: mine, more like this, send to labelers, add to incidents, lineage.

FiftyOne loads this folder by its path in the server of the App, see `curation.open_app`. What an
operator makes is a record of the workspace; it changes the view of the person who called it, and
nobody else's.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import fiftyone.operators as foo
from fiftyone import ViewField
from fiftyone.operators import types

from workbench.core.errors import DataError, ParameterError, WorkbenchError
from workbench.core.text import counted
from workbench.core.workspace import find_workspace
from workbench.records.base import Ref, short_ref
from workbench.records.dataset import Dataset, load_dataset
from workbench.records.store import Store
from workbench.records.types import Selection

__all__ = ()

_TRUTH = "ground_truth"
_BUDGET = 30


@dataclass(frozen=True)
class _Shown:
    """The dataset version that the App shows, and what is selected in it."""

    ctx: Any

    @cached_property
    def store(self) -> Store:
        return Store(find_workspace())

    @cached_property
    def version(self) -> Ref:
        ref = (self.ctx.dataset.info.get("workbench") or {}).get("dataset")
        if not ref:
            raise DataError(
                "this FiftyOne dataset is no version of a workbench dataset",
                where=self.ctx.dataset.name,
                hint="Open one with `workbench app NAME@N`",
            )
        return str(ref)

    @cached_property
    def dataset(self) -> Dataset:
        return load_dataset(self.store, self.version)

    @cached_property
    def model(self) -> Ref | None:
        """The checkpoint that `workbench mine` takes by default; None before one was trained."""
        from workbench.records.catalog import default_model

        found = default_model(self.store, self.dataset.name, self.dataset.label_schema.classes)
        return found.ref if found else None

    @cached_property
    def patches(self) -> Any:
        """The selected patches of labels; None where whole frames are shown."""
        ctx = self.ctx
        if not ctx.selected or not ctx.view.has_sample_field("sample_id"):
            return None
        return ctx.view.select(ctx.selected, ordered=True)

    @cached_property
    def frames(self) -> list[str]:
        """Digests of the selected frames, and of those with a selected label."""
        ctx = self.ctx
        chosen = ctx.selected if self.patches is None else self.patches.values("sample_id")
        ids = [*chosen, *(one["sample_id"] for one in ctx.selected_labels)]
        if not ids:
            return []
        found: list[str] = ctx.dataset.select(list(dict.fromkeys(ids)), ordered=True).values(
            "frame"
        )
        return found

    def labels(self, evaluation: str) -> list[str]:
        """Digests of the selected labels; without any, those of the frames that a model misses."""
        ctx, path = self.ctx, f"{_TRUTH}.detections.digest"
        if self.patches is not None:
            several = self.patches.has_sample_field(f"{_TRUTH}.detections")
            one = f"{_TRUTH}.digest"
            found = self.patches.values(path if several else one, unwind=several)
        elif own := [one["label_id"] for one in ctx.selected_labels if one["field"] == _TRUTH]:
            found = ctx.dataset.select_labels(ids=own, fields=_TRUTH).values(path, unwind=True)
        elif evaluation:
            ids = ctx.dataset.match(ViewField("frame").is_in(self.frames))
            missed = ids.filter_labels(_TRUTH, ViewField(evaluation) == "fn")
            found = missed.values(path, unwind=True)
        else:
            found = []
        return [one for one in found if one]


class _Operator(foo.Operator):  # type: ignore[misc]
    """An operator with a button above the grid, a form, and an answer in words."""

    key, title, icon = "", "", ""
    needs = ""  # what has to be selected

    @property
    def config(self) -> Any:
        return foo.OperatorConfig(
            name=self.key, label=self.title, icon=self.icon, view_target=False
        )

    def resolve_placement(self, ctx: Any) -> Any:
        del ctx
        button = types.Button(label=self.title, icon=self.icon, prompt=True)
        return types.Placement(types.Places.SAMPLES_GRID_SECONDARY_ACTIONS, button)

    def resolve_input(self, ctx: Any) -> Any:
        inputs = types.Object()
        if self.needs:
            count = len(_Shown(ctx).frames)
            words = f"{counted(count, 'frame')} selected" if count else f"Select {self.needs} first"
            view = types.Notice(label=words) if count else types.Warning(label=words)
            notice = inputs.view("selected", view)
            notice.invalid, notice.error_message = not count, words
        self.fields(inputs, ctx)
        return types.Property(inputs, view=types.View(label=self.title))

    def fields(self, inputs: Any, ctx: Any) -> None:
        """Add the fields of the form."""

    def execute(self, ctx: Any) -> dict[str, str]:
        try:
            return {"answer": self.act(_Shown(ctx), ctx)}
        except WorkbenchError as error:
            words = f"{error.what}. {error.hint or ''}".strip()
            ctx.ops.notify(words, variant="error")
            return {"answer": words}

    def act(self, shown: _Shown, ctx: Any) -> str:
        """Do it; returns what to tell."""
        raise NotImplementedError

    def resolve_output(self, ctx: Any) -> Any:
        del ctx
        outputs = types.Object()
        outputs.str("answer", label=self.title, view=types.MarkdownView(read_only=True))
        return types.Property(outputs, view=types.View(label=self.title))


class _Mine(_Operator):
    key, title, icon = "mine", "Mine frames to label", "travel_explore"

    def fields(self, inputs: Any, ctx: Any) -> None:
        del ctx
        inputs.int("budget", label="Number of frames", default=_BUDGET, min=1, required=True)

    def act(self, shown: _Shown, ctx: Any) -> str:
        from workbench import curation

        query = curation.MiningQuery(like=self.exemplars(shown, ctx))
        budget = int(ctx.params.get("budget", _BUDGET))
        made = curation.mine(shown.store, shown.version, shown.model, budget, query=query)
        chosen = shown.store.get(made, Selection).chosen
        ids = dict(zip(*ctx.dataset.values(["frame", "id"]), strict=True))
        here = [ids[one.frame] for one in chosen if one.frame in ids]
        ctx.ops.set_view(ctx.dataset.select(here, ordered=True))
        ctx.ops.clear_selected_samples()
        lines = [
            f"{counted(len(chosen), 'frame')} mined, kept as `{short_ref(made)}`; "
            f"send them with `workbench label send {short_ref(made)}`",
            *(f"1. {'; '.join(one.reasons)}" for one in chosen),
        ]
        return "\n".join(lines)

    def exemplars(self, shown: _Shown, ctx: Any) -> tuple[Any, ...]:
        """What the frames should be like; nothing for the rarest."""
        del shown, ctx
        return ()


class _MoreLikeThis(_Mine):
    key, title, icon = "more_like_this", "Mine more like this", "image_search"
    needs = "frames, or boxes on frames,"

    def exemplars(self, shown: _Shown, ctx: Any) -> tuple[Any, ...]:
        from workbench.curation import Exemplar

        if not ctx.selected_labels:
            return tuple(Exemplar(frame) for frame in _some(shown.frames, self.needs))
        sizes = {frame.id: (frame.width, frame.height) for frame in shown.dataset.frames}
        found = []
        for one in ctx.selected_labels:
            sample = ctx.dataset[one["sample_id"]]
            boxes = sample[one["field"]].detections
            x, y, w, h = next(box.bounding_box for box in boxes if box.id == one["label_id"])
            width, height = sizes[sample["frame"]]
            found.append(Exemplar(sample["frame"], (x * width, y * height, w * width, h * height)))
        return tuple(found)


class _SendToLabelers(_Operator):
    key, title, icon = "send_to_labelers", "Send to labelers", "send"
    needs = "frames"

    def fields(self, inputs: Any, ctx: Any) -> None:
        del ctx
        inputs.str("reason", label="Reason", default="picked in FiftyOne", required=True)

    def act(self, shown: _Shown, ctx: Any) -> str:
        from workbench.widgets.browser import send_action

        frames = tuple(_some(shown.frames, self.needs))
        stand_in = Selection(
            dataset=shown.version, model=shown.model, budget=0, seed=0, method="manual", chosen=()
        )
        reason = str(ctx.params.get("reason", "picked in FiftyOne"))
        return str(send_action(shown.store.workspace, stand_in, reason)(frames))


class _AddToIncidents(_Operator):
    key, title, icon = "add_to_incidents", "Add to incidents", "report"
    needs = "missed labels, or frames with misses,"

    def fields(self, inputs: Any, ctx: Any) -> None:
        inputs.str("name", label="Name, such as night-cyclist-17", required=True)
        inputs.str("why", label="What happened, in a sentence", required=True)
        inputs.str("by", label="Who adds it", default=getpass.getuser(), required=True)
        if runs := ctx.dataset.list_evaluations():
            inputs.enum(
                "evaluation", runs, default=runs[0], label="Where no label is selected: missed in"
            )

    def act(self, shown: _Shown, ctx: Any) -> str:
        from workbench.data import incidents

        params = ctx.params
        runs = ctx.dataset.list_evaluations()
        wanted = set(shown.labels(params.get("evaluation") or (runs[0] if runs else "")))
        labels = [label for label in shown.dataset.labels if label.id in wanted]
        _some(labels, self.needs)
        name = str(params.get("name", ""))
        incidents.add_incident(
            shown.store,
            name,
            shown.dataset,
            labels,
            why=str(params.get("why", "")),
            by=str(params.get("by") or getpass.getuser()),
            found_in="fiftyone",
        )
        return f"{name}: {counted(len(labels), 'object')}; every candidate has to find them now"


class _ShowLineage(_Operator):
    key, title, icon = "show_lineage", "Show lineage", "account_tree"

    def act(self, shown: _Shown, ctx: Any) -> str:
        from workbench.pipeline.lineage.graph import graph_text, trace_reference

        del ctx
        named = f"frame/{shown.frames[0]}" if len(shown.frames) == 1 else shown.version
        graph = trace_reference(shown.store.workspace, named)
        return f"```\n{graph_text(graph)}\n```"


def _some(items: list[Any], needs: str) -> list[Any]:
    if not items:
        raise ParameterError("nothing is selected", hint=f"Select {needs} in the grid first")
    return items


def register(plugin: Any) -> None:
    """Called by FiftyOne."""
    for operator in (_Mine, _MoreLikeThis, _SendToLabelers, _AddToIncidents, _ShowLineage):
        plugin.register(operator)
