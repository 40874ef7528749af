"""Turns arguments and results into JSON and back, by the annotations of the task's function. Never pickle."""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from functools import cached_property
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any, cast, get_origin, get_type_hints
from uuid import uuid4

import msgspec

from offload.errors import BadPayload
from offload.job import MOST_PAYLOAD_BYTES
from offload.workflow import Node, Output, Use, plucked

_ABSENT = object()
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_PYTHON = {"null": "None", "array": "list"}
"""Words of JSON, and ours for them."""
_SAFE = (int, str, bool, bytes, float)
"""Annotations under which nothing is lost in JSON without the typed decoder noticing."""
_SUSPECT = re.compile(rb'null|T\d\d:\d\d:\d\d(?:\.\d+)?"')
"""JSON in which a NaN, an infinity or a naive datetime may have been lost: msgspec writes null and a time without an offset."""


def _is_pydantic(cls: Any) -> bool:
    """Whether a class is a pydantic model. Where pydantic was never imported nothing is, so it is not imported here."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(cls, type) and issubclass(cls, pydantic.BaseModel)


class HoldsOutputs(Exception):
    """Arguments hold outputs of jobs that have not run yet."""


def _to_json(value: Any) -> Any:
    """What msgspec does not encode by itself. Raises HoldsOutputs at the first output."""
    if isinstance(value, Output):
        raise HoldsOutputs
    if isinstance(value, PurePath):
        return str(value)
    if _is_pydantic(type(value)):
        return value.model_dump(mode="json")
    for builtin in (str, int, float):
        if isinstance(value, builtin):
            return builtin(value)
    if isinstance(value, Node):
        raise TypeError("what add() returned stands for a job: pass its `output`")
    raise TypeError(f"{type(value).__qualname__} is no JSON value")


def _from_json(cls: Any, value: Any) -> Any:
    """What msgspec does not decode by itself."""
    plain: Any = get_origin(cls) or cls
    if plain is object:
        return value
    if _is_pydantic(plain):
        return plain.model_validate(value)
    if isinstance(plain, type) and issubclass(plain, PurePath) and isinstance(value, str):
        return plain(value)
    raise ValueError(f"{cls!r} cannot be read from JSON")


_ENCODER = msgspec.json.Encoder(enc_hook=_to_json)


def without_outputs(values: Mapping[str, Any], what: str) -> tuple[bytes, tuple[Use, ...]]:
    """The JSON of arguments with null in the places of outputs, and where these are. Raises BadPayload.

    Each stands meanwhile as a text that nobody can guess, so that no text of a user's is taken for one.
    """
    found: list[Output] = []
    mark = uuid4().hex

    def hook(value: Any) -> Any:
        if isinstance(value, Output):
            found.append(value)
            return f"{mark}{len(found) - 1}"
        return _to_json(value)

    try:
        tree = msgspec.json.decode(msgspec.json.encode(values, enc_hook=hook))
    except Exception as error:
        raise BadPayload(f"{what}: the arguments cannot be carried as JSON: {error}") from error
    uses = tuple(Use(at, found[number]) for at, number in plucked(tree, mark))
    if len(uses) < len(found):
        raise BadPayload(f"{what}: an output stands as the key of a dict; it may stand for a value only")
    return msgspec.json.encode(tree), uses


def encode_plain(values: Mapping[str, Any], what: str) -> bytes:
    """The payload of a task that is not known here: `values` as they are. Raises BadPayload; `what` names the task in it."""
    payload = _encode(values, what, "arguments")
    _refuse_lost(values, payload, what)
    return payload


class Returns:
    """Encodes and decodes what one function returns."""

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        self.function = inspect.unwrap(function)
        self.name = name or getattr(function, "__qualname__", repr(function))

    @cached_property
    def _decoder(self) -> msgspec.json.Decoder[Any]:
        return msgspec.json.Decoder(_supported(_hint(self.function, "return"))[0], dec_hook=_from_json)

    def encode(self, value: Any) -> bytes | None:
        """The JSON of a result, None for None. Raises BadPayload when it cannot be encoded or is too large."""
        if value is None:
            return None
        plain = _encode(value, self.name, "result")
        _refuse_lost(value, plain, self.name)
        return plain

    def decode(self, plain: bytes | None) -> Any:
        """The result by the function's return annotation. Raises BadPayload when it does not fit."""
        if plain is None or plain == b"null":
            return None
        try:
            return self._decoder.decode(plain)
        except (msgspec.MsgspecError, ValueError) as error:
            raise BadPayload(f"the result of {self.name} does not fit its return annotation: {_translated(error)}") from None


