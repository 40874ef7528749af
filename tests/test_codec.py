"""Arguments and results travel as JSON and come back by annotation."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pytest

from offload.codec import Arguments, Returns, encode_plain
from offload.errors import BadPayload
from offload.job import MOST_PAYLOAD_BYTES


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Address:
    street: str
    since: datetime


class Order(msgspec.Struct):
    id: UUID
    total: Decimal
    ship_to: Address


class Point(NamedTuple):
    x: int
    y: int


class Options(TypedDict):
    verbose: bool


class Shouted(str):
    __slots__ = ()


MOMENT = datetime(2026, 11, 21, 9, 30, 0, 5, tzinfo=UTC)
ORDER = Order(UUID(int=7), Decimal("12.30"), Address("High Street", MOMENT))


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `function` gets on the other side."""
    arguments = Arguments(function)
    args, kwargs = arguments.decode(arguments.encode(args, kwargs))
    return function(*args, **kwargs)


def takes(annotation: Any) -> Callable[..., Any]:
    """A function of one argument of that annotation which gives it back."""

    def function(value: Any) -> Any:
        return value

    function.__annotations__["value"] = annotation
    return function


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 2**70),
        (str, 'ü "quoted" \u2028'),
        (float, 1.5),
        (bool, True),
        (bytes, b"\x00\xff"),
        (Decimal, Decimal("0.10")),
        (UUID, UUID(int=9)),
        (datetime, MOMENT),
        (datetime, datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2)))),
        (date, date(2026, 2, 28)),
        (time, time(9, 30)),
        (timedelta, timedelta(days=1, microseconds=3)),
        (Path, Path("/srv/picture.png")),
        (Colour, Colour.RED),
        (Level, Level.HIGH),
        (Order, ORDER),
        (list[Order], [ORDER, ORDER]),
        (Address, Address("Low Street", MOMENT)),
        (Point, Point(1, 2)),
        (Options, {"verbose": True}),
        (set[int], {1, 2, 3}),
        (frozenset[str], frozenset({"a"})),
        (tuple[int, str], (1, "a")),
        (dict[str, Path], {"a": Path("b")}),
        (dict[int, str], {1: "a"}),
        (int | None, None),
        (Path | None, Path("a")),
        (int | str | list[int], [1, 2]),
        (Any, {"a": [1, None, 2.5, "x"]}),
        (object, [1, "a"]),
    ],
)
def test_a_value_comes_back_as_its_annotation_says(annotation: Any, value: Any) -> None:
    back = call(takes(annotation), value)
    assert back == value
    assert type(back) is type(value)


def everything(a: int, /, b: str = "b", *rest: float, key: bool = False, **more: int) -> Any:
    return a, b, rest, key, more


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1,), {}),
        ((1, "x"), {}),
        ((1,), {"b": "x"}),
        ((1, "x", 1.5, 2.5), {}),
        ((1, "x", 1.5), {"key": True, "z": 9}),
        ((1,), {"key": True}),
        ((1,), {"y": 1, "z": 2}),
    ],
)
def test_every_kind_of_parameter_arrives_as_in_a_direct_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert call(everything, *args, **kwargs) == everything(*args, **kwargs)


def test_the_payload_is_an_object_of_parameter_names() -> None:
    assert Arguments(everything).encode((1, "x", 1.5), {"key": True, "z": 9}) == b'{"a":1,"b":"x","rest":[1.5],"key":true,"more":{"z":9}}'


def test_a_default_that_was_not_passed_is_left_to_the_worker() -> None:
    def send(to: str, copies: int = 1) -> Any:
        return to, copies

    assert Arguments(send).encode(("a",), {}) == b'{"to":"a"}'
    assert Arguments(send).decode(b'{"to":"a"}') == ((), {"to": "a"})


def test_the_order_of_keywords_does_not_change_the_payload() -> None:
    def send(a: int, b: int, c: int = 0) -> None: ...

    arguments = Arguments(send)
    assert arguments.encode((), {"c": 3, "b": 2, "a": 1}) == arguments.encode((1, 2), {"c": 3}) == b'{"a":1,"b":2,"c":3}'


