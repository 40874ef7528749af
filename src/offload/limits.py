"""What a key allows: one job of it (`Unique`), so many at once (`Concurrency`), so many in a time (`Rate`), one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from string import Formatter
from types import CodeType, FunctionType
from typing import Any, Literal, TypeAlias, cast, get_args
from zlib import crc32

from msgspec import UNSET, UnsetType

from offload.callables import Call, Caller, Parameters
from offload.duration import seconds
from offload.errors import BadDeclaration, BadPayload
from offload.job import Conflict, Limit, LimitChange, RateLimit, SlotLimit, UniqueKey, Until
from offload.workflow import Output

LONGEST_KEY = 200
"""The most characters of a key once its template is filled in."""

MOST_SLOTS = 2**31 - 1
"""The most slots of a key: what every engine can count."""
MOST_BURST = 100_000
"""The most tokens that may gather, and that one job may take: of the slowest rate they are 270 years, which every engine can count."""
_FIELD = re.compile(r"\{([^\W\d]\w*)[^{}]*\}")
_IN_NO_KEY = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

Key: TypeAlias = str | Callable[..., str]


@dataclass(frozen=True, slots=True)
class Unique:
    """At most one job of a key: `key` is a `str.format` template over the task's arguments, or a callable taking the same arguments.

    A callable gets those of them that it names, defaults filled in.
    `until` says when the key is free again: when the job is "finished" (the default), "started", or so many seconds (or a timedelta)
    after the enqueue. `on_conflict` says what a second enqueue does: "skip" gives the first job's handle, "raise" raises
    UniqueConflict, "replace" gives the waiting job the new payload and "debounce" also the new time (both with
    `until="started"`), "keep_last" lets one successor wait, always with the newest payload (with `until="finished"`).
    In `using(...)` the key is taken literally. Raises BadDeclaration for what cannot work.
    """

    key: Key
    until: Literal["finished", "started"] | float | timedelta = "finished"
    on_conflict: Conflict = "skip"

    def __post_init__(self) -> None:
        if not callable(self.key) and not (isinstance(self.key, str) and self.key):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"the key of Unique must be a text that is not empty, or a callable, not {self.key!r}")
        if self.on_conflict not in get_args(Conflict):
            raise BadDeclaration(f"Unique(on_conflict={self.on_conflict!r}): known are {', '.join(get_args(Conflict))}")
        if isinstance(self.until, str):
            if self.until not in ("finished", "started"):
                raise BadDeclaration(f"Unique(until={self.until!r}): say 'finished', 'started', or a duration in seconds")
        else:
            object.__setattr__(self, "until", seconds(self.until, "Unique(until=...)", least=0.001))
        if self.on_conflict in ("replace", "debounce") and self.until != "started":
            raise BadDeclaration(f"Unique(on_conflict={self.on_conflict!r}) changes a job that has not started: it needs until='started'")
        if self.on_conflict == "keep_last" and self.until != "finished":
            raise BadDeclaration("Unique(on_conflict='keep_last') lets one job wait for another to end: it needs until='finished'")


@dataclass(frozen=True, slots=True)
class Concurrency:
    """At most `n` jobs of a key are ready or running at a time, over all workers; the others wait for a slot.

    `key` is a `str.format` template over the task's arguments, or a callable taking the same arguments; in `using(...)` it is taken
    literally. The number can be changed while workers run: `app.set_limit(key, concurrency=...)`. Raises BadDeclaration.
    """

    n: int
    key: Key

    def __post_init__(self) -> None:
        _check_key(self.key, "Concurrency")
        _check_number(self.n, "Concurrency(n)", MOST_SLOTS)


@dataclass(frozen=True, slots=True)
class Rate:
    """So many jobs of a key start in a time, over all workers: `Rate("100/s", key="mailgun")`; per "s", "m", "h" or "d".

    At most `burst` start at once after a pause; a job takes `cost` tokens, which must not be more than the burst. Jobs wait for their
    tokens at no cost of attempts. `key` as in `Concurrency`. `app.set_limit(key, rate=...)` changes the rate while workers run. Generic
    cell rate algorithm (GCRA): jobs start at an even pace, with no window at whose edge twice as many could. Raises BadDeclaration.
    """

    spec: str
    key: Key
    burst: int = 1
    cost: int = 1

    def __post_init__(self) -> None:
        interval_of(self.spec)
        _check_key(self.key, "Rate")
        _check_number(self.burst, "Rate(burst=...)", MOST_BURST)
        _check_number(self.cost, "Rate(cost=...)", MOST_BURST)
        if self.cost > self.burst:
            raise BadDeclaration(
                f"Rate(cost={self.cost}, burst={self.burst}): so many tokens never gather; give at least burst={self.cost}"
            )


Limits: TypeAlias = "Concurrency | Rate | Sequence[Concurrency | Rate]"
"""What `limits=` takes."""

PERIODS = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
"""Microseconds of the units of a rate."""
MOST_PER_PERIOD = 1_000_000
_RATE = re.compile(r"\s*(\d+)\s*/\s*([smhd])\s*")


def interval_of(spec: str) -> int:
    """The microseconds from one token to the next of a rate such as "100/s". Raises BadDeclaration."""
    found = _RATE.fullmatch(spec) if isinstance(spec, str) else None  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
    if found is None:
        raise BadDeclaration(f"a rate is a number per s, m, h or d, such as '100/s' or '5/m', not {spec!r}")
    number, period = int(found[1]), PERIODS[found[2]]
    if number == 0:
        raise BadDeclaration(f"a rate of {spec!r} lets nothing start: give at least 1; `app.set_limit(key, paused=True)` stops a key")
    if number > MOST_PER_PERIOD:
        instead = "leave the limit out" if found[2] == "s" else "say it of a shorter period, or leave the limit out"
        raise BadDeclaration(f"a rate of {spec!r} is too high: give at most {MOST_PER_PERIOD:,} a period; {instead}")
    return max(-(-period // number), 1)


def spec_of(interval: int) -> str:
    """A rate as people write it: of whole numbers the smallest unit that fits."""
    for unit, period in PERIODS.items():
        number = round(period / interval)
        if number and abs(period - number * interval) <= number:
            return f"{number}/{unit}"
    return f"1/{interval / 1_000_000:g}s"


def _check_key(key: Any, what: str) -> None:
    if not callable(key) and not (isinstance(key, str) and key):
        raise BadDeclaration(f"the key of {what} must be a text that is not empty, or a callable, not {key!r}")


def _check_number(number: Any, what: str, most: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise BadDeclaration(f"{what} must be a whole number of at least 1, not {number!r}")
    if number > most:
        raise BadDeclaration(f"{what} must be at most {most:,}, not {number:,}")


def declared_key(key: Key, parameters: Parameters, what: str) -> Key:
    """A key as a task declares it, its template or callable checked against the task's parameters. Raises BadDeclaration."""
    _check_key(key, what)
    if not isinstance(key, str):
        Caller(key, parameters).check(what)
    else:
        given_key("".join(text for text, _ in _parts(key, what)) or key, f"{what}: the key")
        for field in _fields(key, what):
            if field not in parameters:
                known = ", ".join(parameters) or "none"
                raise BadDeclaration(f"{what}: the key {key!r} names {field!r}, which is no parameter; known are: {known}")
    return key


