"""`offload workflows` and `offload batches`."""

from __future__ import annotations

import sys

import pytest
from tests.cli.project import Project

from offload import State, Workflow

FILM = """
from offload import Offload, Workflow, chain, group, previous

app = Offload("sqlite:///shop.db", session_timeout=2, heartbeat=0.5)

@app.task(name="cut")
def cut(n: int) -> int:
    return n + 1

@app.task(name="glue")
def glue(parts: list[int]) -> int:
    return sum(parts)

@app.task(name="burn", retry=False)
def burn(n: int) -> int:
    raise ValueError(n)

@app.task(name="tell")
def tell() -> None: ...
"""

SLOTS = """
@app.task(name="say", limits=Concurrency(1, key="voice"))
def say() -> None: ...
"""


@pytest.fixture
def film(project: Project) -> Project:
    project.write("shop.py", FILM)
    return project.empty()


def enqueued(film: Project, name: str = "the film") -> str:
    """A workflow: one job, two beside each other, one that joins them, one that fails and one after it."""
    cut, glue, burn = (film.app.tasks[task] for task in ("cut", "glue", "burn"))
    flow = Workflow(name)
    first = flow.add(cut.job(1))
    parts = [flow.add(cut.job(first.output)) for _ in range(2)]
    flow.add(glue.job([part.output for part in parts]))
    flow.add(cut.job(flow.add(burn.job(7)).output))
    return flow.enqueue().id


def test_workflows_are_listed_with_how_far_they_are(film: Project) -> None:
    assert "There is no workflow." in film.run("workflows").stderr
    id = enqueued(film)
    header, row = film.ok("workflows").splitlines()
    assert header.split()[:2] == ["workflow", "name"]
    assert row.split()[0] == id
    assert " running " in row
    assert "····················" in row
    assert film.drain() == 5
    [told] = film.json("workflows")
    assert (told["id"], told["name"], told["state"], told["total"], told["succeeded"]) == (id, "the film", "failed", 6, 4)
    assert (told["dead"], told["cancelled"], told["waiting"], told["size"]) == (1, 1, 0, 6)
    newer = enqueued(film, "newer")
    page = film.run("workflows", "list", "--limit", "1")
    assert newer in page.stdout
    assert f"--after {newer}" in page.stderr
    assert [each["id"] for each in film.json("workflows", "list", "--after", newer)] == [id]