def test_a_parameter_whose_default_is_none_takes_none() -> None:
    def send(to: str = None) -> Any:  # noqa: RUF013 # pyright: ignore[reportArgumentType]
        return to

    assert call(send, None) is None
    assert call(send, "a") == "a"


def test_a_positional_only_default_is_filled_in_where_a_payload_leaves_a_gap() -> None:
    def send(a: int = 1, b: int = 2, /) -> Any:
        return a, b

    args, kwargs = Arguments(send).decode(b'{"b":5}')
    assert send(*args, **kwargs) == (1, 5)


def test_parameters_may_have_any_name() -> None:
    def send(self: int, args: int, kwargs: int, _private: int, __struct_fields__: int) -> Any:
        return self, args, kwargs, _private, __struct_fields__

    assert call(send, 1, args=2, kwargs=3, _private=4, __struct_fields__=5) == (1, 2, 3, 4, 5)


def send(user_id: int, name: str = "") -> None: ...


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (("x",), {}, r"send\(user_id: int, name: str = ''\) .*argument 'user_id': expected int, got str"),
        ((), {}, "'user_id' is missing"),
        ((), {"name": "x"}, "'user_id' is missing"),
        ((1, "a", 2), {}, "it takes at most 2 positional arguments, not 3"),
        ((1,), {"user_id": 1}, "'user_id' is given twice"),
        ((1,), {"nick": "x"}, "there is no parameter 'nick'"),
        ((1, None), {}, "expected str, got None"),
        ((1.5,), {}, "expected int, got float"),
        ((True,), {}, "expected int, got bool"),
        ((1, object()), {}, "argument 'name' cannot be carried as JSON: object is no JSON value"),
        ((1, "\ud800"), {}, "argument 'name' cannot be carried as JSON"),
    ],
)
def test_a_call_that_cannot_work_is_refused_at_enqueue(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadPayload, match=message):
        Arguments(send).encode(args, kwargs)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("annotation", [float, float | None, Any, list[Any], dict[str, float | None]])
def test_numbers_that_json_does_not_have_are_refused(annotation: Any, value: float) -> None:
    given: Any = value
    if annotation == list[Any]:
        given = [1, (value,)]
    elif annotation == dict[str, float | None]:
        given = {"a": value}
    with pytest.raises(BadPayload, match="JSON has no"):
        Arguments(takes(annotation)).encode((given,), {})


@pytest.mark.parametrize("annotation", [datetime, datetime | None, Any, Address, list[datetime]])
def test_a_datetime_without_a_time_zone_is_refused(annotation: Any) -> None:
    naive = datetime(2026, 1, 1)
    value: Any = [naive] if annotation == list[datetime] else Address("x", naive) if annotation is Address else naive
    with pytest.raises(BadPayload, match="has no time zone; make it aware"):
        Arguments(takes(annotation)).encode((value,), {})


def test_a_text_that_looks_like_a_naive_datetime_is_a_text() -> None:
    assert call(takes(Any), "2026-01-01T00:00:00") == "2026-01-01T00:00:00"
    assert call(takes(str), "2026-01-01T00:00:00") == "2026-01-01T00:00:00"


def test_a_payload_that_is_too_large_is_refused_with_the_way_out() -> None:
    with pytest.raises(BadPayload, match=r"262,1\d\d bytes of JSON, of at most 262,144: store the data elsewhere and pass its key"):
        Arguments(takes(str)).encode(("x" * MOST_PAYLOAD_BYTES,), {})
    exact = MOST_PAYLOAD_BYTES - len('{"value":""}')
    assert len(Arguments(takes(str)).encode(("x" * exact,), {})) == MOST_PAYLOAD_BYTES


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'{"user_id":"x"}', "expected int"),
        (b"{}", "'user_id' is missing"),
        (b'{"user_id":1,"nick":"x"}', "no parameter 'nick'"),
        (b"[1]", "expected object"),
        (b'{"user_id":', "truncated"),
        (b"", "truncated"),
        (b'{"user_id":1,"name":"\xff"}', "utf-8"),
    ],
)
def test_a_payload_that_does_not_fit_the_signature_is_refused(payload: bytes, message: str) -> None:
    with pytest.raises(BadPayload, match=message):
        Arguments(send).decode(payload)