def given_key(key: Any, what: str) -> str:
    """A literal key as a person gives it. Raises BadDeclaration when it is empty or too long."""
    try:
        return literal_key(key, what)
    except BadPayload as error:
        raise BadDeclaration(str(error)) from None


def field_in(key: str, parameters: Container[str]) -> str | None:
    """The first parameter that a literal key names in braces, as the template of a declaration would."""
    return next((name for name in _FIELD.findall(key) if name in parameters), None) if "{" in key and len(key) <= LONGEST_KEY else None


def declared_limits(limits: Any, parameters: Parameters, what: str) -> tuple[Concurrency | Rate, ...]:
    """`limits=` as a task declares it. Raises BadDeclaration."""
    limits = checked_limits(limits, what)
    for limit in limits:
        declared_key(limit.key, parameters, f"{what}: {type(limit).__name__}")
    return limits


def checked_limits(limits: Any, what: str) -> tuple[Concurrency | Rate, ...]:
    """`limits=` as a tuple; one alone will do. Raises BadDeclaration for what is no limit."""
    each: Any = (limits,) if isinstance(limits, str) or not isinstance(limits, Iterable) else cast("Iterable[Any]", limits)
    given: tuple[Any, ...] = tuple(each)
    for limit in given:
        if not isinstance(limit, Concurrency | Rate):
            raise BadDeclaration(f"{what}: limits are a list of Concurrency(n, key=...) and Rate('100/s', key=...), not {limit!r}")
    _refuse_twice(given, what)
    return given


