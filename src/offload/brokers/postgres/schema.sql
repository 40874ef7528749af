-- Which thin table holds a job's row is its state; the row of `jobs` is hardly ever rewritten.
-- Moments are whole microseconds since 1970. `n` and `pos` come from the sequence `places` and are never used again.
-- Names sort by code point ("C"), as Python sorts them. Tables written by every job are vacuumed early and at full speed, whatever their size: their dead rows are what claims would wade through.

create sequence offload.places;     -- numbers of jobs, and places in the ready lines

create sequence offload.returned minvalue 0;    -- grows when a job goes back to an old place, so that claims look below their marks
select nextval('offload.returned'); -- its last value tells nothing before the first was taken

create table offload.store (
    one boolean primary key default true check (one),
    version integer not null,
    pruned_at bigint                -- when absent schedules were last looked for
);
insert into offload.store (version) values (1);

create table offload.jobs (
    n bigint primary key,
    id text collate "C" not null unique,
    task text collate "C" not null,
    queue text collate "C" not null,
    rank integer not null,          -- the priority, negated: lower goes first
    payload text not null,
    enqueued_at bigint not null,
    keep double precision not null,
    pos bigint,                     -- its place in the ready line, where that is not n
    due bigint,                     -- when it is or was due, where it was placed by time
    extra text                      -- JSON of what few jobs have: see rows.Extra
) with (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
create index jobs_enqueued on offload.jobs using brin (enqueued_at);   -- to list the newest; costs an insert next to nothing

create table offload.ready (
    queue text collate "C" not null,
    rank integer not null,
    pos bigint not null,
    n bigint not null,
    claim integer not null default 0,
    attempt integer not null default 0,
    crashes integer not null default 0,
    ready_at bigint not null,
    started_at bigint,
    worker text,
    primary key (queue, rank, pos)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

create table offload.aside (        -- ready, but met by a worker that does not know the task
    queue text collate "C" not null,
    task text collate "C" not null,
    rank integer not null,
    pos bigint not null,
    n bigint not null,
    claim integer not null,
    attempt integer not null,
    crashes integer not null,
    ready_at bigint not null,
    started_at bigint,
    worker text,
    primary key (queue, task, rank, pos)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

create table offload.scheduled (
    due bigint not null,
    n bigint not null,
    claim integer not null default 0,
    attempt integer not null default 0,
    crashes integer not null default 0,
    started_at bigint,
    worker text,
    primary key (due, n)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

create table offload.waiting (
    n bigint primary key,
    behind text not null            -- the id of the job it waits for
);

create table offload.running (
    n bigint primary key,
    session text not null,
    claim integer not null,
    attempt integer not null,
    crashes integer not null,
    pos bigint not null,
    ready_at bigint not null,
    started_at bigint not null,
    worker text not null,
    cancel boolean not null default false   -- true once cancellation was asked for
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
create index running_cancel on offload.running (session) where cancel;

create table offload.done (
    n bigint primary key,
    state text not null,
    claim integer not null,
    attempt integer not null,
    crashes integer not null,
    started_at bigint,
    worker text,
    result text,
    reason text,
    finished_at bigint not null,
    forget_at bigint not null
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
create index done_forget on offload.done (forget_at);

create table offload.expiring (     -- jobs not yet started that must be by then
    expires_at bigint not null,
    n bigint not null,
    primary key (expires_at, n)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

create table offload.errors (
    n bigint not null,
    claim integer not null,
    failure text not null,          -- JSON of a Failure
    primary key (n, claim)
);

create table offload.steps (
    n bigint not null,
    name text collate "C" not null,
    value text not null,
    primary key (n, name)
);

create table offload.progress (
    n bigint primary key,
    fraction double precision not null,
    message text not null
) with (fillfactor = 50);

create table offload.uniques (
    key text collate "C" primary key,
    n bigint not null,              -- the holder, which may be forgotten already
    holder text collate "C" not null,           -- its id
    until text not null,            -- finished, started, or time
    frees_at bigint,                -- where until is time
    successor bigint                -- the one job that waits for the key
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

create table offload.sessions (
    number bigint generated always as identity primary key,
    id text collate "C" not null unique,
    info text not null,
    beat bigint not null,
    beat_at bigint not null,
    era bigint not null default 0,  -- grows when leases that nobody knows of are handed back: claims of an earlier era are void
    started_at bigint not null
) with (fillfactor = 50);

-- Unlogged: it is advice, asked for again once lost, and so falling asleep and waking up wait for no disk.
create unlogged table offload.sleepers (    -- who is to be notified, of what, and until when (by the server's clock)
    id text collate "C" primary key,
    what text not null,             -- work, or ended
    until timestamptz not null
) with (fillfactor = 50);

create table offload.schedules (
    name text collate "C" primary key,
    rule text not null,             -- JSON of a Schedule
    next_at bigint,
    last_at bigint,
    last_job text,
    paused boolean not null default false,
    declared boolean not null,
    fired bigint not null default 0,
    skipped bigint not null default 0,
    absent_since bigint
) with (fillfactor = 50);

create table offload.paused (queue text collate "C" primary key);

-- All that is known of a job, in one row; `state` is read off the table that holds it.
create view offload.records as
select
    j.n, j.id, j.task, j.queue, j.rank, j.payload, j.enqueued_at, j.keep, j.due, j.extra,
    case
        when r.n is not null or a.n is not null then 'READY'
        when x.n is not null then 'RUNNING'
        when s.n is not null then 'SCHEDULED'
        when w.n is not null then 'WAITING'
        else d.state
    end as state,
    coalesce(r.claim, a.claim, x.claim, s.claim, d.claim, 0) as claim,
    coalesce(r.attempt, a.attempt, x.attempt, s.attempt, d.attempt, 0) as attempt,
    coalesce(r.crashes, a.crashes, x.crashes, s.crashes, d.crashes, 0) as crashes,
    coalesce(r.started_at, a.started_at, x.started_at, s.started_at, d.started_at) as started_at,
    coalesce(r.worker, a.worker, x.worker, s.worker, d.worker) as worker,
    a.n is not null as aside,
    coalesce(j.pos, j.n) as pos,
    coalesce(x.cancel, false) as cancel_asked,
    d.result, d.finished_at,
    case when w.n is not null then 'behind ' || w.behind else d.reason end as reason,
    coalesce((select json_agg(e.failure order by e.claim) from offload.errors e where e.n = j.n), '[]') as errors,
    coalesce((select json_object_agg(t.name, t.value) from offload.steps t where t.n = j.n), '{}') as steps,
    (select json_build_array(p.fraction, p.message) from offload.progress p where p.n = j.n) as progress
from offload.jobs j
-- Row by row, as in queries.sql: joins would be planned by the sizes that the tables had once.
left join lateral (
    select * from offload.ready where queue = j.queue and rank = j.rank and pos = coalesce(j.pos, j.n) and n = j.n limit 1
) as r on true
left join lateral (select * from offload.running where n = j.n limit 1) as x on true
left join lateral (select * from offload.done where n = j.n limit 1) as d on true
left join lateral (select * from offload.scheduled where due = j.due and n = j.n limit 1) as s on true
left join lateral (select * from offload.waiting where n = j.n limit 1) as w on true
left join lateral (
    select * from offload.aside
    where queue = j.queue and task = j.task and rank = j.rank and pos = coalesce(j.pos, j.n) and n = j.n limit 1
) as a on true;
