"""`offload limits`."""

from __future__ import annotations

import shlex

import pytest
from tests.cli.project import Project

SHOP = """
from offload import Concurrency, Offload, Rate

app = Offload("sqlite:///shop.db", session_timeout=2, heartbeat=0.5)

@app.task(name="pay", order_by="account:{n}", on_dead="hold", retry=False)
def pay(n: int) -> None:
    raise ValueError

@app.task(name="call", limits=[Concurrency(2, key="tenant:{n}"), Rate("5/m", key="api", burst=3)])
def call(n: int) -> None: ...
"""


@pytest.fixture
def shop(project: Project) -> Project:
    project.write("shop.py", SHOP)
    return project.empty()


def enqueue(shop: Project, task: str, *ids: str) -> None:
    for id in ids:
        shop.ok("enqueue", task, "n=7", "--id", id)


def test_keys_are_listed_with_what_they_allow_and_who_holds_them(shop: Project) -> None:
    enqueue(shop, "pay", "p1", "p2")
    enqueue(shop, "call", "c1", "c2", "c3")
    account, api, tenant = shop.json("limits")
    assert (account["key"], account["kind"], account["allows"], account["waiting"]) == ("account:7", "turn", "one at a time", 1)
    assert (api["kind"], api["allows"], api["seconds_per_token"], api["burst"], api["held"]) == ("token", "5/m, burst 3", 12.0, 3, 2)
    assert (tenant["allows"], tenant["concurrency"], tenant["holders"], tenant["waiting"]) == ("2 at a time", 2, ["c1", "c2"], 1)
    header, *rows = shop.ok("limits").splitlines()
    assert header.split() == ["key", "kind", "allows", "held", "waiting", "next", "holders"]
    assert [row.split()[0] for row in rows] == ["account:7", "api", "tenant:7"]
    assert rows[2].endswith("c1 and c2")


@pytest.mark.parametrize("key", ["-x", " ", "--help", "a b"])
def test_what_is_said_of_odd_keys_can_be_typed(shop: Project, key: str) -> None:
    said = shop.ok("limits", "pause", "--", key)
    typed = shlex.split(said[said.index("`offload limits") + 1 : said.rindex("`")])
    assert shop.ok(*typed[1:]) == f"Key {key!r} goes on.\n"


def test_a_page_ends_at_an_odd_key_and_the_next_begins_there(shop: Project) -> None:
    for key in (" ", "-x", "z"):
        shop.ok("limits", "set", "--concurrency", "3", "--", key)
    for key in (" ", "-x"):
        [page] = shop.json("limits", "list", "--limit", "1", f"--after={key}")
        assert page["key"] > key


def test_keys_are_listed_a_page_at_a_time(shop: Project) -> None:
    enqueue(shop, "pay", "p1")
    enqueue(shop, "call", "c1")
    assert [each["key"] for each in shop.json("limits", "list", "--limit", "2")] == ["account:7", "api"]
    page = shop.run("limits", "list", "--limit", "2")
    assert "There may be more: --after api lists them." in page.stdout + page.stderr
    assert [each["key"] for each in shop.json("limits", "list", "--after", "api")] == ["tenant:7"]


def test_when_the_next_may_start_is_shown(shop: Project) -> None:
    enqueue(shop, "call", "c1", "c2", "c3", "c4")
    assert shop.drain() == 3
    [api] = shop.json("limits")
    assert (api["waiting"], api["held"]) == (1, 0)
    assert api["next_at"].endswith("Z")
    assert " in " in shop.ok("limits").splitlines()[1]


def test_a_turn_that_a_dead_job_keeps_is_noted(shop: Project) -> None:
    enqueue(shop, "pay", "p1", "p2")
    assert shop.drain() == 1
    assert shop.ok("limits").splitlines()[1].endswith("held by a dead job")
    assert "which job p1 keeps although it is dead" in shop.ok("why", "p2")
    assert "the line of key 'account:7' stands still" in shop.ok("doctor")


def test_a_job_shows_its_keys(shop: Project) -> None:
    enqueue(shop, "pay", "p1")
    enqueue(shop, "call", "c1")
    assert "order by     account:7\non dead      hold\n" in shop.ok("jobs", "show", "p1")
    assert "limits       tenant:7: 2 at a time; api: 5/m, burst 3\n" in shop.ok("jobs", "show", "c1")
    assert shop.json("jobs", "show", "c1")["limits"][0] == {"key": "tenant:7", "allows": "2 at a time"}


def test_what_a_person_sets_counts_until_it_is_reset(shop: Project) -> None:
    enqueue(shop, "call", "c1", "c2", "c3")
    said = shop.ok("limits", "set", "tenant:7", "--concurrency", "3")
    assert said == "Key 'tenant:7' allows from now on: concurrency 3. `offload limits reset tenant:7` goes back to what tasks declare.\n"
    _, tenant = shop.json("limits")
    assert (tenant["concurrency"], tenant["held"], tenant["changed"]) == (3, 3, True)
    assert shop.ok("limits").splitlines()[2].endswith("changed by a person")
    shop.ok("limits", "set", "api", "--rate", "100/s", "--burst", "20")
    assert shop.json("limits")[0]["allows"] == "100/s, burst 20"
    assert shop.ok("limits", "reset", "tenant:7") == "Key 'tenant:7' allows what tasks declare.\n"
    assert shop.ok("limits", "reset", "tenant:7") == "Key 'tenant:7' was not changed.\n"
    assert "'ap' was not changed; did you mean api?" in shop.ok("limits", "reset", "ap")


