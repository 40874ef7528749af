-- The SQL of workflows and batches. As in queries.sql, lists come in as one JSON text and go out as one. Of `tallies`, <columns> stands for
-- all columns, <count> for a row as books.Count, and <changes> for what sets a row to the Count in c.value: see transaction.py.

-- name: add_members
insert into jobs (n, id, task, queue, rank, payload, enqueued_at, keep, due, extra, workflow, batch)

-- name: ready_members
-- As ready_new, but for those that wait.
insert into ready (queue, rank, pos, n, claim, attempt, crashes, ready_at)
select queue, rank << 24, n, n, 0, 0, 0, :now from jobs
where n between :first and :last and (due is null or due <= :now) and not exists (select 1 from waiting where waiting.n = jobs.n)

-- name: schedule_members
insert into scheduled (due, n, claim, attempt, crashes)
select due, n, 0, 0, 0 from jobs
where n between :first and :last and due > :now and not exists (select 1 from waiting where waiting.n = jobs.n)

-- name: add_pending
insert into waiting (n, behind, what, claim, attempt, crashes, started_at, worker)

-- name: add_links
insert into links (child, place, parent, flow, wanted, fells, fate, input, why)

-- name: add_children
insert into children (n, open, straight)

-- name: drop_links
delete from links where child in (select value from json_each(:ns))

-- name: drop_children
delete from children where n in (select value from json_each(:ns))

-- name: ends_of
-- Those of the given ids that belong to a workflow and have ended, as [id, workflow, state, result].
select json_group_array(json_array(j.id, j.workflow, d.state, d.result))
from json_each(:ids) asked cross join jobs j on j.id = asked.value cross join done d on d.n = j.n
where j.workflow is not null

-- name: unknown_parent
-- The first job of a workflow that waits for one which is not there, and that one.
select c.id, link.parent
from jobs c cross join waiting w on w.n = c.n and w.what = 'parents' cross join links link indexed by links_open on link.child = c.n and link.fate = 0
where c.workflow = :workflow and not exists (select 1 from jobs p where p.id = link.parent and p.workflow = :workflow)
order by c.n, link.place limit 1

-- name: unknown_parent_of
-- The same of the given jobs alone.
select c.id, link.parent
from json_each(:ids) asked cross join jobs c on c.id = asked.value
cross join waiting w on w.n = c.n and w.what = 'parents' cross join links link indexed by links_open on link.child = c.n and link.fate = 0
where c.workflow = :workflow and not exists (select 1 from jobs p where p.id = link.parent and p.workflow = :workflow)
order by c.n, link.place limit 1

-- name: concerned
-- Whether anything is owed from before; whether any link to parents, which are given as the names of an object, has a fate of its own; and
-- for each of them the job that has it.
select exists (select 1 from owed), max(fate) > 0, json_group_array(child) from (
    select link.child, link.fate from json_each(:owed) d cross join links link on link.parent = d.key and link.flow = :flow and link.child > :after
    limit :limit)

-- name: concerned_first
-- The first of those links, as [parent, n of the job]: parent by parent, and of each by their numbers, which is the order of the index.
select json_group_array(json_array(key, child)) from (
    select d.key, link.child
    from json_each(:owed) d cross join links link on link.parent = d.key and link.flow = :flow and link.child > :after
    limit :limit)

-- name: having_children
-- Of parents, which are given as the names of an object, those that anybody waits for, or has waited for.
select json_group_array(key) from json_each(:owed) d where exists (select 1 from links where parent = d.key and flow = :flow)

-- name: count_down
-- Children wait for so many parents less, as [n, how many].
update children set open = open - json_extract(told.value, '$[1]')
from json_each(:changes) as told where children.n = json_extract(told.value, '$[0]')

-- name: recount
-- As `tell`, before it: count the links that it opens, or closes.
update children set open = open + iif(:fate = 0, told.number, -told.number)
from (
    select link.child, count(*) as number
    from json_each(:owed) d cross join links link on link.parent = d.key and link.flow = :flow and link.child > :after and link.child <= :upto
    where (link.fate = 0) <> (:fate = 0) group by link.child
) as told where children.n = told.child

