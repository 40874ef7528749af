"""Finds out from where a child process can import the app."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from offload.errors import BadDeclaration, TaskNotFound
from offload.producer import Producer

if TYPE_CHECKING:
    from offload.app import Offload
    from offload.task import Task


class Source(NamedTuple):
    """An importable place: `attribute` of `module`, which for a program run as a script is loaded from `file`."""

    module: str
    attribute: str
    file: str | None = None


def source_of(app: Offload) -> Source | None:
    """Where `app` stands as an attribute of an imported module; None when it stands nowhere.

    The program's own module comes last: it would be run anew in each child, where importing another one is enough.
    """
    modules = sorted(sys.modules.items(), key=lambda item: item[0] == "__main__")
    for name, module in modules:
        for attribute, value in tuple(getattr(module, "__dict__", {}).items()):
            if value is app:
                return _main(attribute) if name == "__main__" else Source(name, attribute)
    return None


def _main(attribute: str) -> Source | None:
    main = sys.modules["__main__"]
    if main.__spec__ is not None:
        return Source(main.__spec__.name, attribute)
    file = getattr(main, "__file__", None)
    return None if file is None else Source(file.rpartition("/")[2].removesuffix(".py"), attribute, file)


def refuse_while_loading() -> None:
    """Raise BadDeclaration in a child process that is only just importing the app: its program would start workers without end."""
    if Producer.importing_in_child:
        raise BadDeclaration(
            "a worker was started while a child process of a worker imports this program; "
            'put what starts it below: if __name__ == "__main__":'
        )


def load(source: Source) -> Offload:
    """Import the app in this process. Raises what the import raises, BadDeclaration when there is no app."""
    Producer.importing_in_child = True
    try:
        return _load(source)
    finally:
        Producer.importing_in_child = False


def _load(source: Source) -> Offload:
    app: Any = _imported(source.module, source.file)
    for part in source.attribute.split("."):
        app = getattr(app, part)
    return app


def _imported(name: str, file: str | None) -> ModuleType:
    if file is None:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise BadDeclaration(f"{file} cannot be imported as a module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Home(NamedTuple):
    """A module that declares a task: another one, perhaps, than that of its app."""

    module: str
    file: str | None = None


def homes_of(task: Task[..., Any]) -> tuple[Home, ...]:
    """Where a task may be declared: in the module of its function, or in the one that made it a task of a function of another."""
    modules = dict.fromkeys((inspect.unwrap(task.function).__module__, task.declared_in))
    return tuple(_home(module) for module in modules if module)


def _home(module: str) -> Home:
    main = _main("") if module == "__main__" else None
    return Home(module) if main is None else Home(main.module, main.file)


def task_of(app: Offload, name: str, homes: Sequence[Home]) -> Task[..., Any]:
    """The task of that name, in a child process, once a module is imported that declares it. Raises TaskNotFound."""
    for home in homes:
        if name in app.tasks:
            break
        Producer.importing_in_child = True
        try:
            _imported(home.module, home.file)
        except (Exception, SystemExit) as error:
            raise TaskNotFound(f"a child process could not import {home.module}, which declares {name}: {error!r}") from error
        finally:
            Producer.importing_in_child = False
    if name not in app.tasks:
        modules = " and ".join(home.module for home in homes)
        raise TaskNotFound(f"a child process does not know the task {name}: importing {modules} does not declare it on the same app")
    return app.tasks[name]