def _refuse_twice(limits: Sequence[Concurrency | Rate], what: str) -> None:
    """Raise BadDeclaration for two limits of one kind and key, of which only the stricter one could ever matter."""
    known: set[tuple[type, Key]] = set()
    for limit in limits:
        kind = type(limit)
        if (kind, limit.key) in known:
            raise BadDeclaration(f"{what}: two {kind.__name__} limits have the key {limit.key!r}; keep one of them")
        known.add((kind, limit.key))


class Maker:
    """Makes one key of the jobs of a task, which was declared."""

    __slots__ = ("_make", "_template", "_what")

    def __init__(self, key: Key, parameters: Parameters, what: str) -> None:
        self._template = key if isinstance(key, str) else ""
        self._make: Callable[[Call], Any] = Caller(key, parameters) if callable(key) else lambda call: key.format_map(call.named)
        self._what = what

    def make(self, call: Call) -> str:
        """The key of a job of this call. Raises BadPayload."""
        if unknown := _outputs_in(self._template, call.named):
            raise BadPayload(f"{self._what} is made of {unknown}, which is the output of a job that has not run yet")
        try:
            made = self._make(call)
        except Exception as error:
            raise BadPayload(f"{self._what} could not be made: {type(error).__name__}: {error}") from error
        return literal_key(made, self._what)


def _outputs_in(template: str, arguments: Mapping[str, Any]) -> str:
    """The first argument in a template that is not known yet; `!r` would make a text of it."""
    names = (name.partition(".")[0].partition("[")[0] for _, name, _, _ in Formatter().parse(template) if name)
    return next((name for name in names if isinstance(arguments.get(name), Output)), "")


def literal_key(key: Any, what: str) -> str:
    """A key taken as it is. Raises BadPayload when it is empty or too long."""
    if not isinstance(key, str) or not key:
        raise BadPayload(f"{what} must be a text that is not empty, not {key!r}")
    if len(key) > LONGEST_KEY:
        raise BadPayload(f"{what}, {key[:40]!r}..., has {len(key)} characters, of at most {LONGEST_KEY}: use a hash of it")
    if _IN_NO_KEY.search(key):
        raise BadPayload(f"{what}, {key!r}, holds a line break, another control character or half a surrogate pair, which no key may")
    return key


def limit_of(limit: Concurrency | Rate, key: str, rule: str = "") -> Limit:
    """The limit of one job, or of all that a task declares."""
    match limit:
        case Concurrency(n):
            return SlotLimit(key, n, rule)
        case Rate(spec, _, burst, cost):
            return RateLimit(key, interval_of(spec), burst, cost, rule)


def rule_of(limit: Concurrency | Rate, place: str) -> str:
    """By what a declaration is known: its template, or the name of its function.

    Of what has no name of its own its `place` in the code and what it does: where another takes its place, it is not known again.
    """
    key = limit.key
    if isinstance(key, str):
        return key
    named = isinstance(key, FunctionType) and "<" not in key.__qualname__  # a lambda, or one made anew by each call of another function
    return f"{key.__module__}.{key.__qualname__}" if named else f"{place} {crc32(_does(key)):08x}"


def _does(key: Callable[..., str]) -> bytes:
    """What a callable does, as far as its code shows; the same in every process that runs this code on one version of Python.

    So nothing counts whose text names a place in memory, or whose order is by chance: each start of a worker would declare anew.
    """
    if isinstance(key, partial):
        return b"partial " + _does(key.func)
    kind = type(key)
    code: CodeType | None = getattr(key, "__code__", None) or getattr(kind.__call__, "__code__", None)
    if code is None:
        return kind.__qualname__.encode()
    constants = [_lasting(constant) for constant in code.co_consts if not isinstance(constant, CodeType)]
    return code.co_code + repr((kind.__qualname__, code.co_names, code.co_varnames, constants)).encode()


def _lasting(constant: object) -> str:
    """A constant as text, without the order of a set, which differs from process to process."""
    return repr(sorted(map(repr, cast("frozenset[object]", constant)))) if isinstance(constant, frozenset) else repr(constant)


