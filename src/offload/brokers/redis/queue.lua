-- All that is done to jobs in Redis or Valkey, one operation a call. An operation is a whole: nothing else runs meanwhile.
--
-- KEYS[1] is the prefix of all keys, `{offload}:`; its braces keep them in one slot of a cluster. ARGV[1] names the operation (they
-- stand at the end), ARGV[2] is the time in microseconds since 1970, empty for the server's own; what else is asked for follows.
--
-- Which line holds a job is its state; its row is hardly ever written again but when it first comes to its ready line after it waited.
--
--   jobs              HASH   id -> its row: see ROW
--   past              HASH   id -> what it has behind it, where that is anything: see PAST_ROW
--   ready:<queue>     ZSET   member by place: priority first, then the order of becoming ready. A "member" is n and id, so that members
--                            of one score are in the order in which they were stored
--   aside:<queue>\0<task>    the same, of jobs that a worker met who did not know the task
--   rounds:<queue>\0<100 - priority>    ZSET   key by the last round that was given to a job of it, where keys take turns; and '' by how
--                            many had come, negated, when the rounds last began anew: see `next_turn`
--   queues, asides    ZSET   names of the queues that have a ready line, and of the aside lines: none of them is empty
--   running:<session> HASH   member -> how it runs: see RUN_ROW
--   scheduled         ZSET   member by the time it is due
--   waiting           HASH   member -> the id of the job it waits for; empty where that is its parents, or, of a callback, its batch
--   ends              HASH   id -> how it ended: see END_ROW
--   done:<STATE>      ZSET   member by the time it is forgotten
--   all               ZSET   member by the time it was enqueued: every job there is
--   expiring          ZSET   member by the time it expires, of jobs that have never started
--   large             ZSET   member by its bytes, of jobs with a large payload
--   outlines          HASH   id -> its row without the payload, of jobs with a large one: most of what is done to jobs, such as to pass
--                            over a thousand, needs no more, and to read so many payloads would hold up the server for a second
--   errors, steps, progress  HASH   id -> what its attempts left
--   counts            HASH   STATE\n<queue> -> number, but for READY
--   keys              HASH   unique key -> who holds it; `freeing` ZSET key by the time it frees itself
--   slots:<gate>      HASH   member -> what it costs, of jobs that have passed a gate and not left. A gate is `turn of <key>`, `slot of
--                            <key>` or `token of <key>`: see offload/gates/
--   lane:<lane>       ZSET   member by its seat, of jobs that wait. A lane is named by the gates that its jobs want, a line each
--   seats             HASH   id -> its seat, of jobs where that is not n
--   lanes             HASH   lane -> the gate where it is parked, unless that is the one whose name it bears
--   parked:<gate>     ZSET   lane by the seat of its first job, of lanes that `lanes` says are parked here
--   gates             HASH   gate -> msgpack of what else is known of it: n, interval, burst, paused, shut_until, tat, owed, wake_at, unfinished
--   keyed             ZSET   gates of which anything is stored
--   wakes             ZSET   gate by when it is to be looked at again; fading: gate by when what `gates` has of it will mean nothing
--   rules             HASH   rule -> msgpack of the limit that workers declare; reviews HASH rule that has changed, and '' -> the last gate
--                            that was looked at for them
--   tallies           HASH   tally -> msgpack of what is counted of it. A tally is `workflow <id>` or `batch <id>`
--   workflows, batches  ZSET  n and id, as in a member, by the time it was stored: every tally there is
--   members:<tally>   ZSET   member by the time it was enqueued, of its jobs, callbacks too
--   missing:<tally>   ZSET   ids of parents that jobs of a workflow wait for and that are not of it, or not yet
--   unfinished        ZSET   tally by when a job last came, of those that are given up an hour later
--   forgetting        ZSET   tally by when it is forgotten
--   parents           HASH   id -> msgpack of the parents of a job, in their order, with where their results go
--   links:<job>       HASH   parent -> how it ended, for one that waits for it: see LINK
--   open              HASH   id -> how many parents of a job have not ended, where any has not
--   failed:<job>      ZSET   parents by their place, of those that have ended without success
--   heirs             HASH   <workflow>\0<job> -> the one who waits for it: see HEIR_AT; empty where there are several
--   children:<workflow>\0<job>  ZSET  member by n, of those who wait for it, where there are several
--   felled            HASH   ids of jobs that the end of a parent took down
--   owed              HASH   `job <id>` -> msgpack of what its children are still to be told; `tally <tally>` -> how far it is stopped;
--                            owing  ZSET  the same by when they were last gone on with
--   paused            SET    queues
--   schedules         ZSET   names; schedule:<name> HASH; calendar ZSET name by its next tick, without the paused
--   sessions          ZSET   session by age; session:<session> HASH; beats HASH session -> number
--   stops:<session>   HASH   id -> claim, of running jobs whose cancellation was asked for
--   orphans           HASH   session that is gone -> why, while jobs are still to be taken from it
--   asleep            ZSET   session\n<queues it serves> by the value of `sequence` when it last looked for work
--   awaited           HASH   id -> who waits for its end
--   bell:<sleeper>    ZSET   has a member once the sleeper is to wake up
--   sequence, version, pruned  what is next to be numbered; of which schema all this is; when schedules were last pruned
--
-- When memory is short, a server refuses the commands that may take more, but not inside a script that has already written. So
-- an operation that brings jobs in begins with such a command and is refused as a whole; one that must be let through, as it ends jobs
-- or keeps sessions alive, begins with one that is never refused: see `insist`.

local call, pack, read, sub = redis.call, struct.pack, struct.unpack, string.sub

-- The names of keys, made when first used: our.jobs is `{offload}:jobs`, each.ready is `{offload}:ready:`, which a queue's name follows.
local our = setmetatable({}, { __index = function(made, name)
  made[name] = KEYS[1] .. name
  return made[name]
end })
local each = setmetatable({}, { __index = function(made, name)
  made[name] = KEYS[1] .. name .. ':'
  return made[name]
end })

local SCHEMA = 1
local SECOND = 1000000
local KEEP = 30 * 86400 * SECOND      -- how long records of dead, cancelled and expired jobs are kept
local WINDOW = 1000                   -- the most jobs that one call moves, or looks at in one queue
local VISIT = 4                       -- looking into a queue costs the server as much as looking at so many jobs
local NEVER = -2 ^ 62                 -- where a time is missing
local FOREVER = 2 ^ 62                -- a time that does not come
local BAND = 2 ^ 45                   -- places in one priority
local LARGE_BYTES = 16 * 1024
local SMALL_BYTES = 1024              -- a row that is written anew rather than a past beside it
local CRASHES_BEFORE_ISOLATION = 2

-- A row: n, its position when it was stored or first came to its line, since when it is ready; then, as it comes from the client, when it
-- was enqueued, seconds to keep, 100 - priority, its traits, the lengths of queue, task and rare; these three, and the payload. `rare` is
-- empty, or msgpack of what few have.
local ROW, HEAD, TAIL = '>I6I6I7i8dBBI2I2I4', '>I6I6I7', '>i8dBBI2I2I4'
local ORIGIN, ORIGIN_AT = '>I6I6I7i8', 7
local KEEP_AT = 28                    -- where it says for how many seconds its record is kept
local COMMON, COMMON_AT, LENGTHS, LENGTHS_AT = '>BBI2I2I4', 36, '>BI2I2I4', 37
local RARE_AT, TAIL_BYTES, NO_RARE = 23, 26, '\0\0\0\0'
local GATED, CHECKED = 1, 2           -- traits: it passes gates for a turn or for slots; there is more to look at when it is claimed
local KIN = 4                         -- a trait: it belongs to a workflow or a batch
local PAST_ROW = '>I4I4I4i8i8i8d'     -- claim, attempt, crashes, started, ready since, due, place; then the worker's name
local UNTRIED = string.rep('\0', 12)  -- the beginning of a PAST_ROW: never claimed
local RUN_ROW = '>I4i8B'              -- claim, started, flags; then the queue, or, with FAMILY, COMMON and what belongs to it
local HAS_PAST, STOP, KEYED = 1, 2, 4 -- flags of a RUN_ROW
local FAMILY = 8                      -- another: it belongs to a workflow or a batch, and its success needs no other care
local END_ROW = '>BI4I4i8i8I2c0I2c0'  -- state, claim, attempt, started, finished, worker, reason; then the result
local STATES = { 'SUCCEEDED', 'DEAD', 'CANCELLED', 'EXPIRED' }
local NUMBERS = { SUCCEEDED = 1, DEAD = 2, CANCELLED = 3, EXPIRED = 4 }
local NOT_IN_TIME = 'not started in time'
local UNKNOWN = 'unknown'             -- the worker of a session whose hash is gone

local function server_time()
  local time = call('TIME')
  return time[1] * SECOND + time[2]
end

local now = ARGV[2] ~= '' and tonumber(ARGV[2]) or server_time()

-- What is gathered while an operation runs and done at its end, unless all is taken back.
local tally, news, ended, stirred = {}, {}, {}, false
local retimed = false -- whether time alone will let somebody pass sooner than anybody may know
local lined_up = 0 -- how many jobs came to ready lines
local any = {} -- whether there is anything at some keys that often hold nothing, once that was asked
local undo -- while set: what takes back what was written, the newest last
local gathered -- while set: by command and key what `later` is still to write
local commons = {} -- what jobs have in common, by how that is stored
local fetched = {} -- rows that were read before they are asked for, by id


-- The functions are made anew at every call, and for each local that one captures Lua looks among all that were captured before, one by
-- one. So they are fields of two tables and stand, unindented, inside a function of their own: that takes 20 us, not 100.
local fn, kin, operations = {}, {}, {} -- kin: what has to do with workflows and batches

local function define()

-- Here, as no function may capture more than 60 locals: first for those who sleep, then for those who take turns by key.
local MOST_ROUSED = 4          -- sleepers woken at once for one queue; each wakes another while there is work left
local MOST_ASKED = 10000       -- how often one call asks whether a sleeper serves a queue
local BELL_MS = 60000          -- a sleeper that has not listened for so long never will
local TURNS = BAND / 2         -- where they stand in a band; before it there is room for 17,500 jobs a second over 30 years
local ROUND = 2 ^ 20           -- places in one round
local LAST_ROUND = 2 ^ 24 - 1  -- so many jobs of one key may be ahead of each other
local turns = {} -- what was read of lines, by the key of their rounds: see `turns_of`
local FEW, LONG = 50, string.rep(' ', 100) -- see `note_running`
local take_judged -- while jobs are judged: takes out of their lines those of whom is decided
local block -- while writes are gathered: the numbers that may be given, from `next` to `last`, and how many are to be had at once

-- Writing ------------------------------------------------------------------------------------------------------------------

