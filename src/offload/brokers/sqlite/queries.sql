-- All SQL of this engine but for its schema. Lists come in as one JSON text and go out as one, see transaction.py.

-- name: take_numbers
-- The number after the last one taken.
update store set next = next + :count returning next

-- name: lock
-- Changes nothing, but takes the right to write.
update store set next = next where false

-- name: add_jobs
insert into jobs (n, id, task, queue, rank, payload, enqueued_at, keep, due, extra)

-- name: ready_new
-- Jobs just added whose time has come; their place is their number.
insert into ready (queue, rank, pos, n, claim, attempt, crashes, ready_at)
select queue, rank << 24, n, n, 0, 0, 0, :now from jobs where n between :first and :last and (due is null or due <= :now)

-- name: schedule_new
insert into scheduled (due, n, claim, attempt, crashes)
select due, n, 0, 0, 0 from jobs where n between :first and :last and due > :now

-- name: add_expiring
insert into expiring (expires_at, n)

-- name: drop_expiring
delete from expiring where (expires_at, n) in (select json_extract(value, '$[0]'), json_extract(value, '$[1]') from json_each(:pairs))

-- name: known
-- What a job of a known id must have in common with that one.
select task, payload, batch, json_extract(extra, '$.callback'), workflow from jobs where id = :id

-- name: id
select id from jobs where n = :n

-- name: numbers
select json_group_array(n) from jobs where id in (select value from json_each(:ids))

-- name: rows
-- Jobs with their states, as rows.JobColumns.
select json_group_array(json_array(
    n, id, task, queue, rank, payload, enqueued_at, keep, due, extra, state, claim, attempt, crashes, started_at, worker,
    aside, pos, result, finished_at, reason, json(errors), json(steps), json(progress),
    exists (select 1 from running where running.n = records.n and cancel), seat, lane, place, what))
from records where n in (select value from json_each(:ns))

-- name: hold
-- Who holds a key.
select n, holder, until, frees_at, successor from uniques where key = :key

-- name: add_holds
insert into uniques (key, n, holder, until, frees_at)

-- name: set_successor
update uniques set successor = :successor where key = :key

-- name: drop_hold
delete from uniques where key = :key

-- name: revive_jobs
-- Jobs, as [n, extra], that start a new life.
update jobs set payload = ifnull(:payload, payload), due = null, extra = json_extract(life.value, '$[1]')
from json_each(:extras) as life where jobs.n = json_extract(life.value, '$[0]')

-- name: replace_job
update jobs set payload = :payload, due = :due, extra = :extra where n = :n

-- name: add_waiting
insert into waiting (n, behind)

-- name: set_behind
update waiting set behind = :behind where n = :n

-- name: drop_waiting
delete from waiting where n in (select value from json_each(:ns))

-- name: add_ready
insert into ready (queue, rank, pos, n, claim, attempt, crashes, ready_at, started_at, worker)

-- name: add_scheduled
insert into scheduled (due, n, claim, attempt, crashes, started_at, worker)

-- name: drop_scheduled
-- Jobs, as [due, n].
delete from scheduled
where (due, n) in (select json_extract(value, '$[0]'), json_extract(value, '$[1]') from json_each(:pairs))

-- name: note_places
-- Jobs, as [n, pos, due, whether it keeps the due that it had], that go to places in the ready line.
update jobs set pos = json_extract(moves.value, '$[1]'), due = iif(json_extract(moves.value, '$[3]'), due, json_extract(moves.value, '$[2]'))
from json_each(:moves) as moves where jobs.n = json_extract(moves.value, '$[0]')

-- name: note_promoted
-- Jobs that go to the ready line from the place :first on, in order.
update jobs set pos = :first + moves.key from json_each(:ns) as moves where jobs.n = moves.value

-- name: note_dues
-- Jobs, as [n, due], that now wait for a time.
update jobs set due = json_extract(moves.value, '$[1]')
from json_each(:moves) as moves where jobs.n = json_extract(moves.value, '$[0]')

