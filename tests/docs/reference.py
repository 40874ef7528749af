"""Writes the generated parts of docs/reference.md: signatures, options and texts from the code itself.

    make docs

A part stands between `<!-- reference: NAME -->` and `<!-- reference: end -->`; `make check` and test_reference.py fail when one is stale.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import click
import msgspec

import offload
from offload import events, records
from offload.adding import OwnBatch, OwnWorkflow
from offload.cli import COMMANDS, main
from offload.composing import Chain
from offload.current import Current
from offload.task import Bound

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference.md"
FOR_WORKERS = ("observes", "emit", "opened_lifespan", "rules")
"""Methods of apps and tasks that the worker needs, and nobody else."""
PART = re.compile(r"(<!-- reference: (?!end)([\w. ]+) -->\n).*?(<!-- reference: end -->)", re.DOTALL)


def written(text: str) -> str:
    """The page with fresh parts."""
    return PART.sub(lambda match: match[1] + "\n" + PARTS[match[2]]().rstrip() + "\n\n" + match[3], text)


def sentence(documented: Any) -> str:
    """The first sentence of a docstring, as one line of a table."""
    text = " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
    first = re.match(r".*?[.](?= [A-Z`]|$)", text)
    return cell(first[0] if first else text)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def table(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]


def names() -> str:
    """Every public name and what it is."""
    rows = table("name", "what it is")
    for name in sorted(offload.__all__, key=str.lower):
        rows.append(f"| `{name}` | {sentence(getattr(offload, name))} |")
    return "\n".join(rows)


def options(function: Callable[..., Any], documented: Any = None) -> str:
    """The parameters of a function with types and defaults, and its text."""
    rows = table("option", "type", "default")
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", "function"):
            continue
        required = parameter.default is inspect.Parameter.empty
        kind = "" if parameter.annotation is inspect.Parameter.empty else f"`{cell(str(parameter.annotation))}`"
        rows.append(f"| `{parameter.name}` | {kind} | {'required' if required else f'`{shown(parameter.default)}`'} |")
    return "\n".join([*rows, "", inspect.getdoc(documented or function) or ""])


def shown(default: Any) -> str:
    """A default as one would write it."""
    if isinstance(default, type):
        return default.__name__
    if isinstance(default, tuple):
        parts = [shown(each) for each in cast(tuple[Any, ...], default)]
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    if isinstance(default, float) and default == int(default):
        return f"{int(default)}"
    return cell(repr(default))


def overload_of_task() -> Callable[..., Any]:
    """The form of `app.task` that takes options."""
    from typing import get_overloads

    return next(each for each in get_overloads(offload.Offload.task) if "queue" in inspect.signature(each).parameters)


def methods(owner: type) -> str:
    """The public methods and properties of a class: sync forms, with their async twin named beside them."""
    rows = table("call", "does")
    for name, member in public(owner):
        async_name = twin(owner, name)
        call = name if isinstance(member, property) else f"{name}({parameters(member)})"
        told = sentence(member)
        if async_name is not None and told == f"As `{async_name}`, for sync code.":
            told = sentence(getattr(owner, async_name))
        rows.append(f"| `{call}`{f' · `{async_name}`' if async_name else ''} | {told} |")
    return "\n".join(rows)


def twin(owner: type, name: str) -> str | None:
    """The async form of a method; of `wait` it is `await_`, for `await` is a word of Python."""
    return next((each for each in (f"a{name}", f"a{name}_") if each in dir(owner)), None)


def composed() -> str:
    """What makes chains and groups, and what these can do."""
    rows = table("call", "does")
    rows += [f"| `{each.__name__}({parameters(each)})` | {sentence(each)} |" for each in (offload.chain, offload.group)]
    return "\n".join([*rows, *methods(Chain).splitlines()[2:]])


def public(owner: type) -> Iterator[tuple[str, Any]]:
    inherited = [each for each in reversed(owner.__mro__) if each.__module__.startswith("offload.")]
    own = {name: member for each in inherited for name, member in vars(each).items()}
    for name, member in own.items():
        hidden = (
            name.startswith("_")
            or name in FOR_WORKERS
            or (name.startswith("a") and name[1:].removesuffix("_") in own)
            or not (inspect.getdoc(member) or "").strip()
        )
        if not hidden and (callable(member) or isinstance(member, property)) and not isinstance(member, type):
            yield name, member


def parameters(function: Callable[..., Any]) -> str:
    """The parameters of a call, without their types."""
    shown_parameters: list[str] = []
    for parameter in list(inspect.signature(function).parameters.values()):
        if parameter.name == "self":
            continue
        starred = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f"={shown(parameter.default)}"
        shown_parameters.append(f"{starred}{parameter.name}{default}")
    return ", ".join(shown_parameters)


def fields(struct: type[msgspec.Struct]) -> str:
    """The fields of a value, with the text that stands below each in the code."""
    source = inspect.getsource(struct)
    rows = table("field", "type", "")
    for field in msgspec.structs.fields(struct):
        written_type = struct.__annotations__.get(field.name) or next(
            each.__annotations__[field.name] for each in struct.__mro__ if field.name in getattr(each, "__annotations__", {})
        )
        text = re.search(rf"^    {field.name}:[^\n]*\n    \"\"\"(.*?)\"\"\"", source, re.DOTALL | re.MULTILINE)
        rows.append(f"| `{field.name}` | `{cell(str(written_type))}` | {cell(' '.join(text[1].split())) if text else ''} |")
    return "\n".join(rows)


def commands() -> str:
    """Every command with its options."""
    context = click.Context(main, info_name="offload")
    parts: list[str] = []
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        parts += described(command, f"offload {name}")
    return "\n".join(parts)


def described(command: click.Command, name: str) -> Iterator[str]:
    text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    yield f"### {name}"
    yield ""
    if isinstance(command, click.Group):
        yield text
        yield ""
        for each in command.list_commands(click.Context(command)):
            child = command.get_command(click.Context(command), each)
            assert child is not None
            yield from described(child, f"{name} {each}")
        return
    arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    usage = " ".join([name, *(argument.make_metavar(click.Context(command)) for argument in arguments), "[OPTIONS]"])
    yield f"`{usage}`"
    yield ""
    yield re.sub(r"(?m)^  (offload .*)$", r"    \1", text)
    yield ""
    yield from table("option", "", "default")
    for option in command.params:
        if isinstance(option, click.Option):
            flags = ", ".join(f"`{flag}`" for flag in option.opts)
            default = "" if option.is_flag or option.default is None or "UNSET" in repr(option.default) else f"`{option.default}`"
            yield f"| {flags} | {cell(option.help or '')} | {default} |"
    yield ""


def errors() -> str:
    """The tree of errors."""
    import offload.errors as module

    tree = (module.__doc__ or "").partition("\n\n")[2]
    return f"```text\n{tree.strip()}\n```"


PARTS: dict[str, Callable[[], str]] = {
    "names": names,
    "Offload": lambda: options(offload.Offload.__init__, offload.Offload),
    "task": lambda: options(overload_of_task(), offload.Offload.task),
    "using": lambda: options(offload.Task[..., Any].using),
    "Retry": lambda: options(offload.Retry),
    "Concurrency": lambda: options(offload.Concurrency),
    "Rate": lambda: options(offload.Rate),
    "Unique": lambda: options(offload.Unique),
    "cron": lambda: options(offload.Offload.cron),
    "schedule": lambda: options(offload.Offload.schedule),
    "Worker": lambda: options(offload.Worker),
    "tasks": lambda: methods(offload.Task),
    "bound": lambda: methods(Bound),
    "app": lambda: methods(offload.Offload),
    "handle": lambda: methods(offload.Handle),
    "current": lambda: methods(Current),
    "chain": composed,
    "Workflow": lambda: options(offload.Workflow.__init__, offload.Workflow),
    "workflow": lambda: methods(offload.Workflow),
    "node": lambda: methods(offload.Node),
    "run": lambda: methods(offload.Run),
    "results": lambda: methods(offload.Results),
    "own workflow": lambda: methods(OwnWorkflow),
    "Batch": lambda: options(offload.Offload.batch),
    "batch": lambda: methods(offload.Batch),
    "own batch": lambda: methods(OwnBatch),
    "tally": lambda: fields(records.Tally),
    "tallied": lambda: methods(records.Tally),
    "worker": lambda: methods(offload.Worker),
    "record": lambda: fields(records.Record),
    "limit": lambda: fields(records.LimitRecord),
    "event": lambda: fields(events.Event),
    "errors": errors,
    "commands": commands,
}
