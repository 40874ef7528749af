-- The SQL of what people ask and do, of schedules and of upkeep; the hot path's is in queries.sql.
-- Reads take no locks. Names are sorted by code point, as Python sorts them.

-- name: after
-- Where a page ends.
select enqueued_at, n from offload.jobs where id = %(id)s

-- name: ended
-- Those of the given ids that are terminal or unknown.
select coalesce(json_agg(sought.id), '[]')::text
from json_array_elements_text(%(ids)s::json) as sought (id)
left join offload.jobs j on j.id = sought.id
where j.n is null or exists (select 1 from offload.done d where d.n = j.n)

-- name: counts
-- Numbers by queue and state, as [queue, state, number].
select coalesce(json_agg(json_build_array(queue, state, number)), '[]')::text from (
    select queue, 'READY' as state, count(*) as number from offload.ready group by queue
    union all select queue, 'READY', count(*) from offload.aside group by queue
    union all select j.queue, 'RUNNING', count(*) from offload.running t join offload.jobs j on j.n = t.n group by j.queue
    union all select j.queue, 'SCHEDULED', count(*) from offload.scheduled t join offload.jobs j on j.n = t.n group by j.queue
    union all select j.queue, 'WAITING', count(*) from offload.waiting t join offload.jobs j on j.n = t.n group by j.queue
    union all select j.queue, 'WAITING', count(*) from offload.parked t join offload.jobs j on j.n = t.n group by j.queue
    union all select j.queue, 'WAITING', count(*) from offload.arrivals t join offload.jobs j on j.n = t.n group by j.queue
    union all select j.queue, t.state, count(*) from offload.done t join offload.jobs j on j.n = t.n group by j.queue, t.state
) as counted

-- name: paused
select coalesce(json_agg(queue), '[]')::text from offload.paused

-- name: pause_queue
insert into offload.paused (queue) values (%(queue)s) on conflict do nothing

-- name: resume_queue
delete from offload.paused where queue = %(queue)s

-- name: sessions
select coalesce(json_agg(json_build_array(id, info, beat, beat_at, started_at, running) order by number), '[]')::text from (
    select s.number, s.id, s.info, s.beat, s.beat_at, s.started_at, coalesce(r.running, 0) as running
    from offload.sessions s
    left join (select session, count(*) as running from offload.running group by session) as r on r.session = s.id
) as shown

-- name: infos
-- What the workers of all sessions said of themselves.
select coalesce(json_agg(info), '[]')::text from offload.sessions

-- name: ahead
-- How many ready jobs of a queue go before a place.
select
    (select count(*) from offload.ready where queue = %(queue)s and (rank, pos) < (%(rank)s::bigint, %(pos)s::bigint))
    + (select count(*) from offload.aside where queue = %(queue)s and (rank, pos) < (%(rank)s::bigint, %(pos)s::bigint))

-- name: schedules
select coalesce(json_agg(json_build_array(name, rule, next_at, last_at, last_job, paused, declared, fired, skipped, absent_since)
    order by name collate "C"), '[]')::text
from offload.schedules

-- name: hold_schedule
-- A schedule, which is locked until the end of the transaction.
select json_build_array(name, rule, next_at, last_at, last_job, paused, declared, fired, skipped, absent_since)::text
from offload.schedules where name = %(name)s for update

-- name: due_schedules
select coalesce(json_agg(json_build_array(rule, next_at) order by name collate "C"), '[]')::text
from offload.schedules where not paused and next_at <= %(now)s::bigint

-- name: add_schedule
insert into offload.schedules (name, rule, next_at, declared)
values (%(name)s, %(rule)s, %(next_at)s::bigint, %(declared)s::boolean)
on conflict (name) do nothing returning name

-- name: change_schedule
update offload.schedules
set rule = %(rule)s, next_at = %(next_at)s::bigint, declared = %(declared)s::boolean, absent_since = null
where name = %(name)s