-- name: lines
-- What a fetch must know first: is the session there, which queues are paused, which lines of jobs set aside there are, and
-- (where :all) which queues have something ready. The chains of `min` jump from one queue to the next without reading its jobs.
select
    (select count(*) from sessions where id = :session),
    (select json_group_array(queue) from paused),
    (with recursive line(pair) as (
        select (select json_array(queue, task) from aside order by queue, task limit 1)
        union all
        select (
            select json_array(queue, task) from aside
            where (queue, task) > (json_extract(line.pair, '$[0]'), json_extract(line.pair, '$[1]')) order by queue, task limit 1
        ) from line where line.pair is not null
    ) select json_group_array(json(pair)) from line where pair is not null),
    (with recursive line(queue) as (
        select min(queue) from ready where :all
        union all
        select (select min(queue) from ready where queue > line.queue) from line where line.queue is not null
    ) select json_group_array(queue) from line where queue is not null)

-- name: candidates
-- The first of a ready line with their jobs, as rows.ReadyRow.
select json_group_array(json_array(rank, pos, n, claim, attempt, crashes, id, task, payload, enqueued_at, keep, extra))
from (
    select r.rank, r.pos, r.n, r.claim, r.attempt, r.crashes, j.id, j.task, j.payload, j.enqueued_at, j.keep, j.extra
    from ready r cross join jobs j on j.n = r.n
    where r.queue = :queue
    order by r.rank, r.pos limit :limit
)

-- name: candidates_aside
select json_group_array(json_array(rank, pos, n, claim, attempt, crashes, id, task, payload, enqueued_at, keep, extra))
from (
    select a.rank, a.pos, a.n, a.claim, a.attempt, a.crashes, j.id, j.task, j.payload, j.enqueued_at, j.keep, j.extra
    from aside a cross join jobs j on j.n = a.n
    where a.queue = :queue and a.task = :task
    order by a.rank, a.pos limit :limit
)

-- name: run_front
-- Lease the ready jobs of a queue up to a place.
insert into running (n, session, claim, attempt, crashes, pos, ready_at, started_at, worker)
select n, :session, claim + 1, attempt + 1, crashes, pos, ready_at, :now, :worker
from ready where queue = :queue and (rank, pos) <= (:rank, :pos)

-- name: drop_front
delete from ready where queue = :queue and (rank, pos) <= (:rank, :pos)

-- name: run_places
-- Lease ready jobs of a queue, as [rank, pos].
insert into running (n, session, claim, attempt, crashes, pos, ready_at, started_at, worker)
select r.n, :session, r.claim + 1, r.attempt + 1, r.crashes, r.pos, r.ready_at, :now, :worker
from json_each(:places) p
cross join ready r on r.queue = :queue and r.rank = json_extract(p.value, '$[0]') and r.pos = json_extract(p.value, '$[1]')

-- name: run_places_aside
-- Lease jobs of a queue that are set aside, as [task, rank, pos].
insert into running (n, session, claim, attempt, crashes, pos, ready_at, started_at, worker)
select a.n, :session, a.claim + 1, a.attempt + 1, a.crashes, a.pos, a.ready_at, :now, :worker
from json_each(:places) p
cross join aside a on a.queue = :queue
    and a.task = json_extract(p.value, '$[0]') and a.rank = json_extract(p.value, '$[1]') and a.pos = json_extract(p.value, '$[2]')

-- name: set_aside
-- Ready jobs of a queue, as [rank, pos].
insert into aside (queue, task, rank, pos, n, claim, attempt, crashes, ready_at, started_at, worker)
select r.queue, j.task, r.rank, r.pos, r.n, r.claim, r.attempt, r.crashes, r.ready_at, r.started_at, r.worker
from json_each(:places) p
cross join ready r on r.queue = :queue and r.rank = json_extract(p.value, '$[0]') and r.pos = json_extract(p.value, '$[1]')
cross join jobs j on j.n = r.n

-- name: drop_places
-- Ready jobs of a queue, as [rank, pos].
delete from ready
where queue = :queue and (rank, pos) in (select json_extract(value, '$[0]'), json_extract(value, '$[1]') from json_each(:places))

