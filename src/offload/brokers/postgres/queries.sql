-- The SQL of claims, settles and enqueues. Lists come in as one JSON text and go out as one, so that any driver takes them.
--
-- A plan made while a table was empty may serve it when it holds a million rows. So no table is joined with a list, in an order that
-- the planner would choose by its size: rows are found by `= any(array(...))`, or one by one in a lateral subquery with `limit 1`, and
-- deleted by their `ctid`.

-- name: wake
-- Notify those who sleep until there is work, or until jobs have ended; nobody else costs a commit its speed. Those of a transaction that
-- is `joint`, a caller's, may sleep only by the time it commits.
select pg_notify(%(channel)s, told.what) from (values ('work', %(work)s::boolean), ('ended', %(ended)s::boolean)) as told (what, so)
where so and (%(joint)s::boolean or exists (select from offload.sleepers s where s.what = told.what and s.until > clock_timestamp()))

-- name: rows
-- Jobs with their states, as rows.JobColumns.
select coalesce(json_agg(json_build_array(
    n, id, task, queue, rank, payload, enqueued_at, keep, due, extra, state, claim, attempt, crashes, started_at, worker,
    aside, pos, result, finished_at, reason, errors, steps, progress, cancel_asked, seat, lane, arrives, place, workflow, what)), '[]')::text
from offload.records where n = any(array(select value::bigint from json_array_elements_text(%(ns)s::json)))

-- name: rows_by_id
-- As `rows`, by id.
select coalesce(json_agg(json_build_array(
    n, id, task, queue, rank, payload, enqueued_at, keep, due, extra, state, claim, attempt, crashes, started_at, worker,
    aside, pos, result, finished_at, reason, errors, steps, progress, cancel_asked, seat, lane, arrives, place, workflow, what)), '[]')::text
from offload.records where id = any(array(select value from json_array_elements_text(%(ids)s::json)))

-- name: add_new
-- Store jobs, as rows.JobRow, that nobody may know yet and that take these keys, as [key, index, holder, until, frees_at]. Returns
-- how many rows were stored: none when an id or key is taken, and only some where a commit took one just now.
with input as materialized (
    select nextval('offload.places') as n, i.*
    from json_to_recordset(%(jobs)s::json) as i(
        id text, task text, queue text, rank integer, payload text, enqueued_at bigint, keep double precision, due bigint,
        extra text, expires_at bigint)
), holds as materialized (
    select value ->> 0 as key, (value ->> 1)::integer as index, value ->> 2 as holder, value ->> 3 as until,
        (value ->> 4)::bigint as frees_at
    from json_array_elements(%(holds)s::json)
), doubt as materialized (
    select from offload.jobs where id = any(array(select id from input))
    union all
    select from offload.uniques where key = any(array(select key from holds))
    limit 1
), added as (
    insert into offload.jobs (n, id, task, queue, rank, payload, enqueued_at, keep, due, extra)
    select n, id, task, queue, rank, payload, enqueued_at, keep, due, extra from input where not exists (select from doubt)
    on conflict do nothing
    returning n, queue, rank, due
), taken as (
    insert into offload.uniques (key, n, holder, until, frees_at)
    select key, (array(select n from input))[index], holder, until, frees_at from holds where exists (select from added)
    on conflict do nothing
    returning 1
), placed as (
    insert into offload.ready (queue, rank, pos, n, ready_at)
    select queue, rank::bigint << 40, n, n, %(now)s from added where due is null or due <= %(now)s
), timed as (
    insert into offload.scheduled (due, n) select due, n from added where due > %(now)s
), limited as (
    insert into offload.expiring (expires_at, n)
    select expires_at, n from input where expires_at is not null and exists (select from added)
), woken as (
    select pg_notify(%(channel)s, 'work') where exists (select from added)
        and (%(joint)s::boolean or exists (select from offload.sleepers where what = 'work' and until > clock_timestamp()))
), stored as (
    select (select count(*) from added) + (select count(*) from taken) as number
)
select number, (select count(*) from woken) from stored

-- name: add_ready
-- The same, strictly, for jobs that are ready, take no keys and do not expire, as most: a plan for these alone is sooner under way, which
-- saves the first after a pause 0.1 ms.
with input as materialized (
    select nextval('offload.places') as n, i.*
    from json_to_recordset(%(jobs)s::json) as i(
        id text, task text, queue text, rank integer, payload text, enqueued_at bigint, keep double precision, extra text)
), doubt as materialized (
    select from offload.jobs where id = any(array(select id from input)) limit 1
), added as (
    insert into offload.jobs (n, id, task, queue, rank, payload, enqueued_at, keep, extra)
    select n, id, task, queue, rank, payload, enqueued_at, keep, extra from input where not exists (select from doubt)
    returning n, queue, rank
), placed as (
    insert into offload.ready (queue, rank, pos, n, ready_at) select queue, rank::bigint << 40, n, n, %(now)s from added
), woken as (
    select pg_notify(%(channel)s, 'work') where exists (select from added)
        and exists (select from offload.sleepers where what = 'work' and until > clock_timestamp())
)
select count(*), (select count(*) from woken) from added