-- name: keep_fates
-- Parents, which are given with their results, have succeeded, and their records are about to go: those of their children keep what came
-- of that who do not yet have it, but are not still to be told.
update links indexed by links_parent set fate = 1, input = iif(wanted, d.value, null)
from json_each(:ended) as d
where links.parent = d.key and links.flow = :flow and links.fate = 0
    and not exists (select 1 from owed where parent = d.key and flow = :workflow)

-- name: tell
-- Have the children of parents, which are given with their results, or how they failed, know that fate.
update links indexed by links_parent set
    fate = :fate,
    input = iif(:fate = 1 and wanted, d.value, null),
    why = iif(:fate = 2, d.value, null)
from json_each(:owed) as d
where links.parent = d.key and links.flow = :flow and links.child > :after and links.child <= :upto

-- name: children
-- Jobs, as families.Child: whether each waits for a parent, and why it falls, if it does. By the indexes of those links alone: a job may
-- have ten thousand.
select json_group_array(json_array(
    asked.value, w.what is 'parents', ifnull(d.felled, 0),
    exists (select 1 from children where n = asked.value and open > 0),
    (select why from links indexed by links_failed where child = asked.value and fate = 2 and fells order by place limit 1),
    ifnull((select straight from children where n = asked.value), 0)
)) from json_each(:ns) asked left join waiting w on w.n = asked.value left join done d on d.n = asked.value

-- name: in_vain
-- Those of these jobs that wait for a parent which is not there.
select json_group_array(j.n) from json_each(:ns) asked cross join jobs j on j.n = asked.value
where exists (
    select 1 from links link indexed by links_open
    where link.child = j.n and link.fate = 0 and not exists (select 1 from jobs p where p.id = link.parent and p.workflow = j.workflow))

-- name: go_straight
-- Jobs that wait for their parents go to the ends of their ready lines, from the place :first on, in order.
insert into ready (queue, rank, pos, n, claim, attempt, crashes, ready_at, started_at, worker)
select j.queue, j.rank << 24, :first + g.key, j.n, w.claim, w.attempt, w.crashes, :now, w.started_at, w.worker
from json_each(:ns) g cross join jobs j on j.n = g.value cross join waiting w on w.n = g.value

-- name: note_straight
update jobs set pos = :first + went.key, due = null from json_each(:ns) as went where jobs.n = went.value

-- name: note_felled
update done set felled = 1 where n in (select value from json_each(:ns))

-- name: note_reasons
-- Jobs that have ended, as [n, reason].
update done set reason = json_extract(told.value, '$[1]') from json_each(:reasons) as told where done.n = json_extract(told.value, '$[0]')

-- name: inputs
-- What came from the parents of jobs, as [n, result], in their order.
select json_group_array(json_array(child, input)) from (
    select link.child, iif(not link.wanted or link.fate > 0, link.input, (
        select d.result from jobs p cross join done d on d.n = p.n where p.id = link.parent and p.workflow = c.workflow
    )) as input
    from json_each(:ns) asked cross join jobs c on c.n = asked.value cross join links link on link.child = c.n
    order by link.child, link.place)

-- name: open_parents
-- How many parents a job waits for, and the first of them.
select
    ifnull((select open from children where n = :n), 0),
    (select json_group_array(parent) from (
        select parent from links link indexed by links_open where link.child = :n and link.fate = 0 and not exists (
            select 1 from jobs p cross join done d on d.n = p.n
            where p.id = link.parent and p.workflow = (select workflow from jobs where n = :n) and d.state = 'SUCCEEDED'
                and not exists (select 1 from owed where parent = p.id and flow = p.workflow and after < :n))
        order by place limit :most))

-- name: owed
-- What is owed longest, as [n, parent, workflow, fate, what is to be told, the last child that knows].
select json_group_array(json_array(n, parent, flow, fate, told, after)) from (select * from owed order by n limit :limit)

-- name: add_owed
insert into owed (n, parent, flow, fate, told, after)

-- name: drop_owed
-- Of a workflow what is owed to the children of these parents.
delete from owed where parent in (select value from json_each(:parents)) and flow = :flow

-- name: drop_owed_rows
delete from owed where n in (select value from json_each(:ns))

-- name: anything_owed
-- Whether something was begun that upkeep is to go on with.
select exists (select 1 from owed) or exists (select 1 from tallies indexed by tallies_stopping where stopping is not null)

