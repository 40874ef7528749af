-- The SQL of orders and limits by key. As in queries.sql, lists come in as one JSON text and go out as one, and no plan depends on the
-- sizes of tables.

-- name: lock_buckets
-- Wait for locks, in the order given.
select pg_advisory_xact_lock(value::bigint) from json_array_elements_text(%(locks)s::json)

-- name: try_buckets
-- Take the locks that nobody else has. Returns the others.
select coalesce(json_agg(lock), '[]')::text
from (select value::bigint as lock from json_array_elements_text(%(locks)s::json)) as asked where not pg_try_advisory_xact_lock(lock)

-- name: rules
-- What workers declare under :rules.
select coalesce(json_object_agg(id, value::json), '{}')::text from offload.rules
where id = any(array(select json_array_elements_text(%(rules)s::json)))

-- name: all_rules
select coalesce(json_object_agg(id, value::json), '{}')::text from offload.rules

-- name: at_gates
-- What `rules` tells, and whether jobs wait to be let in.
select coalesce((select json_object_agg(id, value::json) from offload.rules
    where id = any(array(select json_array_elements_text(%(rules)s::json)))), '{}')::text, exists (select from offload.arrivals)

-- name: put_rules
-- Limits, as [rule, limit], each rule once.
insert into offload.rules (id, value) select value ->> 0, value ->> 1 from json_array_elements(%(rules)s::json)
on conflict (id) do update set value = excluded.value

-- name: heads
-- The gates of slots and tokens where lanes are parked, with the first job of each. From gate to gate, whatever waits there.
with recursive elsewhere (gate) as (
    (select gate from offload.lanes where gate >= 'slot of ' and gate < 'token of!' order by gate limit 1)
    union all
    select (select gate from offload.lanes where gate > here.gate and gate < 'token of!' order by gate limit 1)
    from elsewhere here where here.gate is not null
), own (lane) as (
    (select lane from offload.parked where lane >= 'slot of ' and lane < 'token of!' order by lane limit 1)
    union all
    select (select lane from offload.parked where lane > o.lane and lane < 'token of!' order by lane limit 1)
    from own o where o.lane is not null
), known (gate) as (
    select gate from elsewhere where gate is not null
    union
    select lane from own where position(E'\n' in lane) = 0 and not exists (select from offload.lanes l where l.id = lane)
)
select coalesce(json_agg(json_build_array(k.gate, j.extra)), '[]')::text from known k cross join lateral (
    select n from (
        select first.seat, first.id, p.n from (
            select seat, id from offload.lanes where gate = k.gate order by seat, id limit 1
        ) as first cross join lateral (select n from offload.parked where lane = first.id and seat = first.seat limit 1) as p
        union all
        select seat, lane, n from (select seat, lane, n from offload.parked where lane = k.gate order by seat limit 1) as own
        where not exists (select from offload.lanes where id = k.gate)
    ) as found order by seat, id limit 1
) as h cross join lateral (select extra from offload.jobs where n = h.n limit 1) as j

-- name: gates
-- Gates, as gates.rows.GateRow: what is known of each, who holds it, and the first :depth lanes that are parked there. And what `at_gates` tells.
select coalesce(json_agg(json_build_array(
    asked.id,
    (select json_build_array(n, every, burst, paused, shut_until, tat, owed, wake_at) from offload.gates where id = asked.id),
    (select coalesce(json_agg(json_build_array(n, cost)), '[]') from offload.slots where gate = asked.id),
    (select coalesce(json_agg(json_build_array(seat, id)), '[]') from (
        select seat, id from (
            (select seat, id from offload.lanes where gate = asked.id order by seat, id limit %(depth)s)
            union all
            select seat, lane from (select seat, lane from offload.parked where lane = asked.id order by seat limit 1) as own
            where not exists (select from offload.lanes where id = asked.id)
        ) as found order by seat, id limit %(depth)s) as parked)
)), '[]')::text,
    coalesce((select json_object_agg(id, value::json) from offload.rules
        where id = any(array(select json_array_elements_text(%(rules)s::json)))), '{}')::text, exists (select from offload.arrivals)