-- name: keep_schedule
-- Its rule is unchanged, and so is its next tick.
update offload.schedules set declared = %(declared)s::boolean, absent_since = null where name = %(name)s

-- name: move_schedule
update offload.schedules set next_at = %(next_at)s::bigint, last_at = coalesce(%(last_at)s::bigint, last_at) where name = %(name)s

-- name: fired
update offload.schedules set fired = fired + 1, last_job = %(id)s where name = %(name)s

-- name: skipped
update offload.schedules set skipped = skipped + 1 where name = %(name)s

-- name: drop_schedule
delete from offload.schedules where name = %(name)s returning name

-- name: pause_schedule
update offload.schedules set paused = true where name = %(name)s returning name

-- name: resume_schedule
update offload.schedules set paused = false, next_at = %(next_at)s::bigint where name = %(name)s returning name

-- name: pruned
-- Gives a row to the one who is to look for absent schedules now.
update offload.store set pruned_at = %(now)s::bigint
where pruned_at is null or pruned_at > %(now)s::bigint or pruned_at <= %(before)s::bigint returning pruned_at

-- name: schedules_pruned
-- Of the schedules from code: those declared by live sessions are present, others absent since now, or gone.
with declared as (select json_array_elements_text(%(names)s::json) as name),
present as (
    update offload.schedules set absent_since = null
    where declared and absent_since is not null and name in (select name from declared)
),
absent as (
    update offload.schedules set absent_since = %(now)s::bigint
    where declared and absent_since is null and name not in (select name from declared)
)
delete from offload.schedules where declared and absent_since <= %(before)s::bigint and name not in (select name from declared)

-- name: moments
-- When something is next due, expires, may be forgotten, or is to be ticked; when absent schedules were last looked for; when somebody
-- may pass gates by time alone; and when a gate may be forgotten. And of workflows and batches: whether children are to be told of their
-- parents, whether any is being stopped, when one is to be given up, and when one may be forgotten.
select
    (select min(due) from offload.scheduled),
    (select min(expires_at) from offload.expiring),
    least((select min(forget_at) from offload.done), (select min(frees_at) + 86400000000 from offload.uniques where frees_at is not null)),
    (select min(next_at) from offload.schedules where not paused),
    (select pruned_at from offload.store),
    (select wake_at from offload.doors),
    (select min(greatest(shut_until, tat + 20001)) from offload.gates
        where not paused and n is null and every is null and burst is null and wake_at is null),
    exists (select from offload.owed),
    exists (select from offload.tallies where stopping is not null),
    (select min(abandon_at) from offload.tallies where abandon_at is not null),
    (select min(forget_at) from offload.tallies where forget_at is not null)

-- name: promote
-- What is due goes to the end of its ready line, earliest first. Jobs that another worker promotes just now are left to it.
with gone as (
    delete from offload.scheduled where ctid = any (array(
        select ctid from offload.scheduled where due <= %(now)s::bigint
        order by due, n limit %(limit)s::integer for update skip locked
    )) returning due, n, claim, attempt, crashes, started_at, worker
),
placed as (
    select gone.*, nextval('offload.places') as pos from (select * from gone order by due, n) as gone
),
noted as (
    update offload.jobs j set pos = placed.pos from placed where j.n = placed.n
)
insert into offload.ready (queue, rank, pos, n, claim, attempt, crashes, ready_at, started_at, worker)
select j.queue, j.rank::bigint << 40, p.pos, p.n, p.claim, p.attempt, p.crashes, %(now)s::bigint, p.started_at, p.worker
from placed p join offload.jobs j on j.n = p.n
returning n

-- name: expired
-- Jobs that were not started in time.
select coalesce(json_agg(id), '[]')::text from (
    select j.id from (
        select expires_at, n from offload.expiring where expires_at <= %(now)s::bigint order by expires_at, n limit %(limit)s::integer
    ) as e join offload.jobs j on j.n = e.n order by e.expires_at, e.n
) as late