-- name: tallies
-- Those of the given [kind, id] that there are, as books.Count.
select json_group_array(<count>) from tallies
where (kind, id) in (select json_extract(value, '$[0]'), json_extract(value, '$[1]') from json_each(:pairs))

-- name: count
-- Count jobs that have ended; gives what there is now, as books.Count.
update tallies set
    succeeded = succeeded + :succeeded, dead = dead + :dead, cancelled = cancelled + :cancelled, expired = expired + :expired
where kind = :kind and id = :id
returning <count>

-- name: tally_page
-- A page of them, newest first.
select json_group_array(<count>)
from (select * from tallies where kind = :kind and (created_at, n) < (:at, :after) order by created_at desc, n desc limit :limit)

-- name: tally_after
-- Where a page ends.
select created_at, n from tallies where kind = :kind and id = :id

-- name: tallies_to_abandon
select json_group_array(json_array(kind, id)) from (
    select kind, id from tallies where abandon_at <= :now order by abandon_at limit :limit)

-- name: tallies_to_forget
select json_group_array(json_array(kind, id)) from (
    select kind, id from tallies where forget_at <= :now order by forget_at limit :limit)

-- name: tallies_stopping
select json_group_array(json_array(kind, id)) from (
    select kind, id from tallies indexed by tallies_stopping where stopping is not null order by n limit 1)

-- name: add_tallies
insert into tallies (<columns>)

-- name: put_tallies
-- Those that there were, as they are now.
update tallies set <changes>
from json_each(:counts) as c where tallies.n = json_extract(c.value, '$[0]')

-- name: drop_tally
delete from tallies where n = :n

-- name: running_by_workflow
-- How many jobs of workflows run, by their ids.
select json_group_object(id, number) from (
    select j.workflow as id, count(*) as number from running r cross join jobs j on j.n = r.n
    where j.workflow in (select value from json_each(:ids)) group by j.workflow)

-- name: running_by_batch
select json_group_object(id, number) from (
    select j.batch as id, count(*) as number from running r cross join jobs j on j.n = r.n
    where j.batch in (select value from json_each(:ids)) and json_extract(j.extra, '$.callback') is null group by j.batch)

-- name: workflow_members
-- The next jobs of a workflow, as [n, id].
select json_group_array(json_array(n, id)) from (
    select n, id from jobs where workflow = :id and n > :after order by n limit :limit)

-- name: batch_members
-- The next jobs of a batch that are counted in it.
select json_group_array(json_array(n, id)) from (
    select n, id from jobs where batch = :id and n > :after and json_extract(extra, '$.callback') is null order by n limit :limit)

-- name: keeps_turn
-- Whether a dead job of a workflow keeps its turn.
select exists (select 1 from jobs j cross join done d on d.n = j.n
    where j.workflow = :id and d.state = 'DEAD'
        and json_extract(j.extra, '$.on_dead') = 'hold' and json_extract(j.extra, '$.order_by') is not null)

-- name: pending_callbacks
-- Of the given ids the numbers of those that wait for their batch.
select json_group_array(j.n) from json_each(:ids) asked cross join jobs j on j.id = asked.value
cross join waiting w on w.n = j.n and w.what = 'batch'

-- name: find_members
-- As find, of a workflow or a batch; by the index of the one that is given.
select json_group_array(n) from (
    select r.n from (
        select n from jobs where workflow = :workflow
        union
        select n from jobs where batch = :batch
    ) as member cross join records r on r.n = member.n
    where (:state is null or r.state = :state)
        and (:workflow is null or r.workflow = :workflow)
        and (:batch is null or r.batch = :batch)
        and (:task is null or r.task = :task)
        and (:queue is null or r.queue = :queue)
        and (:key is null
            or :key in (json_extract(r.extra, '$.unique.key'), json_extract(r.extra, '$.order_by'), json_extract(r.extra, '$.fair_by'))
            or exists (select 1 from json_each(r.extra, '$.limits') where json_extract(value, '$.key') = :key))
        and (:at is null or (r.enqueued_at, r.n) < (:at, :after))
    order by r.enqueued_at desc, r.n desc limit :limit
)