from json_array_elements_text(%(ids)s::json) as asked (id)

-- name: heirs
-- Of :gates that the jobs :ns are to leave, as gates.Succession: the first :depth in the lane of the same name, null for those that do not
-- want the very same. And what `at_gates` tells. Texts that differ only elsewhere are rare: only then they are read as JSON. Two of
-- PostgreSQL's own JSON values for each gate would take a quarter longer.
select '[' || coalesce(string_agg('[' ||
    case when exists (select from offload.gates where id = l.gate)
        or exists (select from offload.lanes where gate = l.gate) or exists (select from offload.lanes where id = l.gate)
    then 'true,' else 'false,' end || (select count(*) from offload.slots where gate = l.gate) || ',[' || array_to_string(array(
        select case
            when h.extra = j.extra then p.n
            when (h.extra::json -> 'limits')::text is not distinct from (j.extra::json -> 'limits')::text
                and h.extra::json -> 'fair_by' is null then p.n
        end
        from (select n from offload.parked where lane = l.gate order by seat limit %(depth)s) as p
        cross join lateral (select extra from offload.jobs where n = p.n limit 1) as h
    ), ',', 'null') || ']]', ','), '') || ']',
    coalesce((select json_object_agg(id, value::json) from offload.rules
        where id = any(array(select json_array_elements_text(%(rules)s::json)))), '{}')::text, exists (select from offload.arrivals)
from rows from (json_array_elements_text(%(gates)s::json), unnest(%(ns)s::bigint[])) as l (gate, n)
cross join lateral (select extra from offload.jobs where n = l.n limit 1) as j

-- name: succeed_in_turn
-- As `succeed`, with the gates that the jobs leave (null: none), while :heirs come to hold these and go to the ends of their ready lines.
-- Nothing is done, and false returned, unless all :count leases are held.
with input as materialized (
    select * from rows from (
        unnest(%(ns)s::bigint[], %(claims)s::integer[], %(forget)s::bigint[]),
        json_array_elements_text(%(results)s::json), json_array_elements_text(%(gates)s::json)
    ) as i (n, claim, forget_at, result, gate)
), locked as materialized (
    select r.*, i.forget_at, i.result, i.gate from input i cross join lateral (
        select n, claim, attempt, crashes, started_at, worker from offload.running
        where n = i.n and claim = i.claim and session = %(session)s limit 1 for update
    ) as r
), held as materialized (
    select * from locked where (select count(*) from locked) = %(count)s
), ended as (
    delete from offload.running where n = any(array(select n from held))
), kept as (
    insert into offload.done (n, state, claim, attempt, crashes, started_at, worker, result, finished_at, forget_at)
    select n, 'SUCCEEDED', claim, attempt, crashes, started_at, worker, result, %(now)s, forget_at from held where forget_at is not null
), forgotten as (
    delete from offload.jobs where n = any(array(select n from held where forget_at is null))
), gone as (
    delete from offload.slots where ctid = any(array(
        select s.place from held h cross join lateral (
            select ctid as place from offload.slots where gate = h.gate and n = h.n limit 1
        ) as s
    ))
), heirs as materialized (
    select nextval('offload.places') as pos, p.*, j.queue, j.rank from unnest(%(heirs)s::bigint[]) as h (n)
    cross join lateral (
        select ctid as place, n, lane, claim, attempt, crashes, started_at, worker from offload.parked where n = h.n limit 1
    ) as p
    cross join lateral (select queue, rank from offload.jobs where n = h.n limit 1) as j
    where exists (select from held)
), inherited as (
    insert into offload.slots (gate, n, cost) select lane, n, 1 from heirs
), unparked as (
    delete from offload.parked where ctid = any(array(select place from heirs))
), noted as materialized (
    select jsonb_object_agg(n, pos) as by_n from heirs
), updated as (
    update offload.jobs j set pos = (t.by_n ->> j.n::text)::bigint from noted t where j.n = any(array(select n from heirs))
), placed as (
    insert into offload.ready (queue, rank, pos, n, claim, attempt, crashes, ready_at, started_at, worker)
    select queue, rank::bigint << 40, pos, n, claim, attempt, crashes, %(now)s, started_at, worker from heirs
), woken as (
    select pg_notify(%(channel)s, what) from (
        select distinct what from offload.sleepers
        where until > clock_timestamp()
            and ((what = 'ended' and exists (select from held)) or (what = 'work' and exists (select from heirs)))
    ) as who
)
select exists (select from held), (select count(*) from woken)

