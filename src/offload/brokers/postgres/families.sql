-- The SQL of parents and children. As in queries.sql, lists come in as one JSON text and go out as one, and no plan depends on the sizes
-- of tables.

-- name: add_links
-- Links, as [child, place, parent, workflow, whether the result is wanted, fate and why where it has a fate of its own].
insert into offload.links (child, place, parent, workflow, wanted, fate, why, input)
select (value ->> 0)::bigint, (value ->> 1)::integer, value ->> 2, value ->> 3, (value ->> 4)::boolean, value ->> 5, value ->> 6,
    case when value ->> 5 = 'done' and (value ->> 4)::boolean then (
        select result from offload.done where n = (select n from offload.jobs where id = value ->> 2)
    ) end
from json_array_elements(%(links)s::json)

-- name: add_children
-- Children, as books.Kin, each with whether it is straight: see offload.gates.
insert into offload.children (n, open, failed, brave, felled, straight)
select (value ->> 0)::bigint, (value ->> 1)::integer, (value ->> 2)::integer, (value ->> 3)::boolean, (value ->> 4)::boolean,
    (value ->> 5)::boolean
from json_array_elements(%(children)s::json)

-- name: add_pending
-- Jobs, as [n, what they wait for, claim, attempt, crashes, started_at, worker].
insert into offload.waiting (n, behind, what, claim, attempt, crashes, started_at, worker)
select (value ->> 0)::bigint, '', value ->> 1, (value ->> 2)::integer, (value ->> 3)::integer, (value ->> 4)::integer,
    (value ->> 5)::bigint, value ->> 6
from json_array_elements(%(jobs)s::json)

-- name: parents
-- Jobs, as [workflow, id], that may be parents. Returns those that there are, in order, as newcomers.ParentRow.
select coalesce(json_agg(json_build_array(
    p.n, p.workflow, p.id, p.state, p.queue, p.task, p.place, p.pos, p.due, p.aside,
    exists (select from offload.owed where key = (a.value ->> 0) || E'\n' || (a.value ->> 1))) order by p.n), '[]')::text
from json_array_elements(%(parents)s::json) a cross join lateral (
    select n, workflow from offload.jobs where id = a.value ->> 1 limit 1
) as j cross join lateral (select * from offload.records where n = j.n and j.workflow = a.value ->> 0 limit 1) as p

-- name: hold_parents
-- Jobs, as newcomers.ParentRow, do not leave the place where they stand before this transaction ends. Returns those that stood there.
with places as materialized (
    select (value ->> 0)::bigint as n, value ->> 3 as state, value ->> 4 as queue, value ->> 5 as task, (value ->> 6)::bigint as rank,
        (value ->> 7)::bigint as pos, (value ->> 8)::bigint as due, (value ->> 9)::boolean as aside
    from json_array_elements(%(places)s::json)
), running as materialized (
    select r.n from places p cross join lateral (select n from offload.running where n = p.n limit 1 for key share) as r
    where p.state = 'RUNNING'
), ready as materialized (
    select r.n from places p cross join lateral (
        select n from offload.ready where queue = p.queue and rank = p.rank and pos = p.pos and n = p.n limit 1 for key share
    ) as r where p.state = 'READY' and not p.aside
), aside as materialized (
    select r.n from places p cross join lateral (
        select n from offload.aside where queue = p.queue and task = p.task and rank = p.rank and pos = p.pos and n = p.n limit 1 for key share
    ) as r where p.aside
), scheduled as materialized (
    select r.n from places p cross join lateral (
        select n from offload.scheduled where due = p.due and n = p.n limit 1 for key share
    ) as r where p.state = 'SCHEDULED'
), waiting as materialized (
    select r.n from places p cross join lateral (select n from offload.waiting where n = p.n limit 1 for key share) as r
    where p.state = 'WAITING'
), parked as materialized (
    select r.n from places p cross join lateral (select n from offload.parked where n = p.n limit 1 for key share) as r
    where p.state = 'WAITING'
), arrivals as materialized (
    select r.n from places p cross join lateral (select n from offload.arrivals where n = p.n limit 1 for key share) as r
    where p.state = 'WAITING'
), done as materialized (
    select r.n from places p cross join lateral (select n from offload.done where n = p.n limit 1 for key share) as r
    where p.state not in ('READY', 'SCHEDULED', 'WAITING', 'RUNNING')
)
select coalesce(json_agg(n), '[]')::text from (
    select n from running union all select n from ready union all select n from aside union all select n from scheduled
    union all select n from waiting union all select n from parked union all select n from arrivals union all select n from done
) as held

