-- Version 3: workflows and batches. See docs/decisions/0014.

alter table jobs add column workflow text;  -- the ids of the workflow and the batch that it belongs to
alter table jobs add column batch text;
create index jobs_workflow on jobs (workflow, n) where workflow is not null;
create index jobs_batch on jobs (batch, n) where batch is not null;

alter table waiting add column what text;   -- 'parents' or 'batch' of one that is behind nobody, but waits for those
alter table waiting add column claim integer not null default 0;
alter table waiting add column attempt integer not null default 0;
alter table waiting add column crashes integer not null default 0;
alter table waiting add column started_at integer;
alter table waiting add column worker text;

alter table done add column felled integer; -- 1 where the end of a parent took it down, or a stop as it waited: it comes back with its parents

create table links (                -- that a job waits for a parent, and what is known of that one
    child integer not null,         -- the n of the job
    place integer not null,         -- which of its parents it is
    parent text not null,           -- the id of the parent, which may be yet to come, or be gone
    flow integer not null,          -- the n of the workflow of both
    wanted integer not null,        -- 1 where its result is
    fells integer not null,         -- 1 where the child falls with it
    fate integer not null,          -- 0 open, 1 done, 2 failed
    input text,                     -- the result as JSON
    why text,                       -- how it failed, in words
    unique (child, place)
);
create index links_parent on links (parent, flow, child);
create index links_open on links (child, place) where fate = 0;
create index links_failed on links (child, place) where fate = 2 and fells;

create table owed (                 -- parents of whose end, or revival, not all children know yet
    n integer primary key,
    parent text not null,
    flow text not null,             -- the id of its workflow
    after integer not null,         -- the last child that knows
    fate integer not null,
    told text,                      -- the result as JSON, or how it failed
    unique (parent, flow)
);

create table tallies (              -- workflows and batches, counted
    n integer primary key,
    kind text not null,             -- workflow or batch
    id text not null,
    created_at integer not null,
    name text not null,
    touched_at integer not null,    -- when a job last came, or, of a batch, all had last ended
    keep real not null,             -- the longest of its jobs'
    total integer not null,
    succeeded integer not null,
    dead integer not null,
    cancelled integer not null,
    expired integer not null,
    size integer not null,          -- how many jobs a workflow will have
    sealed integer not null,
    stopped integer not null,
    abandoned integer not null,
    finished_at integer,
    forget_at integer,
    abandon_at integer,             -- when it is given up, if nothing comes
    stopping integer,               -- while it is being stopped, the last of its jobs that was looked at
    callbacks text not null,        -- JSON of the ids of its callbacks, by what each waits for
    unique (kind, id)
);
create index tallies_page on tallies (kind, created_at, n);
create index tallies_forget on tallies (forget_at) where forget_at is not null;
create index tallies_abandon on tallies (abandon_at) where abandon_at is not null;
create index tallies_stopping on tallies (n) where stopping is not null;

drop view records;
create view records as
select
    j.n, j.id, j.task, j.queue, j.rank, j.payload, j.enqueued_at, j.keep, j.due, j.extra, j.workflow, j.batch,
    case
        when r.n is not null or a.n is not null then 'READY'
        when x.n is not null then 'RUNNING'
        when s.n is not null then 'SCHEDULED'
        when w.n is not null or p.n is not null then 'WAITING'
        else d.state
    end as state,
    coalesce(r.claim, a.claim, x.claim, s.claim, p.claim, d.claim, w.claim, 0) as claim,
    coalesce(r.attempt, a.attempt, x.attempt, s.attempt, p.attempt, d.attempt, w.attempt, 0) as attempt,
    coalesce(r.crashes, a.crashes, x.crashes, s.crashes, p.crashes, d.crashes, w.crashes, 0) as crashes,
    coalesce(r.started_at, a.started_at, x.started_at, s.started_at, p.started_at, d.started_at, w.started_at) as started_at,
    coalesce(r.worker, a.worker, x.worker, s.worker, p.worker, d.worker, w.worker) as worker,
    a.n is not null as aside,
    ifnull(j.pos, j.n) as pos,
    (j.rank << 24) + ifnull(j.round, 0) as place,
    ifnull(j.seat, j.n) as seat,
    p.lane,
    w.what,
    d.felled,
    d.result, d.finished_at,
    case
        when w.what is not null then 'waits for its ' || w.what
        when w.n is not null then 'behind ' || w.behind
        when p.n is not null then 'waits for a ' || ifnull((select gate from lanes where id = p.lane), p.lane)
        else d.reason
    end as reason,
    (select json_group_array(failure) from (select failure from errors where errors.n = j.n order by claim)) as errors,
    (select json_group_object(name, value) from steps where steps.n = j.n) as steps,
    (select json_array(fraction, message) from progress where progress.n = j.n) as progress
from jobs j
left join ready r on r.queue = j.queue and r.rank = (j.rank << 24) + ifnull(j.round, 0) and r.pos = ifnull(j.pos, j.n)
left join running x on x.n = j.n
left join done d on d.n = j.n
left join scheduled s on s.due = j.due and s.n = j.n
left join waiting w on w.n = j.n
left join parked p on p.n = j.n
left join aside a on a.queue = j.queue and a.task = j.task and a.rank = (j.rank << 24) + ifnull(j.round, 0) and a.pos = ifnull(j.pos, j.n);