-- name: parked_lanes
-- The next :depth lanes that are parked at a gate.
select coalesce(json_agg(json_build_array(seat, id)), '[]')::text from (
    select seat, id from (
        (select seat, id from offload.lanes
            where gate = %(gate)s and (seat, id) > (%(seat)s::bigint, %(id)s) order by seat, id limit %(depth)s)
        union all
        select seat, lane from (select seat, lane from offload.parked where lane = %(gate)s order by seat limit 1) as own
        where (seat, lane) > (%(seat)s::bigint, %(id)s) and not exists (select from offload.lanes where id = %(gate)s)
    ) as found order by seat, id limit %(depth)s) as parked

-- name: lanes
-- Lanes, as gating.LaneRow: where each is parked, and its first :depth jobs.
select coalesce(json_agg(json_build_array(
    asked.id,
    (select gate from offload.lanes where id = asked.id),
    (select coalesce(json_agg(json_build_array(
            p.seat, p.n, j.queue, j.rank, j.extra, p.claim, p.attempt, p.crashes, p.started_at, p.worker)), '[]')
        from (select * from offload.parked where lane = asked.id order by seat limit %(depth)s) as p
        cross join lateral (select queue, rank, extra from offload.jobs where n = p.n limit 1) as j)
)), '[]')::text from json_array_elements_text(%(ids)s::json) as asked (id)

-- name: line
-- The next :depth jobs of a lane.
select coalesce(json_agg(json_build_array(
    p.seat, p.n, j.queue, j.rank, j.extra, p.claim, p.attempt, p.crashes, p.started_at, p.worker)), '[]')::text
from (select * from offload.parked where lane = %(lane)s and seat > %(seat)s::bigint order by seat limit %(depth)s) as p
cross join lateral (select queue, rank, extra from offload.jobs where n = p.n limit 1) as j

-- name: put_gates
-- Write what has changed: who has left gates or holds them, who waits no more or waits, lanes, and what is known of gates.
with gone as (
    delete from offload.slots where ctid = any(array(
        select s.place from json_array_elements(%(left)s::json) p cross join lateral (
            select ctid as place from offload.slots where gate = p.value ->> 0 and n = (p.value ->> 1)::bigint limit 1
        ) as s
    ))
), held as (
    insert into offload.slots (gate, n, cost)
    select value ->> 0, (value ->> 1)::bigint, (value ->> 2)::integer from json_array_elements(%(held)s::json)
    on conflict (gate, n) do update set cost = excluded.cost
), passed as (
    delete from offload.parked where n = any(array(select value::bigint from json_array_elements_text(%(passed)s::json)))
), waiting as (
    insert into offload.parked (n, lane, seat, claim, attempt, crashes, started_at, worker)
    select (value ->> 0)::bigint, value ->> 1, (value ->> 2)::bigint, (value ->> 3)::integer, (value ->> 4)::integer,
        (value ->> 5)::integer, (value ->> 6)::bigint, value ->> 7
    from json_array_elements(%(waiting)s::json)
    on conflict (n) do update set lane = excluded.lane, seat = excluded.seat, claim = excluded.claim, attempt = excluded.attempt,
        crashes = excluded.crashes, started_at = excluded.started_at, worker = excluded.worker
), empty as (
    delete from offload.lanes where id = any(array(select value from json_array_elements_text(%(empty)s::json)))
), moved as (
    insert into offload.lanes (id, gate, seat)
    select value ->> 0, value ->> 1, (value ->> 2)::bigint from json_array_elements(%(lanes)s::json)
    on conflict (id) do update set gate = excluded.gate, seat = excluded.seat
)
insert into offload.gates (id, n, every, burst, paused, shut_until, tat, owed, wake_at)
select value ->> 0, (value ->> 1)::integer, (value ->> 2)::bigint, (value ->> 3)::integer, (value ->> 4)::boolean,
    (value ->> 5)::bigint, (value ->> 6)::bigint, (value ->> 7)::integer, (value ->> 8)::bigint
