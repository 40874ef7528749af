"""The plans of hot statements: what they cost does not grow with jobs that wait, are scheduled, or have finished."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator

import pytest

from offload.brokers.sqlite import file
from offload.brokers.sqlite.transaction import SQL, Transaction

LISTS = {
    "ns", "ids", "pairs", "places", "moves", "keys", "names", "progress", "results", "extras", "leaving", "gates", "seats", "dues", "rules",
    "owed", "parents", "reasons", "counts",
}  # fmt: skip
LARGE = (
    "jobs",
    "j",
    "ready",
    "r",
    "scheduled",
    "s",
    "done",
    "d",
    "waiting",
    "running",
    "aside",
    "a",
    "expiring",
    "e",
    "uniques",
    "errors",
    "steps",
    "parked",
    "p",
    "slots",
    "lanes",
    "links",
    "children",
    "link",
    "c",
    "w",
    "owed",
    "tallies",
)
FOR_PEOPLE = {"counts", "find", "find_in_state", "facts", "known_gates", "striking_gates", "find_members"}
"""Statements that may look at all jobs: somebody asked for them."""
SCANS_WHAT_RUNS = {"held_all", "beats", "sessions", "running_by_workflow", "running_by_batch"}
"""What runs is bounded by the workers' concurrency."""