def test_a_paused_key_is_shown_once_and_goes_on_when_resumed(shop: Project) -> None:
    enqueue(shop, "call", "c1")
    assert "`offload limits resume tenant:7` lets it go on" in shop.ok("limits", "pause", "tenant:7")
    assert shop.drain() == 0
    rows = shop.ok("limits").splitlines()[1:]
    assert [(row.split()[0], row.endswith("paused")) for row in rows] == [("tenant:7", True)]
    assert shop.ok("limits", "resume", "tenant:7") == "Key 'tenant:7' goes on.\n"
    assert shop.ok("limits", "resume", "tenant:7") == "Key 'tenant:7' was neither paused nor held back.\n"
    assert shop.drain() == 1


def test_a_key_that_nobody_knows_is_changed_with_a_warning(shop: Project) -> None:
    result = shop.run("limits", "pause", "tennant:7")
    assert result.exit_code == 0
    assert "no job holds or waits for a key 'tennant:7' now, and no task here has such a key; did you mean tenant:{n}?" in result.stderr
    assert shop.run("limits", "pause", "tenant:8").stderr == ""  # idle, but a task has it
    assert [row.split()[:3] for row in shop.ok("limits").splitlines()[1:]] == [["tenant:8", "0", "0"], ["tennant:7", "0", "0"]]


def test_a_limit_of_a_kind_that_nobody_has_is_set_with_a_warning(shop: Project) -> None:
    result = shop.run("limits", "set", "tenant:7", "--rate", "1/m")
    assert result.exit_code == 0
    assert "nobody holds or waits for a token of key 'tenant:7' now; known for it: a concurrency limit (2 at a time)." in result.stderr
    assert shop.run("limits", "set", "tenant:7", "--concurrency", "2").stderr == ""
    told = "nobody holds or waits for a concurrency slot of key"
    for _ in range(2):  # that it was set makes nobody wait for it
        result = shop.run("limits", "set", "api", "--concurrency", "2")
        assert f"{told} 'api' now; known for it: a rate (5/m, burst 3)." in result.stderr
    result = shop.run("limits", "set", "account:7", "--concurrency", "2")
    assert f"{told} 'account:7' now; known for it: an order (one at a time)." in result.stderr


def test_without_the_tasks_what_jobs_have_says_what_a_key_is_for(shop: Project) -> None:
    enqueue(shop, "call", "c1")
    alone = ("--url", "sqlite:///shop.db")
    assert shop.run("limits", "set", "tenant:7", "--concurrency", "2", *alone).stderr == ""
    assert "known for it: a rate (5/m, burst 3)." in shop.run("limits", "set", "api", "--concurrency", "2", *alone).stderr
    assert "no job holds or waits for a key 'apo' now; did you mean api?" in shop.run("limits", "pause", "apo", *alone).stderr
    assert "what was set for key 'api' counts for nobody now" in shop.run("doctor", *alone).stdout


def test_a_holder_in_a_paused_queue_is_named(shop: Project) -> None:
    shop.ok("queues", "pause", "reports")
    shop.ok("enqueue", "call", "n=7", "--queue", "reports", "--id", "c1")
    shop.ok("enqueue", "call", "n=7", "--queue", "reports", "--id", "c2")
    enqueue(shop, "call", "c3")
    for id in ("c1", "c2"):
        assert f"Job {id} is READY in queue 'reports', which is paused, and so keeps it: `offload why {id}` tells" in shop.ok("why", "c3")
    said = shop.run("doctor").stdout
    assert "warning: key 'tenant:7' is held by jobs that nobody will start" in said


def test_no_key_says_so(shop: Project) -> None:
    assert "No key is held or waited for" in shop.run("limits").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["set", "k"], "nothing to set: give --concurrency, --rate or --burst"),
        (
            ["set", "k", "--concurrency", "0"],
            "--concurrency 0 would let nothing start: give at least 1, or stop the key with `offload limits pause k`",
        ),
        (["set", "k", "--concurrency", "-1"], "`offload limits pause k`"),
        (
            ["set", "k x", "--rate", "0/s"],
            "--rate 0/s would let nothing start: give at least 1, or stop the key with `offload limits pause 'k x'`",
        ),
        (["set", "k", "--rate", "2000000/s"], "a rate of '2000000/s' is too high"),
        (["set", "k", "--burst", "0"], "0 is not in the range x>=1"),
        (["set", "k", "--rate", "fast"], "a rate is a number per s, m, h or d, such as '100/s' or '5/m', not 'fast'"),
        (["set", "", "--rate", "1/s"], "the key must be a text that is not empty"),
        (["pause", "x" * 201], "has 201 characters, of at most 200"),
    ],
)
def test_what_cannot_be_set_is_refused(shop: Project, arguments: list[str], message: str) -> None:
    result = shop.run("limits", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert shop.app.limits() == []


def test_an_order_of_the_same_key_is_not_taken_for_the_holder_of_a_unique_key(shop: Project) -> None:
    unique = ("enqueue", "call", "n=1", "--unique", "account:7", "--id")
    shop.ok(*unique, "u1")
    shop.ok("jobs", "cancel", "u1")
    shop.ok(*unique, "u2")
    enqueue(shop, "pay", "p1")
    result = shop.run("jobs", "retry", "u1")
    assert "its unique key 'account:7' is held by job u2, which is READY" in result.output
