"""Finds files of src/ over 450 lines and functions over 50 whose reason is not written in docs/decisions; exits 1 if there are any.

A reason counts when a decision record names the file (`src/offload/worker/executor.py`) or the function (`executor.Executor.run`).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MOST_FILE_LINES = 450
MOST_FUNCTION_LINES = 50
ROOT = Path(__file__).parent.parent


def functions(node: ast.AST, name: str) -> Iterator[tuple[str, int]]:
    """The dotted name and number of lines of every function in `node`; its docstring does not count."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from functions(child, f"{name}.{child.name}")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            first, last = child.body[0], child.end_lineno or child.lineno
            docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(child) is not None else 0
            yield f"{name}.{child.name}", last - child.lineno + 1 - docstring
            yield from functions(child, f"{name}.{child.name}")
        else:
            yield from functions(child, name)


def large() -> Iterator[tuple[str, str]]:
    """What is too large: its name as a decision record would give it, and a sentence."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        text = path.read_text()
        lines = text.count("\n")
        shown = path.relative_to(ROOT).as_posix()
        if lines > MOST_FILE_LINES:
            yield shown, f"{shown} has {lines} lines (over {MOST_FILE_LINES})"
        module = path.parent.name if path.stem == "__init__" else path.stem
        for name, length in functions(ast.parse(text), module):
            if length > MOST_FUNCTION_LINES:
                yield name, f"{shown}: {name} has {length} lines (over {MOST_FUNCTION_LINES})"


def main() -> None:
    reasons = "\n".join(path.read_text() for path in (ROOT / "docs" / "decisions").glob("*.md"))
    missing = [sentence for name, sentence in large() if name not in reasons]
    for sentence in missing:
        print(f"{sentence}; make it smaller, or write the reason in docs/decisions")
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()