-- These two say how many fields were new, or were there.
function fn.put(key, field, value)
  if undo then
    local was = call('HGET', key, field)
    undo[#undo + 1] = was and { 'HSET', key, field, was } or { 'HDEL', key, field }
  end
  return call('HSET', key, field, value)
end

function fn.drop(key, field)
  if undo then
    local was = call('HGET', key, field)
    if was then undo[#undo + 1] = { 'HSET', key, field, was } end
  end
  return call('HDEL', key, field)
end

function fn.stand(key, score, member)
  if undo then
    local was = call('ZSCORE', key, member)
    undo[#undo + 1] = was and { 'ZADD', key, was, member } or { 'ZREM', key, member }
  end
  call('ZADD', key, score, member)
end

function fn.leave(key, member)
  if undo then
    local was = call('ZSCORE', key, member)
    if was then undo[#undo + 1] = { 'ZADD', key, was, member } end
  end
  call('ZREM', key, member)
end

-- Drops all that is at a key.
function fn.empty(key)
  if undo then
    local was = call('ZRANGE', key, '0', '-1', 'WITHSCORES')
    for i = 1, #was, 2 do undo[#undo + 1] = { 'ZADD', key, was[i + 1], was[i] } end
  end
  call('UNLINK', key)
end

function fn.take_back()
  for i = #undo, 1, -1 do call(unpack(undo[i])) end
  tally, news, ended, stirred, retimed, turns = {}, {}, {}, false, false, {}
  if rawget(fn, 'forget_read') then fn.forget_read() end
  if rawget(kin, 'forget_read') then kin.forget_read() end
end

-- A command with any number of values: Lua takes no more than 8,000 at once.
function fn.many(command, key, values)
  for first = 1, #values, 4000 do call(command, key, unpack(values, first, math.min(first + 3999, #values))) end
end

-- Writes what nobody reads until the end of what is being done: at once, or while writes are gathered together with others, which costs
-- a fraction. Each takes a field and its value, or a score and a member, in the order in which the command takes them.
function fn.later(command, key, one, two)
  if not gathered then return fn.write(command, key, one, two) end
  local writes = gathered[command]
  local words = writes[key]
  if not words then
    words = {}
    writes[key] = words
  end
  words[#words + 1] = one
  words[#words + 1] = two
end

function fn.write(command, key, one, two)
  if command == 'HSET' then
    fn.put(key, one, two)
  elseif command == 'ZADD' then
    fn.stand(key, one, two)
  else
    fn.drop(key, one)
  end
end

-- Gathers writes from now on. About so many numbers will be wanted meanwhile; what is left of them nobody gets.
function fn.gather(numbers)
  gathered = { HSET = {}, HDEL = {}, ZADD = {} }
  block = { next = 1, last = 0, size = numbers }
end

function fn.write_gathered()
  for command, writes in pairs(gathered) do
    for key, words in pairs(writes) do fn.many(command, key, words) end
  end
  gathered, block = nil, nil
end

-- Be let through although memory is short: whoever has written once may go on.
function fn.insist()
  call('HDEL', our.orphans, '')
end

-- The values from the one at `first` on; Lua's own `unpack` knows no more than 8,000.
function fn.slice(values, first)
  local found = {}
  for i = first, #values do found[#found + 1] = values[i] end
  return found
end

function fn.count(state, queue, by)
  local counted = tally[state]
  if not counted then
    counted = {}
    tally[state] = counted
  end
  counted[queue] = (counted[queue] or 0) + by
end

function fn.next_number()
  if not block then return call('INCR', our.sequence) end
  if block.next > block.last then
    block.last = call('INCRBY', our.sequence, block.size)
    block.next = block.last - block.size + 1
  end
  block.next = block.next + 1
  return block.next - 1
end

function fn.integer(number)
  return string.format('%.0f', number)
end


-- Waking -------------------------------------------------------------------------------------------------------------------

function fn.ring(sleeper)
  call('ZADD', each.bell .. sleeper, 0, '1')
  call('PEXPIRE', each.bell .. sleeper, BELL_MS)
end

function fn.rouse(entry)
  call('ZREM', our.asleep, entry)
  fn.ring(sub(entry, 1, string.find(entry, '\n', 1, true) - 1))
end

function fn.serves(entry, queue)
  local at = string.find(entry, '\n', 1, true)
  return at == #entry or string.find(entry, '\n' .. queue .. '\n', at, true) ~= nil
end

function fn.entries_of(session)
  local found, start = {}, session .. '\n'
  for _, entry in ipairs(call('ZRANGE', our.asleep, 0, -1)) do
    if sub(entry, 1, #start) == start then found[#found + 1] = entry end
  end
  return found
end

-- Who has been asleep since before a number was given, by place, the longest first. Read in pages: one of the first nearly always serves.
function fn.sleepers(before)
  local found, read_so_far = {}, 0
  return function(place)
    if place > #found and #found == read_so_far then
      local page = call('ZRANGEBYSCORE', our.asleep, '-inf', '(' .. fn.integer(before), 'LIMIT', read_so_far, 100)
      for _, entry in ipairs(page) do found[#found + 1] = entry end
      read_so_far = read_so_far + 100
    end
    return found[place]
  end
end

-- Wakes who serves the queues that got jobs: a few, as each wakes another while it leaves something to do.
function fn.spread_news()
  stirred = stirred or retimed
  if not (stirred or next(news)) or call('ZCARD', our.asleep) == 0 then return end
  local sleeper, chosen, left = fn.sleepers(fn.next_number()), {}, MOST_ASKED
  for queue, jobs in pairs(news) do
    local wanted, place = math.min(jobs, MOST_ROUSED), 1
    while wanted > 0 and left > 0 and sleeper(place) do
      local entry = sleeper(place)
      if not chosen[entry] and fn.serves(entry, queue) then
        chosen[entry] = true
        wanted = wanted - 1
      end
      place, left = place + 1, left - 1
    end
  end
  if stirred and not next(chosen) and sleeper(1) then chosen[sleeper(1)] = true end
  for entry in pairs(chosen) do fn.rouse(entry) end
end

-- Wakes one more where ready jobs are left, of those who have not looked since the last job came: so this ends.
function fn.pass_on()
  if call('ZCARD', our.asleep) == 0 then return end
  local sleeper, left = fn.sleepers(tonumber(call('GET', our.sequence) or 0)), MOST_ASKED
  if not sleeper(1) then return end
  for _, queue in ipairs(call('ZRANGE', our.queues, 0, WINDOW)) do
    local place, paused = 1, call('SISMEMBER', our.paused, queue) == 1
    while not paused and left > 0 and sleeper(place) do
      if fn.serves(sleeper(place), queue) then return fn.rouse(sleeper(place)) end
      place, left = place + 1, left - 1
    end
  end
end

-- Tells those who wait for the end of jobs.
function fn.tell_ends()
  if #ended == 0 or call('EXISTS', our.awaited) == 0 then return end
  for first = 1, #ended, WINDOW do
    local last = math.min(first + WINDOW - 1, #ended)
    local told = {}
    for i, waiters in ipairs(call('HMGET', our.awaited, unpack(ended, first, last))) do
      if waiters then
        told[#told + 1] = ended[first + i - 1]
        for waiter in string.gmatch(waiters, '%S+') do fn.ring(waiter) end
      end
    end
    if #told > 0 then call('HDEL', our.awaited, unpack(told)) end
  end
end

function fn.conclude()
  if rawget(kin, 'settle_up') then kin.settle_up() end
  for state, counted in pairs(tally) do
    for queue, by in pairs(counted) do
      local field = state .. '\n' .. queue
      if by ~= 0 and call('HINCRBY', our.counts, field, by) == 0 then call('HDEL', our.counts, field) end
    end
  end
  fn.spread_news()
  fn.tell_ends()
  if rawget(fn, 'note_gates') then fn.note_gates() end
end


-- Jobs ---------------------------------------------------------------------------------------------------------------------

-- What a job has in common with others of its queue, task, priority and rare fields, such as those of one key: read once for all of them,
-- and never changed.
function fn.read_common(words)
  local band, _, q, t, _, at = read(COMMON, words)
  local common = { -- with room for all that comes, as a table that grows is made anew
    band = band, queue = sub(words, at, at + q - 1), task = sub(words, at + q, at + q + t - 1), words = words,
    rare = at + q + t <= #words and cmsgpack.unpack(sub(words, at + q + t)) or {}, common = false, __index = false, wants = false,
    kin = false, tallies = false, run = false,
  }
  common.common, common.__index, common.kin = common, common, common.rare.kin or {}
  commons[words] = common
  return common
end

function fn.read_job(id, row)
  local _, q, t, r, at = read(LENGTHS, row, LENGTHS_AT)
  local payload = at + q + t + r -- where in the row it begins
  local words = sub(row, COMMON_AT, payload - 1)
  local job = { id = id, n = read('>I6', row), member = sub(row, 1, 6) .. id, payload = payload, row = row }
  return setmetatable(job, commons[words] or fn.read_common(words))
end

-- Its position when it was stored, since when it was ready then, and when it was enqueued.
function fn.origin_of(job)
  local _, position, since, enqueued = read(ORIGIN, job.row)
  return position, since, enqueued
end

function fn.has_any(name)
  if any[name] == nil then any[name] = call('EXISTS', our[name]) == 1 end
  return any[name]
end

-- The rows of jobs, or their outlines where they have one; false for each that is unknown.
function fn.rows_of(ids)
  if not fn.has_any('outlines') then return call('HMGET', our.jobs, unpack(ids)) end
  local rows, others, places = call('HMGET', our.outlines, unpack(ids)), {}, {}
  for i, row in ipairs(rows) do
    if not row then
      others[#others + 1] = ids[i]
      places[#places + 1] = i
    end
  end
  for i, row in ipairs(#others > 0 and call('HMGET', our.jobs, unpack(others)) or {}) do rows[places[i]] = row end
  return rows
end

-- What is known of a job; for a large payload see `complete`.
function fn.find_job(id)
  local row = fetched[id] or fn.has_any('outlines') and call('HGET', our.outlines, id) or call('HGET', our.jobs, id)
  return row and fn.read_job(id, row)
end

-- Reads at once what is known of jobs that are about to be asked for.
function fn.fetch(ids)
  if #ids == 0 then return end
  for i, row in ipairs(fn.rows_of(ids)) do fetched[ids[i]] = row or nil end
end

-- The job with its payload, whether that is large or not.
function fn.complete(job)
  if job.payload > #job.row then job.row = call('HGET', our.jobs, job.id) or job.row end
  return job
end

function fn.payload_of(job)
  return sub(fn.complete(job).row, job.payload)
end

function fn.note_size(job)
  local size = #job.row - job.payload + 1
  if size > LARGE_BYTES then
    fn.stand(our.large, size, job.member)
    fn.put(our.outlines, job.id, sub(job.row, 1, job.payload - 1))
  elseif call('ZSCORE', our.large, job.member) then
    fn.leave(our.large, job.member)
    fn.drop(our.outlines, job.id)
  end
end

-- Gives a job other moments; what it has in common with others stays as it is.
function fn.retime(job, run_at, expires_at)
  local rare = {}
  for name, value in pairs(job.rare) do rare[name] = value end
  rare.run_at, rare.expires_at = run_at, expires_at
  job.rare = rare
end

-- Writes a job anew with another payload and what `job.rare` is now.
function fn.rewrite(job, payload)
  local head = { read(ROW, job.row) }
  local rare = next(job.rare) and cmsgpack.pack(job.rare) or ''
  local names = sub(job.row, head[11], head[11] + head[8] + head[9] - 1)
  head[10] = #rare
  job.row = pack(ROW, unpack(head, 1, 10)) .. names .. rare .. payload
  job.payload = #job.row - #payload + 1
  fn.put(our.jobs, job.id, job.row)
  fetched[job.id] = nil
  fn.note_size(job)
end

function fn.read_past(row)
  local claim, attempt, crashes, started, since, due, place, at = read(PAST_ROW, row)
  return {
    claim = claim, attempt = attempt, crashes = crashes, started = started, since = since, due = due, place = place, worker = sub(row, at),
  }
end

-- What is stored of what a job has behind it.
function fn.stored_past(job)
  local row = fn.has_any('past') and call('HGET', our.past, job.id)
  return row and fn.read_past(row)
end

-- What a job has behind it that stands in a line, or stood there before it was claimed.
function fn.past_of(job)
  return fn.stored_past(job) or fn.no_past(job)
end

-- That of a job whose row says it all: as long as it is `bare`, nothing else need be stored.
function fn.no_past(job)
  local position, since = fn.origin_of(job)
  return {
    claim = 0, attempt = 0, crashes = 0, started = NEVER, since = since, due = job.rare.run_at or NEVER,
    place = job.band * BAND + position, worker = '', bare = true,
  }
end

function fn.past_row(past)
  any.past = true -- in a moment
  return pack(PAST_ROW, past.claim, past.attempt, past.crashes, past.started, past.since, past.due, past.place) .. past.worker
end

function fn.note_past(job, past)
  if not past.bare then fn.put(our.past, job.id, fn.past_row(past)) end
end

function fn.read_run(row)
  local claim, started, flags, at = read(RUN_ROW, row)
  local words = sub(row, at)
  local common = fn.has(flags, FAMILY) and (commons[words] or fn.read_common(words))
  return { claim = claim, started = started, flags = flags, words = words, queue = common and common.queue or words, common = common }
end

function fn.has(flags, flag)
  return flags % (2 * flag) >= flag
end

function fn.read_end(row)
  local number, claim, attempt, started, finished, worker, reason, at = read(END_ROW, row)
  return {
    state = STATES[number], claim = claim, attempt = attempt, started = started, finished = finished, worker = worker,
    reason = reason, result = sub(row, at),
  }
end

function fn.end_row(state, claim, attempt, started, worker, reason, result, finished)
  return pack(END_ROW, NUMBERS[state], claim, attempt, started, finished or now, #worker, worker, #reason, reason) .. result
end

-- Sessions that may run jobs: those alive, and those gone from which jobs are still to be taken.
function fn.holders()
  local found = call('ZRANGE', our.sessions, 0, -1)
  for _, session in ipairs(call('HKEYS', our.orphans)) do found[#found + 1] = session end
  return found
end

-- Where a job stands: its state, and what its line says of it.
function fn.where(job)
  local row = call('HGET', our.ends, job.id)
  if row then return 'ENDED', fn.read_end(row) end
  local place = call('ZSCORE', each.ready .. job.queue, job.member)
  if place then return 'READY', { line = each.ready .. job.queue, place = place } end
  if call('ZSCORE', our.scheduled, job.member) then return 'SCHEDULED' end
  local behind = call('HGET', our.waiting, job.member)
  if behind then return 'WAITING', { behind = behind } end
  local lane = fn.is_gated(job) and fn.lane_of(job)
  if lane and call('ZSCORE', each.lane .. lane, job.member) then return 'WAITING', { lane = lane } end
  local aside = each.aside .. job.queue .. '\0' .. job.task
  place = call('ZSCORE', aside, job.member)
  if place then return 'READY', { line = aside, place = place, aside = true } end
  for _, session in ipairs(fn.holders()) do
    row = call('HGET', each.running .. session, job.member)
    if row then
      local run = fn.read_run(row)
      run.session = session
      return 'RUNNING', run
    end
  end
  return 'MISSING' -- as after a failover that lost what moved it: an operator may cancel or delete it
end


-- Lines --------------------------------------------------------------------------------------------------------------------

-- Whether a job has an order or limits, and so passes gates.
function fn.is_gated(job)
  return job.rare.order_by ~= nil or job.rare.limits ~= nil
end

-- One that has never started joins its lane only when it becomes due: behind all who have joined before.
function fn.join(job, past)
  if past.claim == 0 and fn.is_gated(job) then fn.take_seat(job) end
end

function fn.line_up(job, place)
  fn.later('ZADD', each.ready .. job.queue, place, job.member)
  if not (gathered and news[job.queue]) then fn.stand(our.queues, 0, job.queue) end -- no line ends while writes are gathered
  news[job.queue] = (news[job.queue] or 0) + 1
  lined_up = lined_up + 1
end

-- A ready or aside line has lost jobs: its name goes with its last.
function fn.tidy(line)
  if call('EXISTS', line) == 1 then return end
  if sub(line, 1, #each.ready) == each.ready then
    fn.leave(our.queues, sub(line, #each.ready + 1))
  else
    fn.leave(our.asides, sub(line, #each.aside + 1))
  end
end

-- The key of the rounds of the line in which a job takes turns.
function fn.rounds_of(job)
  return each.rounds .. job.queue .. '\0' .. job.band
end

-- Of the line in which a job takes turns: the round that is being served, which is that of whoever stands first, false where nobody does;
-- how many keys had come before the rounds began; and, once that was asked, the last rounds of keys, and by round how many came since.
function fn.turns_of(job)
  local rounds = fn.rounds_of(job)
  if not turns[rounds] then
    if take_judged then take_judged() end
    local first = job.band * BAND + TURNS
    local found = call('ZRANGEBYSCORE', each.ready .. job.queue, first, first + TURNS - 1, 'WITHSCORES', 'LIMIT', '0', '1')
    local before = -(tonumber(call('ZSCORE', rounds, '') or 0))
    turns[rounds] = { serving = found[2] and math.floor((found[2] - first) / ROUND), before = before, lasts = {}, come = {} }
    fn.next_number() -- so that all who sleep have looked before this
  end
  return turns[rounds]
end

-- Where nobody takes turns any more, rounds begin anew. Whoever was claimed may come back: in his round he goes before those who come now.
function fn.begin_rounds(rounds, line)
  line.before = (line.before + call('ZCARD', rounds)) % (ROUND / 2)
  fn.empty(rounds)
  fn.stand(rounds, -line.before, '')
end

-- The position of a job that takes its turn among the keys of its line: by its round, see `gates/rounds.py`, and in the order in which that
-- was given. Whoever gets a round finds one key more that has come so far than the one before did.
function fn.next_turn(job)
  local rounds, key, line, round = fn.rounds_of(job), job.rare.fair_by, fn.turns_of(job), 1
  if line.serving then
    local last = line.lasts[key] or tonumber(call('ZSCORE', rounds, key) or 0)
    round = math.min(math.max(line.serving, last) + 1, LAST_ROUND)
  else
    fn.begin_rounds(rounds, line)
    line.serving = round
  end
  local come = line.come[round] or call('ZCOUNT', rounds, round, '+inf')
  line.lasts[key], line.come[round] = round, come + 1
  fn.later('ZADD', rounds, round, key)
  return TURNS + round * ROUND + math.min(line.before + come, ROUND - 1)
end

-- To the end of the ready line, or to the next turn of its key. A past may be left out that would be bare.
function fn.line_up_anew(job, past)
  local position = job.rare.fair_by and fn.next_turn(job) or fn.next_number()
  local place = job.band * BAND + position
  if (not past or past.bare) and #job.row <= SMALL_BYTES and job.payload <= #job.row then
    job.row = sub(job.row, 1, ORIGIN_AT - 1) .. pack('>I6I7', position, now) .. sub(job.row, ORIGIN_AT + 13)
    fn.later('HSET', our.jobs, job.id, job.row)
    fetched[job.id] = nil
  else
    past = past or fn.no_past(job)
    past.since, past.place = now, place
    fn.later('HSET', our.past, job.id, fn.past_row(past))
  end
  fn.line_up(job, place)
end

-- The same for one that passes its gates; else it waits in its lane.
function fn.make_ready(job, past)
  if fn.is_gated(job) and not fn.enter(job) then return fn.note_past(job, past) end
  fn.line_up_anew(job, past)
end

-- To the time `due` where that is to come, else to the end of the ready line, or to its lane.
function fn.place(job, past, due)
  past.due, past.bare = due, past.bare and past.due == due
  if due <= now then return fn.make_ready(job, past) end
  fn.note_past(job, past)
  fn.stand(our.scheduled, due, job.member)
  fn.count('SCHEDULED', job.queue, 1)
  stirred = true -- whoever wakes up sees when there is something to promote
  if fn.is_gated(job) then fn.put_off_at_gates(job, past.claim == 0) end
end

-- Out of the line where a job stands that does not run.
function fn.take_out(job, state, standing)
  if state == 'READY' then
    turns = {}
    fn.leave(standing.line, job.member)
    fn.tidy(standing.line)
  elseif state == 'SCHEDULED' then
    fn.leave(our.scheduled, job.member)
    fn.count('SCHEDULED', job.queue, -1)
  elseif state == 'WAITING' and standing and standing.lane then
    fn.withdraw(job)
  elseif state == 'WAITING' then
    fn.drop(our.waiting, job.member)
    fn.count('WAITING', job.queue, -1)
  elseif state == 'ENDED' then
    fn.drop(our.ends, job.id)
    fn.leave(each.done .. standing.state, job.member)
    fn.count(standing.state, job.queue, -1)
  end
end


-- Unique keys --------------------------------------------------------------------------------------------------------------

-- The keys that a job wants: its schedule's, where ticks must not overlap, and its own.
function fn.keys_of(job)
  local rare, keys = job.rare, {}
  if rare.schedule and rare.overlap and rare.overlap ~= 'allow' then
    keys[1] = { key = 'schedule:' .. rare.schedule, covers = 'finished', conflict = rare.overlap == 'skip' and 'skip' or 'keep_last' }
  end
  if rare.key then
    local covers = type(rare.covers) == 'string' and rare.covers or 'time'
    keys[#keys + 1] = { key = rare.key, covers = covers, frees_at = rare.frees_at, conflict = rare.conflict }
  end
  return keys
end

function fn.put_hold(key, hold)
  fn.put(our.keys, key, cmsgpack.pack(hold))
end

-- Who holds a key; nobody when its time is over.
function fn.held(key)
  local row = call('HGET', our.keys, key)
  local hold = row and cmsgpack.unpack(row)
  if not hold then return nil end
  if hold.frees_at and now >= hold.frees_at then
    fn.drop(our.keys, key)
    return nil
  end
  return hold
end

function fn.take_key(want, job)
  fn.put_hold(want.key, { holder = job.id, covers = want.covers, frees_at = want.frees_at })
  if want.frees_at then fn.stand(our.freeing, want.frees_at, want.key) end
end


-- The one that waited for `key`, which is free now, takes it, and goes on unless it waits for another key as well.
function fn.succeed(id, key)
  local job = fn.find_job(id)
  if not job then return end -- its row was evicted, or deleted by hand
  local blocked
  for _, want in ipairs(fn.keys_of(job)) do
    local hold = fn.held(want.key)
    if not hold and want.key == key then
      fn.take_key(want, job)
    elseif hold and hold.holder ~= id then
      blocked = hold.holder
    end
  end
  if blocked then
    fn.put(our.waiting, job.member, blocked)
  elseif job.kin.linked then
    kin.succeed(job)
  else
    fn.take_out(job, 'WAITING')
    fn.join(job, fn.past_of(job))
    fn.place(job, fn.past_of(job), job.rare.run_at or NEVER)
  end
end

-- Frees the keys of a job that cover what has just ended; who comes after takes over.
function fn.give_up(job, covered)
  if not (job.rare.key or job.rare.schedule) then return end
  for _, want in ipairs(fn.keys_of(job)) do
    local hold = fn.held(want.key)
    if hold and hold.successor == job.id then
      hold.successor = nil
      fn.put_hold(want.key, hold)
    elseif hold and hold.holder == job.id and covered[hold.covers] then
      fn.drop(our.keys, want.key)
      if hold.successor then fn.succeed(hold.successor, want.key) end
    end
  end
end

local AT_START = { started = true }
local AT_END = { started = true, finished = true }
local AT_DELETION = { started = true, finished = true, time = true }


-- Ends ---------------------------------------------------------------------------------------------------------------------

-- Drops all that is known of jobs but their places in lines.
function fn.forget(ids, members)
  if #ids == 0 then return end
  fn.many('HDEL', our.jobs, ids)
  fn.many('ZREM', our.all, members)
  for _, key in ipairs({ our.past, our.ends, our.errors, our.steps, our.progress, our.outlines, our.seats }) do
    if call('EXISTS', key) == 1 then fn.many('HDEL', key, ids) end
  end
  if call('EXISTS', our.large) == 1 then fn.many('ZREM', our.large, members) end
end

-- Whether a job keeps its turn, and its record, when it is dead: until somebody retries or deletes it.
function fn.holds_on(job, state)
  return state == 'DEAD' and job.rare.on_dead == 'hold' and job.rare.order_by ~= nil
end

-- Whether a job belongs to a workflow or a batch.
function fn.is_kin(job)
  return job.rare.kin ~= nil
end

-- When the record of a job that has ended is forgotten; those of a workflow go with it.
function fn.forget_at(job, keep, holds_on)
  if job.kin.workflow then return FOREVER + now end
  return holds_on and FOREVER or now + keep
end

-- Ends a job that stands in no line any more. `past` counts the attempt that ends, if any. What is not kept is for the caller to forget.
function fn.finish(job, past, state, reason, keep, result)
  ended[#ended + 1] = job.id
  local holds_on = fn.holds_on(job, state)
  if job.rare.expires_at and past.claim == 0 then fn.leave(our.expiring, job.member) end
  if keep > 0 then
    fn.later('HSET', our.ends, job.id, fn.end_row(state, past.claim, past.attempt, past.started, past.worker, reason, result or ''))
    local tells = past.crashes > 0 or past.due ~= (job.rare.run_at or NEVER)
    fn.later(tells and 'HSET' or 'HDEL', our.past, job.id, tells and fn.past_row(past) or nil)
    fn.later('ZADD', each.done .. state, fn.forget_at(job, keep, holds_on), job.member)
    fn.count(state, job.queue, 1)
  end
  fn.give_up(job, AT_END)
  if fn.is_gated(job) then fn.end_at_gates(job, holds_on) end
  if fn.is_kin(job) then kin.note_end(job, state, result) end
end

-- Ends a job that has not started, or asks for the end of one that runs. False when it has ended.
function fn.stop(job, state, reason)
  local at, standing = fn.where(job)
  if at == 'ENDED' then return false end
  if at == 'RUNNING' then
    if not fn.has(standing.flags, STOP) then
      fn.put(each.running .. standing.session, job.member,
        pack(RUN_ROW, standing.claim, standing.started, standing.flags + STOP) .. standing.words)
    end
    fn.put(each.stops .. standing.session, job.id, standing.claim)
  else
    fn.take_out(job, at, standing)
    fn.finish(job, fn.past_of(job), state, reason, KEEP)
  end
  return true
end


-- Enqueue ------------------------------------------------------------------------------------------------------------------

-- How much care jobs need: 'plain' where no id is known or comes twice and none has anything rare, 'new' where some have, else nil.
function fn.kind_of_jobs(ids, tails)
  local seen, kind = {}, 'plain'
  for i, known in ipairs(call('HMGET', our.jobs, unpack(ids))) do
    if known or seen[ids[i]] then return nil end
    if sub(tails[i], RARE_AT, TAIL_BYTES) ~= NO_RARE then kind = 'new' end
    seen[ids[i]] = true
  end
  return kind
end

function fn.store_plain(ids, tails)
  local position = call('INCRBY', our.sequence, #ids) - #ids + 1
  local head = sub(pack(HEAD, 0, position, now), 7)
  local moments, places, rows, all, lines, large, outlines = {}, {}, {}, {}, {}, {}, {}
  for i, id in ipairs(ids) do
    local tail = tails[i]
    local enqueued, _, band, _, q, t, _, at = read(TAIL, tail)
    if not moments[enqueued] then moments[enqueued] = fn.integer(enqueued) end
    if not places[band] then places[band] = fn.integer(band * BAND + position) end -- the same for all: their numbers order them
    local n, queue = pack('>I6', position + i - 1), sub(tail, at, at + q - 1)
    local member, line = n .. id, lines[queue]
    if not line then
      line = {}
      lines[queue] = line
      call('ZCARD', each.ready .. queue) -- which fails now, before anything is stored, where another's key is in the way
    end
    rows[2 * i - 1], rows[2 * i] = id, n .. head .. tail
    all[2 * i - 1], all[2 * i] = moments[enqueued], member
    line[#line + 1] = places[band]
    line[#line + 1] = member
    local size = #tail - TAIL_BYTES - q - t
    if size > LARGE_BYTES then
      large[member] = size
      outlines[#outlines + 1] = id
      outlines[#outlines + 1] = n .. head .. sub(tail, 1, -size - 1)
    end
  end
  fn.many('HSET', our.jobs, rows)
  fn.many('ZADD', our.all, all)
  for member, size in pairs(large) do call('ZADD', our.large, size, member) end
  fn.many('HSET', our.outlines, outlines)
  for queue, line in pairs(lines) do
    fn.many('ZADD', each.ready .. queue, line)
    call('ZADD', our.queues, 0, queue)
    news[queue] = (news[queue] or 0) + #line / 2
  end
end

-- Gives `holder`, if it has not started, the payload of `job`, and its time where it is to move.
function fn.replace(holder, job, moves)
  local at, standing = fn.where(holder)
  if at == 'RUNNING' or at == 'ENDED' then return end
  if moves then fn.retime(holder, job.rare.run_at, holder.rare.expires_at) end
  fn.rewrite(holder, fn.payload_of(job))
  if not moves then return end
  local past, due = fn.past_of(holder), job.rare.run_at or NEVER
  if at == 'WAITING' and not standing.lane then
    past.due, past.bare = due, past.bare and past.due == due
    fn.note_past(holder, past)
  else
    fn.take_out(holder, at, standing)
    if at == 'SCHEDULED' then fn.join(holder, past) end
    fn.place(holder, past, due)
  end
end

-- What a taken key means for a job: the id that stands for it, or nil when it may wait behind the holder; or an error.
function fn.resolve(hold, want, job)
  if want.conflict == 'raise' then return nil, { 'unique', want.key, hold.holder } end
  if want.conflict == 'keep_last' and hold.covers == 'finished' then
    local successor = hold.successor and fn.find_job(hold.successor) -- its row may be gone
    if successor then fn.replace(successor, job, false) end
    return successor and successor.id or nil
  end
  if want.conflict == 'replace' or want.conflict == 'debounce' then
    local holder = fn.find_job(hold.holder)
    if holder then fn.replace(holder, job, want.conflict == 'debounce') end
  end
  return hold.holder -- also for keep_last, where nothing would tell a successor that the key is free
end

-- Stores a job, which waits where another is before it. Of one that belongs to a workflow or a batch `family` tells what `kin` needs.
function fn.add(job, behind, family)
  fn.put(our.jobs, job.id, job.row)
  local _, _, enqueued = fn.origin_of(job)
  fn.stand(our.all, enqueued, job.member)
  fn.note_size(job)
  if job.rare.expires_at then
    fn.stand(our.expiring, job.rare.expires_at, job.member)
    stirred = true
  end
  for _, want in ipairs(fn.keys_of(job)) do
    local hold = fn.held(want.key)
    if hold then
      hold.successor = job.id
      fn.put_hold(want.key, hold)
    else
      fn.take_key(want, job)
    end
  end
  if family then
    kin.settle_in(job, behind, family)
  elseif behind then
    fn.wait_behind(job, behind)
  else
    fn.arrive(job)
  end
end

-- A job waits for another, or for those that are told by an empty `behind`.
function fn.wait_behind(job, behind)
  fn.later('HSET', our.waiting, job.member, behind)
  fn.count('WAITING', job.queue, 1)
end

-- A job just stored goes to the line that its time asks for.
function fn.arrive(job)
  local due = job.rare.run_at or NEVER
  if due > now then
    fn.stand(our.scheduled, due, job.member)
    fn.count('SCHEDULED', job.queue, 1)
    stirred = true
  elseif fn.is_gated(job) and not fn.enter(job, true) then
    return
  elseif job.rare.fair_by then
    fn.line_up_anew(job)
  else
    fn.line_up(job, job.band * BAND + fn.origin_of(job))
  end
end

-- Stores new jobs where none has a unique key and it is known that none can be refused. False, and nothing done, where that is not so.
function fn.store_keyless(ids, tails)
  local number = call('INCRBY', our.sequence, #ids) - #ids
  local jobs, rows, all, families = {}, {}, {}, nil
  for i, id in ipairs(ids) do
    local job = fn.read_job(id, pack(HEAD, number + i, number + i, now) .. tails[i])
    if fn.is_kin(job) then
      families = families or {}
      job, families[i] = kin.admit(job)
    end
    if not job or #fn.keys_of(job) > 0 then return families and kin.forget_read() or false end
    jobs[i], rows[2 * i - 1], rows[2 * i] = job, id, job.row
    all[2 * i], all[2 * i - 1] = job.member, select(3, fn.origin_of(job))
  end
  if families and not kin.all_come(jobs, families) then return kin.forget_read() or false end
  local looked = {}
  for _, job in ipairs(jobs) do -- what fails where another's key is in the way fails now, before anything is stored
    local lane, rounds = fn.is_gated(job) and fn.lane_of(job), job.rare.fair_by and fn.rounds_of(job)
    if lane and not looked[lane] then fn.try_gates(job, lane) end
    if rounds and not looked[rounds] then call('ZCARD', rounds) end
    if not looked[job.queue] then call('ZCARD', each.ready .. job.queue) end
    looked[lane or job.queue], looked[rounds or job.queue], looked[job.queue] = true, true, true
  end
  fn.many('HSET', our.jobs, rows)
  fn.many('ZADD', our.all, all)
  if families then kin.note_arrivals(jobs) end
  fn.gather(1)
  for i, job in ipairs(jobs) do
    if #job.row - job.payload >= LARGE_BYTES then fn.note_size(job) end
    if job.rare.expires_at then
      fn.stand(our.expiring, job.rare.expires_at, job.member)
      stirred = true
    end
    if families and families[i] then kin.settle_in(job, nil, families[i]) else fn.arrive(job) end
  end
  fn.write_gathered()
  return true
end

-- Stores one job with care. Returns the id that stands for it, or nil and why it cannot be.
function fn.store(id, tail)
  local known = fn.find_job(id)
  if known then
    local sent = fn.read_job(id, pack(HEAD, 0, 0, 0) .. tail)
    local of, sent_of = known.kin, sent.kin
    local alike = known.task == sent.task
      and of.workflow == sent_of.workflow and of.batch == sent_of.batch and of.callback == sent_of.callback
    if not alike or fn.payload_of(known) ~= fn.payload_of(sent) then return nil, { 'id', id } end
    return id
  end
  local job, behind = fn.read_job(id, pack(HEAD, 0, 0, now) .. tail), nil
  for _, want in ipairs(fn.keys_of(job)) do
    local hold = fn.held(want.key)
    if hold and job.rare.overlap == 'replace' and want.key == 'schedule:' .. (job.rare.schedule or '') then
      local holder = fn.find_job(hold.holder)
      if holder then fn.stop(holder, 'CANCELLED', 'cancelled') end
      hold = fn.held(want.key)
    end
    if hold then
      local stand_in, refusal = fn.resolve(hold, want, job)
      if stand_in or refusal then return stand_in, refusal end
      behind = hold.holder
    end
  end
  if fn.is_kin(job) then return kin.store(job, behind) end
  local number = fn.next_number() -- only now: who took over a key that was given up stands before this job
  fn.add(fn.read_job(id, pack(HEAD, number, number, now) .. tail), behind)
  return id
end

-- Stores jobs with care, one after the other. Returns the ids that stand for them, or nil and why the next cannot be stored.
function fn.store_each(ids, tails)
  local standing = {}
  for i, id in ipairs(ids) do
    local refusal
    standing[i], refusal = fn.store(id, tails[i])
    if refusal then return nil, refusal end
  end
  local missing = rawget(kin, 'missing_parent') and kin.missing_parent(ids)
  if missing then return nil, missing end
  return standing
end

-- Stores jobs, all or none: ARGV from `first` on are their ids and tails in turn. Returns the ids that stand for them, or nil and why not.
function fn.store_all(first)
  local ids, tails = {}, {}
  for i = first, #ARGV, 2 do
    ids[#ids + 1] = ARGV[i]
    tails[#tails + 1] = ARGV[i + 1]
  end
  if #ids == 0 then return ids end
  local kind = fn.kind_of_jobs(ids, tails)
  if kind == 'plain' then
    fn.store_plain(ids, tails)
    return ids
  end
  if kind == 'new' and fn.store_keyless(ids, tails) then return ids end
  undo = {}
  local whole, standing, refusal = pcall(fn.store_each, ids, tails)
  if refusal or not whole then fn.take_back() end
  undo = nil
  if not whole then error(standing, 0) end -- such as where another's key is in the way
  return standing, refusal
end


-- Claim --------------------------------------------------------------------------------------------------------------------

-- The tasks of a session, as they are asked for: how each is isolated, false where it does not know it.
function fn.tasks_of(session)
  return setmetatable({}, {
    __index = function(known, task)
      local isolation = call('HGET', each.session .. session, 'task:' .. task)
      known[task] = isolation
      return isolation
    end,
  })
end

-- The tasks of jobs set aside, by queue.
function fn.tasks_aside()
  local found = {}
  for _, name in ipairs(call('ZRANGE', our.asides, 0, -1)) do
    local at = string.find(name, '\0', 1, true)
    local queue = sub(name, 1, at - 1)
    found[queue] = found[queue] or {}
    table.insert(found[queue], sub(name, at + 1))
  end
  return found
end

-- The lines of a queue that a session serves: the ready line and those of jobs set aside whose task it knows.
function fn.lines_of(queue, asides, tasks)
  local lines = { each.ready .. queue }
  for _, task in ipairs(asides[queue] or {}) do
    if tasks[task] then lines[#lines + 1] = each.aside .. queue .. '\0' .. task end
  end
  return lines
end

-- The first members of lines, in order, and the line of each; the line itself where there is but one.
function fn.first_of(lines, most)
  if #lines == 1 then return call('ZRANGE', lines[1], 0, most - 1), lines[1] end
  local found = {}
  for _, line in ipairs(lines) do
    local members = call('ZRANGE', line, 0, most - 1, 'WITHSCORES')
    for i = 1, #members, 2 do
      found[#found + 1] = { member = members[i], n = read('>I6', members[i]), place = tonumber(members[i + 1]), line = line }
    end
  end
  table.sort(found, function(one, other)
    if one.place == other.place then return one.n < other.n end
    return one.place < other.place
  end)
  local members, of = {}, {}
  for i = 1, math.min(most, #found) do members[i], of[i] = found[i].member, found[i].line end
  return members, of
end

function fn.set_aside(job, place)
  local name = job.queue .. '\0' .. job.task
  call('ZADD', each.aside .. name, place, job.member)
  call('ZADD', our.asides, 0, name)
  news[job.queue] = (news[job.queue] or 0) + 1
end

-- Leases a job that has something rare, something behind it, or a large payload.
function fn.lease_with_care(claim, job, past, has_past)
  if past.claim == 0 and job.rare.expires_at then fn.leave(our.expiring, job.member) end
  local is_kin, keyed = fn.is_kin(job), job.rare.key or job.rare.schedule or fn.is_gated(job)
  local flags = (has_past and HAS_PAST or 0) + (keyed and KEYED or is_kin and FAMILY or 0)
  local running, leases = claim.running, claim.leases
  running[#running + 1] = job.member
  running[#running + 1] = pack(RUN_ROW, past.claim + 1, now, flags) .. (fn.has(flags, FAMILY) and job.words or job.queue)
  leases[#leases + 1] = job.member
  leases[#leases + 1] = fn.complete(job).row
  if past.claim > 0 then
    local again = claim.again
    again[#again + 1] = { #leases / 2, past.claim + 1, past.attempt + 1, past.crashes, call('HGET', our.steps, job.id) }
    call('HDEL', our.progress, job.id)
  end
  if is_kin then kin.note_lease(job, claim) end
  fn.give_up(job, AT_START)
end

-- Decides about one candidate. Returns 'taken', 'passed', 'gone', or 'changed' when the line may be another now.
function fn.judge(claim, id, row, past_row)
  local _, q, t, r, at = read(LENGTHS, row, LENGTHS_AT)
  local isolation = claim.tasks[sub(row, at + q, at + q + t - 1)]
  if isolation and claim.room[isolation] <= 0 and r == 0 and not past_row then return 'passed' end -- of many, most likely
  local job = fn.read_job(id, row)
  local past = past_row and fn.read_past(past_row) or fn.no_past(job)
  local before = lined_up
  if past.claim == 0 and job.rare.expires_at and job.rare.expires_at <= now then
    fn.finish(job, past, 'EXPIRED', NOT_IN_TIME, KEEP)
    return lined_up > before and 'changed' or 'gone'
  end
  if not isolation then
    fn.set_aside(job, past.place)
    claim.unknown[job.queue .. '\0' .. job.task] = true
    return 'gone'
  end
  if past.crashes >= CRASHES_BEFORE_ISOLATION then isolation = 'process' end
  if claim.room[isolation] <= 0 then return 'passed' end
  if fn.is_gated(job) and not fn.starts(job) then -- it waits again, and cannot come back within this call
    return lined_up > before and 'changed' or 'gone'
  end
  claim.room[isolation] = claim.room[isolation] - 1
  fn.lease_with_care(claim, job, past, past_row)
  return 'taken'
end

-- How jobs run that are claimed for the first time now, by their flags.
function fn.first_runs(queue)
  return setmetatable({}, {
    __index = function(made, flags)
      made[flags] = pack(RUN_ROW, 1, now, flags) .. queue
      return made[flags]
    end,
  })
end

-- Leases candidates from the first on, as long as there is nothing to look at, they are known to the session, and have room: nearly always
-- all. Returns how many.
function fn.take_plain(claim, queue, members, rows, pasts, most)
  local tasks, room, running, leases, runs = claim.tasks, claim.room, claim.running, claim.leases, fn.first_runs(queue)
  local looked_at, at_running, at_leases = fn.has_any('gates') and GATED or CHECKED, #running, #leases
  for i, row in ipairs(rows) do
    local past = pasts[i]
    if not row or i > most or past and sub(past, 1, #UNTRIED) ~= UNTRIED then return i - 1 end
    local traits, q, t, r, at = read(LENGTHS, row, LENGTHS_AT)
    if traits >= looked_at and traits ~= KIN or at + q + t + r > #row then return i - 1 end -- also where the row is an outline
    local isolation = tasks[sub(row, at + q, at + q + t - 1)]
    local left = isolation and room[isolation] or 0
    if left <= 0 then return i - 1 end
    room[isolation] = left - 1
    local flags = (traits == GATED and KEYED or 0) + (past and HAS_PAST or 0)
    running[at_running + 1], running[at_running + 2] = members[i], traits == KIN and kin.first_run(row, flags) or runs[flags]
    leases[at_leases + 1], leases[at_leases + 2] = members[i], row
    at_running, at_leases = at_running + 2, at_leases + 2
  end
  return #rows
end

-- Takes out of their lines the members up to the `last` that are not passed over.
function fn.take_from_lines(members, of, last, passed)
  turns = {}
  if type(of) == 'string' and passed.number == 0 and last == #members then
    fn.many('ZREM', of, members)
    return fn.tidy(of)
  end
  local leaving = {}
  for i = 1, last do
    local line = type(of) == 'string' and of or of[i]
    if not passed[members[i]] then
      leaving[line] = leaving[line] or {}
      table.insert(leaving[line], members[i])
    end
  end
  for line, gone in pairs(leaving) do
    fn.many('ZREM', line, gone)
    fn.tidy(line)
  end
end

-- The first `most` of lines that were not passed over before, with the line, row and past of each.
function fn.candidates_of(claim, lines, most, passed)
  local members, of = fn.first_of(lines, passed.number + most)
  if passed.number > 0 then
    local new, lines_of_new = {}, {}
    for i, member in ipairs(members) do
      if not passed[member] then
        new[#new + 1] = member
        lines_of_new[#new] = type(of) == 'string' and of or of[i]
      end
    end
    members, of = new, lines_of_new
  end
  if #members == 0 then return members end
  local ids = {}
  for i, member in ipairs(members) do ids[i] = sub(member, 7) end
  return members, of, fn.rows_of(ids), fn.has_any('past') and call('HMGET', our.past, unpack(ids)) or {}
end

-- Takes up to `limit` jobs of one queue. Looks at the first `limit`, and further only while none could be taken. Returns how many it took,
-- and how many it looked at.
function fn.claim_from(claim, queue, limit)
  local lines = fn.lines_of(queue, claim.asides, claim.tasks)
  local most, passed = math.max(WINDOW, limit), { number = 0 }
  local looked, taken = 0, 0
  while taken < limit and looked < (taken > 0 and limit or most) do
    local batch = looked < limit and limit - looked or math.min(250, most - looked)
    local members, of, rows, pasts = fn.candidates_of(claim, lines, batch, passed)
    if #members == 0 then break end
    local last, verdict = fn.take_plain(claim, queue, members, rows, pasts, looked < limit and batch or 1), ''
    taken, looked = taken + last, looked + last
    take_judged = function() fn.take_from_lines(members, of, last, passed) end
    while last < #members and verdict ~= 'changed' and taken < limit and (taken == 0 or looked < limit) do
      last, looked = last + 1, looked + 1
      local row = rows[last]
      verdict = row and fn.judge(claim, sub(members[last], 7), row, pasts[last]) or 'gone' -- a row may be gone after a failover
      if verdict == 'taken' then taken = taken + 1 end
      if verdict == 'passed' then
        passed[members[last]] = true
        passed.number = passed.number + 1
      end
    end
    take_judged()
    take_judged = nil
  end
  if taken > 0 then fn.count('RUNNING', queue, taken) end
  return taken, looked
end

-- Takes up to `limit` jobs of queues, in their order. What one call looks at in vain is bounded over all queues, for nothing else is served
-- meanwhile. Returns how many it took, and the queues that it did not come to for that reason.
function fn.claim_from_each(claim, queues, limit)
  local taken, vain = 0, 0
  for i, queue in ipairs(queues) do
    if taken >= limit then break end
    if vain >= WINDOW then return taken, fn.slice(queues, i) end
    vain = vain + VISIT
    if call('SISMEMBER', our.paused, queue) == 0 then
      local got, looked = fn.claim_from(claim, queue, limit - taken)
      taken, vain = taken + got, vain + looked - got
    end
  end
  return taken, {}
end

-- Writes how jobs run that were claimed, members and rows in turn. A server keeps a hash of some hundred short values as a list, and would
-- go through it for each of these jobs, here and when they are settled; but no more once a long value was in it.
function fn.note_running(running, rows)
  if #rows > 2 * FEW then call('HSET', running, '', LONG) end
  fn.many('HSET', running, rows)
  if #rows > 2 * FEW then call('HDEL', running, '') end
end

-- All queues that have something ready, by name, starting with another one each turn.
function fn.rotated(turn, asides)
  local names = call('ZRANGE', our.queues, 0, -1)
  if next(asides) then
    local known, number = {}, #names
    for _, name in ipairs(names) do known[name] = true end
    for queue in pairs(asides) do
      if not known[queue] then names[#names + 1] = queue end
    end
    if #names > number then table.sort(names) end
  end
  local start = #names > 0 and turn % #names or 0
  local queues = {}
  for i = 1, #names do queues[i] = names[(start + i - 1) % #names + 1] end
  return queues
end

-- Takes note of a call of a session, which numbers its calls. Says 'gone' when there is no such session, 'late' when the call came before
-- (a connection made anew sends again what was not answered) or was overtaken. A number left out means that a call never came, or that
-- a failover lost what it wrote, and the session may hold jobs it does not know of: it is in doubt then until it says what it holds.
function fn.take_turn(session, number)
  local last, doubt = unpack(call('HMGET', each.session .. session, 'calls', 'doubt'))
  if not last then return 'gone' end
  number, last = tonumber(number), tonumber(last)
  if number <= last then return 'late' end
  doubt = (doubt == '1' or number > last + 1) and '1' or '0'
  call('HSET', each.session .. session, 'calls', number, 'doubt', doubt)
  return nil, doubt == '1'
end


-- Settle -------------------------------------------------------------------------------------------------------------------

-- What a job has behind it once the attempt is over that `run` tells of.
function fn.past_after(job, run, worker)
  local past = fn.has(run.flags, HAS_PAST) and fn.past_of(job) or fn.no_past(job)
  past.claim, past.attempt, past.started, past.worker, past.bare = run.claim, past.attempt + 1, run.started, worker, nil
  return past
end

function fn.stop_running(session, member, run)
  call('HDEL', each.running .. session, member)
  if fn.has(run.flags, STOP) then call('HDEL', each.stops .. session, sub(member, 7)) end
  fn.count('RUNNING', run.queue, -1)
end

function fn.note_failure(id, failure)
  if failure == '' then return end
  local before = call('HGET', our.errors, id)
  call('HSET', our.errors, id, before and before .. '\n' .. failure or failure)
end

-- Back to the place in the ready line that it had, if its gates still let it, with the attempt given back.
function fn.hand_back(job, past)
  past.attempt = past.attempt - 1
  fn.note_past(job, past)
  if fn.is_gated(job) and not fn.enter(job) then return end
  turns = {}
  fn.line_up(job, past.place)
end

-- Carries out the outcome of an attempt, but for success; `detail` is a delay in microseconds, the time to keep, or a reason.
function fn.end_attempt(id, run, worker, outcome, detail, extra)
  local job = fn.find_job(id)
  if not job then return end
  local past = fn.past_after(job, run, worker)
  if fn.is_kin(job) then kin.note_run(job, -1) end
  if fn.has(run.flags, STOP) then
    fn.finish(job, past, 'CANCELLED', 'cancelled', KEEP)
  elseif outcome == 'Retried' or outcome == 'HeldBack' then
    fn.note_failure(id, extra)
    if outcome == 'HeldBack' and fn.is_gated(job) then fn.shut(job, now + detail) end
    fn.place(job, past, tonumber(detail) > 0 and now + detail or NEVER)
  elseif outcome == 'Dead' or outcome == 'DeadHolding' then
    fn.note_failure(id, extra)
    if outcome == 'DeadHolding' then
      local delay, reason = string.match(detail, '^(%d+) (.*)$')
      if fn.is_gated(job) then fn.shut(job, now + delay) end
      detail = reason
    end
    fn.finish(job, past, 'DEAD', detail, KEEP)
  elseif outcome == 'Cancelled' then
    fn.finish(job, past, 'CANCELLED', detail, KEEP)
  elseif tonumber(detail) > 0 then
    past.attempt = past.attempt - 1
    fn.place(job, past, now + detail)
  else
    fn.hand_back(job, past)
  end
end

-- Ends attempts that succeeded, of jobs of which nothing needs care. `runs` are how they ran, alike ones once.
function fn.succeed_plain(members, runs, results, worker, keep)
  local ids, ends, done, forget_at = {}, {}, {}, fn.integer(now + keep)
  for i, member in ipairs(members) do
    local run, id = runs[i], sub(member, 7)
    ids[i] = id
    ended[#ended + 1] = id
    run.number = (run.number or 0) + 1
    if keep > 0 then
      run.head = run.head or fn.end_row('SUCCEEDED', run.claim, 1, run.started, worker, '', '')
      ends[2 * i - 1], ends[2 * i] = id, run.head .. results[i]
      done[2 * i - 1], done[2 * i] = forget_at, member
    end
  end
  for _, run in ipairs(runs) do
    if run.number then
      fn.count('RUNNING', run.queue, -run.number)
      if keep > 0 then fn.count('SUCCEEDED', run.queue, run.number) end
      run.number = nil
    end
  end
  if keep > 0 then
    fn.many('HSET', our.ends, ends)
    fn.many('ZADD', each.done .. 'SUCCEEDED', done)
  else
    fn.forget(ids, members)
  end
end

-- Ends attempts that succeeded, of jobs that may let others go.
function fn.succeed_with_care(members, runs, results, worker, keep)
  local ids, jobs, gated = {}, {}, false
  for i, member in ipairs(members) do ids[i] = sub(member, 7) end
  for i, row in ipairs(fn.rows_of(ids)) do
    jobs[i] = row and fn.read_job(ids[i], row)
    gated = gated or row and fn.is_gated(jobs[i])
  end
  if gated then fn.fetch_followers(jobs) end
  fn.gather(#jobs)
  for i = 1, #jobs do
    local job, run = jobs[i], runs[i]
    fn.count('RUNNING', run.queue, -1)
    local past = job and keep > 0 and fn.past_after(job, run, worker) or run -- whoever is not kept is asked for his claim alone
    if job and fn.is_kin(job) then kin.note_run(job, -1) end
    if job then fn.finish(job, past, 'SUCCEEDED', '', keep, results[i]) end
    if job and keep == 0 and job.kin.batch then kin.drop(job) end
  end
  fn.write_gathered()
  if keep == 0 then fn.forget(ids, members) end
end

-- Ends attempts that succeeded: ARGV from `first` on are `number` members, claims and results in turn. `order` outcomes came before.
function fn.succeed_all(session, worker, keep, first, number, lost, order)
  local members, known = {}, {}
  for i = 1, number do members[i] = ARGV[first + 3 * i - 3] end
  local seen, held, stopped = {}, {}, {}
  local plain, careful = { members = {}, runs = {}, results = {} }, { members = {}, runs = {}, results = {} }
  local family = { members = {}, runs = {}, results = {} }
  for i, row in ipairs(call('HMGET', each.running .. session, unpack(members))) do
    local member, at = members[i], first + 3 * i - 3
    local run = row and known[row]
    if row and not run then
      run = fn.read_run(row)
      known[row] = run
    end
    if not run or run.claim ~= tonumber(ARGV[at + 1]) or seen[member] then
      lost[#lost + 1] = order + i
    else
      local kind = plain
      if run.flags ~= 0 then
        kind = run.flags == FAMILY and keep > 0 and family or careful
        if fn.has(run.flags, STOP) then stopped[#stopped + 1] = sub(member, 7) end
      end
      local place = #kind.members + 1
      seen[member], held[#held + 1] = true, member
      kind.members[place], kind.runs[place], kind.results[place] = member, run, ARGV[at + 2]
    end
  end
  fn.many('HDEL', each.running .. session, held)
  fn.many('HDEL', each.stops .. session, stopped)
  if #plain.members > 0 then fn.succeed_plain(plain.members, plain.runs, plain.results, worker, keep) end
  if #family.members > 0 then kin.succeed_plain(family.members, family.runs, family.results, worker, keep) end
  if #careful.members > 0 then fn.succeed_with_care(careful.members, careful.runs, careful.results, worker, keep) end
end


-- Upkeep -------------------------------------------------------------------------------------------------------------------

function fn.touch(touched, event, job, reason)
  touched[#touched + 1] = { event, job.id, job.task, job.queue, reason }
end

-- How jobs run, read from members and rows in turn; in the order in which they were stored.
function fn.runs_of(found)
  local runs = {}
  for i = 1, #found, 2 do
    local run = fn.read_run(found[i + 1])
    run.member, run.n = found[i], read('>I6', found[i])
    runs[#runs + 1] = run
  end
  table.sort(runs, function(one, other) return one.n < other.n end)
  return runs
end

-- Some of what a session runs, members and rows in turn; nothing only when there is nothing. One HSCAN visits so many places of a hash and
-- no more, and where jobs were taken from it before, they may all be empty.
function fn.some_running(session)
  local cursor, found = '0', nil
  repeat
    cursor, found = unpack(call('HSCAN', each.running .. session, cursor, 'COUNT', WINDOW))
  until #found > 0 or cursor == '0'
  return found
end

-- Takes about WINDOW jobs from a session that is gone: died, or left. Returns whether it has none any more, and how many were taken.
function fn.relieve(session, touched)
  local why, worker = string.match(call('HGET', our.orphans, session), '^(%a+)\n(.*)$')
  local runs = fn.runs_of(fn.some_running(session))
  for _, run in ipairs(runs) do
    fn.stop_running(session, run.member, run)
    local job = fn.find_job(sub(run.member, 7))
    if why == 'left' then
      fn.end_attempt(sub(run.member, 7), run, worker, 'Release', 0, '')
    elseif job then
      local past = fn.past_after(job, run, worker)
      past.crashes = past.crashes + 1
      if fn.is_kin(job) then kin.note_run(job, -1) end
      if fn.has(run.flags, STOP) then
        past.attempt = past.attempt - 1
        fn.finish(job, past, 'CANCELLED', 'cancelled', KEEP)
        fn.touch(touched, 'cancelled', job, 'worker ' .. worker .. ' died')
      else
        fn.hand_back(job, past)
        fn.touch(touched, 'rescued', job, 'worker ' .. worker .. ' died')
      end
    end
  end
  if rawget(kin, 'settle_up') then kin.settle_up() end
  if call('EXISTS', each.running .. session) == 1 then return false, #runs end
  call('DEL', each.stops .. session)
  call('HDEL', our.orphans, session)
  return true, #runs
end

-- Ends a session; what it runs is then taken from it. What is known of it may be gone, evicted or deleted by hand: it ends all the same.
function fn.bury(session, why)
  local worker, known = unpack(call('HMGET', each.session .. session, 'worker', 'asleep'))
  call('DEL', each.session .. session, each.bell .. session)
  call('ZREM', our.sessions, session)
  call('HDEL', our.beats, session)
  for _, entry in ipairs(known and { known } or fn.entries_of(session)) do call('ZREM', our.asleep, entry) end
  call('HSET', our.orphans, session, why .. '\n' .. (worker or UNKNOWN))
end

function fn.rescue(touched)
  local all, moved = true, 0
  for _, session in ipairs(call('HKEYS', our.orphans)) do
    if moved >= WINDOW then return false end
    local relieved, number = fn.relieve(session, touched)
    all, moved = relieved and all, moved + number
  end
  return all
end

function fn.promote()
  local due = call('ZRANGEBYSCORE', our.scheduled, '-inf', fn.integer(now), 'LIMIT', 0, WINDOW)
  for _, member in ipairs(due) do
    call('ZREM', our.scheduled, member)
    local job = fn.find_job(sub(member, 7))
    if job then
      local past = fn.past_of(job)
      fn.count('SCHEDULED', job.queue, -1)
      fn.join(job, past)
      fn.make_ready(job, past)
    end
  end
  return #due
end

function fn.expire(touched)
  local due = call('ZRANGEBYSCORE', our.expiring, '-inf', fn.integer(now), 'LIMIT', 0, WINDOW)
  for _, member in ipairs(due) do
    call('ZREM', our.expiring, member)
    local job = fn.find_job(sub(member, 7))
    if job and fn.stop(job, 'EXPIRED', NOT_IN_TIME) then fn.touch(touched, 'expired', job, '') end
  end
  return #due
end

-- Forgets ended jobs whose time is over, and counts them no more.
function fn.forget_old()
  local left = WINDOW
  for _, state in ipairs(STATES) do
    local members = left > 0 and call('ZRANGEBYSCORE', each.done .. state, '-inf', fn.integer(now), 'LIMIT', 0, left) or {}
    if #members > 0 then
      local ids = {}
      for i, member in ipairs(members) do ids[i] = sub(member, 7) end
      call('ZREM', each.done .. state, unpack(members))
      for i, row in ipairs(fn.rows_of(ids)) do
        local job = row and fn.read_job(ids[i], row)
        if job then fn.count(state, job.queue, -1) end
        if job and job.kin.batch then kin.drop(job) end
      end
      fn.forget(ids, members)
      left = left - #members
    end
  end
  return WINDOW - left
end

-- Keys free themselves when they are next asked for; those that nobody asks for go a day after, so that a clock set back finds them.
function fn.drop_stale_keys()
  local stale = call('ZRANGEBYSCORE', our.freeing, '-inf', fn.integer(now - 86400 * SECOND), 'LIMIT', 0, WINDOW)
  for _, key in ipairs(stale) do
    call('ZREM', our.freeing, key)
    fn.held(key)
  end
  return #stale
end

function fn.first_score(key)
  local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')
  return first[2] and tonumber(first[2])
end

-- Microseconds until the next promotion, expiry or tick; -1 when none is known.
function fn.next_wait()
  local wait
  for _, key in ipairs({ our.scheduled, our.expiring, our.calendar }) do
    local moment = fn.first_score(key)
    if moment and (not wait or moment - now < wait) then wait = moment - now end
  end
  return wait and math.max(wait, 0) or -1
end


-- Schedules ----------------------------------------------------------------------------------------------------------------

function fn.seat(name)
  local paused, next_at = unpack(call('HMGET', each.schedule .. name, 'paused', 'next_at'))
  if paused == '0' and next_at ~= '' then call('ZADD', our.calendar, next_at, name) else call('ZREM', our.calendar, name) end
  stirred = true
end

-- Stores a rule; an unchanged one keeps its next tick.
function fn.put_schedule(name, rule, next_at, declared)
  local key = each.schedule .. name
  local known = call('HGET', key, 'rule')
  if not known then
    call('ZADD', our.schedules, 0, name)
    call('HSET', key, 'next_at', next_at, 'last_at', '', 'last_job', '', 'paused', '0', 'fired', 0, 'skipped', 0, 'rule', rule)
  elseif known ~= rule then
    call('HSET', key, 'next_at', next_at, 'rule', rule)
  end
  call('HSET', key, 'declared', declared, 'absent', '')
  fn.seat(name)
end

function fn.drop_schedule(name)
  call('ZREM', our.calendar, name)
  call('ZREM', our.schedules, name)
  return call('DEL', each.schedule .. name)
end

-- Counts a job of a schedule that `id` stands for now. Nil when its overlap forbade it.
function fn.count_fired(name, sent, tail, id)
  if id ~= sent and fn.read_job(sent, pack(HEAD, 0, 0, 0) .. tail).rare.overlap == 'skip' then
    call('HINCRBY', each.schedule .. name, 'skipped', 1)
    return nil
  end
  call('HINCRBY', each.schedule .. name, 'fired', 1)
  call('HSET', each.schedule .. name, 'last_job', id)
  return id
end

-- Once a minute, removes schedules from code that no live session has declared for ten minutes.
function fn.prune()
  local looked = tonumber(call('GET', our.pruned) or NEVER)
  if now >= looked and now - looked < 60 * SECOND then return end
  if looked ~= NEVER and looked > now then fn.look_at_gates_again() end
  call('SET', our.pruned, fn.integer(now))
  local declared = {}
  for _, session in ipairs(call('ZRANGE', our.sessions, 0, -1)) do
    local declares = call('HGET', each.session .. session, 'declares')
    for _, name in ipairs(declares and cmsgpack.unpack(declares) or {}) do declared[name] = true end
  end
  for _, name in ipairs(call('ZRANGE', our.schedules, 0, -1)) do
    local from_code, absent = unpack(call('HMGET', each.schedule .. name, 'declared', 'absent'))
    if from_code == '1' then
      if declared[name] then
        call('HSET', each.schedule .. name, 'absent', '')
      elseif absent == '' then
        call('HSET', each.schedule .. name, 'absent', fn.integer(now))
      elseif now - absent >= 600 * SECOND then
        fn.drop_schedule(name)
      end
    end
  end
end


-- Reading ------------------------------------------------------------------------------------------------------------------

function fn.optional(moment)
  return moment ~= NEVER and moment
end

-- All that is known of a job, as rows.Known.
function fn.known(job)
  local state, standing = fn.where(job)
  local past = fn.past_of(job)
  local finished, reason, result = NEVER, false, false
  if state == 'ENDED' then
    state = standing.state
    past.claim, past.attempt, past.started, past.worker = standing.claim, standing.attempt, standing.started, standing.worker
    finished, result = standing.finished, standing.result ~= '' and standing.result
    reason = state ~= 'SUCCEEDED' and standing.reason
  elseif state == 'RUNNING' then
    past = fn.past_after(job, standing, call('HGET', each.session .. standing.session, 'worker')
      or string.match(call('HGET', our.orphans, standing.session) or '', '\n(.*)$') or UNKNOWN)
  elseif state == 'WAITING' and standing.lane then
    reason = 'waits for a ' .. fn.gate_of(standing.lane)
  elseif state == 'WAITING' and standing.behind == '' then
    reason = job.kin.callback and 'waits for its batch' or 'waits for its parents'
  elseif state == 'WAITING' then
    reason = 'behind ' .. standing.behind
  end
  return {
    job.id, fn.complete(job).row, state, past.attempt, past.crashes, fn.optional(past.started), past.worker ~= '' and past.worker,
    fn.optional(past.due), fn.optional(finished), reason, result, state == 'RUNNING' and fn.has(standing.flags, STOP) and 1 or 0,
    call('HGET', our.errors, job.id), call('HGET', our.steps, job.id), call('HGET', our.progress, job.id),
    job.kin.linked and call('HGET', our.parents, job.id) or false,
  }
end

-- Whether a key is that of a job's uniqueness, order, limits or fair turn.
function fn.has_key(rare, key)
  if rare.key == key or rare.order_by == key or rare.fair_by == key then return true end
  for _, limit in ipairs(rare.limits or {}) do
    if limit.key == key then return true end
  end
  return false
end

function fn.matches(job, filter)
  if filter.task and job.task ~= filter.task or filter.queue and job.queue ~= filter.queue then return false end
  if filter.key and not fn.has_key(job.rare, filter.key) then return false end
  if filter.workflow and job.kin.workflow ~= filter.workflow or filter.batch and job.kin.batch ~= filter.batch then return false end
  if not filter.state then return true end
  local state, standing = fn.where(job)
  return filter.state == (state == 'ENDED' and standing.state or state)
end

-- How many come in a line before one who was enqueued at some time, and with him, newest first; he need not be there any more.
function fn.number_before(line, enqueued, member)
  local rank = call('ZREVRANK', line, member)
  if rank then return rank + 1 end
  local first, last = call('ZCOUNT', line, '(' .. fn.integer(enqueued), '+inf'), call('ZCOUNT', line, fn.integer(enqueued), '+inf')
  while first < last do
    local middle = math.floor((first + last) / 2)
    if call('ZREVRANGE', line, middle, middle)[1] > member then first = middle + 1 else last = middle end
  end
  return first
end

-- The lines of a queue: the ready line, and those of jobs set aside.
function fn.all_lines(queue)
  local lines = { each.ready .. queue }
  for _, name in ipairs(call('ZRANGE', our.asides, 0, -1)) do
    if sub(name, 1, #queue + 1) == queue .. '\0' then lines[#lines + 1] = each.aside .. name end
  end
  return lines
end

-- How many ready jobs of its queue go before a job that stands at `place`.
function fn.ahead(job, place)
  local number = 0
  for _, line in ipairs(fn.all_lines(job.queue)) do
    number = number + call('ZCOUNT', line, '-inf', '(' .. place)
    for _, member in ipairs(call('ZRANGEBYSCORE', line, place, place)) do
      if read('>I6', member) < job.n then number = number + 1 end
    end
  end
  return number
end

-- When the oldest of the first jobs of each priority of a line became ready, of those that take turns and of the others.
function fn.oldest_of(line)
  local oldest, from = nil, '-inf'
  while true do
    local found = call('ZRANGEBYSCORE', line, from, '+inf', 'WITHSCORES', 'LIMIT', 0, 100)
    if #found == 0 then return oldest end
    local part = math.floor(found[2] / TURNS)
    for i = 1, #found, 2 do
      local job = math.floor(found[i + 1] / TURNS) == part and fn.find_job(sub(found[i], 7))
      local since = job and fn.past_of(job).since
      if since and (not oldest or since < oldest) then oldest = since end
    end
    from = fn.integer((part + 1) * TURNS)
  end
end


-- Operations ---------------------------------------------------------------------------------------------------------------

-- For producers ---

-- (id, tail)... -> nil and why it was refused, or the places and ids of those for which another job stands
function operations.enqueue()
  local standing, refusal = fn.store_all(3)
  if refusal then return { refusal, false } end
  local others = {}
  for i, id in ipairs(standing) do
    if id ~= ARGV[1 + 2 * i] then
      others[#others + 1] = i
      others[#others + 1] = id
    end
  end
  return { false, others }
end

-- For sessions ---

-- session, worker, info, names declared, how it sleeps, number of schedules, number of rules, (name, rule, next_at)..., (rule, limit)...,
-- (task, isolation)...
function operations.enter()
  fn.insist() -- a worker that comes now brings relief
  local session, worker, info, declares, asleep, schedules, rules = unpack(ARGV, 3, 9)
  local number = fn.next_number()
  local key = each.session .. session
  call('HSET', key, 'worker', worker, 'info', info, 'declares', declares, 'asleep', asleep, 'started_at', fn.integer(now),
    'beat_at', fn.integer(now), 'calls', 0, 'doubt', '0')
  local first = 10 + 3 * schedules
  for i = first + 2 * rules, #ARGV, 2 do call('HSET', key, 'task:' .. ARGV[i], ARGV[i + 1]) end
  call('ZADD', our.sessions, 'NX', number, session)
  call('HSETNX', our.beats, session, 0)
  call('ZADD', our.asleep, number, asleep)
  call('SET', our.version, SCHEMA, 'NX')
  for i = 10, first - 1, 3 do fn.put_schedule(ARGV[i], ARGV[i + 1], ARGV[i + 2], '1') end
  if tonumber(rules) > 0 then fn.declare(first, tonumber(rules)) end
end

-- session -> how many jobs it still has to hand back
function operations.leave()
  fn.insist()
  local session = ARGV[3]
  if call('EXISTS', each.session .. session) == 1 or call('HEXISTS', our.orphans, session) == 0 then fn.bury(session, 'left') end
  fn.relieve(session, {})
  return call('HLEN', each.running .. session)
end

-- session, call, turn, limit, room of async, thread, process, how it sleeps, whether it goes on where the call before ended, then the
-- queues to serve, or none for all
-- -> 'gone', 'late', or (member, row)...; for those claimed before, {place, claim, attempt, crashes, steps}; the queues not come to;
-- when time alone will let somebody pass; for those that have parents, {place, parents, their results}; and <queue>\0<task> of those that
-- were set aside
function operations.fetch()
  local session, number, turn, limit = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
  local asleep, goes_on = ARGV[10], ARGV[11] == '1'
  local since = goes_on and call('ZSCORE', our.asleep, asleep)
  call('ZREM', our.asleep, asleep)
  local void, doubt = fn.take_turn(session, number)
  if void or doubt then return void or 'late' end
  if not goes_on then call('DEL', each.bell .. session) end -- before looking, so that a ring from here on is heard
  if (fn.first_score(our.wakes) or FOREVER) <= now then
    fn.wake_gates()
    news = {} -- of who has passed, this session takes what it can, and wakes another for the rest
  end
  local claim = {
    tasks = fn.tasks_of(session),
    room = { async = tonumber(ARGV[7]), thread = tonumber(ARGV[8]), process = tonumber(ARGV[9]) },
    asides = fn.tasks_aside(),
    running = {}, leases = {}, again = {}, families = {}, unknown = {},
  }
  if fn.has_any('owing') then kin.go_on() end
  local queues = #ARGV > 11 and fn.slice(ARGV, 12) or fn.rotated(turn, claim.asides)
  local taken, rest = fn.claim_from_each(claim, queues, limit)
  fn.note_running(each.running .. session, claim.running)
  if #rest == 0 then fn.pass_on() end
  -- It counts as asleep from its first call on: a job that comes to a queue already looked at while it goes on must ring its bell.
  if not goes_on then since = call('GET', our.sequence) or 0 end
  if taken < limit and since then call('ZADD', our.asleep, since, asleep) end
  local wake_at = fn.first_score(our.wakes)
  retimed = wake_at ~= nil and taken > 0 and taken >= limit -- who is busy will not look then: another is to know of it
  local unknown = {}
  for name in pairs(claim.unknown) do unknown[#unknown + 1] = name end
  return { claim.leases, claim.again, rest, wake_at or false, claim.families, unknown }
end

-- session, number of its last call, (member, claim)... that it knows of -> 'gone', or how many others were handed back
function operations.retain()
  fn.insist()
  local session, number = ARGV[3], tonumber(ARGV[4])
  local last, worker = unpack(call('HMGET', each.session .. session, 'calls', 'worker'))
  if not last then return 'gone' end
  call('HSET', each.session .. session, 'calls', math.max(number, tonumber(last)), 'doubt', '0')
  local kept, returned = {}, 0
  for i = 5, #ARGV, 2 do kept[ARGV[i] .. ' ' .. ARGV[i + 1]] = true end -- of a job claimed twice both may be told
  for _, run in ipairs(fn.runs_of(call('HGETALL', each.running .. session))) do
    if not kept[run.member .. ' ' .. run.claim] then
      fn.stop_running(session, run.member, run)
      fn.end_attempt(sub(run.member, 7), run, worker, 'Release', 0, '')
      returned = returned + 1
    end
  end
  return returned
end

-- session, call, then for each outcome its name and
--   Done: keep, number, (member, claim, result)...     any other: member, claim, delay or reason, failure
--   Adding, which comes alone: member, claim, keep, result, (id, tail)... of the jobs that it adds
-- -> 'gone', 'late', or the places of the lost
function operations.settle()
  fn.insist()
  local session = ARGV[3]
  local void = fn.take_turn(session, ARGV[4])
  if void then return void end
  local worker = call('HGET', each.session .. session, 'worker')
  local lost, order, at = {}, 0, 5
  while at <= #ARGV do
    local outcome = ARGV[at]
    if outcome == 'Done' then
      local number = tonumber(ARGV[at + 2])
      fn.succeed_all(session, worker, tonumber(ARGV[at + 1]), at + 3, number, lost, order)
      order, at = order + number, at + 3 + 3 * number
    elseif outcome == 'Adding' then
      if not kin.end_adding(session, worker, at + 1) then lost[1] = 1 end
      break
    else
      local member, claim, detail, failure = unpack(ARGV, at + 1, at + 4)
      local row = call('HGET', each.running .. session, member)
      local run = row and fn.read_run(row)
      order, at = order + 1, at + 5
      if run and run.claim == tonumber(claim) then
        fn.stop_running(session, member, run)
        fn.end_attempt(sub(member, 7), run, worker, outcome, detail, failure)
      else
        lost[#lost + 1] = order
      end
    end
  end
  return lost
end

-- session, (member, claim, progress)... -> nil when it is gone, or the time, the beats of all, and the claims to stop
function operations.beat()
  fn.insist()
  local session = ARGV[3]
  if call('EXISTS', each.session .. session) == 0 then return nil end
  call('HINCRBY', our.beats, session, 1)
  call('HSET', each.session .. session, 'beat_at', fn.integer(now))
  for i = 4, #ARGV, 3 do
    local row = call('HGET', each.running .. session, ARGV[i])
    if row and fn.read_run(row).claim == tonumber(ARGV[i + 1]) then call('HSET', our.progress, sub(ARGV[i], 7), ARGV[i + 2]) end
  end
  return { now, call('HGETALL', our.beats), call('HGETALL', each.stops .. session) }
end

-- session, member, claim, step, value -> whether the lease is still held
function operations.remember()
  fn.insist()
  local session, member, claim, step, value = unpack(ARGV, 3, 7)
  local row = call('EXISTS', each.session .. session) == 1 and call('HGET', each.running .. session, member)
  if not row or fn.read_run(row).claim ~= tonumber(claim) then return 0 end
  local id = sub(member, 7)
  local steps = call('HGET', our.steps, id)
  steps = steps and cmsgpack.unpack(steps) or {}
  steps[step] = value
  call('HSET', our.steps, id, cmsgpack.pack(steps))
  return 1
end

-- (session, beat)... that are dead -> the time, whether there is more to do, when next, and what happened to which jobs
function operations.maintain()
  fn.insist()
  local touched = {}
  for i = 3, #ARGV, 2 do
    if call('HGET', our.beats, ARGV[i]) == ARGV[i + 1] then fn.bury(ARGV[i], 'died') end
  end
  local relieved, waking = fn.rescue(touched), (fn.first_score(our.wakes) or FOREVER) <= now and fn.wake_gates()
  local promoted, expired = fn.promote(), fn.expire(touched)
  local unsettled = call('EXISTS', our.tallies, our.owing) > 0 and kin.maintain()
  local forgotten, stale = fn.forget_old(), fn.drop_stale_keys()
  if call('EXISTS', our.forgetting) == 1 then forgotten = forgotten + kin.forget_old() end
  local faded = (fn.first_score(our.fading) or FOREVER) <= now and fn.forget_gates() or 0
  local reviewing = call('EXISTS', our.reviews) == 1 and fn.review()
  fn.prune()
  local more = not relieved or waking or reviewing or unsettled or math.max(promoted, expired, forgotten, stale, faded) >= WINDOW
  return { now, more and 0 or fn.next_wait(), touched }
end

-- -> name, rule and next tick of what is due
function operations.due()
  local found = {}
  for _, name in ipairs(call('ZRANGEBYSCORE', our.calendar, '-inf', fn.integer(now))) do
    found[#found + 1] = { name, unpack(call('HMGET', each.schedule .. name, 'rule', 'next_at')) }
  end
  return found
end

-- name, rule, next tick as it was, as it will be, last tick, (id, tail)... -> as enqueue, and 0 when another was first
function operations.tick()
  local name, rule, was, next_at, last_at = unpack(ARGV, 3, 7)
  local known_rule, known_next, paused = unpack(call('HMGET', each.schedule .. name, 'rule', 'next_at', 'paused'))
  if known_rule ~= rule or known_next ~= was or paused ~= '0' then return { false, 0 } end
  local standing, refusal = fn.store_all(8)
  if refusal then return { refusal, false } end
  for i, id in ipairs(standing) do fn.count_fired(name, ARGV[6 + 2 * i], ARGV[7 + 2 * i], id) end
  call('HSET', each.schedule .. name, 'next_at', next_at)
  if last_at ~= '' then call('HSET', each.schedule .. name, 'last_at', last_at) end
  fn.seat(name)
  return { false, 1 }
end

-- For people ---

-- ids... -> the ids that were not yet terminal
function operations.cancel()
  fn.insist()
  local found = {}
  for i = 3, #ARGV do
    local job = fn.find_job(ARGV[i])
    if job and fn.stop(job, 'CANCELLED', 'cancelled') then found[#found + 1] = job.id end
  end
  return found
end

-- payload or empty, ids... -> the ids that were revived; or nil: what calls before had to leave comes first, and was gone on with
function operations.retry()
  if fn.has_any('owing') then
    kin.go_on()
    return false
  end
  local found = {}
  for i = 4, #ARGV do
    local job = fn.find_job(ARGV[i])
    local at, standing = 'MISSING', nil
    if job then at, standing = fn.where(job) end
    local free = at == 'ENDED' and standing.state ~= 'SUCCEEDED' and not (job.kin.linked and (kin.fails_with(job) or kin.in_vain(job)))
    local wanted = {}
    for _, want in ipairs(free and fn.keys_of(job) or {}) do
      if want.covers ~= 'time' then
        wanted[#wanted + 1] = want
        free = free and not fn.held(want.key)
      end
    end
    if free then
      fn.take_out(job, at, standing)
      for _, want in ipairs(wanted) do fn.take_key(want, job) end
      local past = fn.past_of(job)
      fn.retime(job)
      fn.rewrite(job, ARGV[3] ~= '' and ARGV[3] or fn.payload_of(job))
      call('HDEL', our.progress, job.id)
      if fn.is_gated(job) and not fn.holds_on(job, standing.state) then fn.take_seat(job) end -- who kept its turn keeps its place as well
      past.claim, past.attempt, past.crashes, past.started, past.worker = standing.claim, 0, 0, standing.started, standing.worker
      past.bare, past.due = nil, NEVER
      if fn.is_kin(job) then kin.restart(job, past, standing.state) else fn.place(job, past, NEVER) end
      found[#found + 1] = job.id
    end
  end
  return found
end

-- ids... -> the ids that were deleted
function operations.delete()
  fn.insist()
  local found = {}
  for i = 3, #ARGV do
    local job = fn.find_job(ARGV[i])
    local at, standing = 'RUNNING', nil
    if job then at, standing = fn.where(job) end
    if at ~= 'RUNNING' then
      fn.take_out(job, at, standing)
      fn.leave(our.expiring, job.member)
      if fn.is_kin(job) then kin.note_deletion(job, standing and standing.state) end
      fn.forget({ job.id }, { job.member })
      fn.give_up(job, AT_DELETION)
      if fn.is_gated(job) then fn.end_at_gates(job, false) end
      ended[#ended + 1] = job.id
      found[#found + 1] = job.id
    end
  end
  return found
end

-- queue, whether it is paused from now on
function operations.pause()
  fn.insist() -- jobs that would do harm now, or fill the memory further, must be held up
  local queue, paused = ARGV[3], ARGV[4] == '1'
  call(paused and 'SADD' or 'SREM', our.paused, queue)
  if not paused then news[queue] = MOST_ROUSED end
end

-- key, msgpack of what is changed, false for what goes back to what is declared
function operations.set_limit()
  fn.insist()
  fn.change(ARGV[3], cmsgpack.unpack(ARGV[4]))
end

-- name, rule, next tick
function operations.schedule()
  fn.put_schedule(ARGV[3], ARGV[4], ARGV[5], '0')
end

-- name -> whether there was one
function operations.unschedule()
  return fn.drop_schedule(ARGV[3])
end

-- name, whether it is paused from now on, next tick -> whether there is one
function operations.pause_schedule()
  fn.insist()
  local name, paused, next_at = unpack(ARGV, 3, 5)
  if call('EXISTS', each.schedule .. name) == 0 then return 0 end
  call('HSET', each.schedule .. name, 'paused', paused)
  if paused == '0' then call('HSET', each.schedule .. name, 'next_at', next_at) end
  fn.seat(name)
  return 1
end

-- name, id, tail -> as enqueue, and the id that stands for the job; nil when its overlap forbids it or there is no such schedule
function operations.fire()
  if call('EXISTS', each.schedule .. ARGV[3]) == 0 then return { false, false } end
  local standing, refusal = fn.store_all(4)
  if refusal then return { refusal, false } end
  return { false, fn.count_fired(ARGV[3], ARGV[4], ARGV[5], standing[1]) or false }
end

-- batch, name, (id, tail)... of its callbacks -> nil, or why one was refused
function operations.open_batch()
  return kin.open_batch(ARGV[3], ARGV[4])
end

-- batch -> whether it was open until now
function operations.seal_batch()
  fn.insist()
  return kin.seal_batch(ARGV[3])
end

-- tally -> whether there is one that is not finished; or nil, as retry
function operations.stop()
  fn.insist()
  if fn.has_any('owing') then
    kin.go_on()
    return false
  end
  return kin.stop(ARGV[3])
end

-- -> 1 once what stops a workflow or batch has reached all its jobs; till then the next of them, or what others have left before
function operations.finish_stop()
  fn.insist()
  if not call('ZSCORE', our.owing, 'tally ' .. ARGV[3]) then return 1 end
  kin.go_on()
  return false
end

-- Questions ---

-- -> the time, the schema that is stored, and a key of another type than ours
function operations.open()
  fn.insist()
  local types = {
    hash = 'jobs outlines past waiting ends errors steps progress counts keys seats lanes gates rules reviews beats orphans awaited '
      .. 'tallies parents heirs open felled owed',
    zset = 'queues asides scheduled all expiring large freeing keyed wakes fading schedules calendar sessions asleep '
      .. 'workflows batches unfinished forgetting owing',
    set = 'paused',
    string = 'sequence version pruned',
  }
  for expected, names in pairs(types) do
    for name in string.gmatch(names, '%a+') do
      local found = call('TYPE', our[name]).ok
      if found ~= 'none' and found ~= expected then return { now, false, our[name], found } end
    end
  end
  call('SET', our.version, SCHEMA, 'NX')
  return { now, call('GET', our.version) }
end

-- ids... -> rows.Known of those that exist
function operations.get()
  local found = {}
  for i = 3, #ARGV do
    local job = fn.find_job(ARGV[i])
    if job then found[#found + 1] = fn.known(job) end
  end
  return found
end

-- how many to look at, filter, where the page before ended: member, when that was enqueued; and the tally whose jobs are looked at, none
-- for all jobs -> where this page ends, ids that match
function operations.walk()
  local most, filter, member, enqueued = tonumber(ARGV[3]), cmsgpack.unpack(ARGV[4]), ARGV[5], ARGV[6]
  local line = ARGV[7] and each.members .. ARGV[7] or our.all
  local first = member ~= '' and fn.number_before(line, tonumber(enqueued), member) or 0
  local members = call('ZREVRANGE', line, first, first + most - 1, 'WITHSCORES')
  local found = {}
  for i = 1, #members, 2 do
    local id = sub(members[i], 7)
    local job = next(filter) and fn.find_job(id)
    if not next(filter) or job and fn.matches(job, filter) then found[#found + 1] = id end
  end
  return { #members == 2 * most and members[#members - 1], members[#members] or false, found }
end

-- state -> how many jobs there are in all, and the lines of those in this state, each with its length
function operations.lines()
  local state, lines, found = ARGV[3], {}, {}
  if state == 'READY' then
    for _, queue in ipairs(call('ZRANGE', our.queues, 0, -1)) do lines[#lines + 1] = each.ready .. queue end
    for _, name in ipairs(call('ZRANGE', our.asides, 0, -1)) do lines[#lines + 1] = each.aside .. name end
  elseif state == 'RUNNING' then
    for _, session in ipairs(fn.holders()) do lines[#lines + 1] = each.running .. session end
  elseif state == 'SCHEDULED' then
    lines[1] = our.scheduled
  elseif state == 'WAITING' and call('ZCARD', our.keyed) + call('HLEN', our.lanes) > WINDOW then
    return { 0, { our.all, call('ZCARD', our.all) } } -- so many that to go through all jobs is better
  elseif state == 'WAITING' then
    lines[1] = our.waiting
    local own = call('ZRANGE', our.keyed, 0, -1)
    for _, id in ipairs(own) do lines[#lines + 1] = each.lane .. id end
    for _, lane in ipairs(call('HKEYS', our.lanes)) do
      if not call('ZSCORE', our.keyed, lane) then lines[#lines + 1] = each.lane .. lane end
    end
  else
    lines[1] = each.done .. state
  end
  for _, line in ipairs(lines) do
    found[#found + 1] = line
    found[#found + 1] = call('TYPE', line).ok == 'hash' and call('HLEN', line) or call('ZCARD', line)
  end
  return { call('ZCARD', our.all), found }
end

-- line, where to begin, how many -> where to go on, 0 at the end; and members with the time when each was enqueued
function operations.members()
  local line, from, most, members, on = ARGV[3], ARGV[4], tonumber(ARGV[5]), {}, 0
  if call('TYPE', line).ok == 'hash' then
    local found = call('HSCAN', line, from, 'COUNT', most)
    for i = 1, #found[2], 2 do members[#members + 1] = found[2][i] end
    on = found[1]
  else
    members = call('ZRANGE', line, from, from + most - 1)
    on = #members == most and from + most or 0
  end
  return { on, members, #members > 0 and call('ZMSCORE', our.all, unpack(members)) or members }
end

-- filter, members... -> the ids of those that match
function operations.sift()
  local filter, found = cmsgpack.unpack(ARGV[3]), {}
  for i = 4, #ARGV do
    local job = fn.find_job(sub(ARGV[i], 7))
    if job and fn.matches(job, filter) then found[#found + 1] = job.id end
  end
  return found
end

-- ids... -> id, row and errors of those that exist
function operations.texts()
  local found = {}
  for i = 3, #ARGV do
    local row = call('HGET', our.jobs, ARGV[i])
    if row then found[#found + 1] = { ARGV[i], row, call('HGET', our.errors, ARGV[i]) } end
  end
  return found
end

-- id -> where it stands among all jobs, as walk wants it
function operations.seat()
  local job = fn.find_job(ARGV[3])
  return job and { job.member, fn.integer(select(3, fn.origin_of(job))) }
end

-- -> numbers by STATE\nqueue
function operations.counts()
  local found = call('HGETALL', our.counts)
  for _, queue in ipairs(call('ZRANGE', our.queues, 0, -1)) do
    found[#found + 1] = 'READY\n' .. queue
    found[#found + 1] = call('ZCARD', each.ready .. queue)
  end
  for _, name in ipairs(call('ZRANGE', our.asides, 0, -1)) do
    found[#found + 1] = 'READY\n' .. sub(name, 1, string.find(name, '\0', 1, true) - 1)
    found[#found + 1] = call('ZCARD', each.aside .. name)
  end
  return found
end

-- -> the paused queues
function operations.paused()
  return call('SMEMBERS', our.paused)
end

-- waiter, ids... -> the ids that are terminal or unknown; the waiter is told of the end of the others
function operations.await()
  fn.insist()
  local waiter, over = ARGV[3], {}
  for i = 4, #ARGV do
    local id = ARGV[i]
    if call('HEXISTS', our.jobs, id) == 0 or call('HEXISTS', our.ends, id) == 1 then
      over[#over + 1] = id
    else
      local waiters = call('HGET', our.awaited, id)
      if not waiters then
        call('HSET', our.awaited, id, waiter)
      elseif not string.find(waiters, waiter, 1, true) then
        call('HSET', our.awaited, id, waiters .. ' ' .. waiter)
      end
    end
  end
  return over
end

-- id -> rows.Known, whether its queue is paused, whether it was set aside, how many go before it, the job it waits for, what
-- `limits_of` tells of one that waits in a lane, or `limits_at` of one that is ready, and the first parents that it waits for, and how many
function operations.standing()
  local job = fn.find_job(ARGV[3])
  if not job then return nil end
  local state, standing = fn.where(job)
  local limits, before, behind = {}, 0, state == 'WAITING' and standing.behind or false
  if state == 'WAITING' and standing.lane then
    limits, before = fn.limits_of(job)
  elseif state == 'READY' and fn.is_gated(job) then
    limits = fn.limits_at(job)
  end
  return {
    fn.known(job), call('SISMEMBER', our.paused, job.queue), state == 'READY' and standing.aside and 1 or 0,
    state == 'READY' and fn.ahead(job, standing.place) or 0, behind ~= '' and behind, limits, before,
    behind == '' and kin.open_parents(job) or {}, behind == '' and tonumber(call('HGET', our.open, job.id) or 0) or 0,
  }
end

-- between which gates, as bounds of ZRANGEBYLEX, how many to look at -> the last looked at, nil at the end; and reading.GateRow of each
function operations.limits()
  return fn.limits(ARGV[3], ARGV[4], ARGV[5])
end

-- tallies... -> the row of each, nil where there is none
function operations.tallies()
  return call('HMGET', our.tallies, unpack(ARGV, 3))
end

-- kind, how many, the last id of the page before or empty -> ids, newest first
function operations.tally_page()
  return kin.page(ARGV[3], tonumber(ARGV[4]), ARGV[5])
end

-- -> id, info, beat, beat_at, started_at, number of running jobs
function operations.sessions()
  local found = {}
  for _, session in ipairs(call('ZRANGE', our.sessions, 0, -1)) do
    local info, beat_at, started_at = unpack(call('HMGET', each.session .. session, 'info', 'beat_at', 'started_at'))
    local beat, running = call('HGET', our.beats, session), call('HLEN', each.running .. session)
    if info and beat then found[#found + 1] = { session, info, tonumber(beat), tonumber(beat_at), tonumber(started_at), running } end
  end
  return found
end

-- -> rule, next_at, last_at, last_job, paused, declared, fired, skipped
function operations.schedules()
  local found = {}
  for _, name in ipairs(call('ZRANGE', our.schedules, 0, -1)) do
    local key = each.schedule .. name
    found[#found + 1] = call('HMGET', key, 'rule', 'next_at', 'last_at', 'last_job', 'paused', 'declared', 'fired', 'skipped')
  end
  return found
end

-- most large, most finished -> for `doctor`: set aside by task, large payloads, the last that succeeded
function operations.facts()
  local aside, large, finished = {}, {}, {}
  for _, name in ipairs(call('ZRANGE', our.asides, 0, -1)) do
    aside[#aside + 1] = { sub(name, string.find(name, '\0', 1, true) + 1), call('ZCARD', each.aside .. name) }
  end
  local sizes = call('ZREVRANGE', our.large, 0, ARGV[3] - 1, 'WITHSCORES')
  for i = 1, #sizes, 2 do
    local job = fn.find_job(sub(sizes[i], 7))
    if job then large[#large + 1] = { job.id, job.task, tonumber(sizes[i + 1]) } end
  end
  local forever, most = fn.integer(FOREVER), ARGV[4]
  local succeeded = call('ZREVRANGEBYSCORE', each.done .. 'SUCCEEDED', '(' .. forever, '-inf', 'LIMIT', 0, most)
  for _, member in ipairs(call('ZREVRANGEBYSCORE', each.done .. 'SUCCEEDED', '+inf', forever, 'LIMIT', 0, most)) do
    succeeded[#succeeded + 1] = member -- those of workflows stand behind all others
  end
  for _, member in ipairs(succeeded) do
    local job = fn.find_job(sub(member, 7))
    local row = job and call('HGET', our.ends, job.id)
    if row then
      local fate = fn.read_end(row)
      finished[#finished + 1] = { fate.finished, job.n, job.task, fate.finished - fate.started }
    end
  end
  return { aside, large, finished }
end

-- -> msgpack of the limits that count of all that workers have declared
function operations.declared()
  return call('HVALS', our.rules)
end

-- -> the queues that have something ready
function operations.queues()
  return fn.rotated(0, fn.tasks_aside())
end

-- queue -> when its oldest ready job became ready
function operations.oldest()
  local oldest
  for _, line in ipairs(fn.all_lines(ARGV[3])) do
    local since = fn.oldest_of(line)
    if since and (not oldest or since < oldest) then oldest = since end
  end
  return oldest or false
end

end

-- Gates --------------------------------------------------------------------------------------------------------------------

-- Who of a key may go. What gates and lanes are is told in `offload/gates/`, and what is done here is what is done there, in the same
-- order. Made only when a call first comes to a gate: most come to none.
local function define_gates()

local KINDS, BY_LIMITS = { 'turn', 'slot', 'token' }, { 'slot', 'token' }
local OF_RULE = { slot = 'slot', rate = 'token' } -- the kind of gate that a limit makes
local LATENESS = 20000    -- by which a start may be late without the next ones being late too
local MOST_PASSED = 2000  -- the most jobs that pass in one call after they have waited; for the others gates are looked at again at once
local MOST_LANES = 10000  -- the most lanes of a gate whose jobs are counted one by one
local MOST_HOLDERS = 100  -- the most holders that are named
local REVIEWED = ''       -- where `reviews` has the last gate looked at; no rule has this name

-- What was read, kept up to date from then on: of gates what is known of them, how many hold them, the tokens that these took, and the
-- first two lanes from elsewhere; of lanes their first two members, the seat of the first job, and that job, false where there is none,
-- and the gate where a lane is parked that is not its own, else false; limits by their rules.
local known, numbers, taken, parked, lines, firsts, heads, elsewhere, rules = {}, {}, {}, {}, {}, {}, {}, {}, {}
local touched = {} -- the gates of which something was stored or dropped: whether anything is known to have been stored before
local passed = 0 -- how many jobs have passed after they waited

-- What was read may no longer be so: all is taken back.
function fn.forget_read()
  known, numbers, taken, parked, lines, firsts, heads, elsewhere = {}, {}, {}, {}, {}, {}, {}, {}
end

-- Something changes at a gate. `was` says whether anything is known to be stored of it so far.
function fn.touch_gate(id, was)
  if touched[id] == nil then touched[id] = was end
end

function fn.kind_of(id)
  return string.match(id, '^%a+')
end

-- What a job needs of gates, in the order in which they are looked at: its turn, its slots, its tokens.
function fn.wants_of(job)
  local common = job.common
  if common.wants then return common.wants end
  local wants, rare = { lane = false }, job.rare
  if rare.order_by then wants[1] = fn.want('turn', rare.order_by, 1) end
  for _, kind in ipairs(rare.limits and BY_LIMITS or {}) do
    for _, limit in ipairs(rare.limits) do
      if OF_RULE[limit.type] == kind then wants[#wants + 1] = fn.want(kind, limit.key, limit.cost or 1, limit) end
    end
  end
  common.wants = wants
  return wants
end

function fn.want(kind, key, cost, limit)
  local id = kind .. ' of ' .. key
  local rule = limit and kind .. ' ' .. (limit.rule or '')
  return { gate = id, slots = each.slots .. id, kind = kind, cost = cost, limit = limit, rule = rule }
end

function fn.want_of(job, id)
  local wants = fn.wants_of(job)
  for i = 1, #wants do
    if wants[i].gate == id then return wants[i] end
  end
end

-- Where a job waits: with all of its order key, or else with all that want the very same.
function fn.lane_of(job)
  local wants = fn.wants_of(job)
  if not wants.lane then
    local gates = {}
    for i, want in ipairs(wants) do gates[i] = want.gate end
    wants.lane = job.rare.order_by and gates[1] or table.concat(gates, '\n')
  end
  return wants.lane
end

-- Its place in lanes: the number under which it was first due.
function fn.seat_of(job)
  if not job.seat then job.seat = tonumber(fn.has_any('seats') and call('HGET', our.seats, job.id) or job.n) end
  return job.seat
end

function fn.take_seat(job)
  job.seat, any.seats = fn.next_number(), true
  fn.put(our.seats, job.id, fn.integer(job.seat))
end

-- What is known of a gate besides who holds it and who waits.
function fn.gate(id)
  if not known[id] then
    local row = fn.has_any('gates') and call('HGET', our.gates, id)
    local gate = row and cmsgpack.unpack(row) or {}
    gate.shut_until, gate.tat, gate.owed = gate.shut_until or 0, gate.tat or 0, gate.owed or 0
    known[id] = gate
  end
  return known[id]
end

-- Whether a person has set anything, or a task, that still counts.
function fn.is_changed(gate)
  return gate.paused or gate.shut_until > now or gate.n or gate.interval or gate.burst
end

function fn.put_gate(id)
  local gate = known[id]
  fn.put(our.gates, id, cmsgpack.pack(gate))
  fn.touch_gate(id, false)
  any.gates = true
  local wakes = gate.unfinished and 0 or gate.wake_at
  if wakes then fn.stand(our.wakes, wakes, id) else fn.leave(our.wakes, id) end
  if wakes or gate.paused or gate.n or gate.interval or gate.burst then
    fn.leave(our.fading, id)
  else
    fn.stand(our.fading, math.max(gate.tat + LATENESS + 1, gate.shut_until), id)
  end
end

function fn.is_stored(id)
  return (numbers[id] or 0) > 0 or call('EXISTS', each.slots .. id, each.parked .. id, each.lane .. id) > 0
    or fn.has_any('gates') and call('HEXISTS', our.gates, id) == 1
end

-- Notes of which gates anything is stored: at the end, so once for each. Mostly one job has left and the next has come: then it is known.
function fn.note_gates()
  local come, gone = {}, {}
  for id, was in pairs(touched) do
    if not fn.is_stored(id) then
      gone[#gone + 1] = id
    elseif not was then
      come[#come + 1] = 0
      come[#come + 1] = id
    end
  end
  fn.many('ZADD', our.keyed, come)
  fn.many('ZREM', our.keyed, gone)
end

-- Rules: what a person has set, else what workers declare, else what the job says ---

function fn.rule_of(want)
  local name = want.rule
  if rules[name] == nil then
    local row = call('HGET', our.rules, name)
    rules[name] = row and cmsgpack.unpack(row) or false
  end
  return rules[name] or want.limit
end

function fn.slots_of(want)
  return fn.gate(want.gate).n or fn.rule_of(want).n
end

function fn.rate_of(want)
  local gate, rule = fn.gate(want.gate), fn.rule_of(want)
  return gate.interval or rule.interval, gate.burst or rule.burst or 1
end

-- The generic cell rate algorithm ---

-- `tat` as it counts now: not far in the past, where nobody came, nor further ahead than the last start has left it.
function fn.settled(gate, interval)
  return gate.tat < now - LATENESS and now or math.min(gate.tat, now + gate.owed * interval)
end

function fn.tokens(gate, interval, burst)
  return math.floor((now - fn.settled(gate, interval)) / interval) + burst
end

-- Who holds ---

function fn.holds(job, want)
  return call('HEXISTS', want.slots, job.member) == 1
end

function fn.number_of(id)
  if not numbers[id] then numbers[id] = call('HLEN', each.slots .. id) end
  return numbers[id]
end

-- The tokens that are there for jobs which have passed and not started.
function fn.taken_of(id)
  if not taken[id] then
    local sum = 0
    for _, cost in ipairs(call('HVALS', each.slots .. id)) do sum = sum + cost end
    taken[id] = sum
  end
  return taken[id]
end

-- A job holds a gate, from now on or already.
function fn.hold(job, want)
  local id = want.gate
  if fn.put(want.slots, job.member, want.cost) == 0 then return end
  fn.touch_gate(id, (numbers[id] or 0) > 0)
  if numbers[id] then numbers[id] = numbers[id] + 1 end
  if taken[id] then taken[id] = taken[id] + want.cost end
end

-- A job holds a gate no more. False when it did not.
function fn.let_go(job, want)
  local id = want.gate
  if numbers[id] == 0 or fn.drop(want.slots, job.member) == 0 then return false end
  fn.touch_gate(id, true)
  if want.kind == 'turn' then numbers[id] = 0 elseif numbers[id] then numbers[id] = numbers[id] - 1 end
  if taken[id] then taken[id] = taken[id] - want.cost end
  return true
end

function fn.pass(job)
  for _, want in ipairs(fn.wants_of(job)) do fn.hold(job, want) end
end

-- Who may pass ---

-- Whether a gate lets a job pass. Who waits at it holds no more there than a turn.
function fn.is_open(job, want, waits)
  local gate, number, free = fn.gate(want.gate), fn.number_of(want.gate), nil
  if gate.paused or gate.shut_until > now then return false end
  if want.kind == 'turn' then
    free = number == 0
  elseif want.kind == 'slot' then
    free = number < fn.slots_of(want)
  else
    local interval, burst = fn.rate_of(want)
    free = fn.tokens(gate, interval, burst) - fn.taken_of(want.gate) >= math.min(want.cost, burst)
  end
  return free or number > 0 and not (waits and want.kind ~= 'turn') and fn.holds(job, want)
end

-- Whether a ready job may still be claimed: the key may have been shut meanwhile, and tokens do not keep.
function fn.may_start(want)
  local gate = fn.gate(want.gate)
  if gate.paused or gate.shut_until > now then return false end
  if want.kind ~= 'token' then return true end
  local interval, burst = fn.rate_of(want)
  return fn.tokens(gate, interval, burst) >= math.min(want.cost, burst)
end

-- The first two lanes from elsewhere that are parked at a gate, each with the seat of its first job.
function fn.parked_at(id)
  if not parked[id] then parked[id] = fn.has_any('lanes') and call('ZRANGE', each.parked .. id, '0', '1', 'WITHSCORES') or {} end
  return parked[id]
end

-- The lane that waits at a gate first.
function fn.first_parked(id)
  if not fn.has_any('lanes') then return fn.line_of(id)[1] and id end
  local found, own = fn.parked_at(id), not fn.is_elsewhere(id) and fn.line_of(id)[1]
  if own and (not found[1] or fn.first_of_lane(id) < tonumber(found[2])) then return id end
  return found[1]
end

-- Whether another lane waits at a gate, whose first job is before this one.
function fn.is_before(id, job)
  local lane = fn.lane_of(job)
  if lane == id and not fn.has_any('lanes') then return false end
  local found, seat = fn.parked_at(id), fn.seat_of(job)
  local i = found[1] == lane and 3 or 1
  if found[i] and tonumber(found[i + 1]) < seat then return true end
  return lane ~= id and not fn.is_elsewhere(id) and (fn.first_of_lane(id) or seat) < seat
end

-- The first gate that a job cannot pass; nor does it overtake whoever waits there.
function fn.stop_of(job)
  for _, want in ipairs(fn.wants_of(job)) do
    if fn.is_before(want.gate, job) or not fn.is_open(job, want) then return want.gate end
  end
end

-- Lanes ---

-- The first two members of a lane, or the first alone while nobody asks for more.
function fn.line_of(lane)
  if not lines[lane] then lines[lane] = call('ZRANGE', each.lane .. lane, '0', '1') end
  return lines[lane]
end

-- The seat of the first job of a lane.
function fn.first_of_lane(lane)
  if firsts[lane] == nil then firsts[lane] = tonumber(call('ZRANGE', each.lane .. lane, '0', '0', 'WITHSCORES')[2]) or false end
  return firsts[lane]
end

-- A lane that bears the name of a gate has to do with it: as long as anybody stands there, something is stored of that gate.
function fn.note_lane(lane, job, was)
  if fn.wants_of(job)[1].gate == lane then fn.touch_gate(lane, was) end
end

function fn.join_lane(lane, job)
  local seat, first = fn.seat_of(job), fn.first_of_lane(lane)
  fn.stand(each.lane .. lane, seat, job.member)
  fn.count('WAITING', job.queue, 1)
  fn.note_lane(lane, job, first ~= false)
  lines[lane] = nil
  if not first or seat < first then firsts[lane], heads[lane] = seat, job end
end

function fn.quit_lane(lane, job)
  local line = lines[lane]
  fn.leave(each.lane .. lane, job.member)
  fn.count('WAITING', job.queue, -1)
  fn.note_lane(lane, job, true)
  if line and line[2] and line[1] == job.member then line[1], line[2] = line[2], nil else lines[lane] = nil end
  firsts[lane], heads[lane] = nil, nil
end

-- The first job of a lane. A row may be gone that was evicted or deleted by hand: then the next one is first.
function fn.head_of(lane)
  while heads[lane] == nil do
    local member = fn.line_of(lane)[1]
    heads[lane] = member and fn.find_job(sub(member, 7))
    if member and not heads[lane] then
      fn.leave(each.lane .. lane, member)
      lines[lane], firsts[lane], heads[lane] = nil, nil, nil
    else
      heads[lane] = heads[lane] or false
    end
  end
  return heads[lane]
end

-- The row of a member that has all in common with a job; nothing when that would have to be read first.
function fn.row_alike(member, job)
  local row, words = fetched[sub(member, 7)], job.common.words
  return row and sub(row, COMMON_AT, COMMON_AT + #words - 1) == words and row
end

-- Reads at once who may go when jobs leave their gates: whoever is first in the lanes of these, and where more than one may go, the second.
function fn.fetch_followers(jobs)
  local ids = {}
  for i = 1, #jobs do
    local wants = jobs[i] and fn.wants_of(jobs[i])
    for j = 1, wants and #wants or 0 do
      local line = fn.line_of(wants[j].gate)
      if line[1] then ids[#ids + 1] = sub(line[1], 7) end
      if line[2] and wants[j].kind ~= 'turn' then ids[#ids + 1] = sub(line[2], 7) end
    end
  end
  fn.fetch(ids)
end

-- Whether a lane is parked at another gate than the one that bears its name, and at which.
function fn.is_elsewhere(lane)
  if elsewhere[lane] == nil then elsewhere[lane] = fn.has_any('lanes') and call('HGET', our.lanes, lane) end
  return elsewhere[lane]
end

-- The gate where a lane is parked, in which somebody stands.
function fn.gate_of(lane)
  return fn.is_elsewhere(lane) or lane
end

-- A lane is parked at a gate, and at no other from now on. At the gate that bears its name it is parked when it is nowhere else.
function fn.park(lane, id, seat)
  local was = fn.is_elsewhere(lane)
  if was and was ~= id then fn.unpark(lane) end
  if lane ~= id then
    if was ~= id then fn.put(our.lanes, lane, id) end
    fn.stand(each.parked .. id, seat, lane)
    any.lanes, elsewhere[lane], parked[id] = true, id, nil
  end
  fn.touch_gate(id, false)
  fn.note_wake(id)
end

-- An empty lane is parked nowhere.
function fn.unpark(lane)
  local id = fn.is_elsewhere(lane)
  if not id then return end
  fn.leave(each.parked .. id, lane)
  fn.drop(our.lanes, lane)
  elsewhere[lane], parked[id] = false, nil
  fn.touch_gate(id, true)
end

-- Notes when a gate is to be looked at again. Who sleeps may have to wake up at another time then.
function fn.note_wake(id, looked)
  local gate, at = fn.gate(id), nil
  local rated = fn.kind_of(id) == 'token'
  if not rated and gate.shut_until <= now and not gate.wake_at then return end -- most gates: time changes nothing there
  local lane = not gate.paused and fn.first_parked(id)
  if lane and rated then
    at = fn.token_at(id, lane)
  elseif lane and gate.shut_until > now then
    at = gate.shut_until
  elseif lane and not looked then
    at = gate.wake_at -- a moment that has come is taken away only by who has looked
  end
  if at == gate.wake_at then return end
  gate.wake_at = at
  fn.put_gate(id)
  if at and call('ZRANGE', our.wakes, 0, 0)[1] == id then retimed = true end
end

function fn.token_at(id, lane)
  local gate, head = fn.gate(id), fn.head_of(lane)
  if not head then return now + 1 end
  local want = fn.want_of(head, id)
  local interval, burst = fn.rate_of(want)
  local furthest = now + gate.owed * interval
  if gate.tat > furthest then -- the rate was raised, or the clock set back
    gate.tat = furthest
    fn.put_gate(id)
  end
  local number = math.min(want.cost, burst) + fn.taken_of(id)
  local at = math.max(fn.settled(gate, interval) + (number - burst) * interval, now)
  return math.max(at, gate.shut_until, now + 1)
end

-- What jobs do ---

-- Whether a job may pass; if not, what stops it, or nil where another stands before it in its lane.
function fn.look(job, lane)
  local first = fn.first_of_lane(lane)
  if first and first < fn.seat_of(job) then return false end
  local stop = fn.stop_of(job)
  return not stop, stop
end

local ALL, PASSING = { turn = true, slot = true, token = true }, { slot = true, token = true }

-- Fails where the key of another is in the way of a job at its gates.
function fn.try_gates(job, lane)
  local wants = fn.wants_of(job)
  fn.look(job, lane)
  for i = 1, #wants > 1 and #wants or 0 do call('ZCARD', each.parked .. wants[i].gate) end -- where its lane may come to be parked
end

-- A job wants to become ready. True when it has passed; else it waits from now on. A new one holds nothing yet.
function fn.enter(job, is_new)
  local lane = fn.lane_of(job)
  local passes, stop = fn.look(job, lane)
  -- Nothing is held while something else is waited for. Whoever passes thereby stands no longer before it, nor in its way.
  -- Who stands behind another of his order gives back even his turn, or both would wait for each other.
  if not passes and not is_new and fn.leave_gates(job, stop and PASSING or ALL) then passes, stop = fn.look(job, lane) end
  if passes then
    fn.pass(job)
    return true
  end
  local left = stop and not is_new and fn.first_of_lane(lane) and fn.gate_of(lane)
  fn.join_lane(lane, job)
  if stop then fn.park(lane, stop, fn.seat_of(job)) end
  if left and left ~= stop then fn.pump(left) end -- where others may have waited only because it stood before them
  return false
end

-- A job lets go of what it holds; who waited for that passes. False when it held nothing.
function fn.leave_gates(job, kinds)
  local wants = fn.wants_of(job)
  local only = #wants == 1 and wants[1].kind ~= 'token' and wants[1]
  if only and kinds[only.kind] and not (fn.has_any('gates') or fn.has_any('lanes')) then return fn.hand_over(job, only) end
  local left = {}
  for i = 1, #wants do
    if kinds[wants[i].kind] and fn.let_go(job, wants[i]) then left[#left + 1] = wants[i].gate end
  end
  for i = 1, #left do fn.pump(left[i]) end
  return #left > 0
end

-- The same for a job that wants but one turn or slot, while nothing else is known of any gate than who holds it, and who waits in the lane
-- of its name. Nearly always the first there takes over, who wants the very same, and no other may pass; else `pump` goes on.
function fn.hand_over(job, want)
  local id, turn, heir = want.gate, want.kind == 'turn', fn.line_of(want.gate)[1]
  local row, width = heir and fn.row_alike(heir, job), turn and 1 or fn.rule_of(want).n
  local passes = row and passed < MOST_PASSED and (turn or fn.number_of(id) <= width)
  -- He comes before the other goes: what holds one member alone would be dropped, and made anew.
  local comes = passes and fn.put(want.slots, heir, want.cost) == 1
  if not fn.let_go(job, want) then
    if comes then fn.drop(want.slots, heir) end
    return false
  end
  if passes then
    if comes and numbers[id] then numbers[id] = numbers[id] + 1 end
    fn.come_after(job, heir, row, id)
    if turn then return true end
  end
  local following = fn.line_of(id)[1]
  if following and not (fn.row_alike(following, job) and fn.number_of(id) >= width) then fn.pump(id) end
  return true
end

-- Whoever stood first in a lane has passed, as the job before him, with which he has all in common: to the end of his ready line.
function fn.come_after(job, member, row, lane)
  local heir = setmetatable({ id = sub(member, 7), member = member, payload = COMMON_AT + #job.common.words, row = row }, job.common)
  fn.quit_lane(lane, heir)
  fn.line_up_anew(heir, fn.stored_past(heir))
  passed = passed + 1
end

-- A job is to run later: it keeps its turn, but for one that has never started, which joins the line anew.
function fn.put_off_at_gates(job, is_new)
  fn.leave_gates(job, is_new and ALL or PASSING)
end

-- A job has ended, or is deleted. Who keeps its turn keeps it until somebody retries or deletes it.
function fn.end_at_gates(job, keeps_turn)
  fn.leave_gates(job, keeps_turn and PASSING or ALL)
end

-- A job waits no more, for whatever reason but that it passes.
function fn.withdraw(job)
  local lane = fn.lane_of(job)
  local first = fn.first_of_lane(lane) == fn.seat_of(job)
  fn.quit_lane(lane, job)
  if not first then return end
  local id, head, stop = fn.gate_of(lane), fn.head_of(lane), nil
  if head then
    stop = fn.stop_of(head) or fn.wants_of(head)[1].gate
    fn.park(lane, stop, fn.seat_of(head))
    fn.pump(stop)
  else
    fn.unpark(lane)
  end
  if id ~= stop then fn.pump(id) end -- where others may have waited only because it stood before them
end

function fn.is_rated(job)
  for _, limit in ipairs(job.rare.limits or {}) do
    if limit.type == 'rate' then return true end
  end
  return false
end

-- A ready job is claimed: take its tokens. False when it may not start after all; then it waits again, at its old place.
function fn.starts(job)
  if not (fn.has_any('gates') or fn.is_rated(job)) then return true end
  for _, want in ipairs(fn.wants_of(job)) do
    if not fn.may_start(want) then
      fn.leave_gates(job, PASSING)
      fn.enter(job)
      return false
    end
  end
  for _, want in ipairs(fn.wants_of(job)) do
    if want.kind == 'token' then
      local gate, interval = fn.gate(want.gate), fn.rate_of(want)
      gate.tat = fn.settled(gate, interval) + want.cost * interval
      gate.owed = math.max(math.ceil((gate.tat - now) / interval), 0)
      fn.put_gate(want.gate)
      fn.let_go(job, want)
      fn.note_wake(want.gate)
    end
  end
  return true
end

-- A job that has waited passes: to the end of its ready line.
function fn.let_in(job, lane)
  fn.quit_lane(lane, job)
  fn.pass(job)
  fn.line_up_anew(job, fn.stored_past(job))
  passed = passed + 1
end

-- What time and people do ---

-- Lets pass who may, of those that wait at a gate.
function fn.pump(id)
  local gate = fn.gate(id)
  local unfinished, head, want = nil, nil, nil
  while true do
    local lane = fn.first_parked(id)
    -- Mostly one has left and one has come, and the next one wants the very same. (A turn is also open to whoever holds it.)
    local next_one = lane and want and want.kind ~= 'turn' and fn.line_of(lane)[1]
    if next_one and fn.row_alike(next_one, head) and not fn.is_open(head, want, true) then break end
    head = lane and fn.head_of(lane)
    want = head and fn.want_of(head, id) -- another job may be first where a row is gone, and want something else
    if lane and not head then
      fn.touch_gate(id, true)
      fn.unpark(lane)
    elseif not lane or want and not fn.is_open(head, want, true) then
      break
    elseif passed >= MOST_PASSED then
      unfinished = true
      break
    elseif fn.go_on(id, lane, head) and fn.kind_of(id) == 'turn' then
      break -- there is but one
    end
  end
  if unfinished ~= gate.unfinished then
    gate.unfinished = unfinished
    fn.put_gate(id)
    retimed = retimed or unfinished
  end
  fn.note_wake(id, true)
end

-- The first of a lane that is parked at a gate, which lets him pass, goes on: to the next gate that stops it, or it passes. True when it has.
function fn.go_on(id, lane, head)
  local stop = #fn.wants_of(head) > 1 and fn.stop_of(head)
  if stop then return fn.park(lane, stop, fn.seat_of(head)) end
  fn.let_in(head, lane)
  -- At the gate that bears the lane's name nobody needs to be asked what stops him: the turn was taken now, and who wants a slot or a
  -- token in such a lane wants nothing else.
  local following = lane ~= id and fn.head_of(lane)
  if following then
    fn.park(lane, fn.stop_of(following) or id, fn.seat_of(following))
  elseif lane ~= id then
    fn.unpark(lane)
  end
  return true
end

-- Lets nobody pass for a time, of those that want what the last kind of a job's gates gives.
function fn.shut(job, till)
  local wants, last = fn.wants_of(job), nil
  for _, want in ipairs(wants) do last = want.kind end -- turns, slots and tokens stand in this order
  for _, want in ipairs(wants) do
    if want.kind == last then
      local gate = fn.gate(want.gate)
      if till > gate.shut_until then
        gate.shut_until = till
        fn.put_gate(want.gate)
      end
      fn.pump(want.gate)
    end
  end
end

-- A person sets what a key allows; false goes back to what is declared.
function fn.change(key, change)
  local concerns = {
    turn = change.paused ~= nil,
    slot = change.paused ~= nil or change.n ~= nil,
    token = change.paused ~= nil or change.interval ~= nil or change.burst ~= nil,
  }
  for _, kind in ipairs(KINDS) do
    if concerns[kind] then
      local id = kind .. ' of ' .. key
      local gate = fn.gate(id)
      if kind == 'slot' and change.n ~= nil then gate.n = change.n or nil end
      if kind == 'token' and change.interval ~= nil then gate.interval = change.interval or nil end
      if kind == 'token' and change.burst ~= nil then gate.burst = change.burst or nil end
      if change.paused ~= nil then gate.paused = change.paused or nil end
      if change.paused == false then gate.shut_until = 0 end
      fn.put_gate(id)
      fn.pump(id)
    end
  end
end

-- The clock was set back: what waits for a moment that was reckoned with before is looked at now.
function fn.look_at_gates_again()
  for _, id in ipairs(call('ZRANGEBYSCORE', our.wakes, '(' .. fn.integer(now), '+inf')) do
    fn.gate(id).wake_at = now
    fn.put_gate(id)
  end
end

-- Lets pass whom time alone lets pass, and goes on where a call before had to stop. Returns whether there is more to do.
function fn.wake_gates()
  local due = call('ZRANGEBYSCORE', our.wakes, '-inf', fn.integer(now), 'LIMIT', 0, WINDOW)
  table.sort(due)
  for _, id in ipairs(due) do fn.pump(id) end
  return #due == WINDOW or passed >= MOST_PASSED
end

-- Drops what says no more than that nothing is known.
function fn.forget_gates()
  local faded = call('ZRANGEBYSCORE', our.fading, '-inf', fn.integer(now), 'LIMIT', 0, WINDOW)
  for _, id in ipairs(faded) do
    call('ZREM', our.fading, id)
    call('HDEL', our.gates, id)
    known[id] = nil
    fn.touch_gate(id, true)
  end
  return #faded
end

-- What workers declare ---

-- Takes over rules, each a name and a limit in turn. What waits at the gates under those that are new is looked at: at some now.
-- Whatever was still to be looked at for others begins anew with them, so that one look at a gate does for all.
function fn.declare(first, number)
  local changed = {}
  for i = first, first + 2 * number - 1, 2 do
    local name, row = ARGV[i], ARGV[i + 1]
    if call('HGET', our.rules, name) ~= row then
      call('HSET', our.rules, name, row)
      call('HSET', our.reviews, name, '')
      rules[name] = cmsgpack.unpack(row)
      changed[#changed + 1] = name
    end
  end
  if #changed == 0 then return end
  call('HDEL', our.reviews, REVIEWED)
  fn.review()
end

-- Lets pass who may under rules that have changed, at the next thousand gates. Returns whether there may be more.
function fn.review()
  local reviews, flat = {}, call('HGETALL', our.reviews)
  for i = 1, #flat, 2 do reviews[flat[i]] = flat[i + 1] end
  local from = reviews[REVIEWED] and '(' .. reviews[REVIEWED] or '[slot of '
  local ids = call('ZRANGEBYLEX', our.keyed, from, '(token of!', 'LIMIT', 0, WINDOW)
  local concerned = {}
  for _, id in ipairs(ids) do
    local lane = fn.first_parked(id)
    local head = lane and fn.head_of(lane)
    local want = head and fn.want_of(head, id)
    if want and reviews[want.rule] then concerned[#concerned + 1] = id end
  end
  local more = #ids == WINDOW
  if more then call('HSET', our.reviews, REVIEWED, ids[#ids]) else call('DEL', our.reviews) end
  for _, id in ipairs(concerned) do fn.pump(id) end
  return more
end

-- What people see ---

-- How many jobs wait in lanes parked at a gate; beyond very many lanes one each.
function fn.waiting_at(id)
  local number = call('ZCARD', each.parked .. id)
  local waiting = math.max(number - MOST_LANES, 0) + (fn.is_elsewhere(id) and 0 or call('ZCARD', each.lane .. id))
  for _, lane in ipairs(call('ZRANGE', each.parked .. id, 0, MOST_LANES - 1)) do waiting = waiting + call('ZCARD', each.lane .. lane) end
  return waiting
end

-- Members that hold a gate, in the order in which their jobs were stored.
function fn.holders_of(id)
  local found = call('HKEYS', each.slots .. id)
  local numbers = {}
  for _, member in ipairs(found) do numbers[member] = read('>I6', member) end
  table.sort(found, function(one, other) return numbers[one] < numbers[other] end)
  return found
end

-- A job that holds a gate or waits there: what it carries tells what the gate allows.
function fn.witness(id, holders)
  local lane = fn.first_parked(id)
  return #holders > 0 and fn.find_job(sub(holders[1], 7)) or lane and fn.head_of(lane) or nil
end

-- What a gate allows, and who holds it, as reading.GateRow.
function fn.limit(id)
  local gate, holders = fn.gate(id), fn.holders_of(id)
  local job = fn.witness(id, holders)
  local want = job and fn.want_of(job, id)
  local n, interval, burst = gate.n, gate.interval, gate.burst
  if want and want.kind == 'slot' then n = fn.slots_of(want) end
  if want and want.kind == 'token' then interval, burst = fn.rate_of(want) end
  local named = {}
  for i = 1, math.min(#holders, MOST_HOLDERS) do named[i] = sub(holders[i], 7) end
  return {
    id, n or false, interval or false, burst or false, (gate.n or gate.interval or gate.burst) and 1 or 0, gate.paused and 1 or 0,
    gate.shut_until > now and gate.shut_until, gate.wake_at or false, named, #holders,
    sub(id, 1, 5) == 'turn ' and named[1] and call('HEXISTS', our.ends, named[1]) or 0, fn.waiting_at(id),
  }
end

-- The gates that somebody holds or waits for, or that were changed: of the first `most` between two bounds.
function fn.limits(first, last, most)
  local ids, found = call('ZRANGEBYLEX', our.keyed, first, last, 'LIMIT', 0, most), {}
  for _, id in ipairs(ids) do
    if fn.is_changed(fn.gate(id)) or fn.first_parked(id) or call('EXISTS', each.slots .. id) == 1 then found[#found + 1] = fn.limit(id) end
  end
  return { #ids == tonumber(most) and ids[#ids], found }
end

-- What the gates of a job allow, first the one that stops its lane, if there is one.
function fn.limits_at(job, stop)
  local found = { stop and fn.limit(stop) }
  for _, want in ipairs(fn.wants_of(job)) do
    if want.gate ~= stop then found[#found + 1] = fn.limit(want.gate) end
  end
  return found
end

-- The same of a job in a lane; and how many go before it.
function fn.limits_of(job)
  local lane = fn.lane_of(job)
  return fn.limits_at(job, fn.gate_of(lane)), call('ZRANK', each.lane .. lane, job.member)
end

end

-- Workflows and batches ----------------------------------------------------------------------------------------------------

-- Who waits for whose end, and how many of a workflow or a batch have ended how: see docs/decisions/0014. What ends or is revived is owed
-- to its children and paid at the end of the operation, no more than MOST_LINKS at once; the rest is owed in the store. Made only when a
-- call first comes to a job that belongs to one: most come to none.
local function define_families()

local LINK, LINK_AT = '>BBI4', 7      -- fate, 1 where its result is wanted, place among the parents; then the result, or how it failed
local HEIR_AT = LINK_AT - 1           -- what a link says besides its fate; then the member of the one who waits
local OPEN, DONE, FAILED = 0, 1, 2    -- fates of parents
local DONE_MARK = string.char(DONE)   -- the fate in a link
local MOST_LINKS = 1000               -- the most links, or jobs of a tally that is stopped, at which one call looks
local MOST_TALLIES = 100              -- the most tallies that one call gives up, forgets or goes on with
local ABANDONED_AFTER = 3600 * SECOND -- after the last job came, for what is not complete
local DAY = 86400                     -- seconds
local LEAST_KEEP = 60                 -- seconds for which a finished workflow is kept at least
local LOST = pack(ROW, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) -- stands for a row that is gone
local LINES = { workflow = 'workflows', batch = 'batches' }
local TURN, ALL_KEYS = { turn = true }, { started = true, finished = true, time = true }
local REFUSED = '\0'                  -- begins the reason of one whose additions were refused: msgpack of why follows

-- What is known of tallies, by name; those that have changed; whether workflows were incomplete before jobs were stored, and in which
-- order these came; the job that adds them, if one does.
local counts, changed, growing, grown, adder = {}, {}, {}, {}, nil
local lacking = {} -- whether parents are missing in a workflow, once that was asked
-- Who is owed to his children: the order in which that was noted, and by `parent_of` his id, his fate, his result or how he failed, and
-- from which number on children do not know. Successes that only one child is to be told of: by that child the links that come of them.
-- And children to be looked at although none of their parents is owed.
local order, owed, joins, concerned = {}, {}, {}, {}
local left = MOST_LINKS
local begun = {} -- by what jobs have in common, how many have begun to run and are still to be counted

-- As with `define`, a function of their own spares them a search for each local that they capture.
local function make()

-- What was read may no longer be so: all is taken back.
function kin.forget_read()
  counts, changed, growing, grown, lacking, order, owed, joins, concerned, begun = {}, {}, {}, {}, {}, {}, {}, {}, {}, {}
end

-- Whether a member has the smaller number. Lua would compare them by the language of the server's environment.
function kin.is_earlier(one, other)
  return read('>I6', one) < read('>I6', other)
end

-- Tallies ---

function kin.tally(name)
  if counts[name] == nil then
    local row = call('HGET', our.tallies, name)
    counts[name] = row and cmsgpack.unpack(row) or false
  end
  return counts[name]
end

-- The tallies in which a job is counted, whether there are such or not.
function kin.tallies_of(job)
  local common, of = job.common, job.kin
  if not common.tallies then
    common.tallies = { of.workflow and 'workflow ' .. of.workflow }
    if of.batch and not of.callback then table.insert(common.tallies, 'batch ' .. of.batch) end
  end
  return common.tallies
end

-- Counts a job; the tallies that change are looked at in the end.
function kin.count(job, what, by)
  for _, name in ipairs(kin.tallies_of(job)) do
    local count = kin.tally(name)
    if count then
      count[what] = count[what] + by
      changed[name] = count
    end
  end
end

-- Counts the dead jobs of a workflow that keep their turn.
function kin.count_holder(job, by)
  local name = job.kin.workflow and 'workflow ' .. job.kin.workflow
  local count = name and kin.tally(name)
  if count then count.holding, changed[name] = count.holding + by, count end
end

function kin.begin(kind, id, at)
  local count = {
    kind = kind, id = id, n = fn.next_number(), created_at = at, touched_at = at, name = '', total = 0, running = 0,
    SUCCEEDED = 0, DEAD = 0, CANCELLED = 0, EXPIRED = 0, holding = 0, size = 0, sealed = false, stopped = false, abandoned = false,
    keep = 0, callbacks = {},
  }
  local name = kind .. ' ' .. id
  counts[name], changed[name] = count, count
  return count
end

function kin.add_to(name, count)
  count.total, count.touched_at, changed[name] = count.total + 1, now, count
  return count.stopped and kin.why_stopped(count)
end

function kin.still_open(count)
  return count.total - count.SUCCEEDED - count.DEAD - count.CANCELLED - count.EXPIRED
end

-- Whether no more jobs are to come.
function kin.is_complete(count)
  if count.kind == 'batch' then return count.sealed end
  return count.total >= count.size
end

function kin.all_succeeded(count)
  return count.SUCCEEDED == count.total and not count.abandoned
end

-- Whether what a callback waits for has come.
function kin.is_due(count, callback)
  if callback == 'failure' then return count.abandoned or count.DEAD + count.EXPIRED > 0 end
  return count.finished_at ~= nil and (callback == 'complete' or kin.all_succeeded(count))
end

-- All have ended; or, where that is not so any more, they have not.
function kin.finish(count)
  if count.kind == 'batch' and kin.still_open(count) == 0 then count.touched_at = now end
  if not kin.is_complete(count) or kin.still_open(count) > 0 then
    count.finished_at, count.forget_at = nil, nil
  elseif not count.finished_at then
    local keep = KEEP
    if kin.all_succeeded(count) then
      keep = (count.kind == 'batch' and DAY or math.max(count.keep, LEAST_KEEP)) * SECOND
    end
    count.finished_at, count.forget_at = now, now + keep
  end
end

-- A line has a tally at a moment, or not at all; `was` is what was noted there before.
function kin.note_moment(line, name, was, moment)
  if was == moment then return end
  if moment then call('ZADD', line, moment, name) else call('ZREM', line, name) end
end

function kin.store_tally(name, count)
  local may_be_given_up = not kin.is_complete(count) and (count.kind == 'workflow' or kin.still_open(count) == 0)
  local unfinished, forgetting = may_be_given_up and count.touched_at or nil, count.forget_at
  kin.note_moment(our.unfinished, name, count.unfinished, unfinished)
  kin.note_moment(our.forgetting, name, count.forgetting, forgetting)
  count.unfinished, count.forgetting = unfinished, forgetting
  if not count.listed then
    count.listed = true
    call('ZADD', our[LINES[count.kind]], count.created_at, pack('>I6', count.n) .. count.id)
  end
  call('HSET', our.tallies, name, cmsgpack.pack(count))
end

-- A job that waits for its batch; nil where it does not, or not any more.
function kin.waiting_callback(id)
  local job = fn.find_job(id)
  return job and call('HGET', our.waiting, job.member) == '' and job or nil
end

-- What is to be done at the end of each operation: children learn how their parents ended, and callbacks that are due may go.
function kin.settle_up()
  for common, number in pairs(begun) do kin.count(common, 'running', number) end
  begun = {}
  kin.pay()
  local settled, due = changed, {}
  changed = {}
  for name, count in pairs(settled) do
    kin.finish(count)
    for _, pair in ipairs(count.callbacks) do
      local comes, never_comes = kin.is_due(count, pair[1]), kin.is_due(count, 'success')
      local job = (comes or never_comes) and kin.waiting_callback(pair[2])
      if job and comes then
        due[#due + 1] = job
      elseif job then -- nothing is left that could be retried, and fail
        kin.remove({ job.member })
      end
    end
    kin.store_tally(name, count)
  end
  table.sort(due, function(one, other) return one.n < other.n end)
  for _, job in ipairs(due) do kin.let_go(job) end
end

-- Links ---

function kin.links_of(id, parents)
  return call('HMGET', each.links .. id, unpack(parents))
end

-- How the first of its parents failed that takes a job down with it; nil where none does.
function kin.fails_with(job)
  if job.kin.fails == 'run' then return nil end
  local parent = call('ZRANGE', each.failed .. job.id, 0, 0)[1]
  return parent and sub(call('HGET', each.links .. job.id, parent), LINK_AT)
end

-- Whether no more jobs of a workflow are to come, though some wait, or waited, for parents that are not there.
function kin.lacks_for_good(name)
  local count = kin.tally(name)
  return count and kin.is_complete(count) and kin.lacks(name)
end

-- Whether it waits for a parent that is not there, though no more of its workflow are to come.
function kin.in_vain(job)
  local name = job.kin.workflow and 'workflow ' .. job.kin.workflow
  return name and kin.lacks_for_good(name) and kin.missing_of(job, name) ~= nil
end

-- The first of its parents that has not ended and is not there.
function kin.missing_of(job, name)
  local row = call('HGET', our.parents, job.id)
  local parents = row and cmsgpack.unpack(row) or {}
  for first = 1, #parents, WINDOW do
    local ids = {}
    for i = first, math.min(first + WINDOW - 1, #parents) do ids[#ids + 1] = parents[i].id end
    local links = kin.links_of(job.id, ids)
    for i, id in ipairs(ids) do
      if links[i] and read(LINK, links[i]) == OPEN and call('ZSCORE', each.missing .. name, id) then return id end
    end
  end
end

-- How a parent ended, and its result or how that reads.
function kin.fate_of(id, row)
  if not row then return OPEN, '' end
  local fate = fn.read_end(row)
  if fate.state == 'SUCCEEDED' then return DONE, fate.result end
  return FAILED, 'parent ' .. id .. ' ended ' .. fate.state
end

-- Ties a new job to its parents, also those that have ended already, or are yet to come.
function kin.connect(job, parents)
  local ids, places, wanted, open = {}, {}, {}, 0
  for i, parent in ipairs(parents) do
    if not places[parent.id] then
      ids[#ids + 1] = parent.id
      places[parent.id] = i
    end
    if parent.at and #parent.at > 0 then wanted[parent.id] = 1 end
  end
  for first = 1, #ids, WINDOW do
    open = open + kin.tie(job, { unpack(ids, first, math.min(first + WINDOW - 1, #ids)) }, places, wanted)
  end
  if open > 0 then fn.put(our.open, job.id, open) end
  fn.put(our.parents, job.id, cmsgpack.pack(parents))
end

-- Ties a new job to some of its parents. Returns how many of these have not ended.
function kin.tie(job, ids, places, wanted)
  local names, links, failed, missing, heirs, open = {}, {}, {}, {}, {}, 0
  for i, id in ipairs(ids) do names[i] = kin.parent_of(job, id) end
  local rows, ends, known = fn.rows_of(ids), call('HMGET', our.ends, unpack(ids)), call('HMGET', our.heirs, unpack(names))
  for i, id in ipairs(ids) do
    local is_mate = rows[i] and kin.common_of(rows[i]).kin.workflow == job.kin.workflow
    local fate, data = kin.fate_of(id, is_mate and ends[i])
    if fate == DONE and not wanted[id] then data = '' end
    local link = pack(LINK, fate, wanted[id] or 0, places[id])
    links[2 * i - 1], links[2 * i] = id, link .. data
    if fate == OPEN then open = open + 1 end
    if fate == FAILED then
      failed[#failed + 1] = places[id]
      failed[#failed + 1] = id
    end
    if known[i] then
      kin.note_child(names[i], known[i], job)
    else
      heirs[#heirs + 1] = names[i]
      heirs[#heirs + 1] = sub(link, 2) .. job.member
    end
    if not is_mate then
      missing[#missing + 1] = 0
      missing[#missing + 1] = id
    end
  end
  kin.write_all('HSET', each.links .. job.id, links)
  kin.write_all('HSET', our.heirs, heirs)
  kin.write_all('ZADD', each.failed .. job.id, failed)
  local name = 'workflow ' .. job.kin.workflow
  kin.write_all('ZADD', each.missing .. name, missing)
  if #missing > 0 then lacking[name] = true end
  return open
end

-- Writes at once, or, where it may be taken back, one after the other.
function kin.write_all(command, key, words)
  if not undo then return fn.many(command, key, words) end
  for i = 1, #words, 2 do fn.write(command, key, words[i], words[i + 1]) end
end

-- The first ten parents of a job that have not ended.
function kin.open_parents(job)
  local row, found = call('HGET', our.parents, job.id), {}
  local parents = row and cmsgpack.unpack(row) or {}
  for first = 1, #parents, WINDOW do
    local ids = {}
    for i = first, math.min(first + WINDOW - 1, #parents) do ids[#ids + 1] = parents[i].id end
    for i, link in ipairs(kin.links_of(job.id, ids)) do
      if link and read(LINK, link) == OPEN then found[#found + 1] = ids[i] end
      if #found == 10 then return found end
    end
  end
  return found
end

-- What a job of a workflow is called where it is known as a parent: one of the same id that belongs elsewhere is nobody's there.
function kin.parent_of(job, id)
  return job.kin.workflow .. '\0' .. id
end

-- A job waits for a parent for whom others wait already: `heir` is what is known of them. Most parents have one child, or none.
function kin.note_child(parent, heir, job)
  if heir ~= '' then kin.let_links_tell(parent, heir) end
  fn.stand(each.children .. parent, job.n, job.member)
end

-- The link of the one who waits for a parent is to be read from now on, as where there are several.
function kin.let_links_tell(parent, heir)
  local member = sub(heir, HEIR_AT)
  fn.stand(each.children .. parent, read('>I6', member), member)
  fn.put(our.heirs, parent, '')
end

function kin.forget_child(parent, member)
  local heir = call('HGET', our.heirs, parent)
  if heir == '' then call('ZREM', each.children .. parent, member) end
  if heir and sub(heir, HEIR_AT) == member or heir == '' and call('EXISTS', each.children .. parent) == 0 then call('HDEL', our.heirs, parent) end
end

-- The next children of a parent who are to be told, where `heir` is what is known of them: from a number on, no more than this call may.
function kin.next_children(parent, heir, from)
  if not heir or left <= 0 then return {} end
  if heir ~= '' then return from == '-inf' and { sub(heir, HEIR_AT) } or {} end
  return call('ZRANGEBYSCORE', each.children .. parent, from, '+inf', 'LIMIT', '0', left)
end

-- Whether there are more of them.
function kin.has_more_children(parent, heir, from)
  if heir ~= '' then return heir and from == '-inf' end
  return call('ZCOUNT', each.children .. parent, from, '+inf') > 0
end

-- Notes that the children of a job are to be told of its fate.
function kin.owe(job, fate, data)
  if not job.kin.workflow then return end
  local parent = kin.parent_of(job, job.id)
  if not owed[parent] then order[#order + 1] = parent end
  owed[parent] = { job.id, fate, data, '-inf' }
end

-- The rest of what is owed is left to later calls.
function kin.postpone(entry, debt)
  call('HSET', our.owed, entry, cmsgpack.pack(debt))
  call('ZADD', our.owing, fn.next_number(), entry)
  any.owing, stirred = true, true -- whoever wakes up goes on
end

function kin.write_off(entry)
  call('HDEL', our.owed, entry)
  call('ZREM', our.owing, entry)
end

-- The same of jobs that succeeded, where any has children. `of` are what they have in common with others.
function kin.owe_successes(ids, of, results)
  local parents, places = {}, {}
  for i = 1, #ids do
    local workflow = of[i].kin.workflow
    if workflow then
      parents[#parents + 1] = workflow .. '\0' .. ids[i]
      places[#places + 1] = i
    end
  end
  if #parents == 0 then return end
  local owing = fn.has_any('owing')
  for i, heir in ipairs(call('HMGET', our.heirs, unpack(parents))) do
    local place, parent = places[i], parents[i]
    if heir and heir ~= '' and not owing then
      local member = sub(heir, HEIR_AT)
      local links = joins[member]
      if not links then
        links = {}
        joins[member] = links
      end
      local at = #links
      links[at + 1] = ids[place]
      links[at + 2] = DONE_MARK .. sub(heir, 1, HEIR_AT - 1) .. (string.byte(heir) == 1 and results[place] or '')
    elseif heir then
      if not owed[parent] then order[#order + 1] = parent end
      owed[parent] = { ids[place], DONE, results[place], '-inf' }
    end
  end
end

-- The children of jobs that are owed, each with what it is owed, as far as this call may look; and all of them in their order. Those of
-- `told` are among them.
function kin.children_of(ids, debts, told)
  local parents, children = {}, {}
  for _, looked_at in ipairs({ concerned, told }) do
    for member in pairs(looked_at) do
      if not parents[member] then children[#children + 1] = member end
      parents[member] = {}
    end
  end
  concerned = {}
  local heirs = {}
  for first = 1, #ids, WINDOW do
    local some = { unpack(ids, first, math.min(first + WINDOW - 1, #ids)) }
    for i, heir in ipairs(call('HMGET', our.heirs, unpack(some))) do heirs[first + i - 1] = heir end
  end
  local owing = fn.has_any('owing')
  for i, id in ipairs(ids) do
    local debt, heir = debts[id], heirs[i]
    local members = kin.next_children(id, heir, debt[4])
    for k = 1, #members do
      local member = members[k]
      local of = parents[member]
      if not of then
        of = {}
        parents[member], children[#children + 1] = of, member
      end
      of[#of + 1] = debt
    end
    left = left - #members
    if left <= 0 then
      if #members > 0 then debt[4] = '(' .. fn.integer(read('>I6', members[#members])) end
      if kin.has_more_children(id, heir, debt[4]) then kin.postpone('job ' .. id, debt) elseif owing then kin.write_off('job ' .. id) end
    elseif owing then
      kin.write_off('job ' .. id)
    end
  end
  if #children > 1 then table.sort(children, kin.is_earlier) end
  return children, parents
end

-- Writes down what became of some of a job's parents.
function kin.note_fates(id, debts)
  local parents, links, failed, mended, opened = {}, {}, {}, {}, 0
  for i, debt in ipairs(debts) do parents[i] = debt[1] end
  for i, row in ipairs(#parents > 0 and kin.links_of(id, parents) or {}) do
    if row then
      local was, wanted, place = read(LINK, row)
      local parent, fate, data = parents[i], debts[i][2], debts[i][3]
      if fate == DONE and wanted == 0 then data = '' end
      links[#links + 1] = parent
      links[#links + 1] = pack(LINK, fate, wanted, place) .. data
      opened = opened + (fate == OPEN and 1 or 0) - (was == OPEN and 1 or 0)
      if was == FAILED and fate ~= FAILED then mended[#mended + 1] = parent end
      if was ~= FAILED and fate == FAILED then
        failed[#failed + 1] = place
        failed[#failed + 1] = parent
      end
    end
  end
  fn.many('HSET', each.links .. id, links)
  if opened ~= 0 and call('HINCRBY', our.open, id, opened) == 0 then call('HDEL', our.open, id) end
  fn.many('ZREM', each.failed .. id, mended)
  fn.many('ZADD', each.failed .. id, failed)
end

-- The same of parents that ended well, for the first time that any of their id has ended: by the `links` that come of it.
function kin.note_successes(id, links)
  local number = #links / 2
  fn.many('HSET', each.links .. id, links)
  if call('HINCRBY', our.open, id, -number) == 0 then call('HDEL', our.open, id) end
  left = left - number
end

-- Tells children how their parents ended; generation after generation, and in each in the order in which they were stored.
function kin.pay()
  while #order > 0 or next(joins) or next(concerned) do
    local ids, debts, told = order, owed, joins
    order, owed, joins = {}, {}, {}
    local children, parents = kin.children_of(ids, debts, told)
    for _, member in ipairs(children) do
      if told[member] then kin.note_successes(sub(member, 7), told[member]) end
      if #parents[member] > 0 then kin.note_fates(sub(member, 7), parents[member]) end
    end
    for _, member in ipairs(children) do kin.reconsider(member) end
  end
end

-- Does what the fates of a job's parents ask for, if it still waits for them, or fell with them.
function kin.reconsider(member)
  local id = sub(member, 7)
  local waits = call('HEXISTS', our.open, id) == 1
  local may_have_fallen = fn.has_any('felled') and call('HEXISTS', our.felled, id) == 1
  if waits and not may_have_fallen and call('EXISTS', each.failed .. id) == 0 then return end
  local job = fn.find_job(id)
  local why = job and kin.fails_with(job)
  if job and not job.kin.callback and call('HGET', our.waiting, member) == '' then
    why = why or not waits and kin.stopped_by(job) -- before `stop_some` has come to it
    if why then
      fn.take_out(job, 'WAITING')
      kin.fell(job, why)
    elseif not waits then
      kin.let_go(job)
    end
  elseif job and may_have_fallen then
    local row = call('HGET', our.ends, id)
    local was = row and fn.read_end(row)
    if was and why then
      fn.put(our.ends, id, fn.end_row(was.state, was.claim, was.attempt, was.started, was.worker, why, '', was.finished))
    elseif was and not kin.stopped_by(job) and not kin.in_vain(job) then
      kin.revive(job, was)
    end
  end
end

-- The end of a parent takes down a job that stands in no line.
function kin.fell(job, why)
  kin.note_fall(job)
  fn.finish(job, fn.past_of(job), 'CANCELLED', why, KEEP)
end

function kin.note_fall(job)
  any.felled = true
  fn.put(our.felled, job.id, '')
end

-- One that has waited for its parents, or for its batch, goes to the line that its time asks for.
function kin.let_go(job)
  local past = fn.past_of(job)
  fn.take_out(job, 'WAITING')
  fn.join(job, past)
  fn.place(job, past, job.rare.run_at or NEVER)
end

-- One that fell goes on, if nobody has taken its keys meanwhile.
function kin.revive(job, standing)
  local wanted = {}
  for _, want in ipairs(fn.keys_of(job)) do
    if want.covers ~= 'time' then
      if fn.held(want.key) then return end
      wanted[#wanted + 1] = want
    end
  end
  for _, want in ipairs(wanted) do fn.take_key(want, job) end
  fn.take_out(job, 'ENDED', standing)
  kin.note_revival(job, standing.state)
  if fn.is_gated(job) then fn.take_seat(job) end
  if job.rare.expires_at and standing.claim == 0 then
    fn.stand(our.expiring, job.rare.expires_at, job.member)
    stirred = true
  end
  local past = fn.past_of(job)
  past.claim, past.attempt, past.started, past.worker = standing.claim, standing.attempt, standing.started, standing.worker
  past.bare = past.bare and standing.claim == 0
  kin.arrive(job, past)
end

-- A job that was revived waits for its parents, or takes its place where they have ended. Returns whether it waits.
function kin.arrive(job, past)
  local waits = call('HEXISTS', our.open, job.id) == 1
  if waits then kin.wait(job, past) else fn.place(job, past, job.rare.run_at or NEVER) end
  return waits
end

-- A job that was revived waits for its parents, or for its batch.
function kin.wait(job, past)
  fn.note_past(job, past)
  fn.wait_behind(job, '')
end

-- A job with parents has its keys now: that it still waits for those is looked at in the end.
function kin.succeed(job)
  fn.put(our.waiting, job.member, '')
  concerned[job.member] = true
end

-- What becomes of jobs ---

function kin.note_end(job, state, result)
  kin.count(job, state, 1)
  if fn.holds_on(job, state) then kin.count_holder(job, 1) end
  if state == 'SUCCEEDED' then
    kin.owe(job, DONE, result or '')
  else
    kin.owe(job, FAILED, 'parent ' .. job.id .. ' ended ' .. state)
  end
end

function kin.note_revival(job, was)
  if fn.has_any('felled') then fn.drop(our.felled, job.id) end
  kin.count(job, was, -1)
  if fn.holds_on(job, was) then kin.count_holder(job, -1) end
  kin.owe(job, OPEN, '')
end

-- Why a job is cancelled of which a workflow or a batch is stopped; nil where none is.
function kin.stopped_by(job)
  for _, name in ipairs(kin.tallies_of(job)) do
    local count = kin.tally(name)
    if count and count.stopped then return kin.why_stopped(count) end
  end
end

function kin.why_stopped(count)
  return 'its ' .. count.kind .. ' was cancelled'
end

-- A person revives a job, so what it belongs to is stopped no more. A callback that has never run waits for its batch again.
function kin.restart(job, past, was)
  kin.note_revival(job, was)
  for _, name in ipairs(kin.tallies_of(job)) do
    local count = kin.tally(name)
    if count then count.stopped = false end
  end
  local batch = job.kin.callback and past.claim == 0 and 'batch ' .. job.kin.batch
  local count = batch and kin.tally(batch)
  if count then
    changed[batch] = count
    kin.wait(job, past)
  elseif kin.arrive(job, past) and fn.holds_on(job, was) then -- the parent for whom it waits may itself wait for that turn
    fn.leave_gates(job, TURN)
  end
end

-- A job is deleted that has ended, in the state `was`, or never will.
function kin.note_deletion(job, was)
  if not was then
    kin.count(job, 'CANCELLED', 1)
    kin.owe(job, FAILED, 'parent ' .. job.id .. ' was deleted')
  elseif fn.holds_on(job, was) then
    kin.count_holder(job, -1)
  end
  kin.drop(job)
end

function kin.note_run(job, by)
  kin.count(job, 'running', by)
end

-- A job was leased: the last one of those that `claim` tells of.
function kin.note_lease(job, claim)
  kin.note_run(job, 1)
  if not job.kin.linked then return end
  local row = call('HGET', our.parents, job.id)
  table.insert(claim.families, { #claim.leases / 2, row, row and kin.inputs_of(job.id, cmsgpack.unpack(row)) })
end

-- The results of parents that are asked for, empty for the others; false where none is.
function kin.inputs_of(id, parents)
  local ids, inputs, asked = {}, {}, false
  for i, parent in ipairs(parents) do
    ids[i], inputs[i] = parent.id, ''
    asked = asked or parent.at and #parent.at > 0
  end
  for first = 1, asked and #ids or 0, WINDOW do
    local some = { unpack(ids, first, math.min(first + WINDOW - 1, #ids)) }
    for i, row in ipairs(kin.links_of(id, some)) do
      local place = first + i - 1
      if row and read(LINK, row) == DONE and parents[place].at then inputs[place] = sub(row, LINK_AT) end
    end
  end
  return asked and inputs or false
end

-- The same of one that has nothing else rare, of which the row is given, and that was never claimed. Returns how it runs.
function kin.first_run(row, flags)
  local common = kin.common_of(row)
  begun[common] = (begun[common] or 0) + 1
  if flags ~= 0 then return pack(RUN_ROW, 1, now, flags + FAMILY) .. common.words end
  common.run = common.run or pack(RUN_ROW, 1, now, FAMILY) .. common.words
  return common.run
end

-- What a job has in common with others, by its row.
function kin.common_of(row)
  local _, q, t, r, at = read(LENGTHS, row, LENGTHS_AT)
  local words = sub(row, COMMON_AT, at + q + t + r - 1)
  return commons[words] or fn.read_common(words)
end

-- Ends attempts that succeeded, of jobs of which all that needs care is that they belong to a workflow or a batch.
function kin.succeed_plain(members, runs, results, worker, keep)
  local ids, of, ends, done, forget_at = {}, {}, {}, {}, fn.integer(now + keep)
  local forever, number_of = fn.integer(FOREVER + now), {}
  for i, member in ipairs(members) do
    local id, run = sub(member, 7), runs[i]
    ids[i], of[i], ended[#ended + 1] = id, run.common, id
    run.head = run.head or fn.end_row('SUCCEEDED', run.claim, 1, run.started, worker, '', '')
    ends[2 * i - 1], ends[2 * i] = id, run.head .. results[i]
    done[2 * i - 1], done[2 * i] = run.common.kin.workflow and forever or forget_at, member
    number_of[run] = (number_of[run] or 0) + 1
  end
  for run, number in pairs(number_of) do
    fn.count('RUNNING', run.queue, -number)
    fn.count('SUCCEEDED', run.queue, number)
    kin.count(run.common, 'running', -number)
    kin.count(run.common, 'SUCCEEDED', number)
  end
  fn.many('HSET', our.ends, ends)
  fn.many('ZADD', each.done .. 'SUCCEEDED', done)
  kin.owe_successes(ids, of, results)
end

-- Drops what is known of jobs that are forgotten, which stand among others.
function kin.drop(job)
  if job.kin.workflow then
    fn.leave(each.members .. 'workflow ' .. job.kin.workflow, job.member)
    local parent = kin.parent_of(job, job.id)
    local heir = call('HGET', our.heirs, parent)
    if heir and heir ~= '' then kin.let_links_tell(parent, heir) end -- one of this id may come again, and end for the first time once more
  end
  if job.kin.batch then fn.leave(each.members .. 'batch ' .. job.kin.batch, job.member) end
  if not job.kin.linked then return end
  for _, parent in ipairs(call('HKEYS', each.links .. job.id)) do
    kin.forget_child(kin.parent_of(job, parent), job.member)
  end
  call('UNLINK', each.links .. job.id, each.failed .. job.id)
  for _, key in ipairs({ our.parents, our.open, our.felled }) do call('HDEL', key, job.id) end
end

-- Drops jobs that have ended, or wait for their batch; these give up their keys.
function kin.remove(members)
  local ids, leaving, waiting = {}, {}, {}
  for i, member in ipairs(members) do ids[i] = sub(member, 7) end
  local rows, ends = fn.rows_of(ids), call('HMGET', our.ends, unpack(ids))
  for i, member in ipairs(members) do
    local job, state = rows[i] and fn.read_job(ids[i], rows[i]), ends[i] and fn.read_end(ends[i]).state
    if state then
      leaving[state] = leaving[state] or {}
      table.insert(leaving[state], member)
    end
    if job and state then
      fn.count(state, job.queue, -1)
    elseif job then
      fn.take_out(job, fn.where(job))
      fn.leave(our.expiring, member)
      waiting[#waiting + 1] = job
    end
    if job then kin.drop(job) end
  end
  for state, gone in pairs(leaving) do fn.many('ZREM', each.done .. state, gone) end
  fn.forget(ids, members)
  for _, job in ipairs(waiting) do fn.give_up(job, ALL_KEYS) end
end

-- Enqueue ---

-- Counts a new job where it belongs. Returns why it cannot come, if so, and why it is cancelled at once, if it is.
function kin.join(job)
  local of, stopped = job.kin, false
  if of.workflow then
    local name = 'workflow ' .. of.workflow
    local count = kin.tally(name)
    if growing[name] == nil then
      growing[name] = not count or not kin.is_complete(count)
      grown[#grown + 1] = name
    end
    count = count or kin.begin('workflow', of.workflow, select(3, fn.origin_of(job)))
    if count.name == '' then count.name = of.flow[1] end
    count.keep = math.max(count.keep, read('>d', job.row, KEEP_AT))
    if not count.stopped then -- whom a job adds its producer did not announce
      count.size = math.max(count.size, of.flow[2]) + (adder and 1 or 0)
    end
    stopped = kin.add_to(name, count)
  end
  if of.batch and not of.callback then
    local name = 'batch ' .. of.batch
    local count = kin.tally(name)
    if not count then return { 'batch', of.batch, 'none' } end
    if count.sealed and not (adder and adder.kin.batch == of.batch) then return { 'batch', of.batch, 'sealed' } end
    stopped = kin.add_to(name, count) or stopped
  end
  return nil, stopped
end

-- A job without what is kept elsewhere: its parents, and name and size of its workflow.
function kin.trimmed(job)
  local common, of = job.common, job.kin
  if not of.workflow then return job end
  if not common.trimmed then
    local band, traits, q, t, _, at = read(COMMON, common.words)
    local rare = {}
    for name, value in pairs(job.rare) do rare[name] = value end
    rare.kin = { workflow = of.workflow, linked = of.parents and true, fails = of.fails, batch = of.batch, callback = of.callback }
    local packed = cmsgpack.pack(rare)
    common.trimmed = pack(COMMON, band, traits, q, t, #packed) .. sub(common.words, at, at + q + t - 1) .. packed
  end
  return fn.read_job(job.id, sub(job.row, 1, COMMON_AT - 1) .. common.trimmed .. sub(job.row, job.payload))
end

-- Lets a new job of a workflow or a batch come: as it is stored from now on, and what `settle_in` needs. Nil and why, if it may not.
function kin.admit(job)
  local refusal, stopped = kin.join(job)
  if refusal then return nil, refusal end
  return kin.trimmed(job), { parents = job.kin.parents, stopped = stopped }
end

-- Stores a new job of a workflow or a batch; see `fn.store`.
function kin.store(job, behind)
  local admitted, family = kin.admit(job)
  if not admitted then return nil, family end
  local number = fn.next_number()
  fn.add(fn.read_job(job.id, pack(HEAD, number, number, now) .. sub(admitted.row, ORIGIN_AT + 13)), behind, family)
  return job.id
end

-- Of new jobs that were admitted, whether all parents have come where no more jobs are to come. No also where that would be long to say.
function kin.all_come(jobs, families)
  local given, unknown, complete = {}, {}, false
  for _, name in ipairs(grown) do complete = complete or kin.is_complete(kin.tally(name)) end
  if not complete then return true end
  for _, job in ipairs(jobs) do given[job.kin.workflow and kin.parent_of(job, job.id) or ''] = true end
  for _, name in ipairs(grown) do
    if growing[name] and kin.lacks_for_good(name) then
      local workflow, missing = sub(name, #'workflow ' + 1), call('ZRANGE', each.missing .. name, 0, WINDOW)
      if #missing > WINDOW then return false end
      for _, id in ipairs(missing) do
        if not given[workflow .. '\0' .. id] then return false end
      end
    end
  end
  for i, job in ipairs(jobs) do
    local parents = families[i] and families[i].parents
    for _, parent in ipairs(parents and kin.is_complete(kin.tally('workflow ' .. job.kin.workflow)) and parents or {}) do
      if not given[kin.parent_of(job, parent.id)] then unknown[#unknown + 1] = { job.kin.workflow, parent.id } end
    end
  end
  if #unknown > WINDOW then return false end
  for _, pair in ipairs(unknown) do
    local job = fn.find_job(pair[2])
    if not job or job.kin.workflow ~= pair[1] then return false end
  end
  return true
end

-- New jobs have come that are missing no more.
function kin.note_arrivals(jobs)
  local come = {}
  for _, job in ipairs(jobs) do
    local name = job.kin.workflow and 'workflow ' .. job.kin.workflow
    if name and kin.lacks(name) then
      come[name] = come[name] or {}
      table.insert(come[name], job.id)
    end
  end
  for name, ids in pairs(come) do
    fn.many('ZREM', each.missing .. name, ids)
    lacking[name] = nil
  end
end

-- Whether parents are missing in a workflow.
function kin.lacks(name)
  if lacking[name] == nil then lacking[name] = call('EXISTS', each.missing .. name) == 1 end
  return lacking[name]
end

-- A job just stored takes its place among others: see `fn.add`.
function kin.settle_in(job, behind, family)
  local of, _, _, enqueued = job.kin, fn.origin_of(job)
  if of.workflow then
    local name = 'workflow ' .. of.workflow
    fn.later('ZADD', each.members .. name, enqueued, job.member)
    if undo and kin.lacks(name) then fn.leave(each.missing .. name, job.id) end -- else that was done for all
  end
  if of.batch then fn.later('ZADD', each.members .. 'batch ' .. of.batch, enqueued, job.member) end
  if family.parents then kin.connect(job, family.parents) end
  local why = family.parents and kin.fails_with(job)
  if family.stopped then
    fn.finish(job, fn.past_of(job), 'CANCELLED', family.stopped, KEEP)
  elseif behind or of.callback then
    fn.wait_behind(job, behind or '')
  elseif why then
    kin.fell(job, why)
  elseif family.parents and call('HEXISTS', our.open, job.id) == 1 then
    fn.wait_behind(job, '')
  else
    fn.arrive(job)
  end
end

-- Of the jobs that wait for a parent which is not there: the first, and that parent.
function kin.missing_in(name)
  local first, place, parent
  for _, id in ipairs(call('ZRANGE', each.missing .. name, 0, -1)) do
    local parent_name = sub(name, #'workflow ' + 1) .. '\0' .. id
    local heir = call('HGET', our.heirs, parent_name)
    for _, member in ipairs(heir == '' and call('ZRANGE', each.children .. parent_name, 0, -1) or { heir and sub(heir, HEIR_AT) or nil }) do
      local child = sub(member, 7)
      local link = call('HGET', our.waiting, member) == '' and call('HGET', each.links .. child, id)
      local fate, _, at = read(LINK, link or LOST)
      if link and fate == OPEN and (not first or kin.is_earlier(member, first) or member == first and at < place) then
        first, place, parent = member, at, id
      end
    end
  end
  return first and { 'parent', sub(first, 7), parent }
end

-- The same of those of some jobs that are of this workflow.
function kin.missing_among(name, ids)
  local first, parent
  for _, id in ipairs(ids) do
    local job = fn.find_job(id)
    local is_of_it = job and job.kin.linked and 'workflow ' .. job.kin.workflow == name
    if is_of_it and not (first and kin.is_earlier(first, job.member)) and call('HGET', our.waiting, job.member) == '' then
      local missing = kin.missing_of(job, name)
      if missing then first, parent = job.member, missing end
    end
  end
  return first and { 'parent', sub(first, 7), parent }
end

-- Why jobs that were stored cannot be, as somebody would wait for a parent that never comes. Parents may come after those who wait for
-- them, as long as more are to come.
function kin.missing_parent(ids)
  for _, name in ipairs(grown) do
    if kin.lacks_for_good(name) then
      local missing
      if growing[name] then missing = kin.missing_in(name) else missing = kin.missing_among(name, ids) end
      if missing then return missing end
    end
  end
end

-- An attempt succeeds and adds jobs; where these are refused it is DEAD. False when the lease is lost. `at` is where ARGV tells of it.
function kin.end_adding(session, worker, at)
  local member, claim, keep, result = unpack(ARGV, at, at + 3)
  local row = call('HGET', each.running .. session, member)
  if not row or fn.read_run(row).claim ~= tonumber(claim) then return false end
  adder = fn.find_job(sub(member, 7))
  local _, refusal = fn.store_all(at + 4)
  adder = nil
  local run = fn.read_run(call('HGET', each.running .. session, member)) -- those that came may have asked it to stop
  if refusal then
    fn.stop_running(session, member, run)
    run.flags = fn.has(run.flags, STOP) and run.flags - STOP or run.flags
    fn.end_attempt(sub(member, 7), run, worker, 'Dead', REFUSED .. cmsgpack.pack(refusal), '')
  else
    call('HDEL', each.running .. session, member)
    if fn.has(run.flags, STOP) then call('HDEL', each.stops .. session, sub(member, 7)) end
    fn.succeed_with_care({ member }, { run }, { result }, worker, tonumber(keep))
  end
  return true
end

-- What people and time do ---

function kin.store_batch(id, name, ids, tails)
  local count = kin.begin('batch', id, now)
  count.name = name
  for i, tail in ipairs(tails) do
    count.callbacks[i] = { fn.read_job(ids[i], pack(HEAD, 0, 0, 0) .. tail).kin.callback, ids[i] }
  end
  return fn.store_each(ids, tails)
end

-- Begins a batch with its callbacks, unless there is one of this id. Returns why one was refused, if so.
function kin.open_batch(id, name)
  if kin.tally('batch ' .. id) then return end
  local ids, tails = {}, {}
  for i = 5, #ARGV, 2 do
    ids[#ids + 1] = ARGV[i]
    tails[#tails + 1] = ARGV[i + 1]
  end
  undo = {}
  local whole, standing, refusal = pcall(kin.store_batch, id, name, ids, tails)
  if refusal or not whole then fn.take_back() end
  undo = nil
  if not whole then error(standing, 0) end
  return refusal
end

function kin.seal_batch(id)
  local count = kin.tally('batch ' .. id)
  if not count or count.sealed then return 0 end
  count.sealed, changed['batch ' .. id] = true, count
  return 1
end

function kin.stop(name)
  local count = kin.tally(name)
  if not count or count.finished_at then return 0 end
  kin.stop_whole(name, count)
  return 1
end

function kin.stop_whole(name, count)
  count.stopped, count.sealed, count.size = true, count.kind == 'batch', math.min(count.size, count.total)
  changed[name] = count
  kin.stop_some(name)
end

-- Cancels the next thousand jobs of a tally, after the one that `from` tells of; the rest later.
function kin.stop_some(name, from)
  local line, count, first = each.members .. name, kin.tally(name) or { kind = 'batch' }, 0
  if from then
    local rank = call('ZRANK', line, from[2])
    first = rank and rank + 1 or call('ZCARD', line) - fn.number_before(line, tonumber(from[1]), from[2])
  end
  local members = left > 0 and call('ZRANGE', line, first, first + MOST_LINKS - 1) or {}
  if left <= 0 then
    kin.postpone('tally ' .. name, from or { '-inf', '' })
  elseif #members == MOST_LINKS then
    kin.postpone('tally ' .. name, { call('ZSCORE', line, members[#members]), members[#members] })
  else
    kin.write_off('tally ' .. name)
  end
  left = left - #members
  table.sort(members, kin.is_earlier)
  local ids = {}
  for i, member in ipairs(members) do ids[i] = sub(member, 7) end
  fn.fetch(ids)
  for _, id in ipairs(ids) do
    local job = fn.find_job(id)
    if job and not job.kin.callback then
      if job.kin.linked and call('HGET', our.waiting, job.member) == '' then kin.note_fall(job) end -- so it comes back with its parents
      fn.stop(job, 'CANCELLED', kin.why_stopped(count))
    end
  end
end

-- How many children of a parent are still to be told, from a number on.
function kin.number_of_children(parent, from)
  local heir = call('HGET', our.heirs, parent)
  if heir == '' then return call('ZCOUNT', each.children .. parent, from, '+inf') end
  return heir and 1 or 0
end

-- Goes on with what calls before had to leave, the oldest first, as far as this call may.
function kin.go_on()
  local expected = 0 -- children of those whom this call has read
  for _, entry in ipairs(call('ZRANGE', our.owing, 0, MOST_TALLIES - 1)) do
    local kind, name = string.match(entry, '^(%a+) (.*)$')
    if expected >= left or kind == 'tally' and expected > 0 then break end -- a stop may look at all that is left
    local row = call('HGET', our.owed, entry)
    local debt = row and cmsgpack.unpack(row)
    if not debt then
      call('ZREM', our.owing, entry)
    elseif kind == 'tally' then
      kin.stop_some(name, debt)
    elseif not owed[name] then
      order[#order + 1] = name
      owed[name] = debt
      expected = expected + kin.number_of_children(name, debt[4])
    end
  end
  kin.settle_up()
end

-- Gives up what its producer left incomplete. Returns whether there may be more.
function kin.abandon()
  local names = call('ZRANGEBYSCORE', our.unfinished, '-inf', fn.integer(now - ABANDONED_AFTER), 'LIMIT', 0, MOST_TALLIES)
  table.sort(names, function(one, other) return kin.tally(one).n < kin.tally(other).n end)
  for _, name in ipairs(names) do
    local count = kin.tally(name)
    count.abandoned, changed[name] = true, count
    if count.kind == 'workflow' then kin.stop_whole(name, count) else count.sealed = true end
  end
  kin.settle_up()
  return #names == MOST_TALLIES
end

-- What comes with time but for forgetting. Returns whether there is more to do.
function kin.maintain()
  kin.settle_up()
  if call('EXISTS', our.owing) == 1 then kin.go_on() end
  -- What is given up is stopped as well: children are first told what became of their parents before.
  return call('EXISTS', our.owing) == 1 or kin.abandon() or call('EXISTS', our.owing) == 1
end

function kin.drop_tally(name, count)
  call('HDEL', our.tallies, name)
  call('ZREM', our[LINES[count.kind]], pack('>I6', count.n) .. count.id)
  call('ZREM', our.unfinished, name)
  call('ZREM', our.forgetting, name)
  call('UNLINK', each.missing .. name)
  counts[name], changed[name] = false, nil
end

-- The jobs that go with a tally: all of a workflow, the callbacks of a batch that never came due.
function kin.going_with(name, count, most)
  if count.kind == 'workflow' then return call('ZRANGE', each.members .. name, 0, most - 1) end
  local members = {}
  for _, pair in ipairs(count.callbacks) do
    local job = #members < most and kin.waiting_callback(pair[2])
    if job then members[#members + 1] = job.member end
  end
  return members
end

-- Drops finished tallies whose time is over, with the records of a workflow's jobs. Returns how many records went, or WINDOW when there
-- is more to do.
function kin.forget_old()
  local names = call('ZRANGEBYSCORE', our.forgetting, '-inf', fn.integer(now), 'LIMIT', 0, MOST_TALLIES)
  local gone = 0
  for _, name in ipairs(names) do
    local count = kin.tally(name)
    if count.holding > 0 and count.kind == 'workflow' then -- a dead job keeps its turn
      count.forget_at = now + DAY * SECOND
      kin.store_tally(name, count)
    elseif gone < WINDOW then
      local members = kin.going_with(name, count, WINDOW - gone)
      gone = gone + #members
      if #members > 0 then kin.remove(members) end
      if gone < WINDOW then kin.drop_tally(name, count) end
    end
  end
  return #names == MOST_TALLIES and WINDOW or gone
end

-- The names of tallies after that of an id, newest first.
function kin.page(kind, most, after)
  local line, first, names = our[LINES[kind]], 0, {}
  if after ~= '' then
    local count = kin.tally(kind .. ' ' .. after)
    if not count then return names end
    first = call('ZREVRANK', line, pack('>I6', count.n) .. after) + 1
  end
  for i, member in ipairs(call('ZREVRANGE', line, first, first + most - 1)) do names[i] = sub(member, 7) end
  return names
end

end

make()
end

-- The functions of gates, and those of workflows and batches, are made when any of them is first asked for.
setmetatable(fn, { __index = function(made, name)
  setmetatable(made, nil)
  define_gates()
  return made[name]
end })
setmetatable(kin, { __index = function(made, name)
  setmetatable(made, nil)
  define_families()
  return made[name]
end })


define()
local reply = operations[ARGV[1]]()
fn.conclude()
return reply
