"""Graphs of jobs: what they come to, and what of them cannot be."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
import pytest

from offload import BadDeclaration, BadPayload, Concurrency, Offload, Unique, Workflow, chain, group, previous
from offload.job import Job, Membership, Parent
from offload.workflow import MOST_LINKS, Graph, Output, jobs_of, with_inputs

NOW = datetime(2030, 1, 1, tzinfo=UTC)
app = Offload("memory://")


@app.task(name="make")
def make(n: int = 0) -> int:
    return n


@app.task(name="take")
def take(first: int, second: Any = None, *, rest: dict[str, list[int]] | None = None) -> int:
    return first


@app.task(name="add")
def add(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(name="once", unique="key")
def once() -> None: ...


def planned(part: Any) -> list[Job]:
    """The jobs of a part, with short ids in the order in which they were added."""
    graph = Graph()
    graph.add(part)
    return jobs_of(graph, Membership("f", "", len(graph.leaves)), [f"j{n}" for n in range(len(graph.leaves))], NOW)


def told(jobs: list[Job]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Each job's arguments, and its parents with the places of their results."""
    return {job.id: (job.payload.decode(), {parent.id: parent.at for parent in job.parents}) for job in jobs}


def test_a_chain_waits_step_by_step_and_passes_results_on() -> None:
    jobs = planned(chain(make.job(1), take.job(previous), take.job(5, previous)))
    assert told(jobs) == {
        "j2": ('{"first":5,"second":null}', {"j1": (("second",),)}),
        "j1": ('{"first":null}', {"j0": (("first",),)}),
        "j0": ('{"n":1}', {}),
    }
    assert [job.workflow for job in jobs] == [Membership("f", "", 3)] * 3


def test_a_step_waits_for_the_one_before_also_where_it_takes_nothing_of_it() -> None:
    assert told(planned(chain(make.job(1), make.job(2))))["j1"] == ('{"n":2}', {"j0": ()})


def test_after_a_group_previous_is_the_list_in_order() -> None:
    jobs = told(planned(chain(make.job(1), group(make.job(2), take.job(previous)), add.job(previous))))
    assert jobs["j1"] == ('{"n":2}', {"j0": ()})
    assert jobs["j2"] == ('{"first":null}', {"j0": (("first",),)})
    assert jobs["j3"] == ('{"numbers":[null,null]}', {"j1": (("numbers", 0),), "j2": (("numbers", 1),)})


def test_groups_in_groups_give_lists_in_lists_and_chains_their_last() -> None:
    jobs = told(planned(chain(group(group(make.job(1), make.job(2)), chain(make.job(3), make.job(4))), take.job(0, previous))))
    assert jobs["j4"] == (
        '{"first":0,"second":[[null,null],null]}',
        {"j0": (("second", 0, 0),), "j1": (("second", 0, 1),), "j3": (("second", 1),)},
    )
    assert jobs["j3"] == ('{"n":4}', {"j2": ()})


def test_an_empty_group_gives_an_empty_list_and_is_waited_through() -> None:
    jobs = told(planned(chain(make.job(1), group(), add.job(previous))))
    assert jobs["j1"] == ('{"numbers":[]}', {"j0": ()})
    assert told(planned(chain(group(), add.job(previous))))["j0"] == ('{"numbers":[]}', {})


def test_an_output_anywhere_in_the_arguments_makes_the_dependency() -> None:
    flow = Workflow("deep")
    first, second = flow.add(make.job(1)), flow.add(make.job(2))
    flow.add(take.job(first.output, {"a": [1, second.output]}, rest={"x": [second.output, 7, first.output]}))
    (last, *_) = planned(flow)
    assert last.payload == b'{"first":null,"second":{"a":[1,null]},"rest":{"x":[null,7,null]}}'
    assert {parent.id: set(parent.at) for parent in last.parents} == {
        "j0": {("first",), ("rest", "x", 2)},
        "j1": {("second", "a", 1), ("rest", "x", 0)},
    }