-- name: missing_parent
-- The first job of a workflow that waits for a parent which there is not, and that one.
select (select id from offload.jobs where n = l.child), l.parent
from offload.ties l
where l.workflow = %(workflow)s and l.fate = 'open' and not l.there
    and (select what from offload.waiting where n = l.child) = 'parents'
order by l.child, l.place limit 1

-- name: missing_parent_among
-- As `missing_parent`, of these jobs.
select (select id from offload.jobs where n = l.child), l.parent
from json_array_elements_text(%(ns)s::json) c cross join lateral (
    select child, place, parent from offload.ties
    where child = c.value::bigint and workflow = %(workflow)s and fate = 'open' and not there offset 0
) as l
where (select what from offload.waiting where n = l.child) = 'parents'
order by l.child, l.place limit 1

-- name: in_vain
-- Those of these jobs that wait for a parent which there is not, while no more of their workflow are to come. Where :stopped counts as
-- well, also those whose workflow or batch is, but for those :freed, as kind and id with a blank between.
select coalesce(json_agg(j.n), '[]')::text
from json_array_elements_text(%(ns)s::json) a cross join lateral (
    select n, workflow, batch from offload.jobs where n = a.value::bigint limit 1
) as j
where (
    exists (select from offload.tallies where kind = 'workflow' and id = j.workflow and total >= size) and exists (
        select from offload.links l where l.child = j.n and l.fate is null and not exists (
            select from (select workflow from offload.jobs where id = l.parent limit 1) as p where p.workflow = l.workflow
        )
    )
) or (%(stopped)s and exists (
    select from offload.tallies t where t.stopped and ((t.kind = 'workflow' and t.id = j.workflow) or (t.kind = 'batch' and t.id = j.batch))
        and t.kind || ' ' || t.id <> all(array(select value from json_array_elements_text(%(freed)s::json)))
))

-- name: about_to_stop
-- Those of these jobs whose workflow or batch is being stopped, as all in :stopping are, as kind and id with a blank between.
select coalesce(json_agg(j.n), '[]')::text
from json_array_elements_text(%(ns)s::json) a cross join lateral (
    select n, workflow, batch from offload.jobs where n = a.value::bigint limit 1
) as j
where exists (
    select from offload.tallies t where ((t.kind = 'workflow' and t.id = j.workflow) or (t.kind = 'batch' and t.id = j.batch))
        and (t.stopping is not null or t.kind || ' ' || t.id = any(array(select value from json_array_elements_text(%(stopping)s::json))))
)

-- name: tell
-- Tell children that their :parents have ended, or are revived, by what that adds to their :opens and :fails. Not done where children are
-- more than :most, where one has a fate of its own for a parent, or where anything is owed to any. Returns whether it was, how many there
-- were, those who may ask something, as families.Kin, and whether anything is being stopped. Children are locked in the order of their
-- numbers.
with news as materialized (
    select * from rows from (
        json_array_elements_text(%(workflows)s::json), json_array_elements_text(%(parents)s::json),
        unnest(%(opens)s::integer[], %(fails)s::integer[])
    ) as i (workflow, parent, open, failed)
), found as materialized (
    select l.child, l.fate, n.open, n.failed from news n cross join lateral (
        select child, fate from offload.links
        where workflow = n.workflow and parent = n.parent order by workflow, parent, child limit %(most)s + 1
    ) as l limit %(most)s + 1
), simple as materialized (
    select count(*) as number, count(*) <= %(most)s and count(fate) = 0 and not exists (select from offload.owed) as yes from found
), changes as materialized (
    select child, sum(open) as open, sum(failed) as failed from found where (select yes from simple) group by child
), changed as materialized (
    select jsonb_object_agg(child, jsonb_build_array(open, failed)) as by_n from changes
), counted as (
    update offload.children c set open = c.open + (t.by_n -> c.n::text ->> 0)::integer, failed = c.failed + (t.by_n -> c.n::text ->> 1)::integer
    from changed t where c.n = any(array(select child from changes))
    returning c.n, c.open, c.failed, c.brave, c.felled
)
select yes, number, (
    select coalesce(json_agg(json_build_array(n, open, failed, brave, felled) order by n), '[]')
    from counted where open = 0 or felled or (failed > 0 and not brave)
)::text, exists (select from offload.tallies where stopping is not null)
from simple

