-- Version 3: workflows and batches. See docs/decisions/0014, families.py for who waits for whom, and tallies.py for what is counted.

alter table offload.jobs add column workflow text collate "C";  -- the ids of the workflow and the batch that it belongs to
alter table offload.jobs add column batch text collate "C";
create index jobs_workflow on offload.jobs (workflow, n) where workflow is not null;
create index jobs_batch on offload.jobs (batch, n) where batch is not null;

alter table offload.waiting add column what text;   -- parents or batch, of one that is behind nobody but waits for those
alter table offload.waiting add column claim integer not null default 0;
alter table offload.waiting add column attempt integer not null default 0;
alter table offload.waiting add column crashes integer not null default 0;
alter table offload.waiting add column started_at bigint;
alter table offload.waiting add column worker text;

create index uniques_frees on offload.uniques (frees_at) where frees_at is not null;  -- keys that time alone frees are dropped later

create table offload.links (        -- that a job waits for a parent
    child bigint not null,
    place integer not null,         -- which of its parents it is
    parent text collate "C" not null,           -- its id: it may be yet to come, or be gone
    workflow text collate "C" not null,         -- that of both
    wanted boolean not null,        -- whether its result is
    fate text,                      -- open, done or failed, where that is not what the parent's record says: it was deleted, or children are many
    input text,                     -- with a fate: the result as JSON
    why text,                       -- with a fate: how it failed, in words
    primary key (child, place)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
create index links_parent on offload.links (workflow, parent, child);

create view offload.ties as         -- links with what is known of the parents
select
    l.child, l.place, l.parent, l.workflow, l.wanted,
    coalesce(l.fate, case when d.state is null then 'open' when d.state = 'SUCCEEDED' then 'done' else 'failed' end) as fate,
    case when not l.wanted then null when l.fate is null then d.result else l.input end as input,
    case when l.fate is null then 'parent ' || l.parent || ' ended ' || d.state else l.why end as why,
    j.n is not null as there
from offload.links l
left join lateral (
    select n from (select n, workflow from offload.jobs where id = l.parent limit 1) as p where p.workflow = l.workflow
) as j on true
left join lateral (select state, result from offload.done where n = j.n limit 1) as d on true;

-- What the links of a job come to. Whoever changes them, or goes by them, has locked this row: so of two who end the last two parents at
-- the same moment one finds that none is open.
create table offload.children (
    n bigint primary key,
    open integer not null,          -- parents that have not ended
    failed integer not null,        -- parents that ended otherwise than by success
    brave boolean not null,         -- whether it runs all the same
    felled boolean not null         -- whether the end of a parent took it down
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

create table offload.owed (         -- parents of whose end, or revival, not all children know yet
    key text collate "C" primary key,           -- the workflow, a line break, and the parent
    workflow text collate "C" not null,
    parent text collate "C" not null,
    after bigint not null,          -- the last child that knows
    was text not null,              -- what the others go by who have no fate of their own
    fate text not null,
    result text,
    why text
);

create table offload.tallies (      -- workflows and batches, counted
    kind text collate "C" not null, -- workflow or batch
    id text collate "C" not null,
    n bigint not null,
    created_at bigint not null,
    name text not null,
    touched_at bigint not null,     -- when a job last came, or, of a batch, all had last ended
    keep double precision not null, -- the longest of its jobs'
    total bigint not null,
    succeeded bigint not null,
    dead bigint not null,
    cancelled bigint not null,
    expired bigint not null,
    size bigint not null,           -- how many jobs a workflow will have
    sealed boolean not null,
    stopped boolean not null,
    abandoned boolean not null,
    finished_at bigint,
    forget_at bigint,
    abandon_at bigint,              -- when it is given up, if nothing comes
    stopping bigint,                -- while it is being stopped, the last of its jobs that was looked at
    callbacks text not null,        -- JSON of the ids of its callbacks, by what each waits for
    primary key (kind, id)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
create index tallies_page on offload.tallies (kind, created_at, n);
create index tallies_forget on offload.tallies (forget_at) where forget_at is not null;
create index tallies_abandon on offload.tallies (abandon_at) where abandon_at is not null;
create index tallies_stopping on offload.tallies (n) where stopping is not null;

create or replace view offload.records as
select
    j.n, j.id, j.task, j.queue, j.rank, j.payload, j.enqueued_at, j.keep, j.due, j.extra,
    case
        when r.n is not null or a.n is not null then 'READY'
        when x.n is not null then 'RUNNING'
        when s.n is not null then 'SCHEDULED'
        when w.n is not null or p.n is not null or e.n is not null then 'WAITING'
        else d.state
    end as state,
    coalesce(r.claim, a.claim, x.claim, s.claim, p.claim, d.claim, w.claim, 0) as claim,
    coalesce(r.attempt, a.attempt, x.attempt, s.attempt, p.attempt, d.attempt, w.attempt, 0) as attempt,
    coalesce(r.crashes, a.crashes, x.crashes, s.crashes, p.crashes, d.crashes, w.crashes, 0) as crashes,
    coalesce(r.started_at, a.started_at, x.started_at, s.started_at, p.started_at, d.started_at, w.started_at) as started_at,
    coalesce(r.worker, a.worker, x.worker, s.worker, p.worker, d.worker, w.worker) as worker,
    a.n is not null as aside,
    coalesce(j.pos, j.n) as pos,
    coalesce(x.cancel, false) as cancel_asked,
    d.result, d.finished_at,
    case
        when w.what is not null then 'waits for its ' || w.what
        when w.n is not null then 'behind ' || w.behind
        when p.n is not null then 'waits for a ' || coalesce((select gate from offload.lanes where id = p.lane), p.lane) collate "default"
        when e.n is not null then 'waits to be let in'
        else d.reason
    end as reason,
    coalesce((select json_agg(e.failure order by e.claim) from offload.errors e where e.n = j.n), '[]') as errors,
    coalesce((select json_object_agg(t.name, t.value) from offload.steps t where t.n = j.n), '{}') as steps,
    (select json_build_array(p.fraction, p.message) from offload.progress p where p.n = j.n) as progress,
    coalesce(p.seat, j.seat, j.n) as seat,
    p.lane,
    e.n is not null as arrives,
    (j.rank::bigint << 40) + coalesce(j.base + j.round, 0) as place,
    j.workflow, j.batch, w.what
from offload.jobs j
-- Row by row, as in queries.sql: joins would be planned by the sizes that the tables had once.
left join lateral (
    select * from offload.ready
    where queue = j.queue and rank = (j.rank::bigint << 40) + coalesce(j.base + j.round, 0) and pos = coalesce(j.pos, j.n) and n = j.n limit 1
) as r on true
left join lateral (select * from offload.running where n = j.n limit 1) as x on true
left join lateral (select * from offload.done where n = j.n limit 1) as d on true
left join lateral (select * from offload.scheduled where due = j.due and n = j.n limit 1) as s on true
left join lateral (select * from offload.waiting where n = j.n limit 1) as w on true
left join lateral (
    select * from offload.aside
    where queue = j.queue and task = j.task and rank = (j.rank::bigint << 40) + coalesce(j.base + j.round, 0)
        and pos = coalesce(j.pos, j.n) and n = j.n limit 1
) as a on true
left join lateral (select * from offload.parked where n = j.n limit 1) as p on true
left join lateral (select * from offload.arrivals where n = j.n limit 1) as e on true;
