"""Job ids."""

from datetime import UTC, datetime
from uuid import RFC_4122, UUID

from offload.ids import new_ids

NOW = datetime(2026, 11, 21, 9, 30, 0, 123_000, tzinfo=UTC)


def test_an_id_is_a_uuid_of_version_7_that_carries_its_moment() -> None:
    [id] = new_ids(1, NOW)
    uuid = UUID(id)
    assert str(uuid) == id
    assert (uuid.version, uuid.variant) == (7, RFC_4122)
    assert uuid.int >> 80 == int(NOW.timestamp() * 1000)


def test_ids_of_one_call_ascend_and_of_many_calls_differ() -> None:
    ids = new_ids(5_000, NOW)
    assert ids == sorted(ids)
    assert len({*ids, *(id for _ in range(1_000) for id in new_ids(1, NOW))}) == 6_000


def test_any_number_of_ids_can_be_made() -> None:
    assert new_ids(0, NOW) == []
    assert len(set(new_ids(100_000, NOW))) == 100_000
