"""Finds the app that a command works with: which one is meant, and then the object itself."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar, cast

import click

from offload.cli.groups import Mistaken, near
from offload.errors import BadDeclaration, BrokerNotInstalled, OffloadError, Unsupported

if TYPE_CHECKING:
    from offload.app import Offload

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

OURS = str(Path(__file__).parents[1])
"""Where the code of Offload is."""
WAYS = "name one as MODULE:APP, set OFFLOAD_APP, or write `app` under [tool.offload] in pyproject.toml here"


class NoApp(click.ClickException):
    """The app cannot be found as it was asked for."""

    exit_code = 2


class Reference(NamedTuple):
    """An app by name, and who named it so."""

    module: str
    attribute: str
    said_by: str = ""

    def __str__(self) -> str:
        return f"{self.module}:{self.attribute}"


def app_argument(function: F) -> F:
    """Add the argument MODULE:APP to a command that has no other; `reference` is what was given."""
    return click.argument("reference", metavar="[MODULE:APP]", required=False)(function)


def app_option(function: F) -> F:
    """Add the option -A to a command; `app_name` is what was given."""
    return click.option("-A", "--app", "app_name", metavar="MODULE:APP", help="The app; else OFFLOAD_APP or pyproject.toml say which.")(
        function
    )


def takes_app(function: Callable[Concatenate[Offload, P], R]) -> Callable[..., R]:
    """Give a command the app as its first argument, from -A and --url (or MODULE:APP with `app_argument`), and close it afterwards.

    What holds the jobs must be there already: looking makes nothing.
    """
    return _taking(function, may_make=False)


def takes_app_or_makes(function: Callable[Concatenate[Offload, P], R]) -> Callable[..., R]:
    """As `takes_app`, for commands that also begin with nothing."""
    return _taking(function, may_make=True)


def _taking(function: Callable[Concatenate[Offload, P], R], *, may_make: bool) -> Callable[..., R]:
    @app_option
    @click.option("--url", help="The broker alone, such as sqlite:///offload.db, in place of an app.")
    @functools.wraps(function)
    def command(*args: Any, app_name: str | None, url: str | None, reference: str | None = None, **kwargs: Any) -> R:
        given = app_name or reference
        if given is not None and url is not None:
            raise click.UsageError("give the app or --url, not both: an app knows its broker")
        with opened(given, url) as app, nullcontext() if may_make else making_nothing(app):
            return function(app, *args, **kwargs)

    return command


@contextmanager
def making_nothing(app: Offload) -> Generator[None]:
    """Have opening make nothing that is not there yet: under a mistyped name there would be a place where all seems well."""
    from offload.broker import SqlStore

    missing = app.broker.missing()
    if missing is not None:
        raise click.ClickException(missing)
    kind = app.producer.clients.kind
    if issubclass(kind, SqlStore) and kind.dialect == "postgresql":
        with app.testing(f"{app.url}{'&' if '?' in app.url else '?'}migrate=false", app.clock):  # the last of an option counts
            yield
    else:
        yield


@contextmanager
def opened(given: str | None, url: str | None) -> Generator[Offload]:
    """The app meant, or one without tasks on `url`; its connections are let go of at the end."""
    from offload.app import Offload

    named = None if url is not None else find_reference(given)
    if named is None and url is None and "OFFLOAD_URL" not in os.environ:
        raise NoApp(f"which app? {WAYS}; or give its broker alone with --url sqlite:///offload.db")
    app = load_app(named) if named is not None else Offload(url)
    try:
        yield app
    finally:
        app.close()


def find_reference(given: str | None) -> Reference | None:
    """The app that is meant, nothing imported yet; None when nobody names one. Raises NoApp for a name that cannot be one."""
    for name, said_by in ((given, ""), (os.environ.get("OFFLOAD_APP"), "OFFLOAD_APP"), (_from_pyproject(), "pyproject.toml")):
        if name:
            return _parsed(name, said_by)
    return None


def _from_pyproject() -> str | None:
    import tomllib

    path = Path("pyproject.toml")
    if not path.is_file():
        return None
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise NoApp(f"{path.resolve()} cannot be read: {error}") from error
    ours: Any = tables.get("tool", {}).get("offload")
    name: Any = cast(dict[str, Any], ours).get("app") if isinstance(ours, dict) else None
    if name is not None and not isinstance(name, str):
        raise NoApp(f"[tool.offload] app in {path.resolve()} must be text such as 'shop.tasks:app', not {name!r}")
    return name


def _parsed(name: str, said_by: str) -> Reference:
    module, colon, attribute = name.partition(":")
    source = f" ({said_by} says so)" if said_by else ""
    if "/" in module or module.endswith(".py"):
        raise NoApp(f"{name!r} is written as a file{source}; {_as_module(module, attribute)}")
    if not colon or not attribute:
        raise NoApp(f"{name!r} names no app{source}; say which one: {module}:app")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise NoApp(f"{name!r} is not of the form MODULE:APP{source}, such as shop.tasks:app")
    return Reference(module, attribute, said_by)


def _as_module(file: str, attribute: str) -> str:
    """How to say a file as a module, where there is one."""
    path = Path(file.removesuffix(".py"))
    for module, app in ((path, attribute or "app"), (path.parent, attribute or path.name)):
        dotted = ".".join(module.parts)
        if module.parts and all(part.isidentifier() for part in module.parts) and _is_module(module):
            return f"say it as a module: {dotted}:{app}"
    return f"there is no such file in {Path.cwd()}; name the app as MODULE:APP, such as shop.tasks:app"


def _is_module(path: Path) -> bool:
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def load_app(reference: Reference) -> Offload:
    """Import the app. What its module raises is shown with its traceback and ends the program; NoApp for all else that is wrong."""
    _put_here_on_path()
    try:
        module = importlib.import_module(reference.module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{reference.module}.".startswith(f"{error.name}."):
            raise _missing_module(reference, error.name) from error
        raise _shown(reference, error) from error
    except (BadDeclaration, BrokerNotInstalled, Unsupported) as error:
        raise _refused(error) from error
    except Exception as error:
        raise _shown(reference, error) from error
    return _attribute(reference, module)


def check_module(reference: Reference) -> None:
    """Raise NoApp when the module is nowhere, without running any of its code."""
    _put_here_on_path()
    top = reference.module.partition(".")[0]
    if importlib.util.find_spec(top) is None:
        raise _missing_module(reference, top)


def _put_here_on_path() -> None:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _attribute(reference: Reference, module: ModuleType) -> Offload:
    from offload.app import Offload

    apps = [name for name, value in vars(module).items() if isinstance(value, Offload)]
    found: Any = module
    for part in reference.attribute.split("."):
        if not hasattr(found, part):
            hint = f"; its apps are: {', '.join(apps)}" if apps else near(part, list(vars(module))) or "; it makes no Offload(...)"
            raise NoApp(f"the module {reference.module} ({module.__file__}) has no {reference.attribute!r}{hint}{_said(reference)}")
        found = getattr(found, part)
    if not isinstance(found, Offload):
        hint = f"; its apps are: {', '.join(apps)}" if apps else "; an app is made with Offload(...)"
        kind = type(found).__name__
        article = "an" if kind[0] in "AEIOUaeiou" else "a"
        raise NoApp(f"{reference} is {article} {kind}, not an Offload{hint}{_said(reference)}")
    return found


def _missing_module(reference: Reference, missing: str) -> NoApp:
    package, _, name = missing.rpartition(".")
    folder = Path.cwd().joinpath(*package.split(".")) if package else Path.cwd()
    where = f"in {folder}" if package else f"in {folder} or among installed packages"
    return NoApp(f"there is no module {missing!r} {where}{near(name, _modules(folder))}{_said(reference)}")


def _modules(folder: Path) -> list[str]:
    """The names under which files and packages of a folder can be imported."""
    if not folder.is_dir():
        return []
    files = [path.stem for path in folder.glob("*.py")]
    return [name for name in (*files, *(path.parent.name for path in folder.glob("*/__init__.py"))) if name.isidentifier()]


def _said(reference: Reference) -> str:
    return f" ({reference.said_by} says {reference})" if reference.said_by else ""


def _shown(reference: Reference, error: Exception) -> SystemExit:
    """Show what the user's own module raised, from its first line on. Returns the end of the program."""
    click.echo(f"The module {reference.module} could not be imported{_said(reference)}:", err=True)
    error.__traceback__ = _from_users_code(error.__traceback__)
    traceback.print_exception(error)
    return SystemExit(1)


def _refused(error: OffloadError) -> click.ClickException:
    """What Offload refused in the user's module, in one line: its text says all but the place."""
    places = [
        f"{frame.filename}, line {frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((OURS, "<frozen importlib")) and frame.filename != importlib.__file__
    ]
    url = os.environ.get("OFFLOAD_URL")
    said_by = "; OFFLOAD_URL says so" if url is not None and _fault_of(url) == str(error) else ""
    refusal = click.ClickException if isinstance(error, BrokerNotInstalled) else Mistaken
    return refusal(f"{error} ({places[-1] if places else 'while the app was imported'}{said_by})")


def _fault_of(url: str) -> str | None:
    """What is wrong with a URL, as an app on it would say."""
    from offload.clients import Clients
    from offload.clock import SystemClock

    try:
        Clients(url, SystemClock())
    except OffloadError as error:
        return str(error)
    return None


def _from_users_code(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of this file and of the import system that come first."""
    rest = trace
    while rest is not None:
        file = rest.tb_frame.f_code.co_filename
        if file not in (__file__, importlib.__file__) and not file.startswith("<frozen importlib"):
            return rest
        rest = rest.tb_next
    return None
