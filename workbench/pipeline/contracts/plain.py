"""Notebooks written for papermill alone: no contract, and parameters without types.

They run as they are. Nothing says what they read or make, so a pipeline can order them but not join
them, and their check lists what is missing for a step.
"""

from __future__ import annotations

import ast
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from workbench.errors import ContractError

Json = dict[str, Any]


def is_plain(content: Json) -> bool:
    """Whether a notebook has no contract at all."""
    return "workbench" not in content["metadata"]


def require_python(content: Json, where: object) -> None:
    """Raises `ContractError` for a notebook in another language: steps run in our own kernel."""
    metadata = content["metadata"]
    language = metadata.get("language_info", {}).get("name") or metadata.get("kernelspec", {}).get(
        "language"
    )
    if language and str(language).lower() not in ("python", "ipython"):
        raise ContractError(f"the notebook is written in {language}; steps are Python", where=where)


def model_of(source: str) -> type[BaseModel]:
    """The names that a parameters cell assigns, each of any type; unknown names are refused.

    A default counts where it is a literal; another one is left to the cell itself.
    """
    fields: Json = {}
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a magic, or Python 2: papermill runs the cell all the same
        statements = []
    for statement in statements:
        if isinstance(statement, ast.Assign):
            fields.update({t.id: (Any, None) for t in statement.targets if isinstance(t, ast.Name)})
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            fields[statement.target.id] = (Any, None)
    config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    model: type[BaseModel] = create_model("Parameters", __config__=config, **fields)
    return model