def test_whoever_waits_is_stored_before_whom_it_waits_for_and_the_first_in_their_order() -> None:
    jobs = planned(chain(group(*(make.job(n) for n in range(4))), add.job(previous), make.job(9)))
    assert [job.id for job in jobs] == ["j5", "j4", "j0", "j1", "j2", "j3"]


def test_a_chains_size_grows_linearly() -> None:
    def size(length: int) -> int:
        return len(msgspec.json.encode(planned(chain(*(take.job(previous) if n else make.job() for n in range(length))))))

    assert size(200) / size(100) == pytest.approx(2, rel=0.05)


def test_a_workflow_in_a_workflow_is_copied_and_begins_after_what_it_comes_after() -> None:
    inner = Workflow("inner")
    source = inner.add(make.job(1))
    inner.add(take.job(source.output))
    outer = Workflow("outer")
    before = outer.add(make.job(0))
    part = outer.add(inner, after=[before], if_parent_fails="run")
    outer.add(take.job(part.output))
    jobs = {job.id: job for job in planned(outer)}
    assert told(list(jobs.values())) == {
        "j3": ('{"first":null}', {"j2": (("first",),)}),
        "j2": ('{"first":null}', {"j1": (("first",),)}),
        "j1": ('{"n":1}', {"j0": ()}),
        "j0": ('{"n":0}', {}),
    }
    assert [jobs[id].if_parent_fails for id in ("j1", "j2")] == ["run", "cancel"]


def test_results_are_put_where_they_belong() -> None:
    (last, *_) = planned(chain(group(make.job(1), make.job(2)), take.job(0, previous)))
    assert with_inputs(last, (b'{"x":1}', None)) == b'{"first":0,"second":[{"x":1},null]}'


def test_results_do_not_overwrite_what_a_person_has_edited() -> None:
    parents = (Parent("a", (("x",),)), Parent("b", (("y", 1),)), Parent("c", (("gone", "deep"),)))
    job = Job(id="j", task="t", enqueued_at=NOW, payload=b'{"x":"mine","y":[0,null]}', parents=parents)
    assert with_inputs(job, (b"1", b"2", b"3")) == b'{"x":"mine","y":[0,2]}'


@pytest.mark.parametrize(
    "use",
    [
        str,
        bool,
        len,
        list,
        int,
        float,
        lambda output: f"{output}",
        lambda output: f"{output:>10}",
        lambda output: output["x"],
        lambda output: output.name,
        lambda output: output + 1,
        lambda output: 2 * output,
        lambda output: -output,
    ],
)
def test_an_output_has_no_text_no_truth_and_no_parts(use: Any) -> None:
    for output in (previous, Workflow("w").add(make.job()).output):
        with pytest.raises(BadDeclaration, match="stands for a value that is not there yet"):
            use(output)


def test_the_outputs_of_a_group_have_no_text() -> None:
    flow = Workflow("w")
    inner = Workflow("inner")
    inner.add(make.job())
    inner.add(make.job())
    for node in (flow.add(group(make.job(), make.job())), flow.add(inner)):
        for use in (str, lambda outputs: f"{outputs}"):
            with pytest.raises(BadDeclaration, match="stands for values that are not there yet"):
                use(node.output)
        assert told(planned(chain(group(make.job(), make.job()), add.job(previous))))["j2"] == (
            '{"numbers":[null,null]}',
            {"j0": (("numbers", 0),), "j1": (("numbers", 1),)},
        )
        assert add.job(node.output).payload == b'{"numbers":[null,null]}'


def test_an_output_is_copied_as_it_is() -> None:
    output = Workflow("w").add(make.job()).output
    assert copy.copy(output) is output
    assert copy.deepcopy([output])[0] is output