@pytest.fixture(scope="module", params=["empty", "full"])
def connection(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """Of one file for all tests, which ask for plans alone and change nothing."""
    connection = file.connect(tmp_path_factory.mktemp("plans") / "plans.db", "full")
    file.migrate(connection, 0)
    if request.param == "full":
        _fill(connection)
    yield connection
    connection.close()


def _fill(connection: sqlite3.Connection) -> None:
    connection.executescript("""
        with recursive c(i) as (select 1 union all select i + 1 from c where i < 5000)
        insert into jobs (n, id, task, queue, rank, payload, enqueued_at, keep, due)
        select i, 'j' || i, 't' || (i % 7), 'q' || (i % 3), i % 2, '{}', i, 60, case when i % 5 = 0 then i end from c;
        insert into ready select queue, rank, n, n, 0, 0, 0, 0, null, null from jobs where n % 5 = 1;
        insert into aside select queue, task, rank, n, n, 0, 0, 0, 0, null, null from jobs where n % 5 = 2;
        insert into scheduled select due, n, 0, 0, 0, null, null from jobs where n % 5 = 0;
        insert into done select n, 'SUCCEEDED', 1, 1, 0, 0, 'w', null, null, n, n, null from jobs where n % 5 = 3;
        insert into running select n, 's', 1, 1, 0, n, 0, 0, 'w', 0 from jobs where n % 5 = 4;
        insert into expiring select n, n from jobs where n % 5 = 0;
        insert into uniques select 'k' || n, n, id, 'finished', null, null from jobs where n % 5 = 0;
        insert into errors select n, 1, '{}' from jobs where n % 5 = 3;
        insert into steps select n, 'a', '1' from jobs where n % 5 = 3;
        insert into slots select 'slot of k' || (n % 1000), n, 1 from jobs where n % 5 = 1;
        insert into parked select n, 'slot of k' || (n % 1000), n, 0, 0, 0, null, null from jobs where n % 5 in (3, 4);
        insert into waiting (n, behind, what) select n, '', 'parents' from jobs where n % 5 = 4;
        insert into links select n, i, 'j' || (n + i), 1, 0, 1, n % 3, null, null from jobs, (select 0 as i union select 1);
        insert into children select n, 1, 0 from jobs where n % 5 = 4;
        insert into owed select n, 'j' || n, 'f', 0, 1, null from jobs;
        insert into tallies select n, 'batch', 'b' || n, n, '', n, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, n, n, n, n, '{}' from jobs;
        update jobs set workflow = 'f' || (n % 50), batch = 'b' || (n % 50) where n % 5 <> 0;
        insert into lanes select lane, 'slot of l' || (n % 10), n from parked where n % 10 = 3 group by lane;
        analyze;
    """)


def plan(connection: sqlite3.Connection, name: str) -> list[str]:
    sql = SQL[name]
    if sql.rstrip().endswith(")") and re.fullmatch(r"insert (or replace )?into \w+ \([^()]*\)", sql.strip()):
        return []
    values = {each: "[]" if each in LISTS else 1 for each in re.findall(r":(\w+)", sql)}
    return [row[3] for row in connection.execute(f"explain query plan {sql}", values)]


FIRST_ALONE = ("SCAN owed", "SCAN owed USING COVERING INDEX sqlite_autoindex_owed_1", "SCAN tallies USING INDEX tallies_stopping")
"""Of these as many rows are read as one operation works off."""


def scans(steps: list[str]) -> list[str]:
    return [step for step in steps if step not in FIRST_ALONE and re.fullmatch(rf"SCAN ({'|'.join(LARGE)})\b(?! VIRTUAL).*", step)]


@pytest.mark.parametrize("name", sorted(SQL.keys() - FOR_PEOPLE - SCANS_WHAT_RUNS - {"lines"}))
def test_no_statement_scans_jobs(name: str, connection: sqlite3.Connection) -> None:
    assert scans(plan(connection, name)) == []


def test_the_lines_are_found_by_jumping_through_the_index(connection: sqlite3.Connection) -> None:
    steps = plan(connection, "lines")
    assert scans(steps) == ["SCAN aside"]  # the first one, with limit 1
    assert "SEARCH ready USING PRIMARY KEY (queue>?)" in steps


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("candidates", "SEARCH r USING PRIMARY KEY (queue=?)"),
        ("run_front", "SEARCH ready USING PRIMARY KEY (queue=? AND (rank,pos)<(?,?))"),
        ("drop_front", "SEARCH ready USING PRIMARY KEY (queue=? AND (rank,pos)<(?,?))"),
        ("drop_places", "SEARCH ready USING PRIMARY KEY (queue=? AND rank=? AND pos=?)"),
        ("drop_places_aside", "SEARCH aside USING PRIMARY KEY (queue=? AND task=? AND rank=? AND pos=?)"),
        ("settle_plain", "SEARCH running USING INTEGER PRIMARY KEY (rowid=?)"),
        ("drop_jobs", "SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"),
        ("due_jobs", "SEARCH s USING PRIMARY KEY (due<?)"),
        ("expired", "SEARCH e USING PRIMARY KEY (expires_at<?)"),
        ("forgettable", "SEARCH done USING COVERING INDEX done_forget (forget_at<?)"),
        ("heirs", "SEARCH p USING COVERING INDEX parked_lane (lane=?)"),
        ("heirs", "SEARCH h USING INTEGER PRIMARY KEY (rowid=?)"),
        ("heirs", "SEARCH slots USING PRIMARY KEY (gate=?)"),
        ("leave_slots", "SEARCH slots USING PRIMARY KEY (gate=?)"),
        ("inherit_slots", "SEARCH parked USING INTEGER PRIMARY KEY (rowid=?)"),
        ("inherit_ready", "SEARCH p USING INTEGER PRIMARY KEY (rowid=?)"),
        ("note_promoted", "SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"),
        ("drop_parked", "SEARCH parked USING INTEGER PRIMARY KEY (rowid=?)"),
        ("drop_slots", "SEARCH slots USING PRIMARY KEY (gate=?)"),
        ("lanes", "SEARCH p USING INDEX parked_lane (lane=?)"),
        ("line", "SEARCH p USING INDEX parked_lane (lane=? AND seat>?)"),
        ("concerned", "SEARCH link USING COVERING INDEX links_parent (parent=? AND flow=? AND child>?)"),
        ("tell", "SEARCH links USING INDEX links_parent (parent=? AND flow=? AND child>? AND child<?)"),
        ("having_children", "SEARCH links USING COVERING INDEX links_parent (parent=? AND flow=?)"),
        ("children", "SEARCH children USING INTEGER PRIMARY KEY (rowid=?)"),
        ("go_straight", "SEARCH j USING INTEGER PRIMARY KEY (rowid=?)"),
        ("go_straight", "SEARCH w USING INTEGER PRIMARY KEY (rowid=?)"),
        ("note_straight", "SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)"),
        ("count_down", "SEARCH children USING INTEGER PRIMARY KEY (rowid=?)"),
        ("keep_fates", "SEARCH links USING INDEX links_parent (parent=? AND flow=?)"),
        ("children", "SEARCH links USING INDEX links_failed (child=?)"),
        ("unknown_parent", "SEARCH c USING INDEX jobs_workflow (workflow=?)"),
        ("unknown_parent", "SEARCH link USING INDEX links_open (child=?)"),
        ("drop_links", "SEARCH links USING INDEX sqlite_autoindex_links_1 (child=?)"),
        ("ends_of", "SEARCH j USING INDEX sqlite_autoindex_jobs_1 (id=?)"),
        ("tallies", "SEARCH tallies USING INDEX sqlite_autoindex_tallies_1 (kind=? AND id=?)"),
        ("put_tallies", "SEARCH tallies USING INTEGER PRIMARY KEY (rowid=?)"),
        ("tallies_to_forget", "SEARCH tallies USING INDEX tallies_forget (forget_at<?)"),
        ("tallies_to_abandon", "SEARCH tallies USING INDEX tallies_abandon (abandon_at<?)"),
        ("workflow_members", "SEARCH jobs USING INDEX jobs_workflow (workflow=? AND n>?)"),
        ("batch_members", "SEARCH jobs USING INDEX jobs_batch (batch=? AND n>?)"),
    ],
)
def test_hot_statements_use_their_index(name: str, step: str, connection: sqlite3.Connection) -> None:
    steps = plan(connection, name)
    assert step in steps
    assert not [step for step in steps if "TEMP B-TREE" in step]


def test_a_claim_and_a_settle_are_one_step_each_whatever_their_size(connection: sqlite3.Connection) -> None:
    count = 0

    def counted(_: str) -> None:
        nonlocal count
        count += 1

    connection.set_trace_callback(counted)
    tx = Transaction(connection.execute, careful=False)
    tx.add("add_expiring", [(1_000_000 + i, i) for i in range(256)])
    tx.do("drop_expiring", pairs=str([[1_000_000 + i, i] for i in range(256)]))
    connection.set_trace_callback(None)
    assert count == 2