-- name: known
-- Jobs of these ids, as [id, enqueueing.Meant].
select coalesce(json_agg(json_build_array(id, json_build_array(
    task, payload, workflow, batch, case when batch is not null then extra::json ->> 'callback' end))), '[]')::text
from offload.jobs where id = any(array(select value from json_array_elements_text(%(ids)s::json)))

-- name: ids
-- The ids of jobs, as [n, id].
select coalesce(json_agg(json_build_array(n, id)), '[]')::text
from offload.jobs where n = any(array(select value::bigint from json_array_elements_text(%(ns)s::json)))

-- name: take_numbers
-- Numbers of the sequence, in order.
select json_agg(nextval('offload.places'))::text from generate_series(1, %(count)s)

-- name: add_jobs
-- Jobs as [n, rows.JobRow, workflow, batch]. Returns how many were stored: fewer when an id was taken just now.
with added as (
    insert into offload.jobs (n, id, task, queue, rank, payload, enqueued_at, keep, due, extra, workflow, batch)
    select (p.value ->> 0)::bigint, i.id, i.task, i.queue, i.rank, i.payload, i.enqueued_at, i.keep, i.due, i.extra,
        p.value ->> 2, p.value ->> 3
    from json_array_elements(%(jobs)s::json) p cross join json_to_record(p.value -> 1) as i(
        id text, task text, queue text, rank integer, payload text, enqueued_at bigint, keep double precision, due bigint, extra text)
    on conflict do nothing
    returning 1
)
select count(*) from added

-- name: place_new
-- Jobs just added go to their ready lines, or wait for their time; their place is their number.
with added as materialized (
    select n, queue, rank, due from offload.jobs
    where n = any(array(select value::bigint from json_array_elements_text(%(ns)s::json)))
), timed as (
    insert into offload.scheduled (due, n) select due, n from added where due > %(now)s
)
insert into offload.ready (queue, rank, pos, n, ready_at)
select queue, rank::bigint << 40, n, n, %(now)s from added where due is null or due <= %(now)s

-- name: add_expiring
-- Jobs, as [expires_at, n].
insert into offload.expiring (expires_at, n)
select (value ->> 0)::bigint, (value ->> 1)::bigint from json_array_elements(%(pairs)s::json)

-- name: drop_expiring
-- Jobs, as [expires_at, n].
delete from offload.expiring where ctid = any(array(
    select e.place from json_array_elements(%(pairs)s::json) p cross join lateral (
        select ctid as place from offload.expiring
        where expires_at = (p.value ->> 0)::bigint and n = (p.value ->> 1)::bigint limit 1
    ) as e
))

-- name: add_waiting
-- Jobs, as [n, behind].
insert into offload.waiting (n, behind)
select (value ->> 0)::bigint, value ->> 1 from json_array_elements(%(jobs)s::json)

-- name: set_behind
update offload.waiting set behind = %(behind)s where n = %(n)s

-- name: drop_waiting
delete from offload.waiting where n = any(array(select value::bigint from json_array_elements_text(%(ns)s::json)))

-- name: replace_job
update offload.jobs set payload = %(payload)s, due = %(due)s, extra = %(extra)s where n = %(n)s

-- name: lock_keys
-- Lock keys in their order. Returns who holds those that are taken, as [key, keys.Hold].
select coalesce(json_agg(json_build_array(key, json_build_array(n, holder, until, frees_at, successor))), '[]')::text
from (
    select key, n, holder, until, frees_at, successor from offload.uniques
    where key = any(array(select value from json_array_elements_text(%(keys)s::json)))
    order by key for update
) as locked

-- name: read_keys
-- Who holds keys, as `lock_keys` tells it. A holder whose start frees its key cannot start before this transaction ends.
select coalesce(json_agg(json_build_array(key, json_build_array(n, holder, until, frees_at, successor))), '[]')::text
from (
    select key, n, holder, until, frees_at, successor from offload.uniques
    where key = any(array(select value from json_array_elements_text(%(keys)s::json))) and until <> 'started'
    union all
    select * from (
        select key, n, holder, until, frees_at, successor from offload.uniques
        where key = any(array(select value from json_array_elements_text(%(keys)s::json))) and until = 'started'
        order by key for share
    ) as kept
) as held

-- name: lock_keys_if_free
-- As `lock_keys`, but for those that another transaction has locked. A claim waits for nobody.
select coalesce(json_agg(json_build_array(key, json_build_array(n, holder, until, frees_at, successor))), '[]')::text
from (
    select key, n, holder, until, frees_at, successor from offload.uniques
    where key = any(array(select value from json_array_elements_text(%(keys)s::json)))
    order by key for update skip locked
) as locked