-- name: drop_places_aside
-- Jobs of a queue set aside, as [task, rank, pos].
delete from aside
where queue = :queue
    and task in (select json_extract(value, '$[0]') from json_each(:places))
    and (rank, pos) in (select json_extract(value, '$[1]'), json_extract(value, '$[2]') from json_each(:places))

-- name: steps_of
-- The steps of jobs, as [n, name, value].
select json_group_array(json_array(n, name, value)) from steps where n in (select value from json_each(:ns))

-- name: drop_progress
delete from progress where n in (select value from json_each(:ns))

-- name: held
-- The leases that a session holds, as settle.Held.
select json_group_array(json_array(n, claim, attempt, crashes, pos, ready_at, started_at, worker, cancel))
from running where n in (select value from json_each(:ns)) and session = :session

-- name: held_of
-- Of the given jobs those that a session runs.
select json_group_array(n) from running where n in (select value from json_each(:ns)) and session = :session

-- name: held_all
select json_group_array(n) from (select n from running where session = :session order by n)

-- name: keep_results
-- Records that leases succeeded, as [n, result].
insert into done (n, state, claim, attempt, crashes, started_at, worker, result, finished_at, forget_at)
select r.n, 'SUCCEEDED', r.claim, r.attempt, r.crashes, r.started_at, r.worker, json_extract(d.value, '$[1]'), :now, :forget_at
from json_each(:results) d cross join running r on r.n = json_extract(d.value, '$[0]') and r.session = :session and r.claim = :claim

-- name: keep_done
-- Records that leases succeeded with nothing to tell.
insert into done (n, state, claim, attempt, crashes, started_at, worker, finished_at, forget_at)
select n, 'SUCCEEDED', claim, attempt, crashes, started_at, worker, :now, :forget_at
from running where n in (select value from json_each(:ns)) and session = :session and claim = :claim

-- name: settle_plain
-- Ends leases; fewer rows than given mean that some were lost.
delete from running where n in (select value from json_each(:ns)) and session = :session and claim = :claim

-- name: drop_running
delete from running where n in (select value from json_each(:ns))

-- name: drop_jobs
delete from jobs where n in (select value from json_each(:ns))

-- name: drop_errors
delete from errors where n in (select value from json_each(:ns))

-- name: drop_steps
delete from steps where n in (select value from json_each(:ns))

-- name: add_done
insert into done (n, state, claim, attempt, crashes, started_at, worker, result, reason, finished_at, forget_at)

-- name: drop_done
delete from done where n in (select value from json_each(:ns))

-- name: add_errors
insert into errors (n, claim, failure)

-- name: put_step
-- Fenced by the lease.
insert into steps (n, name, value)
select n, :name, :value from running where n = :n and session = :session and claim = :claim
on conflict (n, name) do update set value = excluded.value

-- name: put_progress
-- Progress of leases, as [n, claim, fraction, message].
insert into progress (n, fraction, message)
select r.n, json_extract(p.value, '$[2]'), json_extract(p.value, '$[3]')
from json_each(:progress) p
cross join running r
    on r.n = json_extract(p.value, '$[0]') and r.claim = json_extract(p.value, '$[1]') and r.session = :session
where true
on conflict (n) do update set fraction = excluded.fraction, message = excluded.message

-- name: add_session
insert into sessions (id, info, beat, beat_at, started_at) values (:id, :info, 0, :now, :now)

-- name: knows_session
select count(*) from sessions where id = :id

-- name: drop_session
delete from sessions where id = :id

-- name: drop_dead_session
-- Only while its beat number is the one seen.
delete from sessions where id = :id and beat = :beat

-- name: beat
update sessions set beat = beat + 1, beat_at = :now where id = :id

-- name: beats
-- The beat numbers of the other sessions, by id, and the leases of this one whose cancellation was asked for.
select
    (select json_group_object(id, beat) from sessions where id <> :id),
    (select json_group_array(json_array(j.id, r.claim)) from running r join jobs j on j.n = r.n where r.session = :id and r.cancel)

-- name: ask_to_cancel
update running set cancel = 1 where n in (select value from json_each(:ns))