-- name: tell_with_care
-- Tell the first :most children what became of their parents, as families.News, and give them fates of their own. Returns those who may
-- ask something, as families.Kin; how many links there were; the last of them: the place of the parent among all, counted from 1, and
-- the child; and whether anything is being stopped.
with news as materialized (
    select nth, value ->> 0 as workflow, value ->> 1 as parent, (value ->> 2)::bigint as after, value ->> 3 as was, value ->> 4 as fate,
        value ->> 5 as n, value ->> 6 as result, value ->> 7 as why
    from json_array_elements(%(news)s::json) with ordinality as a (value, nth)
), found as materialized (
    select n.nth, n.fate as becomes, l.place, l.child, coalesce(l.fate, n.was) as was
    from news n cross join lateral (
        select ctid as place, child, fate from offload.links
        where workflow = n.workflow and parent = n.parent and child > n.after order by workflow, parent, child limit %(most)s
    ) as l limit %(most)s
), noted as materialized (
    select jsonb_object_agg(workflow || E'\n' || parent, jsonb_build_array(fate, n, result, why)) as by_parent
    from news where nth = any(array(select nth from found))
), told as (
    update offload.links l set
        fate = t.by_parent -> (l.workflow || E'\n' || l.parent) ->> 0,
        why = t.by_parent -> (l.workflow || E'\n' || l.parent) ->> 3,
        input = case when l.wanted then coalesce(
            t.by_parent -> (l.workflow || E'\n' || l.parent) ->> 2,
            (select result from offload.done where n = (t.by_parent -> (l.workflow || E'\n' || l.parent) ->> 1)::bigint)) end
    from noted t where l.ctid = any(array(select place from found))
), changes as materialized (
    select child, count(*) filter (where becomes = 'open') - count(*) filter (where was = 'open') as open,
        count(*) filter (where becomes = 'failed') - count(*) filter (where was = 'failed') as failed
    from found group by child
), changed as materialized (
    select jsonb_object_agg(child, jsonb_build_array(open, failed)) as by_n from changes
), counted as (
    update offload.children c set open = c.open + (t.by_n -> c.n::text ->> 0)::integer, failed = c.failed + (t.by_n -> c.n::text ->> 1)::integer
    from changed t where c.n = any(array(select child from changes))
    returning c.n, c.open, c.failed, c.brave, c.felled
)
select (
    select coalesce(json_agg(json_build_array(n, open, failed, brave, felled) order by n), '[]')
    from counted where open = 0 or felled or (failed > 0 and not brave)
)::text, (select count(*) from found), (select nth from found order by nth desc limit 1), (
    select child from found order by nth desc, child desc limit 1), exists (select from offload.tallies where stopping is not null)

-- name: lock_ended
-- The records of jobs, as [workflow, id, number], stay as they are.
select count(*) from json_array_elements(%(jobs)s::json) g cross join lateral (
    select n from offload.done where n = (g.value ->> 2)::bigint limit 1 for update
) as locked

-- name: keep_fates
-- Jobs, as [workflow, id, number], that have ended, are about to go: their children keep what they know of them, but for those that are
-- still to be told.
with gone as materialized (
    select g.value ->> 0 as workflow, g.value ->> 1 as parent, d.state, d.result
    from json_array_elements(%(jobs)s::json) g cross join lateral (
        select state, result from offload.done where n = (g.value ->> 2)::bigint limit 1
    ) as d
), found as materialized (
    select l.place, case g.state when 'SUCCEEDED' then 'done' else 'failed' end as fate,
        case when g.state <> 'SUCCEEDED' then 'parent ' || g.parent || ' ended ' || g.state end as why,
        case when l.wanted then g.result end as input
    from gone g cross join lateral (
        select ctid as place, wanted from offload.links
        where workflow = g.workflow and parent = g.parent and fate is null and child <= coalesce(
            (select after from offload.owed where key = g.workflow || E'\n' || g.parent), 9223372036854775807)
        offset 0
    ) as l
), noted as materialized (
    select jsonb_object_agg(place, jsonb_build_array(fate, why, input)) as by_place from found
)
update offload.links l set fate = t.by_place -> l.ctid::text ->> 0, why = t.by_place -> l.ctid::text ->> 1,
    input = t.by_place -> l.ctid::text ->> 2
from noted t where l.ctid = any(array(select place from found))

-- name: lock_kin
-- What the links of jobs come to, as families.Kin.
select coalesce(json_agg(json_build_array(n, open, failed, brave, felled)), '[]')::text from (
    select n, open, failed, brave, felled from offload.children
    where n = any(array(select value::bigint from json_array_elements_text(%(ns)s::json))) order by n for update
) as locked

-- name: lock_children
-- Lock the first :most children of parents, as [workflow, id].
select count(*) from (
    select n from offload.children where n = any(array(
        select l.child from json_array_elements(%(parents)s::json) p cross join lateral (
            select child from offload.links
            where workflow = p.value ->> 0 and parent = p.value ->> 1 order by workflow, parent, child limit %(most)s
        ) as l limit %(most)s
    )) order by n for update
) as locked

