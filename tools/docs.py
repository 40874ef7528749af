"""Keeps README.md and docs/ true: writes what is generated, and finds dead links and code that does not compile.

Generated are the table of engines, where a page asks for it between `<!-- engines: begin -->` and `<!-- engines: end -->`, and the parts
of docs/reference.md (tests/docs/reference.py). `docs.py --check` only says what is stale. Both exit 1 when something is wrong.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

from offload.broker import Broker, Feature, SqlStore, Store

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.docs import reference  # noqa: E402 - found only now

TABLE = re.compile(r"(<!-- engines: begin -->\n).*?(<!-- engines: end -->)", re.DOTALL)
NAMES = {"postgres": "postgresql"}
"""How an engine is called that has several schemes, where that is not the first of them."""
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    return [*(path for path in sorted(ROOT.glob("*.md"))), *sorted((ROOT / "docs").rglob("*.md"))]


def engines() -> str:
    """The table of engines and what each honours, from the classes themselves."""
    schemes: dict[type[Broker], list[str]] = {}
    for point in sorted(entry_points(group="offload.brokers")):
        schemes.setdefault(point.load(), []).append(point.name)
    brokers = {NAMES.get(names[0], names[0]): broker for broker, names in schemes.items()}
    rows = [
        ("", *(f"`{name}://`" for name in brokers)),
        ("---", *(":-:" for _ in brokers)),
        ("survives a restart", *(yes(broker.durable) for broker in brokers.values())),
        ("jobs commit with your own rows", *(yes(issubclass(broker, SqlStore)) for broker in brokers.values())),
        ("records, control, doctor", *(yes(issubclass(broker, Store)) for broker in brokers.values())),
        *((feature.value, *(yes(feature in broker.features) for broker in brokers.values())) for feature in Feature),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def yes(offered: bool) -> str:
    return "yes" if offered else "–"


def anchors(text: str) -> set[str]:
    """The names that headings can be linked by."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path, text: str) -> Iterator[str]:
    for match in LINK.finditer(FENCE.sub("", text)):
        target = match[1] or match[2]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists():
            yield f"the link to {target} leads nowhere"
        elif anchor and linked.suffix == ".md" and anchor not in anchors(linked.read_text()):
            yield f"the link to {target} names no heading of that page"


def broken_code(text: str) -> Iterator[str]:
    for match in FENCE.finditer(text):
        if match[2] not in ("python", "py"):
            continue
        try:
            # Pages may show `await` without the coroutine around it.
            compile(textwrap.dedent(match[3]), "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        except SyntaxError as error:
            line = text[: match.start()].count("\n") + 1 + (error.lineno or 1)
            yield f"line {line}: the example does not compile: {error.msg}"


def main() -> None:
    check = "--check" in sys.argv[1:]
    wrong = 0
    for page in pages():
        text = page.read_text()
        shown = page.relative_to(ROOT)
        fresh = TABLE.sub(lambda match: match[1] + engines() + match[2], text)
        if page.samefile(reference.PAGE):
            fresh = reference.written(fresh)
        findings = [*dead_links(page, fresh), *broken_code(fresh)]
        if fresh != text and check:
            findings.append("what is generated in it is stale; run `make docs`")
        elif fresh != text:
            page.write_text(fresh)
            print(f"{shown}: written")
        for finding in findings:
            print(f"{shown}: {finding}")
        wrong += len(findings)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