def test_no_key_is_made_from_an_output() -> None:
    @app.task(name="keyed", unique="mail:{n}")
    def keyed(n: int) -> None: ...

    @app.task(name="limited", limits=[Concurrency(1, key="of:{n}")])
    def limited(n: int) -> None: ...

    for task in (keyed, limited):
        with pytest.raises(BadPayload, match="n, which is the output of a job that has not run yet"):
            task.job(previous)


def test_what_is_no_output_is_checked_at_once() -> None:
    with pytest.raises(BadPayload, match="argument 'second'"):

        @app.task(name="typed")
        def typed(first: int, second: int) -> None: ...

        typed.job(previous, cast("Any", "two"))
    with pytest.raises(BadPayload, match="'first' is missing"):
        cast("Any", take).job(second=previous)


def test_a_text_that_looks_like_an_output_stays_a_text() -> None:
    flow = Workflow("w")
    node = flow.add(make.job())
    flow.add(take.job(node.output, {"$output": "j0", "text": repr(node.output)}))
    (last, *_) = planned(flow)
    assert msgspec.json.decode(last.payload)["second"] == {"$output": "j0", "text": "<output of <job of make>>"}
    assert last.parents == (Parent("j0", (("first",),)),)


def test_an_output_is_no_key_of_a_dict() -> None:
    with pytest.raises(BadPayload, match="as the key of a dict"):
        take.job(1, {previous: 1})


def bad_parts() -> dict[str, Any]:
    flow, other = Workflow("w"), Workflow("other")
    stranger = other.add(make.job())
    flow.add(make.using(id="mine").job())

    @Offload("memory://").task(name="make")
    def elsewhere() -> None: ...

    looped = Workflow("looped")
    looped.add(make.job())
    return {
        "no job": (lambda: chain(cast("Any", make)), "a chain is made of jobs"),
        "a call": (lambda: flow.add(cast("Any", 3)), "a workflow is made of jobs"),
        "previous first": (lambda: planned(chain(take.job(previous))), "takes `previous`, and there is none"),
        "previous alone": (lambda: flow.add(take.job(previous)), "takes `previous`, and there is none"),
        "an output of another": (lambda: flow.add(take.job(stranger.output)), "belongs to another workflow"),
        "after another's": (lambda: flow.add(make.job(), after=[stranger]), "belongs to another workflow"),
        "after what is no node": (lambda: flow.add(make.job(), after=cast("Any", ["make"])), "after= takes what add"),
        "a job twice": (lambda: flow.add(make.using(id="mine").job()), "two jobs of the workflow have the id 'mine'"),
        "policy": (lambda: flow.add(make.job(), if_parent_fails=cast("Any", "ignore")), "'cancel' or 'run', not 'ignore'"),
        "a cycle": (lambda: looped.add(looped), "is to contain itself"),
        "a deep cycle": (lambda: looped.add(chain(group(looped))), "is to contain itself"),
        "unique": (lambda: flow.add(once.job()), "on_conflict='raise'"),
        "two apps": (lambda: chain(make.job(), elsewhere.job()).enqueue(), "belong to one app"),
        "alone": (lambda: app.enqueue_many([take.job(previous)]), "takes the output of another one"),
        "enqueued alone": (lambda: take.enqueue(previous), "takes the output of another one"),
        "scheduled": (lambda: app.schedule("s", take.job(previous), every=60), "takes the output of another one"),
        "name": (lambda: Workflow(cast("Any", 3)), "takes a name"),
        "no id": (lambda: Workflow(id=""), "takes a text that is not empty"),
        "a long id": (lambda: Workflow(id="x" * 194), "of at most 200"),
    }


@pytest.mark.parametrize("name", bad_parts())
def test_what_cannot_be_is_refused_when_it_is_built(name: str) -> None:
    call, message = bad_parts()[name]
    with pytest.raises(BadDeclaration, match=message):
        call()


def test_so_wide_a_mesh_is_refused_with_the_way_out() -> None:
    wide = [make.job() for _ in range(400)]
    with pytest.raises(BadDeclaration, match=f"over {MOST_LINKS:,} pairs .* put a job between"):
        planned(chain(group(*wide), group(*wide)))