-- name: keys_taken
-- Those of the keys that are taken, locked or not.
select coalesce(json_agg(key), '[]')::text
from offload.uniques where key = any(array(select value from json_array_elements_text(%(keys)s::json)))

-- name: drop_keys
delete from offload.uniques where key = any(array(select value from json_array_elements_text(%(keys)s::json)))

-- name: change_keys
-- Locked keys, by key as keys.Hold.
with holds as materialized (
    select %(holds)s::jsonb as by_key
)
update offload.uniques u
set n = (h.by_key -> u.key ->> 0)::bigint, holder = h.by_key -> u.key ->> 1, until = h.by_key -> u.key ->> 2,
    frees_at = (h.by_key -> u.key ->> 3)::bigint, successor = (h.by_key -> u.key ->> 4)::bigint
from holds h where u.key = any(array(select jsonb_object_keys(by_key) from holds))

-- name: take_keys
-- Free keys, as [key, keys.Hold]. Returns how many were taken: fewer when another transaction was first.
with taken as (
    insert into offload.uniques (key, n, holder, until, frees_at, successor)
    select value ->> 0, (value ->> 1)::bigint, value ->> 2, value ->> 3, (value ->> 4)::bigint, (value ->> 5)::bigint
    from json_array_elements(%(holds)s::json)
    on conflict do nothing
    returning 1
)
select count(*) from taken

-- name: to_the_end
-- Jobs, as [n, queue, rank, due, claim, attempt, crashes, started_at, worker, whether they keep the due that they had], go to the end of
-- their ready lines, in order.
with moves as materialized (
    select nextval('offload.places') as pos, (value ->> 0)::bigint as n, value ->> 1 as queue, (value ->> 2)::integer as rank,
        (value ->> 3)::bigint as due, (value ->> 4)::integer as claim, (value ->> 5)::integer as attempt,
        (value ->> 6)::integer as crashes, (value ->> 7)::bigint as started_at, value ->> 8 as worker, (value ->> 9)::boolean as keeps
    from json_array_elements(%(moves)s::json)
), noted as materialized (
    select jsonb_object_agg(n, jsonb_build_array(pos, due, keeps)) as by_n from moves
), updated as (
    update offload.jobs j set pos = (t.by_n -> j.n::text ->> 0)::bigint,
        due = case when (t.by_n -> j.n::text ->> 2)::boolean then j.due else (t.by_n -> j.n::text ->> 1)::bigint end
    from noted t where j.n = any(array(select n from moves))
)
insert into offload.ready (queue, rank, pos, n, claim, attempt, crashes, ready_at, started_at, worker)
select queue, rank::bigint << 40, pos, n, claim, attempt, crashes, %(now)s, started_at, worker from moves

-- name: to_their_places
-- Jobs go back to places that they had, which claims may have left behind: see marks.py.
with moves as materialized (
    select value ->> 0 as queue, (value ->> 1)::bigint as rank, (value ->> 2)::bigint as pos, (value ->> 3)::bigint as n,
        (value ->> 4)::integer as claim, (value ->> 5)::integer as attempt, (value ->> 6)::integer as crashes,
        (value ->> 7)::bigint as ready_at, (value ->> 8)::bigint as started_at, value ->> 9 as worker
    from json_array_elements(%(moves)s::json)
), placed as (
    insert into offload.ready (queue, rank, pos, n, claim, attempt, crashes, ready_at, started_at, worker)
    select queue, rank, pos, n, claim, attempt, crashes, ready_at, started_at, worker from moves
)
select nextval('offload.returned')

-- name: to_their_times
-- Jobs, as [due, n, claim, attempt, crashes, started_at, worker], now wait for a time.
with moves as materialized (
    select (value ->> 0)::bigint as due, (value ->> 1)::bigint as n, (value ->> 2)::integer as claim,
        (value ->> 3)::integer as attempt, (value ->> 4)::integer as crashes, (value ->> 5)::bigint as started_at, value ->> 6 as worker
    from json_array_elements(%(moves)s::json)
), noted as materialized (
    select jsonb_object_agg(n, due) as by_n from moves
), updated as (
    update offload.jobs j set due = (t.by_n ->> j.n::text)::bigint from noted t where j.n = any(array(select n from moves))
)
insert into offload.scheduled (due, n, claim, attempt, crashes, started_at, worker)
select due, n, claim, attempt, crashes, started_at, worker from moves

