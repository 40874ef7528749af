-- Version 2: orders, concurrency limits and rates by key. See offload/gates/ for gates and lanes.

alter table jobs add column seat integer;   -- its place in lanes, where that is not n
alter table jobs add column round integer;  -- the round in which it takes its turn by key

create table slots (                -- who has passed a gate and not left
    gate text not null,
    n integer not null,
    cost integer not null,
    primary key (gate, n)
) without rowid;

create table parked (               -- jobs that wait in lanes
    n integer primary key,
    lane text not null,
    seat integer not null,
    claim integer not null,
    attempt integer not null,
    crashes integer not null,
    started_at integer,
    worker text
);
create unique index parked_lane on parked (lane, seat);

-- Where a lane is parked, by the seat of its first job. One that has the name of a gate is parked there as long as nothing stands here.
create table lanes (
    id text primary key,
    gate text not null,
    seat integer not null
) without rowid;
create index lanes_gate on lanes (gate, seat, id);

create table gates (                -- what is known of a gate besides
    id text primary key,
    n integer,                      -- slots, where a person has set them
    interval integer,               -- microseconds from token to token, and the burst, where a person has set them
    burst integer,
    paused integer not null default 0,
    shut_until integer not null default 0,
    tat integer not null default 0,
    owed integer not null default 0,
    wake_at integer                 -- when time alone may let somebody pass
) without rowid;
create index gates_shut on gates (shut_until) where paused or shut_until > 0;
create index gates_wake on gates (wake_at) where wake_at is not null;
create index gates_fade on gates (max(shut_until, tat + 20001))  -- when it says no more than that nothing is known
    where not paused and n is null and interval is null and burst is null and wake_at is null;

create table rounds (               -- the last round of each key whose jobs take turns
    queue text not null,
    rank integer not null,
    key text not null,
    round integer not null,
    primary key (queue, rank, key)
) without rowid;

create table rules (                -- limits that workers declare
    id text primary key,
    value text not null             -- JSON of a Limit
) without rowid;

create view places as               -- all lanes and where they are parked
select id, gate, seat from lanes
union all
select lane, lane, min(seat) from parked where instr(lane, char(10)) = 0 and lane not in (select id from lanes) group by lane;

drop view records;
-- In ready lines a rank is the priority, negated, times 2 ** 24, and the round.
update ready set rank = rank << 24;
update aside set rank = rank << 24;
create view records as
select
    j.n, j.id, j.task, j.queue, j.rank, j.payload, j.enqueued_at, j.keep, j.due, j.extra,
    case
        when r.n is not null or a.n is not null then 'READY'
        when x.n is not null then 'RUNNING'
        when s.n is not null then 'SCHEDULED'
        when w.n is not null or p.n is not null then 'WAITING'
        else d.state
    end as state,
    coalesce(r.claim, a.claim, x.claim, s.claim, p.claim, d.claim, 0) as claim,
    coalesce(r.attempt, a.attempt, x.attempt, s.attempt, p.attempt, d.attempt, 0) as attempt,
    coalesce(r.crashes, a.crashes, x.crashes, s.crashes, p.crashes, d.crashes, 0) as crashes,
    coalesce(r.started_at, a.started_at, x.started_at, s.started_at, p.started_at, d.started_at) as started_at,
    coalesce(r.worker, a.worker, x.worker, s.worker, p.worker, d.worker) as worker,
    a.n is not null as aside,
    ifnull(j.pos, j.n) as pos,
    (j.rank << 24) + ifnull(j.round, 0) as place,
    ifnull(j.seat, j.n) as seat,
    p.lane,
    d.result, d.finished_at,
    case
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
