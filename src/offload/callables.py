"""Calls a function of the user's with those of a task's arguments that it takes: how callable keys see a job. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from typing import Any, TypeAlias

from offload.errors import BadDeclaration

Parameters: TypeAlias = Mapping[str, Parameter]
Named: TypeAlias = Mapping[str, Any]
"""The arguments of a job by name, defaults filled in, as `codec.Arguments.named` gives them."""

_BY_PLACE = (Parameter.POSITIONAL_ONLY, Parameter.VAR_POSITIONAL)
_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def caller_of(function: Callable[..., Any], parameters: Parameters, what: str) -> Callable[[Named], Any]:
    """How to call `function` with the arguments of a task of these `parameters`. Raises BadDeclaration where that can never work.

    It gets what it names, however the job came by it: by position, by name or by default. A function that takes something by position
    alone (`*args`, `/`), or has names of its own for all that it needs, or does not tell what it takes, as some in C, gets all that the
    task takes, by position where that can be.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return lambda named: _with_all(function, parameters, named)
    if _names_its_own(signature, parameters, what) or any(taken.kind in _BY_PLACE for taken in signature.parameters.values()):
        _check_place(signature, parameters, what)
        return lambda named: _with_all(function, parameters, named)
    if any(taken.kind is Parameter.VAR_KEYWORD for taken in signature.parameters.values()):
        return lambda named: function(**_plain(parameters, named))
    names = tuple(signature.parameters)
    if not any(parameter.kind in _VARIADIC for parameter in parameters.values()):
        return lambda named: _with_these(function, names, named)
    return lambda named: _with_these(function, names, _by_name(parameters, named))


def _names_its_own(signature: Signature, parameters: Parameters, what: str) -> bool:
    """Whether a function shares no name with the task, in what it needs. Raises BadDeclaration where it shares some: that is a mistake.

    A task's `**kwargs` may hold any name.
    """
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return False
    needed = [name for name, taken in signature.parameters.items() if taken.default is Parameter.empty and taken.kind in _BY_NAME]
    unknown = [name for name in needed if name not in parameters]
    if unknown and (len(unknown) < len(needed) or signature.parameters[unknown[0]].kind is Parameter.KEYWORD_ONLY):
        raise BadDeclaration(
            f"{what}: the callable takes {unknown[0]!r}, which is no parameter of the task; known are: {_known(parameters)}"
        )
    return bool(unknown)


def _check_place(signature: Signature, parameters: Parameters, what: str) -> None:
    """Raise BadDeclaration for a function that cannot take all that the task takes; how much its `*args` hold is not known yet."""
    plain = {name: parameter for name, parameter in parameters.items() if parameter.kind not in _VARIADIC}
    args, kwargs = _passed(plain, dict.fromkeys(plain))
    bind = signature.bind if len(plain) == len(parameters) else signature.bind_partial
    try:
        bind(*args, **kwargs)
    except TypeError as error:
        raise BadDeclaration(f"{what}: the callable cannot take what the task takes ({_known(parameters)}): {error}") from None


def _known(parameters: Parameters) -> str:
    return ", ".join(parameters) or "none"


def _with_all(function: Callable[..., Any], parameters: Parameters, named: Named) -> Any:
    args, kwargs = _passed(parameters, named)
    return function(*args, **kwargs)


def _with_these(function: Callable[..., Any], names: tuple[str, ...], values: Named) -> Any:
    return function(**{name: values[name] for name in names if name in values})


def _passed(parameters: Parameters, named: Named) -> tuple[list[Any], dict[str, Any]]:
    """All arguments as one would pass them: by position where that can be."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, parameter in parameters.items():
        match parameter.kind:
            case Parameter.VAR_POSITIONAL:
                args.extend(named.get(name, ()))
            case Parameter.VAR_KEYWORD:
                kwargs.update(named.get(name, {}))
            case Parameter.KEYWORD_ONLY:
                kwargs[name] = named[name]
            case _:
                args.append(named[name])
    return args, kwargs


def _by_name(parameters: Parameters, named: Named) -> dict[str, Any]:
    """All arguments by name: the task's `*args` and `**kwargs` by theirs, empty or not, and what is in the latter by its own, too."""
    empty: Named = {
        name: () if each.kind is Parameter.VAR_POSITIONAL else {} for name, each in parameters.items() if each.kind in _VARIADIC
    }
    return {**_plain(parameters, named), **empty, **named}


def _plain(parameters: Parameters, named: Named) -> dict[str, Any]:
    """All arguments that have a name of their own, in the order of the task's: those of the parameters, and what is in its `**kwargs`."""
    plain: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            plain.update(named.get(name, {}))
        elif parameter.kind is not Parameter.VAR_POSITIONAL:
            plain[name] = named[name]
    return plain