-- name: sessions
select json_group_array(json_array(id, info, beat, beat_at, started_at, running)) from (
    select s.id, s.info, s.beat, s.beat_at, s.started_at, (select count(*) from running r where r.session = s.id) as running
    from sessions s order by s.number
)

-- name: due_jobs
-- What is scheduled and due, as upkeep.DueRow, earliest first.
select json_group_array(json_array(due, n, queue, rank, claim, attempt, crashes, started_at, worker, extra, seat)) from (
    select s.due, s.n, j.queue, j.rank, s.claim, s.attempt, s.crashes, s.started_at, s.worker, j.extra, ifnull(j.seat, j.n) as seat
    from scheduled s cross join jobs j on j.n = s.n
    where s.due <= :now order by s.due, s.n limit :limit
)

-- name: drop_due
delete from scheduled where (due, n) <= (:due, :n)

-- name: expired
select json_group_array(id) from (
    select j.id from expiring e cross join jobs j on j.n = e.n where e.expires_at <= :now order by e.expires_at, e.n limit :limit
)

-- name: forgettable
select json_group_array(n) from (select n from done where forget_at <= :now order by forget_at limit :limit)

-- name: moments
-- When something is next due, expires, may be forgotten, or is to be ticked; when absent schedules were last looked for; when somebody may
-- pass gates by time alone; and when a gate may be forgotten. What is owed, and workflows and batches, come with what may be forgotten.
select
    (select min(due) from scheduled),
    (select min(expires_at) from expiring),
    (select min(at) from (
        select min(forget_at) as at from done
        union all select min(forget_at) from tallies where forget_at is not null
        union all select min(abandon_at) from tallies where abandon_at is not null
        union all select * from (select 0 from owed limit 1)
        union all select * from (select 0 from tallies indexed by tallies_stopping where stopping is not null limit 1))),
    (select min(next_at) from schedules where not paused),
    (select pruned_at from store),
    (select min(wake_at) from gates where wake_at is not null),
    (select min(max(shut_until, tat + 20001)) from gates
        where not paused and n is null and interval is null and burst is null and wake_at is null)

-- name: schedule
select json_array(name, rule, next_at, last_at, last_job, paused, declared, fired, skipped) from schedules where name = :name

-- name: schedules
select json_group_array(json_array(name, rule, next_at, last_at, last_job, paused, declared, fired, skipped))
from (select * from schedules order by name)

-- name: due_schedules
select json_group_array(json_array(rule, next_at))
from (select rule, next_at from schedules where not paused and next_at <= :now order by name)

-- name: put_schedule
insert into schedules (name, rule, next_at, declared) values (:name, :rule, :next_at, :declared)
on conflict (name) do update set rule = :rule, next_at = :next_at, declared = :declared, absent_since = null

-- name: keep_schedule
-- Its rule is unchanged, and so is its next tick.
update schedules set declared = :declared, absent_since = null where name = :name

-- name: move_schedule
update schedules set next_at = :next_at, last_at = ifnull(:last_at, last_at) where name = :name

-- name: fired
update schedules set fired = fired + 1, last_job = :id where name = :name

-- name: skipped
update schedules set skipped = skipped + 1 where name = :name

-- name: drop_schedule
delete from schedules where name = :name

-- name: pause_schedule
update schedules set paused = 1 where name = :name

-- name: resume_schedule
update schedules set paused = 0, next_at = :next_at where name = :name

-- name: pruned
update store set pruned_at = :now

-- name: schedules_present
update schedules set absent_since = null where declared and name in (select value from json_each(:names))

-- name: schedules_gone
delete from schedules where declared and absent_since <= :before and name not in (select value from json_each(:names))

-- name: schedules_absent
update schedules set absent_since = :now
where declared and absent_since is null and name not in (select value from json_each(:names))

-- name: pause_queue
insert or ignore into paused (queue) values (:queue)

-- name: resume_queue
delete from paused where queue = :queue

-- name: paused
select json_group_array(queue) from (select queue from paused order by queue)

-- name: texts
-- Where a text may be found: jobs, as [n, id, task, payload, [messages]].
select json_group_array(json_array(n, id, task, payload, json((
    select json_group_array(json_extract(failure, '$.message')) from errors where errors.n = jobs.n
)))) from jobs where n in (select value from json_each(:ns))