class Arguments:
    """Encodes, checks and decodes the arguments of one function. Annotations are resolved when first needed; what cannot be is Any.

    The payload is a JSON object of parameter names; `*args` stands under its name as a list, `**kwargs` as an object, and
    defaults that were not passed are left out, so that the worker's own apply.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        self.function = function
        self.name = name or getattr(function, "__qualname__", repr(function))
        self.signature = inspect.signature(function)
        self.parameters: Mapping[str, inspect.Parameter] = self.signature.parameters
        self.returns = Returns(function, self.name)
        kinds = {name: parameter.kind for name, parameter in self.parameters.items()}
        self._names = tuple(kinds)
        self._positional = tuple(name for name, kind in kinds.items() if kind in _POSITIONAL)
        self._positional_only = tuple(name for name, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_ONLY)
        self._var_positional = next((name for name, kind in kinds.items() if kind is inspect.Parameter.VAR_POSITIONAL), None)
        self._var_keyword = next((name for name, kind in kinds.items() if kind is inspect.Parameter.VAR_KEYWORD), None)
        self._by_name = [name for name, kind in kinds.items() if kind in _NAMED]
        self._simple = not (self._positional_only or self._var_positional or self._var_keyword)
        self._defaults = {name: each.default for name, each in self.parameters.items() if each.default is not inspect.Parameter.empty}
        self._open_decoders: dict[frozenset[str | int], msgspec.json.Decoder[Any]] = {}
        self._required = [name for name in self._names if name not in (*self._defaults, self._var_positional, self._var_keyword)]

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        """The payload of a call, proved by decoding it as the worker will.

        Raises BadPayload for a call that cannot work, HoldsOutputs where `encode_open` is needed.
        """
        values = self._bind(args, kwargs)
        try:
            payload = _ENCODER.encode(values)
        except HoldsOutputs:
            raise
        except Exception as error:
            raise self._unencodable(values, error) from error
        fault = self._fault(payload)
        if fault is not None or not self._safe:
            _refuse_lost(values, payload, self.name)  # a NaN that became null says more than that null is no number
        if fault is not None:
            raise fault
        if not self._safe:
            self._refuse_ambiguous(values)
        return payload

    def encode_open(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[bytes, tuple[Use, ...]]:
        """The payload of a call whose arguments hold outputs, with null in their places, and where these are.

        Arguments without outputs are proved now; the others when a worker decodes them. Raises BadPayload.
        """
        values = self._bind(args, kwargs)
        payload, uses = without_outputs(values, self.name)
        filled = {use.at[0] for use in uses}
        rest = {name: value for name, value in values.items() if name not in filled}
        _refuse_lost(rest, payload, self.name)
        if len(payload) > MOST_PAYLOAD_BYTES:
            raise _too_large(self.name, "arguments", len(payload))
        try:
            self._open_decoder(frozenset(filled)).decode(payload)
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._misfit(payload, error) from None
        self._refuse_ambiguous(rest)
        return payload, uses

    def _open_decoder(self, filled: frozenset[str | int]) -> msgspec.json.Decoder[Any]:
        """As `_decoder`, but for arguments that hold outputs: those may be anything yet."""
        known = self._open_decoders.get(filled)
        if known is None:
            known = self._open_decoders[filled] = self._made_decoder(dict.fromkeys(filled, Any))
        return known

    def prove(self, payload: bytes) -> None:
        """Raise BadPayload unless `payload` is small enough and fits the signature."""
        if (fault := self._fault(payload)) is not None:
            raise fault

    def decode(self, payload: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments of a payload. Raises BadPayload when it does not fit the signature."""
        try:
            values = msgspec.structs.asdict(self._decoder.decode(payload))
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._misfit(payload, error) from None
        if self._defaults or not self._simple:
            values = {name: value for name, value in values.items() if value is not _ABSENT}
        return ((), values) if self._simple else self._call(values)

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of a call by name, defaults filled in."""
        return {**self._defaults, **self._bind(args, kwargs)}

    def encode_result(self, value: Any) -> bytes | None:
        """The JSON of a result, None for None. Raises BadPayload when it cannot be encoded or is too large."""
        return self.returns.encode(value)

    def decode_result(self, plain: bytes | None) -> Any:
        """The result by the return annotation. Raises BadPayload when it does not fit."""
        return self.returns.decode(plain)

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name, in the order of the signature. What is missing or mistyped is found by the decoder."""
        if not self._simple or len(args) > len(self._positional):
            return self._bind_slowly(args, kwargs)
        values = dict(zip(self._positional, args, strict=False))
        if kwargs:
            values.update(kwargs)
            given = len(values)
            if given > 1:
                values = {name: values[name] for name in self._names if name in values}
            if not len(args) + len(kwargs) == given == len(values):
                return self._bind_slowly(args, kwargs)
        if len(values) < len(self._names) - len(self._defaults):
            return self._bind_slowly(args, kwargs)
        return values

    def _bind_slowly(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return dict(self.signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise self._refused(self._call_faults(args, kwargs) or [str(error)]) from None

    def _call_faults(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
        """What is wrong with a call, but for the types of its arguments."""
        taken = self._positional[: len(args)]
        faults: list[str] = []
        if len(args) > len(self._positional) and self._var_positional is None:
            faults.append(f"it takes at most {len(self._positional)} positional arguments, not {len(args)}")
        faults += [f"{name!r} is given twice" for name in kwargs if name in taken and name in self._by_name]
        unknown = [name for name in kwargs if name not in self._by_name] if self._var_keyword is None else []
        missing = [name for name in self._required if name not in taken and name not in kwargs]
        return faults + self._name_faults(unknown, missing, {*taken, *kwargs})

    def _name_faults(self, unknown: Sequence[str], missing: Sequence[str], given: Collection[str]) -> list[str]:
        free = [name for name in self._by_name if name not in given]
        faults: list[str] = []
        for name in unknown:
            alike = get_close_matches(name, free, n=1)
            hint = f" (did you mean {alike[0]!r}?)" if alike else " that is passed by name" if name in self._positional_only else ""
            faults.append(f"there is no parameter {name!r}{hint}")
        return faults + [f"{name!r} is missing" for name in missing]

    def _fault(self, payload: bytes) -> BadPayload | None:
        """What is wrong with a payload, if anything is."""
        if len(payload) > MOST_PAYLOAD_BYTES:
            return _too_large(self.name, "arguments", len(payload))
        try:
            self._decoder.decode(payload)
        except (msgspec.MsgspecError, ValueError) as error:
            return self._misfit(payload, error)
        return None

    def _misfit(self, payload: bytes, error: Exception) -> BadPayload:
        """The decoder's `error` in our words; where names are wrong, all of them."""
        try:
            given: Any = msgspec.json.decode(payload)
        except (msgspec.MsgspecError, ValueError):
            given = None
        faults: list[str] = []
        if isinstance(given, dict):
            names = list(cast(dict[str, Any], given))
            unknown = [name for name in names if name not in self.parameters]
            faults = self._name_faults(unknown, [name for name in self._required if name not in names], names)
        return self._refused(faults or [_translated(error)])

    def _refused(self, faults: Sequence[str]) -> BadPayload:
        return BadPayload(f"{self._shown} cannot be called so: {', and '.join(faults)}")

    def _call(self, values: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments for a signature that has `/`, `*args` or `**kwargs`."""
        rest: Sequence[Any] = values.pop(self._var_positional, ()) if self._var_positional else ()
        more: dict[str, Any] = values.pop(self._var_keyword, {}) if self._var_keyword else {}
        leading = self._positional if rest else self._positional_only
        last = max((i for i, name in enumerate(leading) if name in values), default=-1)
        count = len(leading) if rest else last + 1
        args = tuple(values.pop(name) if name in values else self._defaults[name] for name in leading[:count])
        return (*args, *rest), {**values, **more}

    @cached_property
    def _shown(self) -> str:
        try:
            signature = inspect.signature(self.function, eval_str=True)  # annotations without quotes
        except Exception:  # noqa: BLE001 - an annotation is code, and some of it can be read by type checkers only
            signature = self.signature
        return f"{self.name}{signature}"

    @cached_property
    def _types(self) -> dict[str, tuple[Any, bool]]:
        """Each parameter's type as the decoder takes it, and whether its annotation had to give way to Any."""
        types: dict[str, tuple[Any, bool]] = {}
        for name, parameter in self.parameters.items():
            hint, ambiguous = _supported(_hint(self.function, name))
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                hint = tuple[hint, ...]
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                hint = dict[str, hint]
            elif parameter.default is None:
                hint, undecided = _supported(hint | None if hint is not None else None)
                ambiguous = ambiguous or undecided
            types[name] = hint, ambiguous
        return types

    @cached_property
    def _decoder(self) -> msgspec.json.Decoder[Any]:
        return self._made_decoder({})

    def _made_decoder(self, instead: Mapping[Any, Any]) -> msgspec.json.Decoder[Any]:
        fields: list[Any] = []
        for name, (declared, _) in self._types.items():
            hint = instead.get(name, declared)
            required = self.parameters[name].default is inspect.Parameter.empty and name not in (self._var_positional, self._var_keyword)
            fields.append((name, hint) if required else (name, hint, _ABSENT))
        struct = msgspec.defstruct(f"Arguments of {self.name}", fields, kw_only=True, forbid_unknown_fields=True)
        return msgspec.json.Decoder(struct, dec_hook=_from_json)

    @cached_property
    def _safe(self) -> bool:
        return self._simple and all(any(hint is safe for safe in _SAFE) for hint, _ in self._types.values())

    def _refuse_ambiguous(self, values: Mapping[str, Any]) -> None:
        """Where an annotation cannot be told apart in JSON (`Path | str`) only plain JSON passes: all else would arrive as another type."""
        for name, value in values.items():
            if self._types[name][1] and (back := msgspec.json.decode(_ENCODER.encode(value))) != value:
                raise BadPayload(
                    f"{self.name}: the annotation of {name!r} cannot be told apart in JSON, so {value!r} would arrive as {back!r};"
                    " annotate one type, or pass it as plain JSON"
                )

    def _unencodable(self, values: Mapping[str, Any], error: Exception) -> BadPayload:
        for name, value in values.items():
            try:
                _ENCODER.encode(value)
            except Exception as why:  # noqa: BLE001 - also the user's own models may raise anything
                return BadPayload(f"{self.name}: the argument {name!r} cannot be carried as JSON: {why}; pass an id or plain data")
        return BadPayload(f"{self.name}: the arguments cannot be carried as JSON: {error}")


def _translated(error: Exception) -> str:
    """What the decoder says, in the words of Python: "argument 'ids', at [0]: expected int, got str"."""
    said, _, path = str(error).partition(" - at `$")
    said = re.sub(r"`([^`]*)`", lambda quoted: re.sub(r"\b(null|array)\b", lambda word: _PYTHON[word[0]], quoted[1]), said)
    name, rest = cast(re.Match[str], re.match(r"(?:\.(\w+))?(.*)", path.rstrip("`"), re.DOTALL)).groups()
    where = [*([f"argument {name!r}"] if name else []), *([f"at {rest}"] if rest else [])]
    if not said.partition(" ")[0].isupper():  # such as JSON
        said = said[:1].lower() + said[1:]
    return f"{', '.join(where)}{': ' if where else ''}{said}"


def _encode(value: Any, what: str, kind: str) -> bytes:
    try:
        encoded = _ENCODER.encode(value)
    except HoldsOutputs:
        if kind == "result":
            raise BadPayload(f"{what}: the result holds an output of another job, which only arguments may") from None
        raise
    except Exception as error:
        raise BadPayload(f"{what}: the {kind} cannot be carried as JSON: {error}") from error
    if len(encoded) > MOST_PAYLOAD_BYTES:
        raise _too_large(what, kind, len(encoded))
    return encoded


def _too_large(what: str, kind: str, size: int) -> BadPayload:
    take = "takes" if kind == "result" else "take"
    return BadPayload(
        f"{what}: the {kind} {take} {size:,} bytes of JSON, of at most {MOST_PAYLOAD_BYTES:,}: store the data elsewhere and pass its key"
    )


def _refuse_lost(value: Any, encoded: bytes, what: str) -> None:
    """Raise BadPayload for what JSON dropped silently: NaN, infinities, and the missing time zone of a datetime."""
    if _SUSPECT.search(encoded) is not None:
        _walk(msgspec.to_builtins(value, builtin_types=(datetime,), str_keys=True, enc_hook=_to_json), what)


def _walk(value: Any, what: str) -> None:
    match value:
        case float() if not math.isfinite(value):
            raise BadPayload(f"{what}: JSON has no {value}; pass None, or a text")
        case datetime() if value.tzinfo is None:
            raise BadPayload(f"{what}: {value!r} has no time zone; make it aware, for example datetime.now(UTC)")
        case dict():
            for each in cast(dict[str, Any], value).values():
                _walk(each, what)
        case list() | tuple():
            for each in cast(list[Any], value):
                _walk(each, what)
        case _:
            return


def _hint(function: Callable[..., Any], name: str) -> Any:
    """One resolved annotation; Any where there is none or where a name in it cannot be found."""
    function = inspect.unwrap(function)
    annotation = getattr(function, "__annotations__", {}).get(name, Any)
    try:
        return get_type_hints(
            SimpleNamespace(__annotations__={name: annotation}), getattr(function, "__globals__", {}), include_extras=True
        )[name]
    except Exception:  # noqa: BLE001 - an annotation is code: whatever it raises, it tells us no type
        return Any


def _supported(hint: Any) -> tuple[Any, bool]:
    """`hint` when it can be decoded, else Any; and whether it gave way."""
    try:
        msgspec.json.Decoder(hint, dec_hook=_from_json)
    except Exception:  # noqa: BLE001 - it also reads the annotations of the user's dataclasses
        return Any, True
    return hint, False