from json_array_elements(%(gates)s::json)
on conflict (id) do update set n = excluded.n, every = excluded.every, burst = excluded.burst, paused = excluded.paused,
    shut_until = excluded.shut_until, tat = excluded.tat, owed = excluded.owed, wake_at = excluded.wake_at

-- name: seats
-- The seats of jobs, as [n, seat].
select coalesce(json_agg(json_build_array(n, coalesce(seat, n))), '[]')::text
from offload.jobs where n = any(array(select value::bigint from json_array_elements_text(%(ns)s::json)))

-- name: last_number
select last_value from offload.places

-- name: note_seats
-- The seats of jobs, by n.
update offload.jobs j set seat = (t.by_n ->> j.n::text)::bigint from (select %(seats)s::jsonb as by_n) as t
where j.n = any(array(select jsonb_object_keys(%(seats)s::jsonb)::bigint))

-- name: note_dues
-- The times of jobs that wait in lanes from now on, by n.
update offload.jobs j set due = (t.by_n ->> j.n::text)::bigint from (select %(dues)s::jsonb as by_n) as t
where j.n = any(array(select jsonb_object_keys(%(dues)s::jsonb)::bigint))

-- name: ready_past
-- What a ready job has behind it, as moves.Past.
select claim, attempt, crashes, started_at, worker from offload.ready where queue = %(queue)s and rank = %(rank)s and pos = %(pos)s

-- name: aside_past
select claim, attempt, crashes, started_at, worker from offload.aside
where queue = %(queue)s and task = %(task)s and rank = %(rank)s and pos = %(pos)s

-- name: due_gates
-- The gates where time alone may let somebody pass by now, the first :limit whose time has come, and whether jobs wait to be let in.
select coalesce(json_agg(id order by id), '[]')::text, exists (select from offload.arrivals)
from (select id from offload.gates where wake_at <= %(now)s order by wake_at, id limit %(limit)s) as due

-- name: add_arrivals
-- Jobs, as [n, moves_to].
insert into offload.arrivals (n, moves_to) select (value ->> 0)::bigint, (value ->> 1)::bigint from json_array_elements(%(jobs)s::json)
on conflict (n) do update set moves_to = excluded.moves_to

-- name: take_arrivals
-- Lock the first jobs that wait to be let in and that nobody else lets in, as [n, moves_to].
select coalesce(json_agg(json_build_array(n, moves_to)), '[]')::text from (
    select n, moves_to from offload.arrivals order by n limit %(limit)s for update skip locked
) as first

-- name: drop_arrivals
delete from offload.arrivals where n = any(array(select value::bigint from json_array_elements_text(%(ns)s::json)))

-- name: any_keyed
-- Whether any of the jobs to be promoted next passes gates or takes turns.
select exists (
    select from (
        select n from offload.scheduled where due <= %(now)s::bigint order by due, n limit %(limit)s::integer
    ) as s cross join lateral (select extra from offload.jobs where n = s.n limit 1) as j
    where position('"order_by"' in j.extra) > 0 or position('"limits"' in j.extra) > 0 or position('"fair_by"' in j.extra) > 0
)