def test_a_workflow_is_drawn_as_a_tree(film: Project) -> None:
    id = enqueued(film)
    film.drain()
    title, *lines = film.ok("workflows", "show", id).splitlines()
    assert title.startswith("the film  failed  ")
    assert title.endswith("4 succeeded, 1 dead, 1 cancelled")
    drawn = [(line.index(next(word for word in ("cut", "glue", "burn") if word in line)) // 4, line.split()[1:]) for line in lines]
    assert [depth for depth, _ in drawn] == [1, 2, 3, 2, 1, 2]
    assert sum("also after" in line for line in lines) == 1
    told = film.json("workflows", "show", id)
    assert [job["task"] for job in told["jobs"]].count("cut") == 4
    assert {job["reason"] for job in told["jobs"] if job["state"] == "CANCELLED"} == {
        f"parent {next(job['id'] for job in told['jobs'] if job['task'] == 'burn')} ended DEAD"
    }
    assert film.run("workflows", "show", "none").exit_code == 1


def test_a_workflow_is_cancelled_once_that_is_sure(film: Project) -> None:
    id = enqueued(film)
    refused = film.run("workflows", "cancel", id)
    assert (refused.exit_code, "nothing was changed" in refused.stderr) == (1, True)
    assert film.ok("workflows", "cancel", id, "--yes") == f"Workflow {id} is being cancelled.\n"
    assert film.json("workflows")[0]["cancelled"] == 6
    assert film.ok("workflows", "cancel", id) == f"Workflow {id} has ended already.\n"


def test_jobs_are_listed_by_workflow_and_tell_what_they_wait_for(film: Project) -> None:
    id = enqueued(film)
    film.ok("enqueue", "tell")
    found = film.json("jobs", "--workflow", id)
    assert len(found) == 6
    glue = next(job for job in found if job["task"] == "glue")
    assert len(glue["parents"]) == 2
    assert (glue["workflow"], glue["if_parent_fails"]) == (id, "cancel")
    assert f"It waits for 2 of its 2 parents to end: {', '.join(glue['parents'])}." in film.ok("why", glue["id"])
    film.drain()
    [fallen] = [job for job in film.json("jobs", "--workflow", id) if job["state"] == "CANCELLED"]
    [burnt] = [job["id"] for job in film.json("jobs", "--workflow", id) if job["state"] == "DEAD"]
    assert f"for it comes after job {burnt} (burn), which ended DEAD: ValueError: 7. `offload jobs retry {burnt}`" in film.ok(
        "why", fallen["id"]
    )


def chained(film: Project, *tasks: str) -> list[str]:
    """The ids of a chain's jobs."""
    flow = Workflow()
    nodes = [flow.add(film.app.tasks[tasks[0]].job(1))]
    for task in tasks[1:]:
        nodes.append(flow.add(film.app.tasks[task].job(nodes[-1].output)))
    run = flow.enqueue()
    return [run.handle(node).id for node in nodes]


def test_who_fell_two_levels_below_is_revived_by_what_why_advises(film: Project) -> None:
    a, b, c = chained(film, "burn", "cut", "cut")
    film.drain()
    for id in (b, c):
        assert f"`offload jobs retry {a}` revives it with that one" in film.ok("why", id)
        refused = film.run("jobs", "retry", id)
        assert refused.exit_code == 1
        assert (
            f"{id} was left alone: it comes after job {a} (burn), which ended DEAD: ValueError: 1. "
            f"`offload jobs retry {a}` revives it with that one." in refused.stderr
        )
    assert film.ok("jobs", "retry", a) == "1 job retried.\n"
    assert [film.record(id).state for id in (a, b, c)] == ["READY", "WAITING", "WAITING"]


def test_who_fell_with_one_that_was_deleted_cannot_be_revived_and_is_told_so(film: Project) -> None:
    a, b, c = chained(film, "burn", "cut", "cut")
    film.drain()
    film.ok("jobs", "delete", a, "--yes")
    for id in (b, c):
        assert f"after job {a}, of which there is no record any more. It cannot be revived: enqueue it anew" in film.ok("why", id)
        assert f"after job {a}, of which there is no record any more. It cannot be revived" in film.run("jobs", "retry", id).stderr
    left = film.run("workflows", "retry", film.json("workflows")[0]["id"], "--yes")
    assert left.stdout == "0 jobs retried.\n"
    assert f"{b} was left alone: it comes after job {a}, of which there is no record any more. It cannot be revived" in left.stderr


def test_jobs_that_were_cancelled_one_by_one_come_back_in_any_order(film: Project) -> None:
    ids = chained(film, "cut", "cut", "cut")
    film.ok("jobs", "cancel", *ids)
    assert f"`offload jobs retry {ids[0]} {ids[1]}` revives it" in film.ok("why", ids[1])
    assert film.ok("jobs", "retry", *reversed(ids)) == "3 jobs retried.\n"
    assert [film.record(id).state for id in ids] == ["READY", "WAITING", "WAITING"]


def test_a_workflow_is_retried_once_that_is_sure(film: Project) -> None:
    id = enqueued(film)
    film.drain()
    [burnt] = film.app.find(state="dead")
    refused = film.run("workflows", "retry", id)
    assert (refused.exit_code, "nothing was changed" in refused.stderr, "Retry 1 job?" in refused.stderr) == (1, True, True)
    assert film.ok("workflows", "retry", id, "--dry-run") == "1 job would be retried.\n"
    assert film.json("workflows", "retry", id, "--yes") == {"retried": [burnt.id], "left_alone": []}
    assert film.json("workflows")[0]["waiting"] == 2
    assert film.run("workflows", "retry", "none").exit_code == 1
    film.drain()
    matching = film.run("jobs", "retry", "--workflow", id, "--all-matching", "--yes")
    assert matching.stdout == "1 job retried.\n"
    assert "1 job came back with those that they had fallen with." in matching.stderr


def test_a_workflow_that_was_cancelled_comes_back_as_a_whole(film: Project) -> None:
    id = enqueued(film)
    film.ok("workflows", "cancel", id, "--yes")
    film.ok("workflows", "retry", id, "--yes")
    told = film.json("workflows")[0]
    assert (told["cancelled"], told["waiting"]) == (0, 6)


def test_a_batch_is_retried(film: Project) -> None:
    cut, burn = film.app.tasks["cut"], film.app.tasks["burn"]
    with film.app.batch(id="n1", on_failure=burn.job(5)) as batch:
        batch.add_many([cut.job(1), burn.job(2), burn.job(3)])
    film.drain()
    assert film.ok("batches", "retry", "n1", "--yes") == "3 jobs retried.\n"
    assert film.json("batches")[0]["waiting"] == 2
    assert film.run("batches", "retry", "none").exit_code == 1


def test_a_page_goes_on_after_one_that_there_is(film: Project) -> None:
    id = enqueued(film)
    for kind in ("workflow", "batch"):
        lost = film.run("workflows" if kind == "workflow" else "batches", "list", "--after", "nope")
        assert (lost.exit_code, lost.stdout) == (1, "")
        assert f"--after nope: there is no such {kind}, so it is not known where to go on" in lost.stderr
    assert "There is no older workflow." in film.run("workflows", "list", "--after", id).stderr


def test_a_tree_names_the_parents_below_which_a_job_is_not_drawn(film: Project) -> None:
    cut, glue = film.app.tasks["cut"], film.app.tasks["glue"]
    flow = Workflow()
    parts = [flow.add(cut.job(n)) for n in range(3)]
    last = flow.add(glue.job([part.output for part in parts]))
    run = flow.enqueue()
    film.drain()
    first, second, third, joined = (run.handle(node).id for node in (*parts, last))
    assert f"{joined}  also after {second}, {third}" in film.ok("workflows", "show", run.id)
    film.ok("jobs", "delete", first, "--yes")
    shown = film.ok("workflows", "show", run.id).splitlines()
    assert f"{joined}  also after {first}, {third}" in next(line for line in shown if joined in line)
    film.ok("jobs", "delete", second, third, "--yes")
    assert f"{joined}  after {first}, {second}, {third}" in film.ok("workflows", "show", run.id)


def test_an_argument_that_is_the_output_of_a_parent_is_shown_as_that(film: Project) -> None:
    id = enqueued(film)
    jobs = film.json("jobs", "--workflow", id)
    glue = next(job for job in jobs if job["task"] == "glue")
    cut = next(job for job in jobs if job["task"] == "cut" and job["parents"])
    assert f"n = <output of {cut['parents'][0]}>" in film.ok("jobs", "show", cut["id"])
    left, right = glue["parents"]
    assert f'parts = ["<output of {left}>","<output of {right}>"]' in film.ok("jobs", "show", glue["id"])
    assert film.json("jobs", "show", cut["id"])["payload"] == {"n": None}


def test_a_callback_that_is_due_and_waits_for_a_slot_is_not_called_not_due(film: Project) -> None:
    film.write("shop.py", FILM.replace("import Offload", "import Concurrency, Offload") + SLOTS)
    sys.modules.pop("shop")
    tell = film.app.tasks["say"]
    tell.enqueue()
    with film.app.batch(id="n1", on_complete=tell.job()):
        pass
    [(_, callback)] = film.app.batch(id="n1").progress().callbacks
    assert film.record(callback).state is State.WAITING
    assert film.ok("batches", "show", "n1").splitlines()[1] == f"on_complete: WAITING  {callback}"


def test_a_batch_is_shown_with_its_callbacks_sealed_and_cancelled(film: Project) -> None:
    app = film.app
    cut, burn, tell = (app.tasks[task] for task in ("cut", "burn", "tell"))
    assert "There is no batch." in film.run("batches").stderr
    batch = app.batch("nightly", id="n1", on_success=tell.job(), on_failure=tell.job(), on_complete=tell.job()).open()
    batch.add_many([cut.job(1), burn.job(2)])
    assert " open " in film.ok("batches").splitlines()[1]
    film.drain()
    shown = film.ok("batches", "show", "n1").splitlines()
    assert shown[0].startswith("nightly  open  ")
    assert [line.rpartition("  ")[0] for line in shown[1:]] == ["on_success: not due", "on_failure: SUCCEEDED", "on_complete: not due"]
    waiting = next(job["id"] for job in film.json("jobs", "--batch", "n1") if job["callback"] == "success")
    assert "It is called back by batch n1 when all its jobs have succeeded." in film.ok("why", waiting)
    assert film.ok("batches", "seal", "n1") == "Batch n1 is sealed.\n"
    assert film.ok("batches", "seal", "n1") == "Batch n1 was sealed before.\n"
    [told] = film.json("batches")
    assert (told["state"], told["sealed"], sorted(told["callbacks"])) == ("failed", True, ["complete", "failure", "success"])
    other = app.batch(id="n2").open()
    other.add(cut.job(1))
    assert film.ok("batches", "cancel", "n2", "--yes") == "Batch n2 is being cancelled.\n"
    assert film.ok("batches", "cancel", "n2") == "Batch n2 has ended already.\n"
    assert film.run("batches", "show", "none").exit_code == 1
