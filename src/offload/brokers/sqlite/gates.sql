-- The SQL of orders and limits by key. As in queries.sql, lists come in as one JSON text and go out as one.

-- name: rules
select json_group_object(id, json(value)) from rules where id in (select value from json_each(:ids))

-- name: all_rules
select json_group_object(id, json(value)) from rules

-- name: put_rules
-- Limits, as [rule, limit].
insert or replace into rules (id, value)
select json_extract(value, '$[0]'), json_extract(value, '$[1]') from json_each(:rules)

-- name: heads
-- The gates of slots and tokens where lanes are parked, with the first job of each. From gate to gate, whatever waits there.
with recursive elsewhere (gate) as (
    select (select min(gate) from lanes where gate >= 'slot of ' and gate < 'token of!')
    union all
    select (select min(gate) from lanes where gate > here.gate and gate < 'token of!') from elsewhere here where here.gate is not null
), own (lane) as (
    select (select min(lane) from parked where lane >= 'slot of ' and lane < 'token of!')
    union all
    select (select min(lane) from parked where lane > o.lane and lane < 'token of!') from own o where o.lane is not null
), known (gate) as (
    select gate from elsewhere where gate is not null
    union
    select lane from own where instr(lane, char(10)) = 0 and not exists (select 1 from lanes where id = own.lane)
)
select json_group_array(json_array(k.gate, j.extra)) from known k cross join jobs j on j.n = (
    select n from (
        select seat, id, (select n from parked where lane = first.id and seat = first.seat) as n from (
            select seat, id from lanes where gate = k.gate order by seat, id limit 1) as first
        union all
        select seat, lane, n from (select seat, lane, n from parked where lane = k.gate order by seat limit 1)
        where not exists (select 1 from lanes where id = k.gate)
    ) order by seat, id limit 1)

-- name: gates
-- Gates, as gates.rows.GateRow: what is known of each, who holds it, and the first :depth lanes that are parked there.
select json_group_array(json_array(
    asked.value,
    json((select json_array(n, interval, burst, json(iif(paused, 'true', 'false')), shut_until, tat, owed, wake_at) from gates where id = asked.value)),
    json((select json_group_array(json_array(n, cost)) from slots where gate = asked.value)),
    json((select json_group_array(json_array(seat, id)) from (
        select seat, id from (
            select seat, id from (select seat, id from lanes where gate = asked.value order by seat, id limit :depth)
            union all
            select * from (select seat, lane from parked where lane = asked.value order by seat limit 1)
            where not exists (select 1 from lanes where id = asked.value)
        ) order by seat, id limit :depth)))
)) from json_each(:ids) as asked

-- name: heirs
-- Of gates that jobs are to leave, as [gate, n], as gates.Succession: the first :depth in the lane of the same name, null for those that do
-- not want the very same. And the :rules. Texts that differ only elsewhere are rare: only then they are read as JSON.
with leaving as materialized (
    select json_extract(value, '$[0]') as gate, json_extract(value, '$[1]') as n from json_each(:leaving)
)
select json_group_array(json_array(
    json(iif(exists (select 1 from gates where id = l.gate)
        or exists (select 1 from lanes where gate = l.gate) or exists (select 1 from lanes where id = l.gate), 'true', 'false')),
    (select count(*) from slots where gate = l.gate),
    json((
        select json_group_array(case
            when extra = j.extra then n
            when json_extract(extra, '$.limits') is json_extract(j.extra, '$.limits') and json_extract(extra, '$.fair_by') is null then n
        end) from (
            select p.n, h.extra from parked p cross join jobs h on h.n = p.n where p.lane = l.gate order by p.seat limit :depth)))
)), (select json_group_object(id, json(value)) from rules where id in (select value from json_each(:rules)))
from leaving l cross join jobs j on j.n = l.n

-- name: leave_slots
-- Jobs, each of which holds one of these :gates, leave it.
delete from slots where gate in (select value from json_each(:gates)) and +n in (select value from json_each(:ns))

-- name: inherit_slots
-- Jobs that wait in lanes with the names of gates come to hold these.
insert into slots (gate, n, cost) select lane, n, 1 from parked where n in (select value from json_each(:ns))

-- name: inherit_ready
-- Jobs that wait in lanes go to the ends of their ready lines, from the place :first on, in order.
insert into ready (queue, rank, pos, n, claim, attempt, crashes, ready_at, started_at, worker)
select j.queue, j.rank << 24, :first + h.key, j.n, p.claim, p.attempt, p.crashes, :now, p.started_at, p.worker
from json_each(:ns) h cross join jobs j on j.n = h.value cross join parked p on p.n = h.value

-- name: parked_lanes
-- The next :depth lanes that are parked at a gate.
select json_group_array(json_array(seat, id)) from (
    select seat, id from (
        select seat, id from (select seat, id from lanes where gate = :gate and (seat, id) > (:seat, :id) order by seat, id limit :depth)
        union all
        select * from (select seat, lane from parked where lane = :gate order by seat limit 1)
        where (seat, lane) > (:seat, :id) and not exists (select 1 from lanes where id = :gate)
    ) order by seat, id limit :depth)

-- name: lanes
-- Lanes, as gating.LaneRow: where each is parked, and its first :depth jobs.
select json_group_array(json_array(
    asked.value,
    (select gate from lanes where id = asked.value),
    json((select json_group_array(json_array(seat, n, queue, rank, extra, claim, attempt, crashes, started_at, worker)) from (
        select p.seat, p.n, j.queue, j.rank, j.extra, p.claim, p.attempt, p.crashes, p.started_at, p.worker
        from parked p cross join jobs j on j.n = p.n where p.lane = asked.value order by p.seat limit :depth)))
)) from json_each(:ids) as asked

