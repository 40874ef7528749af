-- Version 2: orders, concurrency limits and rates by key, and turns. See offload/gates/ for gates and lanes, gating.py for who may change
-- them, and turns.py for turns.

alter table offload.jobs add column seat bigint;    -- its place in lanes, where that is not n
alter table offload.jobs add column round integer;  -- the round in which it takes its turn by key, and where the count of rounds began
alter table offload.jobs add column base bigint;

-- In ready lines a rank is the priority, negated, times 2 ** 40, and the round as counted from the very first. No release had version 1.
drop view offload.records;
alter table offload.ready alter column rank type bigint using rank::bigint << 40;
alter table offload.aside alter column rank type bigint using rank::bigint << 40;

create table offload.slots (        -- who has passed a gate and not left
    gate text collate "C" not null,
    n bigint not null,
    cost integer not null,
    primary key (gate, n)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

create table offload.parked (       -- jobs that wait in lanes
    n bigint primary key,
    lane text collate "C" not null,
    seat bigint not null,
    claim integer not null,
    attempt integer not null,
    crashes integer not null,
    started_at bigint,
    worker text
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
create index parked_lane on offload.parked (lane, seat);

-- Where a lane is parked, by the seat of its first job. One that has the name of a gate is parked there as long as nothing stands here.
create table offload.lanes (
    id text collate "C" primary key,
    gate text collate "C" not null,
    seat bigint not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
create index lanes_gate on offload.lanes (gate, seat, id);

create table offload.gates (        -- what is known of a gate besides
    id text collate "C" primary key,
    n integer,                      -- slots, where a person has set them
    every bigint,                   -- microseconds from token to token, and the burst, where a person has set them
    burst integer,
    paused boolean not null,
    shut_until bigint not null,
    tat bigint not null,
    owed integer not null,
    wake_at bigint                  -- when time alone may let somebody pass
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
create index gates_shut on offload.gates (shut_until) where paused or shut_until > 0;
create index gates_wake on offload.gates (wake_at) where wake_at is not null;
create index gates_fade on offload.gates (greatest(shut_until, tat + 20001))  -- when it says no more than that nothing is known
    where not paused and n is null and every is null and burst is null and wake_at is null;

create table offload.rules (        -- limits that workers declare
    id text collate "C" primary key,
    value text not null             -- JSON of a Limit
);

create table offload.arrivals (     -- jobs from callers' transactions that have yet to come to their gates
    n bigint primary key,
    moves_to bigint                 -- where it stands somewhere already: the time to which it goes from there
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

create table offload.rounds (       -- the last round of each key whose jobs take turns
    queue text collate "C" not null,
    rank integer not null,
    key text collate "C" not null,
    round integer not null,
    primary key (queue, rank, key)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

create table offload.turns (        -- lines where keys take turns
    queue text collate "C" not null,
    rank integer not null,
    base bigint not null,           -- where the count of rounds began when last nobody stood there
    last integer not null,          -- the highest round given since
    first bigint not null,          -- nobody stands before this one, as counted from the very first
    primary key (queue, rank)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

create view offload.parkings as     -- all lanes and where they are parked
select id, gate, seat from offload.lanes
union all
select lane, lane, min(seat) from offload.parked p
where position(E'\n' in lane) = 0 and not exists (select from offload.lanes l where l.id = p.lane) group by lane;

-- When somebody may be let in or pass by time alone, and up to when the last key is shut.
create view offload.doors as
select
    case when exists (select from offload.arrivals) then 0
        else (select wake_at from offload.gates where wake_at is not null order by wake_at limit 1)
    end as wake_at,
    (select max(case when paused then 9223372036854775807 else shut_until end) from offload.gates where paused or shut_until > 0) as shut;

create view offload.records as
select
    j.n, j.id, j.task, j.queue, j.rank, j.payload, j.enqueued_at, j.keep, j.due, j.extra,
    case
        when r.n is not null or a.n is not null then 'READY'
        when x.n is not null then 'RUNNING'
        when s.n is not null then 'SCHEDULED'
        when w.n is not null or p.n is not null or e.n is not null then 'WAITING'
        else d.state
    end as state,
    coalesce(r.claim, a.claim, x.claim, s.claim, p.claim, d.claim, 0) as claim,
    coalesce(r.attempt, a.attempt, x.attempt, s.attempt, p.attempt, d.attempt, 0) as attempt,
    coalesce(r.crashes, a.crashes, x.crashes, s.crashes, p.crashes, d.crashes, 0) as crashes,
    coalesce(r.started_at, a.started_at, x.started_at, s.started_at, p.started_at, d.started_at) as started_at,
    coalesce(r.worker, a.worker, x.worker, s.worker, p.worker, d.worker) as worker,
    a.n is not null as aside,
    coalesce(j.pos, j.n) as pos,
    coalesce(x.cancel, false) as cancel_asked,
    d.result, d.finished_at,
    case
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
    (j.rank::bigint << 40) + coalesce(j.base + j.round, 0) as place
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
