-- The SQL of workflows and batches, which are counted in a row each.

-- name: lock_tallies
-- Tallies, as [kind, id], in order. Returns those that there are, as books.Count.
select coalesce(json_agg(json_build_array(
    t.kind, t.id, t.n, t.created_at, t.name, t.touched_at, t.keep, t.total, t.succeeded, t.dead, t.cancelled, t.expired, t.size, t.sealed,
    t.stopped, t.abandoned, t.finished_at, t.forget_at, t.abandon_at, t.stopping, t.callbacks::json)), '[]')::text
from json_array_elements(%(keys)s::json) k cross join lateral (
    select * from offload.tallies where kind = k.value ->> 0 and id = k.value ->> 1 limit 1 for update
) as t

-- name: try_tallies
-- Lock tallies, as [kind, id], that nobody else has. Returns the others.
select coalesce(json_agg(json_build_array(k.value ->> 0, k.value ->> 1)), '[]')::text
from json_array_elements(%(keys)s::json) k left join lateral (
    select id from offload.tallies where kind = k.value ->> 0 and id = k.value ->> 1 limit 1 for update skip locked
) as t on true
where t.id is null and exists (select from offload.tallies where kind = k.value ->> 0 and id = k.value ->> 1)

-- name: add_tallies
-- Begin tallies, as [kind, id, name]. Returns those that there were not, as [kind, id].
with added as (
    insert into offload.tallies (kind, id, n, created_at, name, touched_at, keep, total, succeeded, dead, cancelled, expired, size, sealed,
        stopped, abandoned, callbacks)
    select value ->> 0, value ->> 1, nextval('offload.places'), %(now)s, value ->> 2, %(now)s, 0, 0, 0, 0, 0, 0, 0, false, false, false, '{}'
    from json_array_elements(%(tallies)s::json)
    on conflict do nothing
    returning kind, id
)
select coalesce(json_agg(json_build_array(kind, id)), '[]')::text from added

-- name: put_tallies
-- Tallies as they are now, as books.Count.
insert into offload.tallies (kind, id, n, created_at, name, touched_at, keep, total, succeeded, dead, cancelled, expired, size, sealed,
    stopped, abandoned, finished_at, forget_at, abandon_at, stopping, callbacks)
select value ->> 0, value ->> 1, (value ->> 2)::bigint, (value ->> 3)::bigint, value ->> 4, (value ->> 5)::bigint,
    (value ->> 6)::double precision, (value ->> 7)::bigint, (value ->> 8)::bigint, (value ->> 9)::bigint, (value ->> 10)::bigint,
    (value ->> 11)::bigint, (value ->> 12)::bigint, (value ->> 13)::boolean, (value ->> 14)::boolean, (value ->> 15)::boolean,
    (value ->> 16)::bigint, (value ->> 17)::bigint, (value ->> 18)::bigint, (value ->> 19)::bigint, value ->> 20
from json_array_elements(%(tallies)s::json)
on conflict (kind, id) do update set n = excluded.n, created_at = excluded.created_at, name = excluded.name, touched_at = excluded.touched_at,
    keep = excluded.keep, total = excluded.total, succeeded = excluded.succeeded, dead = excluded.dead, cancelled = excluded.cancelled,
    expired = excluded.expired, size = excluded.size, sealed = excluded.sealed, stopped = excluded.stopped, abandoned = excluded.abandoned,
    finished_at = excluded.finished_at, forget_at = excluded.forget_at, abandon_at = excluded.abandon_at, stopping = excluded.stopping,
    callbacks = excluded.callbacks

-- name: count_workflows
-- Count :changes in workflows; see succeeding.sql.
select offload.count_in_workflows(
    %(changes)s::jsonb, %(now)s::bigint, %(shortest)s::double precision, %(unsuccessful)s::bigint, %(abandoned)s::bigint)

-- name: drop_tally
delete from offload.tallies where kind = %(kind)s and id = %(id)s

-- name: stopping
-- The first tally that is being stopped, of all or of one id, as [kind, id, the last of its jobs that was looked at].
select kind, id, stopping from offload.tallies
where stopping is not null and (%(id)s::text is null or (kind = %(kind)s::text and id = %(id)s::text)) order by n limit 1