-- name: take_out
-- Jobs, as [n, state, queue, task, place, pos, due, aside, whether in a lane], leave their lines. Returns those that stood there, as
-- [n, gating.Past]. Those that wait in lanes, which are locked, are still to be withdrawn from there.
with places as materialized (
    select (value ->> 0)::bigint as n, value ->> 1 as state, value ->> 2 as queue, value ->> 3 as task, (value ->> 4)::bigint as rank,
        (value ->> 5)::bigint as pos, (value ->> 6)::bigint as due, (value ->> 7)::boolean as aside, (value ->> 8)::boolean as parked
    from json_array_elements(%(places)s::json)
), from_ready as (
    delete from offload.ready where ctid = any(array(
        select r.place from places p cross join lateral (
            select ctid as place from offload.ready r
            where r.queue = p.queue and r.rank = p.rank and r.pos = p.pos and r.n = p.n limit 1
        ) as r where p.state = 'READY' and not p.aside
    ))
    returning n, claim, attempt, crashes, started_at, worker
), from_aside as (
    delete from offload.aside where ctid = any(array(
        select a.place from places p cross join lateral (
            select ctid as place from offload.aside a
            where a.queue = p.queue and a.task = p.task and a.rank = p.rank and a.pos = p.pos and a.n = p.n limit 1
        ) as a where p.aside
    ))
    returning n, claim, attempt, crashes, started_at, worker
), from_scheduled as (
    delete from offload.scheduled where ctid = any(array(
        select s.place from places p cross join lateral (
            select ctid as place from offload.scheduled s where s.due = p.due and s.n = p.n limit 1
        ) as s where p.state = 'SCHEDULED'
    ))
    returning n, claim, attempt, crashes, started_at, worker
), from_waiting as (
    delete from offload.waiting where n = any(array(select n from places where state = 'WAITING' and not parked))
    returning n, claim, attempt, crashes, started_at, worker
), from_arrivals as (
    delete from offload.arrivals where n = any(array(select n from places where state = 'WAITING'))
    returning n
), in_lanes as (
    select n, claim, attempt, crashes, started_at, worker from offload.parked
    where n = any(array(select n from places where parked))
), from_done as (
    delete from offload.done
    where n = any(array(select n from places where state not in ('READY', 'SCHEDULED', 'WAITING', 'RUNNING')))
    returning n, claim, attempt, crashes, started_at, worker
)
select coalesce(json_agg(json_build_array(n, json_build_array(claim, attempt, crashes, started_at, worker))), '[]')::text
from (
    select * from from_ready
    union all select * from from_aside
    union all select * from from_scheduled
    union all select * from from_waiting
    union all select n, 0, 0, 0, null, null from from_arrivals
    union all select * from in_lanes
    union all select * from from_done
) as out

-- name: lines
-- What a fetch must know first: is the session there, which queues are paused, which lines of jobs set aside there are, and
-- (where :all) which queues have something ready; whether somebody may pass gates by time alone, and whether any key is shut. The chains
-- jump from one line to the next without reading its jobs.
with recursive session as materialized (
    select id from offload.sessions where id = %(session)s and era = %(era)s for key share
), asides as (
    (select queue, task from offload.aside order by queue, task limit 1)
    union all
    select next.queue, next.task from asides line cross join lateral (
        select a.queue, a.task from offload.aside a where (a.queue, a.task) > (line.queue, line.task) order by a.queue, a.task limit 1
    ) as next
), names as (
    (select queue from offload.ready where %(all)s order by queue limit 1)
    union all
    select next.queue from names line cross join lateral (
        select r.queue from offload.ready r where r.queue > line.queue order by r.queue limit 1
    ) as next
)
select (select count(*) from session),
    (select coalesce(json_agg(queue), '[]') from offload.paused)::text,
    (select coalesce(json_agg(json_build_array(queue, task)), '[]') from asides)::text,
    (select coalesce(json_agg(queue), '[]') from names)::text,
    (select last_value from offload.returned),
    wake_at, coalesce(shut > %(now)s, false)
from offload.doors

-- name: queues
-- Of `lines`, which queues have something ready, and which lines of jobs set aside there are.
with recursive asides as (
    (select queue, task from offload.aside order by queue, task limit 1)
    union all
    select next.queue, next.task from asides line cross join lateral (
        select a.queue, a.task from offload.aside a where (a.queue, a.task) > (line.queue, line.task) order by a.queue, a.task limit 1
    ) as next
), names as (
    (select queue from offload.ready order by queue limit 1)
    union all
    select next.queue from names line cross join lateral (
        select r.queue from offload.ready r where r.queue > line.queue order by r.queue limit 1
    ) as next
)
select (select coalesce(json_agg(queue), '[]') from names)::text,
    (select coalesce(json_agg(json_build_array(queue, task)), '[]') from asides)::text