-- name: take_forgettable
-- Records whose time is over. Those that another worker forgets just now are left to it.
with gone as (
    delete from offload.done where ctid = any (array(
        select ctid from offload.done where forget_at <= %(now)s::bigint
        order by forget_at limit %(limit)s::integer for update skip locked
    )) returning n
)
select coalesce(json_agg(n), '[]')::text from gone

-- name: drop_stale_keys
-- Keys that have been free for a day, as time alone frees them. Returns how many went.
with gone as (
    delete from offload.uniques where ctid = any (array(
        select ctid from offload.uniques where frees_at <= %(now)s::bigint - 86400000000
        order by frees_at limit %(limit)s::integer for update skip locked
    )) returning key
)
select count(*) from gone

-- name: lock_dead_session
-- Only while its beat number is the one seen, and no claim or settle of it is under way.
select id from offload.sessions where id = %(id)s and beat = %(beat)s::bigint for update skip locked

-- name: shut_session
-- It is over for its worker, whose beats and claims do not find it any more; for others it stays dead until all that it held is rescued.
update offload.sessions set era = -1 where id = %(id)s

-- name: runs_of
-- What a session runs.
select coalesce(json_agg(n), '[]')::text from offload.running where session = %(session)s

-- name: ask_to_cancel
-- Jobs that run. Returns those that still did. Fails where one is about to end: that may wait for what this transaction has locked.
with there as materialized (
    select n from offload.running where n = any(array(select value::bigint from json_array_elements_text(%(ns)s::json))) for update nowait
), asked as (
    update offload.running set cancel = true where n = any(array(select n from there)) returning n
)
select coalesce(json_agg(n), '[]')::text from asked

-- name: revive_jobs
-- Jobs, as [n, extra], that start a new life.
update offload.jobs j set payload = coalesce(%(payload)s, j.payload), due = null, extra = life.value ->> 1
from json_array_elements(%(extras)s::json) as life where j.n = (life.value ->> 0)::bigint

-- name: plan_freely
-- For the rest of a transaction that answers a person: plans by statistics, not the hot path's.
select set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_seqscan', 'on', true),
    set_config('enable_bitmapscan', 'on', true), set_config('enable_hashjoin', 'on', true), set_config('enable_mergejoin', 'on', true),
    set_config('enable_material', 'on', true)