def test_an_annotation_that_cannot_be_found_counts_as_any() -> None:
    def deliver(parcel: Parcel, count: int) -> None: ...  # noqa: F821 # pyright: ignore[reportUndefinedVariable]

    arguments = Arguments(deliver)
    assert arguments.decode(arguments.encode(({"a": 1}, 2), {})) == ((), {"parcel": {"a": 1}, "count": 2})
    with pytest.raises(BadPayload, match="expected int"):
        arguments.encode((1, "x"), {})


def test_constraints_in_annotations_are_checked_at_enqueue() -> None:
    with pytest.raises(BadPayload, match="expected int >= 1"):
        Arguments(takes(Annotated[int, msgspec.Meta(ge=1)])).encode((0,), {})


def test_where_json_cannot_tell_types_apart_only_plain_values_pass() -> None:
    arguments = Arguments(takes(Path | str))
    assert arguments.encode(("a.png",), {}) == b'{"value":"a.png"}'
    with pytest.raises(BadPayload, match=r"cannot be told apart in JSON, so .*Path.* would arrive as 'a.png'"):
        arguments.encode((Path("a.png"),), {})


def test_a_dataclass_whose_fields_cannot_be_found_takes_plain_values_only() -> None:
    @dataclass
    class Parcel:
        contents: Nowhere  # noqa: F821 # pyright: ignore[reportUndefinedVariable]

    arguments = Arguments(takes(Parcel))
    assert arguments.encode(({"contents": 1},), {}) == b'{"value":{"contents":1}}'
    with pytest.raises(BadPayload, match="cannot be told apart"):
        arguments.encode((Parcel(1),), {})


def test_subclasses_of_text_and_numbers_travel_as_what_they_are() -> None:
    assert call(takes(str), Shouted("loud")) == "loud"
    assert call(takes(int), Level.HIGH) == 3


def test_a_class_that_json_cannot_carry_is_refused_by_name() -> None:
    with pytest.raises(BadPayload, match="socket"):
        Arguments(takes(pytest.importorskip("socket").socket)).encode(("x",), {})


def test_a_list_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(BadPayload, match="cannot be carried as JSON"):
        Arguments(takes(Any)).encode((endless,), {})


def returns(annotation: Any) -> Returns:
    def function() -> Any: ...

    function.__annotations__["return"] = annotation
    return Returns(function)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(int, 1), (Order, ORDER), (None, None), (int | None, None), (str, None), (Any, [1]), (list[Path], [Path("a")]), (bytes, b"a")],
)
def test_a_result_comes_back_as_the_return_annotation_says(annotation: Any, value: Any) -> None:
    result = returns(annotation)
    assert result.decode(result.encode(value)) == value


def test_no_result_takes_no_room() -> None:
    assert returns(None).encode(None) is None


def test_a_result_that_cannot_be_carried_is_refused() -> None:
    result = returns(Any)
    with pytest.raises(BadPayload, match="the result cannot be carried as JSON: object is no JSON value"):
        result.encode(object())
    with pytest.raises(BadPayload, match="store the data elsewhere"):
        result.encode("x" * MOST_PAYLOAD_BYTES)
    with pytest.raises(BadPayload, match="JSON has no nan"):
        result.encode([math.nan])


def test_a_result_that_is_not_what_was_annotated_is_said_to_be_so() -> None:
    with pytest.raises(BadPayload, match="does not fit its return annotation: expected int, got str"):
        returns(int).decode(b'"x"')


def test_arguments_of_a_task_that_is_unknown_here_are_carried_unchecked() -> None:
    assert encode_plain({"user_id": 7, "at": MOMENT}, "mail.send") == b'{"user_id":7,"at":"2026-11-21T09:30:00.000005Z"}'
    with pytest.raises(BadPayload, match=r"mail\.send: .* no time zone"):
        encode_plain({"at": datetime(2026, 1, 1)}, "mail.send")


def test_pydantic_models_round_trip() -> None:
    pydantic = pytest.importorskip("pydantic")
    user_model = pydantic.create_model("User", id=(int, ...), born=(date, ...))
    user = user_model(id=1, born=date(2000, 1, 1))
    assert call(takes(user_model), user) == user
    assert call(takes(list[user_model]), [user]) == [user]
    with pytest.raises(BadPayload, match="Field required"):
        Arguments(takes(user_model)).encode(({"id": 1},), {})