-- name: claim
-- Lease the first ready jobs of :segments, as [queue, rank, pos, below], as far as there is room, where all can be taken as they stand:
-- tasks that are known, no expiry, no unique key to give up, no rate, first claims, no lines set aside that the session could serve; where
-- a key is shut no order or limit either. It is not tried when somebody may pass gates by time alone, when a place was
-- returned or, with :alone, when there are other queues than that one; where there is not room for all, only with :one queue. Returns
-- whether the session is there, the count of places returned, whether somebody may pass, whether it was tried, whether all could be taken, the jobs leased as
-- rows.ReadyRow, and the places passed over.
with recursive session as materialized (
    select id from offload.sessions where id = %(session)s and era = %(era)s for key share
), asides as (
    (select queue, task from offload.aside order by queue, task limit 1)
    union all
    select next.queue, next.task from asides line cross join lateral (
        select a.queue, a.task from offload.aside a where (a.queue, a.task) > (line.queue, line.task) order by a.queue, a.task limit 1
    ) as next
), tasks as materialized (
    select %(tasks)s::jsonb as isolations
), tried as materialized (
    select s.last_value as returned, exists (select from session) as alive,
        s.last_value = %(returned)s and exists (select from session) and d.wake_at > %(now)s is not false
        and not exists (select from asides a where (select isolations from tasks) ? a.task)
        and (%(alone)s::text is null or not (
            exists (select from offload.ready where queue < %(alone)s) or exists (select from offload.ready where queue > %(alone)s)
            or exists (select from asides where queue <> %(alone)s)
        )) as yes, d.wake_at <= %(now)s as wakes,
        case when d.shut > %(now)s then '"(expires_at|started|rate|order_by|limits)"' else '"(expires_at|started|rate)"' end as care
    from offload.returned s, offload.doors d
), first as materialized (
    select r.* from json_array_elements(%(segments)s::json) s cross join lateral (
        select r.ctid as place, r.queue, r.rank, r.pos, r.n, r.claim, r.attempt, r.crashes, r.ready_at
        from offload.ready r
        where r.queue = s.value ->> 0 and (r.rank, r.pos) > ((s.value ->> 1)::bigint, (s.value ->> 2)::bigint)
            and r.rank < (s.value ->> 3)::bigint
        order by r.rank, r.pos limit %(limit)s for update skip locked
    ) as r
    where (select yes from tried) and not exists (select from offload.paused p where p.queue = s.value ->> 0)
    limit %(limit)s
), found as materialized (
    select f.*, j.id, j.task, j.payload, j.enqueued_at, j.keep, j.extra, (select isolations from tasks) ->> j.task as isolation,
        (j.extra ~ care) is not true as simple
    from tried cross join first f cross join lateral (
        select j.id, j.task, j.payload, j.enqueued_at, j.keep, j.extra from offload.jobs j where j.n = f.n limit 1
    ) as j
), counted as materialized (
    select f.*,
        case isolation
            when 'async' then count(*) filter (where isolation = 'async') over nth <= %(room_async)s
            when 'thread' then count(*) filter (where isolation = 'thread') over nth <= %(room_thread)s
            else count(*) filter (where isolation = 'process') over nth <= %(room_process)s
        end as fits
    from found f window nth as (rows unbounded preceding)
), plain as materialized (
    select coalesce(bool_and(isolation is not null and simple and claim = 0 and crashes = 0 and (fits or %(one)s)), true) as yes
    from counted
), taken as (
    delete from offload.ready where ctid = any(array(select place from counted where fits and (select yes from plain)))
), started as (
    insert into offload.running (n, session, claim, attempt, crashes, pos, ready_at, started_at, worker)
    select n, %(session)s, 1, 1, 0, pos, ready_at, %(now)s, %(worker)s from counted where fits and (select yes from plain)
)
select alive, returned, wakes, t.yes, p.yes, (
    select coalesce(json_agg(json_build_array(
        queue, rank, pos, n, claim, attempt, crashes, id, task, payload, enqueued_at, keep, extra)), '[]')
    from counted where fits and p.yes)::text, (
    select coalesce(json_agg(json_build_array(queue, rank, pos)), '[]') from counted where not fits and p.yes)::text
from tried t cross join plain p

-- name: barren
-- Whether, in :segments, none of the first :limit jobs could be taken and none needs care, for lack of room.
select not exists (
    select from (
        select r.* from json_array_elements(%(segments)s::json) s cross join lateral (
            select r.n, r.claim, r.crashes from offload.ready r
            where r.queue = s.value ->> 0 and (r.rank, r.pos) > ((s.value ->> 1)::bigint, (s.value ->> 2)::bigint)
                and r.rank < (s.value ->> 3)::bigint
            order by r.rank, r.pos limit %(limit)s
        ) as r
        limit %(limit)s
    ) as r cross join lateral (
        select %(tasks)s::jsonb ->> j.task as isolation,
            coalesce(position('"expires_at"' in j.extra) + position('"started"' in j.extra), 0) = 0 as simple
        from offload.jobs j where j.n = r.n limit 1
    ) as j
    where case when j.isolation is null or not j.simple or r.crashes > 0 then true
        when j.isolation = 'async' then %(room_async)s > 0
        when j.isolation = 'thread' then %(room_thread)s > 0
        else %(room_process)s > 0
    end
)

-- name: candidates
-- Lock the first of a ready line that nobody else has locked, in :segments as [queue, rank, pos, below]. Returns them with their
-- jobs, as rows.ReadyRow.
select coalesce(json_agg(json_build_array(
    c.queue, c.rank, c.pos, c.n, c.claim, c.attempt, c.crashes, j.id, j.task, j.payload, j.enqueued_at, j.keep, j.extra)), '[]')::text
