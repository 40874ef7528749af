-- Functions that record successes. They are made anew whenever the schema's version changes, so what they take and give back stays:
-- a worker of the version before goes on calling them.
--
-- Each statement of a function sees what was committed before it, as long as the transaction is READ COMMITTED: so links that came while
-- it waited for a row's lock are seen. A single statement would go by what there was when it began.

create or replace function offload.count_in_workflows(changes jsonb, moment bigint, shortest double precision, unsuccessful bigint, abandoned bigint)
returns void language plpgsql as $function$
-- Count changes in workflows, as [succeeded, dead, cancelled, expired] by their ids, as books.Count would: a tally that has no callbacks
-- need not come to the client and back while all others wait for it.
begin
    update offload.tallies t set (succeeded, dead, cancelled, expired, finished_at, forget_at, abandon_at) = (
        select x.succeeded, x.dead, x.cancelled, x.expired,
            case when x.over then coalesce(t.finished_at, moment) end,
            case when x.over then coalesce(t.forget_at, moment + case
                when x.succeeded = t.total and not t.abandoned then (greatest(t.keep, shortest) * 1000000)::bigint else unsuccessful
            end) end,
            case when t.total < t.size then t.touched_at + count_in_workflows.abandoned end
        from (
            select y.*, t.total >= t.size and t.total <= y.succeeded + y.dead + y.cancelled + y.expired as over from (
                select t.succeeded + (changes -> t.id ->> 0)::bigint as succeeded, t.dead + (changes -> t.id ->> 1)::bigint as dead,
                    t.cancelled + (changes -> t.id ->> 2)::bigint as cancelled, t.expired + (changes -> t.id ->> 3)::bigint as expired
            ) as y
        ) as x
    )
    where t.kind = 'workflow' and t.id = any(array(select jsonb_object_keys(changes)));
end
$function$;

create or replace function offload.succeed_in_workflows(
    ns bigint[], claims integer[], forget bigint[], results json, parents json, changes jsonb, session text, alone boolean, most integer,
    now bigint, shortest double precision, unsuccessful bigint, abandoned bigint, channel text
) returns text language plpgsql as $function$
-- As the statement `succeed`, of jobs some of which are :parents, as ids by workflow; also tells their children, of which those that are
-- straight go to the ends of their ready lines, and counts :changes in the workflows, as count_in_workflows takes them.
--
-- Children ask for more where not all that now may go are straight, or where one fell with a parent, or is about to: then none goes here.
-- Returns the children that may ask something now, as families.Kin, and whether anything is being stopped; where there are such children,
-- nothing was counted. Null, and nothing done, where a lease was lost, children are more than :most, one has a fate of its own for a parent,
-- or anything is owed to any; and where children ask while the caller is `alone`, with no transaction in which to answer them.
declare
    places tid[];
    told jsonb;  -- by child of how many parents
    simple boolean;
    asking json;
    going bigint[];
    all_straight boolean;
begin
    select array_agg(r.place) into places
    from unnest(succeed_in_workflows.ns, succeed_in_workflows.claims) as i (n, claim) cross join lateral (
        select r.ctid as place from offload.running r
        where r.n = i.n and r.claim = i.claim and r.session = succeed_in_workflows.session limit 1 for update
    ) as r;
    if cardinality(places) is distinct from cardinality(ns) or exists (select from offload.owed) then
        return null;
    end if;

    with found as materialized (
        select l.child, l.fate from json_each(parents) as w cross join lateral (
            select child, fate from offload.links
            where workflow = w.key and parent = any(array(select json_array_elements_text(w.value))) limit most + 1
        ) as l limit most + 1
    )
    select jsonb_object_agg(child, number), sum(number) <= most and sum(fates) = 0 into told, simple
    from (select child, count(*) as number, count(fate) as fates from found group by child) as c;
    if not simple then
        return null;
    end if;
    if told is not null then
        select json_agg(json_build_array(n, left_open, failed, brave, felled) order by n) filter (where asks),
            array_agg(n order by n) filter (where asks), bool_and(straight and not felled and (failed = 0 or brave)) filter (where asks)
        into asking, going, all_straight from (
            select *, left_open = 0 or felled or (failed > 0 and not brave) as asks from (  -- as a condition it might be met before the locks
                select n, open - (told ->> n::text)::integer as left_open, failed, brave, felled, straight from offload.children
                where n = any(array(select jsonb_object_keys(told)::bigint)) order by n for update
            ) as locked
        ) as c;
        if all_straight and not exists (select from offload.tallies where stopping is not null) then
            asking := null;
        else
            going := null;
        end if;
        if alone and asking is not null then
            return null;
        end if;
        update offload.children set open = open - (told ->> n::text)::integer where n = any(array(select jsonb_object_keys(told)::bigint));
    end if;

    with ended as (
        delete from offload.running where ctid = any(places)
    )
    insert into offload.done (n, state, claim, attempt, crashes, started_at, worker, result, finished_at, forget_at)
    select r.n, 'SUCCEEDED', r.claim, r.attempt, r.crashes, r.started_at, r.worker, i.result, now, i.forget_at
    from rows from (unnest(places, forget), json_array_elements_text(results)) as i (place, forget_at, result)
    cross join lateral (select * from offload.running where ctid = i.place) as r where i.forget_at is not null;
    if array_position(forget, null) is not null then
        delete from offload.jobs where n = any(array(select i.n from unnest(ns, forget) as i (n, forget_at) where i.forget_at is null));
    end if;
    if going is not null then
        with gone as (
            delete from offload.waiting where n = any(going) and what = 'parents' returning *
        ), placed as materialized (
            select nextval('offload.places') as pos, g.*, j.queue, j.rank from (select * from gone order by n) as g
            cross join lateral (select queue, rank from offload.jobs where n = g.n limit 1) as j
        ), noted as materialized (
            select jsonb_object_agg(n, pos) as by_n from placed
        ), updated as (
            update offload.jobs j set pos = (t.by_n ->> j.n::text)::bigint, due = null from noted t where j.n = any(array(select n from placed))
        )
        insert into offload.ready (queue, rank, pos, n, claim, attempt, crashes, ready_at, started_at, worker)
        select queue, rank::bigint << 40, pos, n, claim, attempt, crashes, now, started_at, worker from placed;
        perform pg_notify(channel, 'work') where exists (select from offload.sleepers where what = 'work' and until > clock_timestamp());
    end if;
    perform pg_notify(channel, 'ended') where exists (select from offload.sleepers where what = 'ended' and until > clock_timestamp());
    if asking is null then
        perform offload.count_in_workflows(changes, now, shortest, unsuccessful, abandoned);
        return '[[],false]';
    end if;
    return json_build_array(asking, exists (select from offload.tallies where stopping is not null));
end
$function$;