-- name: line
-- The next :depth jobs of a lane.
select json_group_array(json_array(seat, n, queue, rank, extra, claim, attempt, crashes, started_at, worker)) from (
    select p.seat, p.n, j.queue, j.rank, j.extra, p.claim, p.attempt, p.crashes, p.started_at, p.worker
    from parked p cross join jobs j on j.n = p.n where p.lane = :lane and p.seat > :seat order by p.seat limit :depth)

-- name: add_slots
insert into slots (gate, n, cost)

-- name: drop_slots
delete from slots where (gate, n) in (select json_extract(value, '$[0]'), json_extract(value, '$[1]') from json_each(:pairs))

-- name: add_parked
insert into parked (n, lane, seat, claim, attempt, crashes, started_at, worker)

-- name: drop_parked
delete from parked where n in (select value from json_each(:ns))

-- name: add_lanes
insert into lanes (id, gate, seat)

-- name: drop_lanes
delete from lanes where id in (select value from json_each(:ids))

-- name: add_gates
insert into gates (id, n, interval, burst, paused, shut_until, tat, owed, wake_at)

-- name: drop_gates
delete from gates where id in (select value from json_each(:ids))

-- name: seats
-- The seats of jobs, as [n, seat].
select json_group_array(json_array(n, ifnull(seat, n))) from jobs where n in (select value from json_each(:ns))

-- name: note_seats
-- Jobs, as [n, seat].
update jobs set seat = json_extract(told.value, '$[1]') from json_each(:seats) as told where jobs.n = json_extract(told.value, '$[0]')

-- name: note_parked
-- Jobs, as [n, due], that wait in lanes from now on.
update jobs set due = json_extract(told.value, '$[1]') from json_each(:dues) as told where jobs.n = json_extract(told.value, '$[0]')

-- name: ready_past
-- What a ready job has behind it.
select claim, attempt, crashes, started_at, worker from ready where queue = :queue and rank = :rank and pos = :pos

-- name: aside_past
select claim, attempt, crashes, started_at, worker from aside where queue = :queue and task = :task and rank = :rank and pos = :pos

-- name: rounds
-- Lines, as [queue, rank, [keys]]: for each the round that is being served, and the last rounds of those keys.
select json_group_array(json_array(
    (select min(rank) & 16777215 from ready where queue = json_extract(asked.value, '$[0]')
        and rank > json_extract(asked.value, '$[1]') << 24 and rank < json_extract(asked.value, '$[1]') + 1 << 24),
    json((select json_group_object(key, round) from rounds
        where queue = json_extract(asked.value, '$[0]') and rank = json_extract(asked.value, '$[1]')
            and key in (select value from json_each(asked.value, '$[2]'))))
)) from json_each(:lines) as asked

-- name: drop_rounds
delete from rounds where queue = :queue and rank = :rank

-- name: put_rounds
insert or replace into rounds (queue, rank, key, round)

-- name: place
-- The rank of a job in its ready line.
select (rank << 24) + ifnull(round, 0) from jobs where n = :n

-- name: note_rounds
-- Jobs, as [n, round].
update jobs set round = json_extract(told.value, '$[1]') from json_each(:rounds) as told where jobs.n = json_extract(told.value, '$[0]')

-- name: due_gates
-- The gates where time alone may let somebody pass by now, the first :limit whose time has come.
select json_group_array(id) from (select id from (select id from gates where wake_at <= :now order by wake_at, id limit :limit) order by id)

-- name: any_shut
-- Whether any gate lets nobody pass, so that jobs that are READY must be asked for their keys.
select exists (select 1 from gates where (paused or shut_until > 0) and (paused or shut_until > :now))

-- name: next_wake
select min(wake_at) from gates where wake_at is not null

-- name: known_gates
-- Those that somebody holds or waits for, or that were changed.
select json_group_array(id) from (
    select gate as id from slots union select gate from places
    union select id from gates where paused or shut_until > :now or n is not null or interval is not null or burst is not null
)

-- name: striking_gates
-- Those that let nobody pass: paused, shut, or with a turn that a dead job keeps.
select json_group_array(id) from (
    select id from gates where paused or shut_until > :now
    union select s.gate from slots s cross join done d on d.n = s.n where s.gate >= 'turn of ' and s.gate < 'turn of!'
    order by id
)

-- name: gate_facts
-- How many wait in lanes parked at a gate; the extra of a job that has to do with it; the first :most who hold it; is one of them done.
select
    (select count(*) from lanes l cross join parked p on p.lane = l.id where l.gate = :gate)
        + (select count(*) from parked where lane = :gate and not exists (select 1 from lanes where id = :gate)),
    coalesce(
        (select j.extra from slots s cross join jobs j on j.n = s.n where s.gate = :gate order by s.n limit 1),
        (select j.extra from places l cross join parked p on p.lane = l.id and p.seat = l.seat cross join jobs j on j.n = p.n
            where l.gate = :gate order by l.seat, l.id limit 1)),
    (select json_group_array(id) from (
        select j.id from slots s cross join jobs j on j.n = s.n where s.gate = :gate order by s.n limit :most)),
    exists (select 1 from slots s cross join done d on d.n = s.n where s.gate = :gate)

-- name: lane_facts
-- Where a lane is parked, and how many of it stand before a seat.
select ifnull((select gate from lanes where id = :lane), :lane), (select count(*) from parked where lane = :lane and seat < :seat)

-- name: forget_gates
-- Drop what says no more than that nothing is known.
delete from gates
where max(shut_until, tat + 20001) <= :now and not paused and n is null and interval is null and burst is null and wake_at is null

-- name: look_at_gates_again
update gates set wake_at = :now where wake_at > :now