from (
    select r.* from json_array_elements(%(segments)s::json) s cross join lateral (
        select r.queue, r.rank, r.pos, r.n, r.claim, r.attempt, r.crashes
        from offload.ready r
        where r.queue = s.value ->> 0 and (r.rank, r.pos) > ((s.value ->> 1)::bigint, (s.value ->> 2)::bigint)
            and r.rank < (s.value ->> 3)::bigint
        order by r.rank, r.pos limit %(limit)s for update skip locked
    ) as r
    limit %(limit)s
) as c cross join lateral (
    select j.id, j.task, j.payload, j.enqueued_at, j.keep, j.extra from offload.jobs j where j.n = c.n limit 1
) as j

-- name: candidates_aside
select coalesce(json_agg(json_build_array(
    c.queue, c.rank, c.pos, c.n, c.claim, c.attempt, c.crashes, j.id, j.task, j.payload, j.enqueued_at, j.keep, j.extra)), '[]')::text
from (
    select a.queue, a.rank, a.pos, a.n, a.claim, a.attempt, a.crashes
    from offload.aside a
    where a.queue = %(queue)s and a.task = %(task)s
    order by a.rank, a.pos limit %(limit)s for update skip locked
) as c cross join lateral (
    select j.id, j.task, j.payload, j.enqueued_at, j.keep, j.extra from offload.jobs j where j.n = c.n limit 1
) as j

-- name: run_places
-- Lease ready jobs of a queue, as [rank, pos].
with taken as (
    delete from offload.ready where ctid = any(array(
        select r.place from json_array_elements(%(places)s::json) p cross join lateral (
            select ctid as place from offload.ready
            where queue = %(queue)s and rank = (p.value ->> 0)::bigint and pos = (p.value ->> 1)::bigint limit 1
        ) as r
    ))
    returning n, claim, attempt, crashes, pos, ready_at
)
insert into offload.running (n, session, claim, attempt, crashes, pos, ready_at, started_at, worker)
select n, %(session)s, claim + 1, attempt + 1, crashes, pos, ready_at, %(now)s, %(worker)s from taken

-- name: run_places_aside
-- Lease jobs of a queue that are set aside, as [task, rank, pos].
with taken as (
    delete from offload.aside where ctid = any(array(
        select a.place from json_array_elements(%(places)s::json) p cross join lateral (
            select ctid as place from offload.aside
            where queue = %(queue)s and task = p.value ->> 0 and rank = (p.value ->> 1)::bigint and pos = (p.value ->> 2)::bigint limit 1
        ) as a
    ))
    returning n, claim, attempt, crashes, pos, ready_at
)
insert into offload.running (n, session, claim, attempt, crashes, pos, ready_at, started_at, worker)
select n, %(session)s, claim + 1, attempt + 1, crashes, pos, ready_at, %(now)s, %(worker)s from taken

-- name: set_aside
-- Ready jobs of a queue, as [rank, pos], with :tasks by their places.
with moved as (
    delete from offload.ready where ctid = any(array(
        select r.place from json_array_elements(%(places)s::json) p cross join lateral (
            select ctid as place from offload.ready
            where queue = %(queue)s and rank = (p.value ->> 0)::bigint and pos = (p.value ->> 1)::bigint limit 1
        ) as r
    ))
    returning *
), tasks as materialized (
    select %(tasks)s::jsonb as by_pos
)
insert into offload.aside (queue, task, rank, pos, n, claim, attempt, crashes, ready_at, started_at, worker)
select queue, by_pos ->> pos::text, rank, pos, n, claim, attempt, crashes, ready_at, started_at, worker from moved cross join tasks

-- name: drop_places
-- Ready jobs of a queue, as [rank, pos].
delete from offload.ready where ctid = any(array(
    select r.place from json_array_elements(%(places)s::json) p cross join lateral (
        select ctid as place from offload.ready
        where queue = %(queue)s and rank = (p.value ->> 0)::bigint and pos = (p.value ->> 1)::bigint limit 1
    ) as r
))

-- name: drop_places_aside
-- Jobs of a queue set aside, as [task, rank, pos].
delete from offload.aside where ctid = any(array(
    select a.place from json_array_elements(%(places)s::json) p cross join lateral (
        select ctid as place from offload.aside
        where queue = %(queue)s and task = p.value ->> 0 and rank = (p.value ->> 1)::bigint and pos = (p.value ->> 2)::bigint limit 1
    ) as a
))

-- name: payloads
-- What a replacing enqueue may just have changed, as [n, payload, extra].
select coalesce(json_agg(json_build_array(n, payload, extra)), '[]')::text
from offload.jobs where n = any(array(select value::bigint from json_array_elements_text(%(ns)s::json)))

-- name: steps_of
-- The steps of jobs, as [n, name, value].
select coalesce(json_agg(json_build_array(n, name, value)), '[]')::text
from offload.steps where n = any(array(select value::bigint from json_array_elements_text(%(ns)s::json)))

