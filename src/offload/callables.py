"""Calls a function of the user's with the arguments of a job: how callable keys see it. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from typing import Any, NamedTuple, TypeAlias

from offload.errors import BadDeclaration

Parameters: TypeAlias = Mapping[str, Parameter]
Named: TypeAlias = Mapping[str, Any]
"""The arguments of a job by name, defaults filled in, as `codec.Arguments.named` gives them."""

_BY_PLACE = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
MOST_WAYS = 100
"""The most ways to write a call of which it is kept whether a function takes them."""


class Call(NamedTuple):
    """The arguments of a job."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    named: Named
    """The same by name."""


class Caller:
    """Calls one function with the arguments of jobs of a task.

    It gets those that it names, defaults filled in, however the call was written. Where it names others than the task, or none (`*args`),
    it gets the call as it was written, and where it cannot take that, as many of the first arguments as it takes.
    """

    __slots__ = ("_fits", "_function", "_parameters", "_signature")

    def __init__(self, function: Callable[..., Any], parameters: Parameters) -> None:
        self._function = function
        self._parameters = parameters
        self._signature = _signature_of(function)
        self._fits: dict[tuple[object, ...], bool] = {}
        """Whether the function takes so many arguments by position, and these by name."""

    def check(self, what: str) -> None:
        """Raise BadDeclaration where the function needs more than any job of the task has."""
        if self._signature is None or any(parameter.kind in _VARIADIC for parameter in self._parameters.values()):
            return
        needed = _needed(self._signature)
        unknown = [each for each in needed if each.name not in self._parameters]
        lost = next((each for each in unknown if each.kind is Parameter.KEYWORD_ONLY), None)
        if lost is None and len(needed) > len(self._parameters):
            lost = (unknown or needed)[-1]
        if lost is not None:
            known = ", ".join(self._parameters) or "none"
            raise BadDeclaration(f"{what}: the callable takes {lost.name!r}, which is no parameter of the task; known are: {known}")

    def __call__(self, call: Call) -> Any:
        """What the function makes of a call. Raises what it raises, and TypeError where it can take the call in no way."""
        signature, values = self._signature, _plain(self._parameters, call.named)
        if signature is None:
            return self._tried(call, values)
        if _names(signature, values):
            return self._function(**_named_by(signature, values))
        if self._takes(signature, call):
            return self._function(*call.args, **call.kwargs)
        return self._function(*list(values.values())[: _places(signature)])

    def _tried(self, call: Call, values: Named) -> Any:
        """What a function makes of a call that does not tell what it takes, as some in C."""
        try:
            return self._function(*call.args, **call.kwargs)
        except TypeError:
            return self._function(*values.values())

    def _takes(self, signature: Signature, call: Call) -> bool:
        way = (len(call.args), *call.kwargs)
        if way not in self._fits:
            if len(self._fits) >= MOST_WAYS:  # a task of any keywords may be called in any number of ways
                self._fits.clear()
            self._fits[way] = _binds(signature, call)
        return self._fits[way]


def _needed(signature: Signature) -> list[Parameter]:
    """What a function cannot do without."""
    return [each for each in signature.parameters.values() if each.default is Parameter.empty and each.kind not in _VARIADIC]


def _names(signature: Signature, values: Named) -> bool:
    """Whether a function names what it takes, as the task does."""
    kinds = {each.kind for each in signature.parameters.values()}
    alone = Parameter.VAR_POSITIONAL in kinds and kinds.isdisjoint(_BY_NAME)
    return not alone and all(each.kind in _BY_NAME and each.name in values for each in _needed(signature))


def _places(signature: Signature) -> int | None:
    """How many arguments a function takes by position; None for any number."""
    kinds = [each.kind for each in signature.parameters.values()]
    return None if Parameter.VAR_POSITIONAL in kinds else sum(kind in _BY_PLACE for kind in kinds)


def _signature_of(function: Callable[..., Any]) -> Signature | None:
    """What a function says that it takes; None where it does not, as some in C, or annotations that name what is not there."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError, NameError):
        return None


def _binds(signature: Signature, call: Call) -> bool:
    try:
        signature.bind(*call.args, **call.kwargs)
    except TypeError:
        return False
    return True


def _named_by(signature: Signature, values: Named) -> Named:
    """Of the arguments those that a function names, or all of them where it takes any."""
    if any(each.kind is Parameter.VAR_KEYWORD for each in signature.parameters.values()):
        return values
    return {name: values[name] for name, each in signature.parameters.items() if name in values and each.kind in _BY_NAME}


def _plain(parameters: Parameters, named: Named) -> dict[str, Any]:
    """All arguments by name, in the order of the task's parameters; what is in its `**kwargs` by its own name."""
    plain: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            plain.update(named.get(name, {}))
        elif parameter.kind is not Parameter.VAR_POSITIONAL:
            plain[name] = named[name]
    return plain