-- name: find
-- The numbers of jobs that match all but the text, newest first. Of so many matches with the highest numbers, the earliest was
-- enqueued no later than any that is wanted: a bound by which the BRIN index leaves out nearly all of the table.
select n from offload.jobs
where (%(task)s::text is null or task = %(task)s::text)
    and (%(queue)s::text is null or queue = %(queue)s::text)
    and (%(key)s::text is null or %(key)s::text in (extra::json #>> '{unique,key}', extra::json ->> 'order_by', extra::json ->> 'fair_by')
        or exists (select from json_array_elements(extra::json -> 'limits') as each where each ->> 'key' = %(key)s::text))
    and (%(workflow)s::text is null or workflow = %(workflow)s::text) and (%(batch)s::text is null or batch = %(batch)s::text)
    and (%(at)s::bigint is null or (enqueued_at, n) < (%(at)s::bigint, %(after)s::bigint))
    and enqueued_at >= (
        select min(enqueued_at) from (
            select enqueued_at from offload.jobs
            where (%(task)s::text is null or task = %(task)s::text)
                and (%(queue)s::text is null or queue = %(queue)s::text)
                and (%(key)s::text is null or %(key)s::text in (extra::json #>> '{unique,key}', extra::json ->> 'order_by', extra::json ->> 'fair_by')
        or exists (select from json_array_elements(extra::json -> 'limits') as each where each ->> 'key' = %(key)s::text))
                and (%(workflow)s::text is null or workflow = %(workflow)s::text) and (%(batch)s::text is null or batch = %(batch)s::text)
                and (%(at)s::bigint is null or (enqueued_at, n) < (%(at)s::bigint, %(after)s::bigint))
            order by n desc limit %(limit)s::integer
        ) as latest)
order by enqueued_at desc, n desc limit %(limit)s::integer

-- name: find_in_state
-- As find, by way of the lines of one state.
select j.n from (
    select n from offload.ready where %(state)s::text = 'READY'
    union all select n from offload.aside where %(state)s::text = 'READY'
    union all select n from offload.running where %(state)s::text = 'RUNNING'
    union all select n from offload.scheduled where %(state)s::text = 'SCHEDULED'
    union all select n from offload.waiting where %(state)s::text = 'WAITING'
    union all select n from offload.parked where %(state)s::text = 'WAITING'
    union all select n from offload.arrivals where %(state)s::text = 'WAITING'
    union all select n from offload.done where state = %(state)s::text
) as line join offload.jobs j on j.n = line.n
where (%(task)s::text is null or j.task = %(task)s::text)
    and (%(queue)s::text is null or j.queue = %(queue)s::text)
    and (%(key)s::text is null or %(key)s::text in (j.extra::json #>> '{unique,key}', j.extra::json ->> 'order_by', j.extra::json ->> 'fair_by')
        or exists (select from json_array_elements(j.extra::json -> 'limits') as each where each ->> 'key' = %(key)s::text))
    and (%(workflow)s::text is null or j.workflow = %(workflow)s::text) and (%(batch)s::text is null or j.batch = %(batch)s::text)
    and (%(at)s::bigint is null or (j.enqueued_at, j.n) < (%(at)s::bigint, %(after)s::bigint))
order by j.enqueued_at desc, j.n desc limit %(limit)s::integer

-- name: mention
-- Jobs that match, as rows of (n, enqueued_at, text to search), newest first. Left out are those whose text, all ASCII, does not hold
-- the text sought, which comes in folded; what else there is Python folds as the other stores do.
select n, enqueued_at, told from (
    select j.n, j.enqueued_at, concat_ws(E'\n', j.id, j.task, j.payload, (
        select string_agg(e.failure::json ->> 'message', E'\n' order by e.claim) from offload.errors e where e.n = j.n
    )) as told
    from offload.jobs j
    where (%(task)s::text is null or j.task = %(task)s::text)
        and (%(queue)s::text is null or j.queue = %(queue)s::text)
        and (%(key)s::text is null or %(key)s::text in (j.extra::json #>> '{unique,key}', j.extra::json ->> 'order_by', j.extra::json ->> 'fair_by')
        or exists (select from json_array_elements(j.extra::json -> 'limits') as each where each ->> 'key' = %(key)s::text))
        and (%(workflow)s::text is null or j.workflow = %(workflow)s::text) and (%(batch)s::text is null or j.batch = %(batch)s::text)
        and (%(at)s::bigint is null or (j.enqueued_at, j.n) < (%(at)s::bigint, %(after)s::bigint))
        and case %(state)s::text
            when 'READY' then exists (
                select from offload.ready r where r.queue = j.queue and r.rank = (j.rank::bigint << 40) + coalesce(j.base + j.round, 0)
                    and r.pos = coalesce(j.pos, j.n) and r.n = j.n)
                or exists (select from offload.aside a where a.queue = j.queue and a.task = j.task
                    and a.rank = (j.rank::bigint << 40) + coalesce(j.base + j.round, 0) and a.pos = coalesce(j.pos, j.n) and a.n = j.n)
            when 'RUNNING' then exists (select from offload.running x where x.n = j.n)
            when 'SCHEDULED' then exists (select from offload.scheduled s where s.due = j.due and s.n = j.n)
            when 'WAITING' then exists (select from offload.waiting w where w.n = j.n)
                or exists (select from offload.parked p where p.n = j.n) or exists (select from offload.arrivals e where e.n = j.n)
            else %(state)s::text is null or exists (select from offload.done d where d.n = j.n and d.state = %(state)s::text)
        end
) as searched
where octet_length(told) <> char_length(told) or position(%(sought)s in lower(told collate "C")) > 0
order by enqueued_at desc, n desc limit %(limit)s::integer

-- name: facts
-- What `doctor` asks for: set aside by task, oldest ready by queue, large payloads, times of the last that succeeded.
select
    (select coalesce(json_object_agg(task, number), '{}')::text
        from (select task, count(*) as number from offload.aside group by task) as asides),
    (select coalesce(json_object_agg(queue, at), '{}')::text from (
        select queue, min(at) as at from (
            select queue, min(ready_at) as at from offload.ready group by queue
            union all select queue, min(ready_at) from offload.aside group by queue
        ) as lines group by queue) as oldest),
    (select coalesce(json_agg(json_build_array(id, task, size) order by size desc, id), '[]')::text from (
        select id, task, octet_length(payload) as size from offload.jobs
        where octet_length(payload) > %(large)s::integer order by size desc, id limit %(most_large)s::integer) as large),
    (select coalesce(json_agg(json_build_array(task, started_at, finished_at) order by finished_at desc, n desc), '[]')::text from (
        select j.task, d.n, d.started_at, d.finished_at from (
            select n, started_at, finished_at from offload.done
            where state = 'SUCCEEDED' order by finished_at desc, n desc limit %(most_finished)s::integer
        ) as d join offload.jobs j on j.n = d.n) as finished)

-- name: server
-- What `doctor` asks of the server: its version, the schema's, and settings.
select
    split_part(current_setting('server_version'), ' ', 1), (select version from offload.store),
    current_setting('synchronous_commit'), current_setting('fsync') = 'on', current_setting('autovacuum') = 'on'

-- name: held_snapshots
-- What keeps dead rows of this database from being removed, as rows of (kind, name, seconds, what it is).
select 'transaction' as kind, pid::text as name, extract(epoch from now() - xact_start)::float8 as seconds,
    concat_ws(', ', state, 'user ' || usename, 'application ' || nullif(application_name, ''), 'from ' || host(client_addr)) as what
from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
    and (backend_xmin is not null or backend_xid is not null) and xact_start < now() - %(longer)s::float8 * interval '1 second'
union all
select 'prepared', gid, extract(epoch from now() - prepared)::float8, 'owner ' || owner
from pg_prepared_xacts where database = current_database() and prepared < now() - %(longer)s::float8 * interval '1 second'
union all
select 'slot', slot_name, null, concat_ws(', ', slot_type, case when active then 'active' else 'not active' end)
from pg_replication_slots where xmin is not null and (not active or age(xmin) > 1000000)
order by 3 desc nulls last, 2

-- name: hidden_roles
-- Of which roles the sessions in this database cannot be looked into, as rows of (name).
select distinct usename::text from pg_stat_activity
where datname = current_database() and usename is not null
    and not pg_has_role('pg_read_all_stats', 'usage') and not pg_has_role(usesysid, 'usage')
order by 1

-- name: tables
-- Tables of this schema that are not vacuumed, or that hold many dead rows, as rows of (name, dead, live, vacuumed by itself).
select c.relname, coalesce(s.n_dead_tup, 0), coalesce(s.n_live_tup, 0), vacuumed
from pg_class c
left join pg_stat_all_tables s on s.relid = c.oid
cross join lateral (select not coalesce('autovacuum_enabled=false' = any (c.reloptions), false) as vacuumed) as option
where c.relkind = 'r' and c.relnamespace = (select t.relnamespace from pg_class t join offload.store o on o.tableoid = t.oid)
    and (not vacuumed or s.n_dead_tup >= %(many)s::bigint)
order by c.relname