-- name: drop_progress
delete from offload.progress where n = any(array(select value::bigint from json_array_elements_text(%(ns)s::json)))

-- name: succeed
-- End leases, by :ns and :claims; jobs whose :forget is null are forgotten at once. Returns those that were held.
with input as materialized (
    select * from rows from (
        unnest(%(ns)s::bigint[], %(claims)s::integer[], %(forget)s::bigint[]), json_array_elements_text(%(results)s::json)
    ) as i (n, claim, forget_at, result)
), held as materialized (
    select r.*, i.forget_at, i.result from input i cross join lateral (
        select n, claim, attempt, crashes, started_at, worker from offload.running
        where n = i.n and claim = i.claim and session = %(session)s limit 1 for update
    ) as r
), ended as (
    delete from offload.running where n = any(array(select n from held))
), kept as (
    insert into offload.done (n, state, claim, attempt, crashes, started_at, worker, result, finished_at, forget_at)
    select n, 'SUCCEEDED', claim, attempt, crashes, started_at, worker, result, %(now)s, forget_at from held where forget_at is not null
), forgotten as (
    delete from offload.jobs where n = any(array(select n from held where forget_at is null))
), woken as (
    select pg_notify(%(channel)s, what) from (
        select distinct what from offload.sleepers where what = 'ended' and until > clock_timestamp()
    ) as who
)
select coalesce(json_agg(n), '[]')::text, (select count(*) from woken) from held

-- name: succeed_in_workflows
-- As `succeed`, of jobs some of which are parents; see succeeding.sql.
select offload.succeed_in_workflows(
    %(ns)s::bigint[], %(claims)s::integer[], %(forget)s::bigint[], %(results)s::json, %(parents)s::json, %(changes)s::jsonb, %(session)s::text,
    %(alone)s::boolean, %(most)s::integer, %(now)s::bigint, %(shortest)s::double precision, %(unsuccessful)s::bigint, %(abandoned)s::bigint,
    %(channel)s::text)

-- name: asked_to_stop
-- Of jobs that run, those whose cancellation was asked for.
select coalesce(json_agg(n), '[]')::text from offload.running
where n = any(array(select value::bigint from json_array_elements_text(%(ns)s::json))) and cancel

-- name: end_leases
-- Take leases, as [n, claim], from a session. Returns those it held, as settling.Held.
with held as materialized (
    select r.* from json_array_elements(%(leases)s::json) i cross join lateral (
        select n, claim, attempt, crashes, pos, ready_at, started_at, worker, cancel from offload.running
        where n = (i.value ->> 0)::bigint and claim = (i.value ->> 1)::integer and session = %(session)s limit 1 for update
    ) as r
), ended as (
    delete from offload.running where n = any(array(select n from held))
)
select coalesce(json_agg(json_build_array(n, claim, attempt, crashes, pos, ready_at, started_at, worker, cancel)), '[]')::text from held

-- name: end_session_leases
-- Take all leases from a session but those that another transaction has locked. Returns them, as settling.Held, in the order of their
-- numbers.
with held as materialized (
    select n, claim, attempt, crashes, pos, ready_at, started_at, worker, cancel from offload.running
    where session = %(session)s for update skip locked
), ended as (
    delete from offload.running where n = any(array(select n from held))
)
select coalesce(json_agg(json_build_array(n, claim, attempt, crashes, pos, ready_at, started_at, worker, cancel) order by n), '[]')::text
from held

-- name: add_done
-- Records, as [n, state, claim, attempt, crashes, started_at, worker, result, reason, finished_at, forget_at].
insert into offload.done (n, state, claim, attempt, crashes, started_at, worker, result, reason, finished_at, forget_at)
select (value ->> 0)::bigint, value ->> 1, (value ->> 2)::integer, (value ->> 3)::integer, (value ->> 4)::integer,
    (value ->> 5)::bigint, value ->> 6, value ->> 7, value ->> 8, (value ->> 9)::bigint, (value ->> 10)::bigint
from json_array_elements(%(ends)s::json)

-- name: add_errors
-- Failures, as [n, claim, failure].
insert into offload.errors (n, claim, failure)
select (value ->> 0)::bigint, (value ->> 1)::integer, value ->> 2 from json_array_elements(%(failures)s::json)

-- name: forget
-- Drop all that is known of jobs but their records in `done`.
with gone as materialized (
    select array(select value::bigint from json_array_elements_text(%(ns)s::json)) as ns
), errors as (
    delete from offload.errors where n = any((select ns from gone)::bigint[])
), steps as (
    delete from offload.steps where n = any((select ns from gone)::bigint[])
), progress as (
    delete from offload.progress where n = any((select ns from gone)::bigint[])
)
delete from offload.jobs where n = any((select ns from gone)::bigint[])