-- name: due_jobs
-- What is scheduled and due, as upkeep.DueRow, earliest first; it leaves its place. Jobs that another worker promotes just now are left to it.
with due as materialized (
    select ctid as place, due, n, claim, attempt, crashes, started_at, worker from offload.scheduled
    where due <= %(now)s::bigint order by due, n limit %(limit)s::integer for update skip locked
), gone as (
    delete from offload.scheduled where ctid = any(array(select place from due))
)
select coalesce(json_agg(json_build_array(
    s.due, s.n, j.queue, j.rank, s.claim, s.attempt, s.crashes, s.started_at, s.worker, j.extra, coalesce(j.seat, j.n)) order by s.due, s.n), '[]')::text
from due s cross join lateral (select n, seat, queue, rank, extra from offload.jobs where n = s.n limit 1) as j

-- name: known_gates
-- Those that somebody holds or waits for, or that were changed.
select coalesce(json_agg(id), '[]')::text from (
    select gate as id from offload.slots union select gate from offload.parkings
    union select id from offload.gates where paused or shut_until > %(now)s or n is not null or every is not null or burst is not null
) as known

-- name: striking_gates
-- Those that let nobody pass: paused, shut, or with a turn that a dead job keeps.
select coalesce(json_agg(id order by id), '[]')::text from (
    select id from offload.gates where paused or shut_until > %(now)s
    union
    select s.gate from offload.slots s cross join lateral (select from offload.done d where d.n = s.n limit 1) as d
    where s.gate >= 'turn of ' and s.gate < 'turn of!'
) as striking

-- name: gate_facts
-- Of gates, as gating.Facts: how many wait in lanes parked there, the extra of a job that has to do with it, the first :most who hold it, and
-- whether one of them is done.
select coalesce(json_agg(json_build_array(
    (select count(*) from offload.lanes l join offload.parked p on p.lane = l.id where l.gate = asked.id)
        + (select count(*) from offload.parked where lane = asked.id and not exists (select from offload.lanes where id = asked.id)),
    coalesce(
        (select j.extra from offload.slots s join offload.jobs j on j.n = s.n where s.gate = asked.id order by s.n limit 1),
        (select j.extra from offload.parkings l join offload.parked p on p.lane = l.id and p.seat = l.seat join offload.jobs j on j.n = p.n
            where l.gate = asked.id order by l.seat, l.id limit 1)),
    (select coalesce(json_agg(id order by n), '[]') from (
        select j.id, j.n from offload.slots s join offload.jobs j on j.n = s.n where s.gate = asked.id order by s.n limit %(most)s
    ) as first),
    exists (select from offload.slots s cross join lateral (select from offload.done d where d.n = s.n limit 1) as d where s.gate = asked.id)
)), '[]')::text from json_array_elements_text(%(gates)s::json) as asked (id)

-- name: lane_facts
-- Where a lane is parked, and how many of it stand before a seat.
select coalesce((select gate from offload.lanes where id = %(lane)s), %(lane)s),
    (select count(*) from offload.parked where lane = %(lane)s and seat < %(seat)s)

-- name: forget_gates
-- Drop what says no more than that nothing is known.
delete from offload.gates where ctid = any(array(
    select ctid from offload.gates
    where greatest(shut_until, tat + 20001) <= %(now)s::bigint
        and not paused and n is null and every is null and burst is null and wake_at is null
    for update skip locked
))

-- name: turns
-- Lines where keys take turns, as [queue, rank, keys]. Returns each as turns.LineRow: who stands first as `ready` counts, where the count
-- of rounds began, the highest round given since, and the last rounds of those keys; and the rounds of the jobs :ns. It begins to look
-- where somebody stood last, as a held snapshot may keep rows that were claimed before that.
select coalesce(json_agg(json_build_array(
    (select r.rank - (line.rank::bigint << 40) from offload.ready r
        where r.queue = line.queue and r.rank >= (line.rank::bigint << 40) + coalesce(t.first, 1) and r.rank < (line.rank + 1)::bigint << 40
        order by r.rank, r.pos limit 1),
    coalesce(t.base, 0),
    coalesce(t.last, 0),
    (select coalesce(json_object_agg(key, round), '{}') from offload.rounds
        where queue = line.queue and rank = line.rank and key = any(array(select value from json_array_elements_text(line.keys))))
) order by line.nth), '[]')::text,
    (select coalesce(json_object_agg(n, round), '{}')::text from offload.jobs
        where n = any(array(select value::bigint from json_array_elements_text(%(ns)s::json))))