def strictest(limits: Sequence[Limit]) -> tuple[Limit, ...]:
    """Of several limits of one kind and key, as templates may give, the one that allows least."""
    found: dict[tuple[type[Limit], str], Limit] = {}
    for limit in limits:
        known = found.get((type(limit), limit.key))
        found[type(limit), limit.key] = limit if known is None else _stricter(known, limit)
    return tuple(found.values())


def _stricter(one: Limit, other: Limit) -> Limit:
    if isinstance(one, SlotLimit) and isinstance(other, SlotLimit):
        return min(one, other, key=lambda limit: limit.n)
    if isinstance(one, RateLimit) and isinstance(other, RateLimit):
        return max(one, other, key=lambda limit: (limit.interval * limit.cost, -limit.burst))
    raise AssertionError("limits of one kind")


def declared(unique: Unique | Key, parameters: Parameters, what: str) -> Unique:
    """`unique` as a task declares it, its key checked against the task's parameters. Raises BadDeclaration."""
    if unique in (Unique, Concurrency, Rate) or (not isinstance(unique, str | Unique) and not callable(unique)):
        raise BadDeclaration(f"{what}: unique must be a Unique, or its key, a template or a callable, not {unique!r}")
    unique = unique if isinstance(unique, Unique) else Unique(unique)
    declared_key(unique.key, parameters, f"{what}: unique")
    return unique


def literal(unique: Unique, key: Any, what: str) -> UniqueKey:
    """The key of one job, with `key` taken as it is. Raises BadPayload when it is empty or too long."""
    return unique_key(unique, literal_key(key, f"{what}: the unique key"))


def unique_key(unique: Unique, key: str) -> UniqueKey:
    """What a job claims by a rule once its key is made."""
    until: Until = unique.until.total_seconds() if isinstance(unique.until, timedelta) else unique.until
    return UniqueKey(key, until, unique.on_conflict)


def change_of(
    key: str,
    concurrency: int | UnsetType | None,
    rate: str | UnsetType | None,
    burst: int | UnsetType | None,
    paused: bool | UnsetType,
) -> LimitChange:
    """What a person sets for a key. Raises BadDeclaration for what cannot work, and where nothing is given."""
    given_key(key, "the key of set_limit")
    if all(value is UNSET for value in (concurrency, rate, burst, paused)):
        raise BadDeclaration(f"set_limit({key!r}) changes nothing: give concurrency=, rate=, burst= or paused=")
    _check_change(concurrency, f"set_limit({key!r}, concurrency=...)", MOST_SLOTS, at_zero="; paused=True stops a key")
    _check_change(burst, f"set_limit({key!r}, burst=...)", MOST_BURST)
    if not isinstance(paused, bool | UnsetType):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
        raise BadDeclaration(f"set_limit({key!r}, paused={paused!r}): say True or False")
    interval = rate if rate is UNSET or rate is None else interval_of(rate)
    return LimitChange(n=concurrency, interval=interval, burst=burst, paused=paused)


def _check_change(number: Any, what: str, most: int, at_zero: str = "") -> None:
    if number is UNSET or number is None:
        return
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        instead = at_zero if number == 0 and not isinstance(number, bool) else ""
        raise BadDeclaration(f"{what} must be a whole number of at least 1, or None for what is declared, not {number!r}{instead}")
    _check_number(number, what, most)


def fits(key: str, template: Key) -> bool:
    """Whether a key may come from a template. Nobody can say it of a callable, which therefore may make any."""
    if not isinstance(template, str):
        return True
    pattern = "".join(re.escape(text) + (".*" if field is not None else "") for text, field in _parts(template, "a key"))
    return re.fullmatch(pattern, key) is not None


def _parts(template: str, what: str) -> list[tuple[str, str | None]]:
    """A template as pairs of literal text and the field that follows it."""
    try:
        return [(text, name) for text, name, _, _ in Formatter().parse(template)]
    except ValueError as error:
        raise BadDeclaration(f"{what}: the key {template!r} is no valid template: {error}") from error


def _fields(template: str, what: str) -> list[str]:
    """The arguments that a template names."""
    return [name.split(".")[0].split("[")[0] for _, name in _parts(template, what) if name is not None]