-- name: put_step
-- Fenced by the lease.
insert into offload.steps (n, name, value)
select n, %(name)s, %(value)s from offload.running where n = %(n)s and session = %(session)s and claim = %(claim)s for share
on conflict (n, name) do update set value = excluded.value
returning 1

-- name: put_progress
-- Progress of leases, as [n, claim, fraction, message]. Returns those that are held.
with held as materialized (
    select r.n, (i.value ->> 2)::double precision as fraction, i.value ->> 3 as message
    from json_array_elements(%(progress)s::json) i cross join lateral (
        select n from offload.running
        where n = (i.value ->> 0)::bigint and claim = (i.value ->> 1)::integer and session = %(session)s limit 1 for share skip locked
    ) as r
), put as (
    insert into offload.progress (n, fraction, message) select n, fraction, message from held
    on conflict (n) do update set fraction = excluded.fraction, message = excluded.message
)
select coalesce(json_agg(n), '[]')::text from held

-- name: beat
-- Raise the beat number. Returns the others' numbers by id, the leases whose cancellation was asked for, and the server's time.
with beat as (
    update offload.sessions set beat = beat + 1, beat_at = %(now)s where id = %(id)s and era >= 0 returning 1
)
select
    (select json_object_agg(id, beat) from offload.sessions where id <> %(id)s)::text,
    (select json_agg(json_build_array((select j.id from offload.jobs j where j.n = r.n), r.claim))
        from offload.running r where r.session = %(id)s and r.cancel)::text,
    (extract(epoch from clock_timestamp()) * 1000000)::bigint
from beat

-- name: clock
-- The server's time, in microseconds since 1970; whether it is a standby; whether it only reads.
select (extract(epoch from clock_timestamp()) * 1000000)::bigint, pg_is_in_recovery(), current_setting('transaction_read_only')::boolean

-- name: add_session
insert into offload.sessions (id, info, beat, beat_at, started_at) values (%(id)s, %(info)s, 0, %(now)s, %(now)s)
on conflict do nothing

-- name: retain
-- Make claims void that were asked for before: the era that begins. Waits for those under way. No row when the session is gone.
update offload.sessions set era = era + 1
where id = (select id from offload.sessions where id = %(id)s and era >= 0 for update) returning era

-- name: leases_but
-- Leases of a session but for those, as [n, claim], that it knows of: as [n, claim, attempt].
select coalesce(json_agg(json_build_array(r.n, r.claim, r.attempt) order by r.n), '[]')::text
from offload.running r
where r.session = %(session)s
    and not exists (select from json_array_elements(%(known)s::json) k where (k.value ->> 0)::bigint = r.n and (k.value ->> 1)::integer = r.claim)

-- name: news
-- Whether there are jobs that a session might claim, as far as it serves :queues (null: all); the last place given and returned; when
-- somebody may pass gates by time alone.
with recursive names as (
    (select queue from offload.ready order by queue limit 1)
    union all
    select next.queue from names line cross join lateral (
        select r.queue from offload.ready r where r.queue > line.queue order by r.queue limit 1
    ) as next
), asides as (
    (select queue, task from offload.aside order by queue, task limit 1)
    union all
    select next.queue, next.task from asides line cross join lateral (
        select a.queue, a.task from offload.aside a where (a.queue, a.task) > (line.queue, line.task) order by a.queue, a.task limit 1
    ) as next
), served as (
    select queue from names
    union
    select queue from asides where %(tasks)s::jsonb ? task
)
select exists (
    select from served s
    where not exists (select from offload.paused p where p.queue = s.queue)
        and (%(queues)s::jsonb is null or %(queues)s::jsonb ? s.queue)
), (select last_value from offload.places), (select last_value from offload.returned), (select wake_at from offload.doors)

-- name: drop_session
delete from offload.sessions where id = %(id)s returning 1

-- name: sleep
-- Ask to be notified for some seconds.
insert into offload.sleepers (id, what, until)
values (%(id)s, %(what)s, clock_timestamp() + %(seconds)s * interval '1 second')
on conflict (id) do update set until = excluded.until

-- name: awake
delete from offload.sleepers where id = %(id)s

-- name: drop_sleepers
-- Those who died in their sleep.
delete from offload.sleepers where until < clock_timestamp() - interval '1 minute'

-- name: soon
-- What is locked from here on is held for 10 s at most by a transaction that nothing more is heard of; for less where its session says
-- so. Returns the isolation level.
select current_setting('transaction_isolation'), set_config(
    'idle_in_transaction_session_timeout',
    case
        when current_setting('idle_in_transaction_session_timeout')::interval between interval '1 ms' and interval '10 s'
        then current_setting('idle_in_transaction_session_timeout') else '10s'
    end, true)

-- name: not_for_long
-- Wait for a lock for a second at most, in this transaction.
select set_config('lock_timeout', '1s', true)

-- name: savepoint
savepoint offload

-- name: rollback_to_savepoint
rollback to savepoint offload

-- name: release_savepoint
release savepoint offload
