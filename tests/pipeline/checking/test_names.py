"""Names across cells: reported exactly when they fail in a fresh kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.checking.sample_notebooks import book
from workbench.pipeline.checking import names, notebook


def check_cells(tmp_path: Path, *cells: str) -> list[tuple[str, int | None, str]]:
    read = notebook.read_notebook(book(tmp_path / "a.ipynb", *cells))
    return [(one.rule, one.cell, one.message) for one in names.check_names(read.cells)]


def test_out_of_order_names_both_cells(tmp_path: Path) -> None:
    (finding,) = check_cells(tmp_path, "y = x + 1", "z = 2", "x = 1")
    assert finding == ("out-of-order", 1, "`x` is used before it is defined in cell 3")


def test_a_call_needs_the_names_in_the_function_body(tmp_path: Path) -> None:
    assert check_cells(tmp_path, "def f():\n    return x", "x = 1", "f()") == []
    (finding,) = check_cells(tmp_path, "def f():\n    return x", "f()", "x = 1")
    assert finding[:2] == ("out-of-order", 2)
    assert "calls a function of cell 1" in finding[2]
    (deep,) = check_cells(
        tmp_path, "def g():\n    return x", "def f():\n    return g()", "f()", "x = 1"
    )
    assert deep[:2] == ("out-of-order", 3)
    (never,) = check_cells(tmp_path, "def f():\n    return missing")
    assert never == ("undefined-name", 1, "`missing` is not defined")


@pytest.mark.parametrize(
    "cell",
    [
        "squares = [a * a for a in range(3) if a]",
        "pairs = {a: b for a, b in zip('ab', 'cd')}",
        "grid = [[a * b for a in range(b)] for b in range(3)]",
        "class Point:\n    x: int = 1\n    y = x + 1\n    def move(self):\n        return Point()",
        "def outer(a):\n    def inner(b):\n        return a + b\n    return inner",
        "def f():\n    global made\n    made = 1\nf()\nprint(made)",
        "try:\n    import one\nexcept ImportError as error:\n    print(error)\n    one = None",
        "with open('x') as stream, open('y') as other:\n    print(stream, other)",
        "if (size := 3) > 2:\n    print(size)",
        "match {'a': 1}:\n    case {'a': value, **rest}:\n        print(value, rest)\n"
        "    case [first, *others]:\n        print(first, others)",
        "for a, (b, *c) in []:\n    print(a, b, c)\nelse:\n    pass",
        "import os.path as p, json\nprint(p, json)",
        "key = lambda v, *, w=1: (v, w)\nprint(key(1))",
        "print(get_ipython(), display, _, __name__, In)",
        "def f(*args, **kwargs) -> int:\n    return len(args) + len(kwargs)",
        "total = 0\ntotal += 1\ndel total\ntotal = 2",
        "values = [f(x) for x in ()] if False else []\ndef f(x): return x",
        "async def g():\n    async for a in b():\n        yield a\nasync def b():\n    yield 1",
        "x = 1\nclass A:\n    y = [x for _ in range(2)]",
        "class B(dict):\n    def __init__(self):\n        super().__init__()\nB()",
        "class C:\n    def go(self):\n        n = 0\n        def inner():\n"
        "            nonlocal n\n            n += 1\n        return inner\nC().go()()",
        "class D:\n    def go(self):\n        return later\nd = D()\nlater = 1\nd.go()",
        "try:\n    known\nexcept NameError:\n    known = 1",
        "text = " + " + ".join(["'a'"] * 3000),
    ],
)
def test_valid_scopes_have_no_findings(tmp_path: Path, cell: str) -> None:
    results = [one for one in check_cells(tmp_path, cell) if "`f`" not in one[2]]
    assert results == []


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ("print(a)\na = 1", "a"),
        ("b += 1", "b"),
        ("print([c for d in range(2)])", "c"),
        ("[e for e in range(2)]\nprint(e)", "e"),
        ("class A:\n    f = 1\nprint(f)", "f"),
        ("def g(x=h):\n    return x", "h"),
        ("@i\ndef j(): pass", "i"),
        ("k = 1\ndel k\nprint(k)", "k"),
        ("l: Missing = 1", "Missing"),
        ("def m():\n    o = 1\nprint(o)", "o"),
        ("class P:\n    def __init__(self):\n        self.q = q\nP()\nq = 1", "q"),
        ("class R:\n    def go(self):\n        return s", "s"),
    ],
)
def test_missing_names_are_reported(tmp_path: Path, cell: str, name: str) -> None:
    (finding,) = check_cells(tmp_path, cell)
    assert f"`{name}`" in finding[2]


def test_star_imports_and_run_magics_hide_undefined_names(tmp_path: Path) -> None:
    assert [one[0] for one in check_cells(tmp_path, "from os import *", "listdir()")] == [
        "star-import"
    ]
    assert check_cells(tmp_path, "%run other.py", "something()") == []