from (
    select value ->> 0 as queue, (value ->> 1)::integer as rank, value -> 2 as keys, nth
    from json_array_elements(%(lines)s::json) with ordinality as asked (value, nth)
) as line left join lateral (
    select base, last, first from offload.turns where queue = line.queue and rank = line.rank limit 1
) as t on true

-- name: take_turns
-- As `to_the_end` for jobs that take turns, as [n, queue, place, due, claim, attempt, crashes, started_at, worker, whether they keep the due
-- that they had, pos, ready_at, round, base]; those with a ready_at go back to where they stood, as by `to_their_places`. Lines whose count
-- begins anew come in as [queue, rank, keys], all others' rounds being forgotten there, lines as [queue, rank, base, last, first], and
-- rounds as [queue, rank, key, round].
with moves as materialized (
    select coalesce((value ->> 10)::bigint, nextval('offload.places')) as pos, (value ->> 0)::bigint as n, value ->> 1 as queue,
        (value ->> 2)::bigint as rank, (value ->> 3)::bigint as due, (value ->> 4)::integer as claim, (value ->> 5)::integer as attempt,
        (value ->> 6)::integer as crashes, (value ->> 7)::bigint as started_at, value ->> 8 as worker, (value ->> 9)::boolean as keeps,
        (value ->> 11)::bigint as ready_at, (value ->> 12)::integer as round, (value ->> 13)::bigint as base
    from json_array_elements(%(moves)s::json)
), noted as materialized (
    select jsonb_object_agg(n, jsonb_build_array(pos, due, keeps, round, base)) as by_n from moves
), updated as (
    update offload.jobs j set pos = (t.by_n -> j.n::text ->> 0)::bigint,
        due = case when (t.by_n -> j.n::text ->> 2)::boolean then j.due else (t.by_n -> j.n::text ->> 1)::bigint end,
        round = (t.by_n -> j.n::text ->> 3)::integer, base = (t.by_n -> j.n::text ->> 4)::bigint
    from noted t where j.n = any(array(select n from moves))
), forgotten as (
    delete from offload.rounds where ctid = any(array(
        select r.place from jsonb_array_elements(%(begun)s::jsonb) b cross join lateral (
            select ctid as place, key from offload.rounds where queue = b.value ->> 0 and rank = (b.value ->> 1)::integer
        ) as r where not b.value -> 2 ? r.key
    ))
), counted as (
    insert into offload.turns (queue, rank, base, last, first)
    select value ->> 0, (value ->> 1)::integer, (value ->> 2)::bigint, (value ->> 3)::integer, (value ->> 4)::bigint
    from json_array_elements(%(lines)s::json)
    on conflict (queue, rank) do update set base = excluded.base, last = excluded.last, first = excluded.first
), given as (
    insert into offload.rounds (queue, rank, key, round)
    select value ->> 0, (value ->> 1)::integer, value ->> 2, (value ->> 3)::integer from json_array_elements(%(rounds)s::json)
    on conflict (queue, rank, key) do update set round = excluded.round
), placed as (
    insert into offload.ready (queue, rank, pos, n, claim, attempt, crashes, ready_at, started_at, worker)
    select queue, rank, pos, n, claim, attempt, crashes, coalesce(ready_at, %(now)s), started_at, worker from moves
)
select nextval('offload.returned') where exists (select from moves where ready_at is not null)

-- name: forget_rounds
-- Of keys whose last round is so far behind whoever stands first.
delete from offload.rounds where ctid = any(array(
    select r.place from offload.turns t cross join lateral (
        select ctid as place from offload.rounds where queue = t.queue and rank = t.rank and round < t.first - t.base - %(ago)s
        for update skip locked
    ) as r
))

-- name: look_at_gates_again
update offload.gates set wake_at = %(now)s::bigint where wake_at > %(now)s::bigint
