-- What other languages and triggers call. It stores what Python's `enqueue` would store: see docs/guides/enqueue-from-sql.md.

create or replace function offload.enqueue(
    task text,
    payload jsonb default '{}',
    id text default null,
    queue text default 'default',
    priority integer default 0,
    delay interval default null,
    run_at timestamptz default null,
    unique_key text default null,
    unique_until text default 'finished',
    on_conflict text default 'skip',
    expires_in interval default null,
    keep interval default '1 day',
    timeout interval default null
) returns text
language plpgsql
set search_path = pg_catalog
as $function$
#variable_conflict use_column
declare
    moment constant timestamptz := clock_timestamp();
    now_at constant bigint := extract(epoch from moment) * 1000000;
    due_at constant timestamptz := case when enqueue.delay is null then enqueue.run_at else moment + enqueue.delay end;
    due bigint;
    expires bigint;
    -- Every text between quotes stays; white space outside of them goes, as Python writes JSON.
    body constant text := regexp_replace(enqueue.payload::text, '("(?:[^"\\]|\\.)*")|\s+', '\1', 'g');
    until constant text := case when enqueue.unique_until in ('finished', 'started') then enqueue.unique_until else 'time' end;
    span double precision;
    extra jsonb;
    number bigint;
    known record;
    hold record;
