"""`offload workflows` and `offload batches`."""

from __future__ import annotations

import pytest
from tests.cli.project import Project

from offload import Workflow

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
    assert f"`offload jobs retry {fallen['parents'][0]}` revives it with that one" in film.ok("why", fallen["id"])


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
