"""What the ``label`` commands share: the server, references, short names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.errors import ParameterError
from workbench.records.base import Ref, kind_of
from workbench.workspace import Workspace

if TYPE_CHECKING:
    from workbench.labeling import LabelStudio


def server_of(place: Workspace) -> LabelStudio:
    """The server of this workspace, as its administrator."""
    from workbench import labeling, services

    admin = services.label_studio_admin(place)
    return labeling.connect(admin.url, admin.token)


def resolve(place: Workspace, reference: str, kinds: tuple[str, ...]) -> Ref:
    """The record that is meant, which must be of one of these kinds."""
    from workbench.pipeline.lineage import references

    ref = references.resolve(place, reference)
    if kind_of(ref) not in kinds:
        raise ParameterError(
            f"expected a {' or a '.join(kinds)}, and this is a {kind_of(ref)}", where=ref
        )
    return ref


def short(ref: Ref) -> str:
    """A reference as people type it."""
    kind, _, name = ref.partition("/")
    return f"{kind}/{name[:12]}"