begin
    if enqueue.task is null or trim(enqueue.task) = '' then
        raise exception 'enqueue: task must be a name that is not empty' using errcode = 'invalid_parameter_value';
    elsif enqueue.id = '' or enqueue.unique_key = '' then
        raise exception 'enqueue: an id or unique_key that is empty means nothing; leave it out'
            using errcode = 'invalid_parameter_value';
    elsif char_length(enqueue.id) > 200 or char_length(enqueue.queue) > 200 or char_length(enqueue.task) > 200 then
        raise exception 'enqueue: id, queue and task have at most 200 characters each; use a hash'
            using errcode = 'invalid_parameter_value';
    elsif enqueue.payload is null or jsonb_typeof(enqueue.payload) <> 'object' then
        raise exception 'enqueue: payload must be a JSON object of the arguments by name, not %', coalesce(enqueue.payload::text, 'null')
            using errcode = 'invalid_parameter_value';
    elsif octet_length(body) > 262144 then
        raise exception 'enqueue: the payload has % bytes, of at most 262144; store the data and pass its key', octet_length(body)
            using errcode = 'program_limit_exceeded';
    elsif enqueue.queue is null or enqueue.queue = '' or enqueue.queue ~ '[\s,:*]' then
        raise exception 'enqueue: queue must be a name without white space, commas, colons and stars, not %', quote_nullable(enqueue.queue)
            using errcode = 'invalid_parameter_value';
    elsif enqueue.priority is null or enqueue.priority not between -100 and 100 then
        raise exception 'enqueue: priority must be from -100 to 100 (higher runs first), not %', coalesce(enqueue.priority::text, 'null')
            using errcode = 'invalid_parameter_value';
    elsif enqueue.delay is not null and enqueue.run_at is not null then
        raise exception 'enqueue: a job has one time; give delay or run_at' using errcode = 'invalid_parameter_value';
    elsif enqueue.delay < interval '0' then
        raise exception 'enqueue: delay must not be negative, as % is', enqueue.delay using errcode = 'invalid_parameter_value';
    elsif enqueue.unique_key is null and enqueue.unique_until <> 'finished' then
        raise exception 'enqueue: unique_until says until when unique_key is held, and there is none; give unique_key too'
            using errcode = 'invalid_parameter_value';
    elsif char_length(enqueue.unique_key) > 200 then
        raise exception 'enqueue: unique_key has % characters, of at most 200; use a hash of it', char_length(enqueue.unique_key)
            using errcode = 'invalid_parameter_value';
    elsif enqueue.on_conflict is null or enqueue.on_conflict not in ('skip', 'raise') then
        raise exception 'enqueue: on_conflict is ''skip'' or ''raise'', not %; other ways need Python', quote_nullable(enqueue.on_conflict)
            using errcode = 'invalid_parameter_value';
    elsif coalesce(due_at, moment) not between '1970-01-01Z' and '9999-01-01Z'
        or coalesce(moment + enqueue.expires_in, moment) not between '1970-01-01Z' and '9999-01-01Z' then  -- what Python cannot read
        raise exception 'enqueue: delay, run_at and expires_in must stay between the years 1970 and 9999'
            using errcode = 'invalid_parameter_value';
    elsif enqueue.keep not between interval '0' and interval '1000 years' then
        raise exception 'enqueue: keep is from 0 to 1000 years, not %', enqueue.keep using errcode = 'invalid_parameter_value';
    elsif enqueue.timeout <= interval '0' then
        raise exception 'enqueue: timeout must be a positive interval, not %', enqueue.timeout using errcode = 'invalid_parameter_value';
    elsif enqueue.unique_until is null or enqueue.keep is null then
        raise exception 'enqueue: unique_until and keep cannot be null; leave them out' using errcode = 'invalid_parameter_value';
    end if;

    due := extract(epoch from due_at) * 1000000;
    expires := extract(epoch from moment + enqueue.expires_in) * 1000000;
    if enqueue.unique_key is not null and until = 'time' then
        begin
            span := extract(epoch from enqueue.unique_until::interval);
        exception when invalid_datetime_format or datetime_field_overflow or interval_field_overflow then
            span := 0;
        end;
        if span <= 0 or span > 31557600000 then  -- 1000 years
            raise exception 'enqueue: unique_until is ''finished'', ''started'' or an interval such as ''5 minutes'', not %',
                quote_literal(enqueue.unique_until) using errcode = 'invalid_parameter_value';
        end if;
    end if;
    if due_at is not null or enqueue.expires_in is not null or enqueue.timeout is not null or enqueue.unique_key is not null then
        extra := jsonb_strip_nulls(jsonb_build_object(
            'run_at', to_char(due_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            'expires_at', to_char((moment + enqueue.expires_in) at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            'timeout', extract(epoch from enqueue.timeout)::double precision,
            'unique', case when enqueue.unique_key is not null then jsonb_build_object(
                'key', enqueue.unique_key,
                'until', case until when 'time' then to_jsonb(span) else to_jsonb(until) end,
                'on_conflict', enqueue.on_conflict) end));
    end if;

    if enqueue.id is null then  -- a UUID of version 7, which begins with the time in milliseconds
        enqueue.id := encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
            placing substring(int8send(now_at / 1000) from 3) from 1 for 6), 52, 1), 53, 1), 'hex')::uuid;
    end if;
    loop
        select j.task, j.payload, j.workflow, j.batch into known from offload.jobs j where j.id = enqueue.id;
        if found then
            if known.task = enqueue.task and known.payload::jsonb = enqueue.payload  -- jsonb has an order of its own
                and known.workflow is null and known.batch is null then
                return enqueue.id;
            end if;
            raise exception 'enqueue: job id % was already used with another task or payload, or in a workflow or batch', quote_literal(enqueue.id)
                using errcode = 'unique_violation';
        end if;

        number := nextval('offload.places');
        while enqueue.unique_key is not null loop
            insert into offload.uniques (key, n, holder, until, frees_at)
            values (enqueue.unique_key, number, enqueue.id, until, now_at + (span * 1000000)::bigint)
            on conflict do nothing;
            exit when found;
            -- The holder is not locked: who settles it would wait for the end of this transaction. But one whose start frees the key
            -- must not start before.
            select u.holder, u.until, u.frees_at into hold from offload.uniques u where u.key = enqueue.unique_key;
            continue when not found;
            if hold.frees_at <= now_at then
                delete from offload.uniques u where u.key = enqueue.unique_key and u.frees_at <= now_at;
                continue;
            elsif hold.until = 'started' then
                perform from offload.uniques u where u.key = enqueue.unique_key and u.holder = hold.holder for share;
                continue when not found;
            end if;
            if enqueue.on_conflict = 'raise' then
                raise exception 'enqueue: unique key % is held by job %', quote_literal(enqueue.unique_key), hold.holder
                    using errcode = 'unique_violation';
            end if;
            return hold.holder;
        end loop;

        insert into offload.jobs (n, id, task, queue, rank, payload, enqueued_at, keep, due, extra)
        values (number, enqueue.id, enqueue.task, enqueue.queue, -enqueue.priority, body, now_at,
            extract(epoch from enqueue.keep), due, extra::text)
        on conflict do nothing;
        exit when found;
        -- Another transaction just stored a job of this id.
        delete from offload.uniques u where u.key = enqueue.unique_key and u.n = number;
    end loop;

    if due > now_at then
        insert into offload.scheduled (due, n) values (due, number);
    else
        insert into offload.ready (queue, rank, pos, n, ready_at) values (enqueue.queue, (-enqueue.priority)::bigint << 40, number, number, now_at);
    end if;
    if expires is not null then
        insert into offload.expiring (expires_at, n) values (expires, number);
    end if;
    -- Whoever sleeps now: this transaction may commit much later.
    perform pg_notify(place.nspname, 'work')
    from offload.store s join pg_class c on c.oid = s.tableoid join pg_namespace place on place.oid = c.relnamespace;
    return enqueue.id;
end
$function$;