-- name: try_children
-- Lock the first :most children of each of these parents, as [workflow, id]. Returns the ids of parents of whom another transaction has one.
with found as materialized (
    select p.value ->> 1 as parent, l.child from json_array_elements(%(parents)s::json) p cross join lateral (
        select child from offload.links
        where workflow = p.value ->> 0 and parent = p.value ->> 1 order by workflow, parent, child limit %(most)s
    ) as l
), locked as materialized (
    select n from offload.children where n = any(array(select child from found)) for update skip locked
)
select coalesce(json_agg(distinct f.parent), '[]')::text from found f
where f.child <> all(array(select n from locked)) and exists (select from offload.children where n = f.child)

-- name: failures
-- Of jobs that fall, how the first of their parents that failed did, as [n, why].
select coalesce(json_agg(json_build_array(c.value::bigint, l.why)), '[]')::text
from json_array_elements_text(%(ns)s::json) c cross join lateral (
    select why from offload.ties where child = c.value::bigint and fate = 'failed' order by place limit 1
) as l

-- name: recount
-- Count the links of jobs anew. Returns what they come to, as families.Kin.
with counted as (
    update offload.children c set (open, failed) = (
        select count(*) filter (where fate = 'open'), count(*) filter (where fate = 'failed') from offload.ties where child = c.n
    )
    where n = any(array(select value::bigint from json_array_elements_text(%(ns)s::json)))
    returning n, open, failed, brave, felled
)
select coalesce(json_agg(json_build_array(n, open, failed, brave, felled)), '[]')::text from counted

-- name: set_felled
update offload.children set felled = %(felled)s where n = any(array(select value::bigint from json_array_elements_text(%(ns)s::json)))

-- name: set_reasons
-- Why jobs have ended, by n.
update offload.done d set reason = t.by_n ->> d.n::text from (select %(reasons)s::jsonb as by_n) as t
where d.n = any(array(select jsonb_object_keys(%(reasons)s::jsonb)::bigint))

-- name: lock_owed
-- Of parents, as [workflow, id], those of which anything is owed, as [workflow, id, was].
select coalesce(json_agg(json_build_array(workflow, parent, was)), '[]')::text from (
    select workflow, parent, was from offload.owed
    where key = any(array(select (value ->> 0) || E'\n' || (value ->> 1) from json_array_elements(%(parents)s::json)))
    order by key for update
) as locked

-- name: drop_owed
-- Parents, as [workflow, id], of whom all children know.
delete from offload.owed
where key = any(array(select (value ->> 0) || E'\n' || (value ->> 1) from json_array_elements(%(parents)s::json)))

-- name: owe
-- The children of parents, as families.News, are to be told later.
insert into offload.owed (key, workflow, parent, after, was, fate, result, why)
select (value ->> 0) || E'\n' || (value ->> 1), value ->> 0, value ->> 1, (value ->> 2)::bigint, value ->> 3, value ->> 4,
    coalesce(value ->> 6, (select result from offload.done where n = (value ->> 5)::bigint)), value ->> 7
from json_array_elements(%(news)s::json)
on conflict (key) do update set after = excluded.after, was = excluded.was, fate = excluded.fate, result = excluded.result, why = excluded.why

-- name: take_owed
-- The first parents whose children are to be told, as families.News, and whom nobody else tells of just now.
select coalesce(json_agg(json_build_array(workflow, parent, after, was, fate, null, result, why)), '[]')::text from (
    select * from offload.owed order by key limit %(limit)s for update skip locked
) as first

-- name: lock_all_owed
-- Wait until nobody else tells of the first parents whose children are to be told.
select from offload.owed order by key limit %(limit)s for update

-- name: inputs
-- Of jobs, the results of their parents, as [n, results in order].
select coalesce(json_agg(json_build_array(c.value::bigint, (
    select json_agg(input order by place) from offload.ties where child = c.value::bigint
))), '[]')::text from json_array_elements_text(%(ns)s::json) c

-- name: open_parents
-- Whom a job waits for, as far as it has been told: the first :most, and how many there are.
with open as materialized (
    select parent, place from offload.ties t where child = %(n)s and (fate = 'open' or exists (
        select from offload.owed o where o.key = t.workflow || E'\n' || t.parent and o.after < t.child and o.fate <> 'open'))
)
select (select coalesce(json_agg(parent), '[]') from (select parent from open order by place limit %(most)s) as first)::text,
    (select count(*) from open)

-- name: drop_kin
-- Whom these jobs wait for.
with gone as materialized (
    select array(select value::bigint from json_array_elements_text(%(ns)s::json)) as ns
), children as (
    delete from offload.children where n = any((select ns from gone)::bigint[])
)
delete from offload.links where child = any((select ns from gone)::bigint[])