-- name: ended
-- Those of the given ids that are terminal or unknown.
select json_group_array(value) from json_each(:ids)
where not exists (select 1 from jobs j left join done d on d.n = j.n where j.id = value and d.n is null)

-- name: counts
-- Numbers by queue and state, as [queue, state, number].
select json_group_array(json_array(queue, state, number)) from (
    select queue, 'READY' as state, count(*) as number from ready group by queue
    union all select queue, 'READY', count(*) from aside group by queue
    union all select j.queue, 'RUNNING', count(*) from running t cross join jobs j on j.n = t.n group by j.queue
    union all select j.queue, 'SCHEDULED', count(*) from scheduled t cross join jobs j on j.n = t.n group by j.queue
    union all select j.queue, 'WAITING', count(*) from waiting t cross join jobs j on j.n = t.n group by j.queue
    union all select j.queue, 'WAITING', count(*) from parked t cross join jobs j on j.n = t.n group by j.queue
    union all select j.queue, t.state, count(*) from done t cross join jobs j on j.n = t.n group by j.queue, t.state
)

-- name: ahead
-- How many ready jobs of a queue go before a place.
select
    (select count(*) from ready where queue = :queue and (rank, pos) < (:rank, :pos))
    + (select count(*) from aside where queue = :queue and (rank, pos) < (:rank, :pos))

-- name: after
-- Where a page ends.
select enqueued_at, n from jobs where id = :id

-- name: find
-- The numbers of jobs that match, newest first.
select json_group_array(n) from (
    select n from jobs
    where (:task is null or task = :task)
        and (:queue is null or queue = :queue)
        and (:key is null or :key in (json_extract(extra, '$.unique.key'), json_extract(extra, '$.order_by'), json_extract(extra, '$.fair_by'))
            or exists (select 1 from json_each(extra, '$.limits') where json_extract(value, '$.key') = :key))
        and (:at is null or (enqueued_at, n) < (:at, :after))
    order by enqueued_at desc, n desc limit :limit
)

-- name: find_in_state
-- As find, by way of the lines of one state.
select json_group_array(n) from (
    select j.n from (
        select n from ready where :state = 'READY'
        union all select n from aside where :state = 'READY'
        union all select n from running where :state = 'RUNNING'
        union all select n from scheduled where :state = 'SCHEDULED'
        union all select n from waiting where :state = 'WAITING'
        union all select n from parked where :state = 'WAITING'
        union all select n from done where state = :state
    ) as line cross join jobs j on j.n = line.n
    where (:task is null or j.task = :task)
        and (:queue is null or j.queue = :queue)
        and (:key is null or :key in (json_extract(j.extra, '$.unique.key'), json_extract(j.extra, '$.order_by'), json_extract(j.extra, '$.fair_by'))
            or exists (select 1 from json_each(j.extra, '$.limits') where json_extract(value, '$.key') = :key))
        and (:at is null or (j.enqueued_at, j.n) < (:at, :after))
    order by j.enqueued_at desc, j.n desc limit :limit
)

-- name: facts
-- What `doctor` asks for: set aside by task, oldest ready by queue, large payloads, times of the last that succeeded.
select
    (select json_group_object(task, number) from (select task, count(*) as number from aside group by task)),
    (select json_group_object(queue, at) from (
        select queue, min(at) as at from (
            select queue, min(ready_at) as at from ready group by queue
            union all select queue, min(ready_at) from aside group by queue
        ) group by queue)),
    (select json_group_array(json_array(id, task, size)) from (
        select id, task, length(cast(payload as blob)) as size from jobs
        where length(cast(payload as blob)) > :large order by size desc, id limit :most_large)),
    (select json_group_array(json_array(task, started_at, finished_at)) from (
        select j.task, d.started_at, d.finished_at from done d cross join jobs j on j.n = d.n
        where d.state = 'SUCCEEDED' order by d.finished_at desc, d.n desc limit :most_finished))

-- name: infos
-- What the workers of all sessions said of themselves.
select json_group_array(info) from sessions
