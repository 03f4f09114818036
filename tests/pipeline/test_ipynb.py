"""Notebooks are read quickly and completely."""

from __future__ import annotations

import subprocess
import sys

SAYS = """
import sys
from workbench.pipeline import ipynb
nbformat = ipynb.import_nbformat()
note = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
nbformat.validate(note)
note.cells[0]["cell_type"] = "nonsense"
try:
    nbformat.validate(note)
except nbformat.ValidationError:
    print("refused", "rfc3987_syntax" in sys.modules)
import rfc3987_syntax
"""


def test_nbformat_is_imported_without_the_unused_grammar() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAYS], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["refused", "False"]