-- name: is_owed
-- Whether any child is still to be told of a parent.
select exists (select from offload.owed)

-- name: stopping_of
-- The tallies of these jobs that are being stopped, as [kind, id].
select coalesce(json_agg(distinct jsonb_build_array(t.kind, t.id)), '[]')::text
from json_array_elements_text(%(ids)s::json) a cross join lateral (
    select workflow, batch from offload.jobs where id = a.value and (workflow is not null or batch is not null) limit 1
) as j cross join lateral (
    select kind, id from offload.tallies where kind = 'workflow' and id = j.workflow and stopping is not null
    union all select kind, id from offload.tallies where kind = 'batch' and id = j.batch and stopping is not null
) as t

-- name: workflow_members
-- The next :limit jobs of a workflow, as [n, id].
select coalesce(json_agg(json_build_array(n, id)), '[]')::text from (
    select n, id from offload.jobs where workflow = %(id)s and n > %(after)s order by n limit %(limit)s
) as next

-- name: batch_members
-- The next :limit jobs of a batch that are not its callbacks, as [n, id].
select coalesce(json_agg(json_build_array(n, id)), '[]')::text from (
    select n, id from offload.jobs
    where batch = %(id)s and n > %(after)s and position('"callback":' in extra) = 0 order by n limit %(limit)s
) as next

-- name: abandoned
-- Lock the first tallies that are to be given up, as [kind, id], but for those that another transaction has, and workflows whose jobs
-- have yet to be told of their parents: that comes first.
select coalesce(json_agg(json_build_array(kind, id)), '[]')::text from (
    select kind, id from offload.tallies
    where abandon_at <= %(now)s and not (kind = 'workflow' and exists (select from offload.owed where workflow = tallies.id))
    order by abandon_at, n limit %(limit)s for update skip locked
) as first

-- name: forgettable_tallies
-- Lock the first tallies whose time is over, as [kind, id], but for those that another transaction has.
select coalesce(json_agg(json_build_array(kind, id)), '[]')::text from (
    select kind, id from offload.tallies where forget_at <= %(now)s order by forget_at, n limit %(limit)s for update skip locked
) as first

-- name: dead_members
-- Of the dead jobs of a workflow that may keep a turn, what is rare about them.
select coalesce(json_agg(j.extra), '[]')::text from offload.jobs j
where j.workflow = %(id)s and position('"on_dead":"hold"' in j.extra) > 0
    and (select state from offload.done where n = j.n) = 'DEAD'

-- name: forget_done
-- Drop records, which are locked by nobody. Returns which there were.
with gone as (
    delete from offload.done where n = any(array(select value::bigint from json_array_elements_text(%(ns)s::json))) returning n
)
select coalesce(json_agg(n), '[]')::text from gone

-- name: tallies_by_id
-- Tallies of a kind by their ids, with how many of their jobs run, as [books.Count, running].
select coalesce(json_agg(json_build_array(json_build_array(
    t.kind, t.id, t.n, t.created_at, t.name, t.touched_at, t.keep, t.total, t.succeeded, t.dead, t.cancelled, t.expired, t.size, t.sealed,
    t.stopped, t.abandoned, t.finished_at, t.forget_at, t.abandon_at, t.stopping, t.callbacks::json), coalesce(r.running, 0))), '[]')::text
from offload.tallies t left join (
    select case when %(kind)s = 'workflow' then j.workflow else j.batch end as id, count(*) as running
    from offload.running x join offload.jobs j on j.n = x.n
    where case when %(kind)s = 'workflow' then j.workflow is not null
        else j.batch is not null and position('"callback":' in j.extra) = 0 end
    group by 1
) as r on r.id = t.id
where t.kind = %(kind)s and t.id = any(array(select value from json_array_elements_text(%(ids)s::json)))

-- name: tally_ids
-- The ids of tallies of a kind, newest first.
select coalesce(json_agg(id), '[]')::text from (
    select id from offload.tallies
    where kind = %(kind)s and (%(at)s::bigint is null or (created_at, n) < (%(at)s::bigint, %(after)s::bigint))
    order by created_at desc, n desc limit %(limit)s
) as page

-- name: tally_place
-- Where a page of tallies ends.
select created_at, n from offload.tallies where kind = %(kind)s and id = %(id)s
