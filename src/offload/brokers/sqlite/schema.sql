-- Which thin table holds a job's row is its state; the row of `jobs` is hardly ever rewritten.
-- Moments are whole microseconds since 1970. `n` and `pos` come from store.next, under the write lock, and are never used again.

create table store (
    next integer not null,          -- the next n or pos
    pruned_at integer               -- when absent schedules were last looked for
);
insert into store (next) values (1);

create table jobs (
    n integer primary key,
    id text not null unique,
    task text not null,
    queue text not null,
    rank integer not null,          -- the priority, negated: lower goes first
    payload text not null,
    enqueued_at integer not null,
    keep real not null,
    pos integer,                    -- its place in the ready line, where that is not n
    due integer,                    -- when it is or was due, where it was placed by time
    extra text                      -- JSON of what few jobs have: see rows.Extra
);

create table ready (
    queue text not null,
    rank integer not null,
    pos integer not null,
    n integer not null,
    claim integer not null,
    attempt integer not null,
    crashes integer not null,
    ready_at integer not null,
    started_at integer,
    worker text,
    primary key (queue, rank, pos)
) without rowid;

create table aside (                -- ready, but met by a worker that does not know the task
    queue text not null,
    task text not null,
    rank integer not null,
    pos integer not null,
    n integer not null,
    claim integer not null,
    attempt integer not null,
    crashes integer not null,
    ready_at integer not null,
    started_at integer,
    worker text,
    primary key (queue, task, rank, pos)
) without rowid;

create table scheduled (
    due integer not null,
    n integer not null,
    claim integer not null,
    attempt integer not null,
    crashes integer not null,
    started_at integer,
    worker text,
    primary key (due, n)
) without rowid;

create table waiting (
    n integer primary key,
    behind text not null            -- the id of the job it waits for
);

create table running (
    n integer primary key,
    session text not null,
    claim integer not null,
    attempt integer not null,
    crashes integer not null,
    pos integer not null,
    ready_at integer not null,
    started_at integer not null,
    worker text not null,
    cancel integer not null default 0   -- 1 once cancellation was asked for
);

create table done (
    n integer primary key,
    state text not null,
    claim integer not null,
    attempt integer not null,
    crashes integer not null,
    started_at integer,
    worker text,
    result text,
    reason text,
    finished_at integer not null,
    forget_at integer not null
);
create index done_forget on done (forget_at);

create table expiring (             -- jobs not yet started that must be by then
    expires_at integer not null,
    n integer not null,
    primary key (expires_at, n)
) without rowid;

create table errors (
    n integer not null,
    claim integer not null,
    failure text not null,          -- JSON of a Failure
    primary key (n, claim)
) without rowid;

create table steps (
    n integer not null,
    name text not null,
    value text not null,
    primary key (n, name)
) without rowid;

create table progress (
    n integer primary key,
    fraction real not null,
    message text not null
);

create table uniques (
    key text primary key,
    n integer not null,             -- the holder, which may be forgotten already
    holder text not null,           -- its id
    until text not null,            -- finished, started, or time
    frees_at integer,               -- where until is time
    successor integer               -- the one job that waits for the key
) without rowid;

create table sessions (
    number integer primary key,
    id text not null unique,
    info text not null,
    beat integer not null,
    beat_at integer not null,
    started_at integer not null
);

create table schedules (
    name text primary key,
    rule text not null,             -- JSON of a Schedule
    next_at integer,
    last_at integer,
    last_job text,
    paused integer not null default 0,
    declared integer not null,
    fired integer not null default 0,
    skipped integer not null default 0,
    absent_since integer
) without rowid;

create table paused (queue text primary key) without rowid;

-- All that is known of a job, in one row; `state` is read off the table that holds it.
create view records as
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
    ifnull(j.pos, j.n) as pos,
    d.result, d.finished_at,
    case when w.n is not null then 'behind ' || w.behind else d.reason end as reason,
    (select json_group_array(failure) from (select failure from errors where errors.n = j.n order by claim)) as errors,
    (select json_group_object(name, value) from steps where steps.n = j.n) as steps,
    (select json_array(fraction, message) from progress where progress.n = j.n) as progress
from jobs j
left join ready r on r.queue = j.queue and r.rank = j.rank and r.pos = ifnull(j.pos, j.n)
left join running x on x.n = j.n
left join done d on d.n = j.n
left join scheduled s on s.due = j.due and s.n = j.n
left join waiting w on w.n = j.n
left join aside a on a.queue = j.queue and a.task = j.task and a.rank = j.rank and a.pos = ifnull(j.pos, j.n);