def test_a_unique_key_that_raises_may_be_in_a_workflow() -> None:
    @app.task(name="raising", unique=Unique("key", on_conflict="raise"))
    def raising() -> None: ...

    assert [job.unique is not None for job in planned(chain(raising.job()))] == [True]


@pytest.mark.parametrize("template", ["{n}", "{n!r}", "{n.x}", "{n[0]}"])
def test_no_template_makes_a_key_from_an_output(template: str) -> None:
    @app.task(name=f"keyed {template}", unique=template)
    def keyed(n: Any) -> None: ...

    with pytest.raises(BadPayload, match="n, which is the output of a job that has not run yet"):
        keyed.job(previous)


def test_an_output_is_compared_with_nothing() -> None:
    node = Workflow("w").add(make.job())
    for compare in (lambda: node.output == 3, lambda: node.output != 3, lambda: node.output < 3):
        with pytest.raises(BadDeclaration, match="stands for a value that is not there yet"):
            compare()


def test_what_cannot_be_added_leaves_the_workflow_as_it_was() -> None:
    flow = Workflow("w")
    with pytest.raises(BadDeclaration, match="two jobs of the workflow"):
        flow.add(group(make.job(1), make.using(id="x").job(2), make.using(id="x").job(3)))
    flow.add(make.using(id="x").job(4))
    assert [leaf.draft.id for leaf in flow.graph.leaves] == ["x"]
    graph = flow.graph
    with pytest.raises(BadDeclaration, match="belongs to another workflow: add that one to this"):
        graph.add(take.job(Workflow("other").add(make.job()).output), [graph.known("stored")])
    with pytest.raises(BadDeclaration, match="two jobs"), graph.whole():
        graph.known("of the block")
        graph.add(make.using(id="of the block").job())
    graph.add(make.using(id="of the block").job())
    with pytest.raises(BadDeclaration, match="two jobs"):
        graph.add(make.using(id="stored").job())


def test_wrong_parts_are_told_what_is_right() -> None:
    flow: Any = Workflow("w")
    node = flow.add(make.job())
    for wrong, message in (
        (lambda: chain(cast("Any", [make.job()])), r"chain\(\*jobs\)"),
        (lambda: group(cast("Any", (make.job() for _ in range(2)))), r"group\(\*jobs\)"),
        (lambda: flow.add(make.job(), after=node), "after= takes a list"),
        (lambda: flow.add(make.job(), after="j1"), "after= takes a list"),
        (lambda: flow.add(make.job(), after=[make.job()]), "not a job of make that was not added"),
        (lambda: flow.add(node), "<job of make> is in a workflow already: pass on its output"),
        (lambda: app.batch("b").add(cast("Any", chain(make.job()))), "not <chain of 1>"),
        (lambda: flow.add(chain(Workflow("inner", id="i"))), "leave out its own id"),
        (lambda: flow.add(chain(chain(), take.job(previous))), "there is none"),
    ):
        with pytest.raises(BadDeclaration, match=message):
            wrong()
    with pytest.raises(BadPayload, match="pass its `output`"):
        take.job(node)
    with pytest.raises(AttributeError, match=r"make\.job\(\.\.\.\)"):
        cast("Any", make).s(1)
    assert repr(make.job()) == "<job of make>"


def test_many_ids_of_ones_own_are_told_apart_at_once() -> None:
    flow = Workflow("w")
    for number in range(20_000):
        flow.add(make.using(id=str(number)).job())
    with pytest.raises(BadDeclaration, match="two jobs"):
        flow.add(make.using(id="7").job())


def test_an_output_shows_what_it_stands_for() -> None:
    node = Workflow("w").add(make.job())
    assert repr(previous) == "<previous>"
    assert repr(node.output) == "<output of <job of make>>"
    assert isinstance(node.output, Output)
