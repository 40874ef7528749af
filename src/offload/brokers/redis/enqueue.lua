-- Enqueues a job of Offload from any language that can run a script in Redis or Valkey. Version 1.
--
--   EVALSHA <this script> 1 {offload}: <id> <task> <payload> [<option> <value>]...
--
-- KEYS[1]   the prefix of the app's keys: its URL's `prefix=` in braces, with a colon; `{offload}:` where the URL has none
-- id        names the job, and is its idempotency key: to call again with the same id, task and payload stores nothing twice
-- task      the task's name, such as `mail.digest`
-- payload   the arguments as a JSON object, such as `{"user_id": 7}`; at most 262,144 bytes
-- options   queue     which line it joins                                    (default)
--           priority  a whole number from -100 to 100; higher runs first     (0)
--           delay     seconds until it may start                             (none)
--           keep      seconds for which its record is kept once it succeeded (86400)
--
-- Replies with 1 when the job was stored, 0 when it was there already. Errors begin with a word of their own:
--   OFFLOADARGUMENT  an argument cannot work; the text says which
--   OFFLOADID        the id was used before, with another task or payload, or for a job of a workflow or a batch
--   OFFLOADVERSION   the jobs there are kept in another form than this script's; take the script of the release that runs there
--
-- One call is atomic. Several jobs: several calls in one pipeline. What `queue.lua` does on `enqueue` this does too, for the fields above.

local VERSION = 1
local MOST_PAYLOAD_BYTES, LARGE_BYTES = 262144, 16384
local SECOND, BAND, MOST_NAME_BYTES = 1000000, 2 ^ 45, 65535
local HEAD, TAIL = '>I6I6I7', '>i8dBBI2I2I4' -- number, position, since; enqueued, keep, rank of priority, 0, lengths of queue, task and rare

local call, prefix = redis.call, KEYS[1]
local id, task, payload = ARGV[1], ARGV[2], ARGV[3]
local options = { queue = 'default', priority = '0', keep = '86400' }

local function refuse(code, text)
  return redis.error_reply('OFFLOAD' .. code .. ' ' .. text)
end

-- What is wrong with the arguments, or nil.
local function complaint()
  if #KEYS ~= 1 or not string.find(prefix, '^{[^{}]+}:$') then return 'there is one key, the prefix, such as {offload}:' end
  if #ARGV < 3 or #ARGV % 2 == 0 then return 'the arguments are id, task, payload, and options with a value each' end
  if id == '' then return 'the id is empty' end
  if task == '' or #task > MOST_NAME_BYTES then return 'the task is a name of 1 to 65535 bytes' end
  for i = 4, #ARGV, 2 do
    local name = ARGV[i]
    if not options[name] and name ~= 'delay' then return 'no option ' .. name .. '; known are queue, priority, delay, keep' end
    options[name] = ARGV[i + 1]
  end
  local queue, priority = options.queue, tonumber(options.priority)
  if queue == '' or #queue > MOST_NAME_BYTES or string.find(queue, '[%s,:*]') then
    return 'queue is a name without white space, comma, colon and asterisk, not ' .. queue
  end
  if not priority or priority % 1 ~= 0 or priority < -100 or priority > 100 then
    return 'priority is a whole number from -100 to 100, not ' .. options.priority
  end
  for _, name in ipairs({ 'delay', 'keep' }) do
    local seconds = tonumber(options[name] or 0)
    if not (seconds and seconds >= 0 and seconds <= 2 ^ 33) then return name .. ' is a number of seconds, not ' .. options[name] end
  end
  local read, value = pcall(cjson.decode, payload)
  if not read or type(value) ~= 'table' or not string.find(payload, '^%s*{') then
    return 'the payload is a JSON object of parameter names and arguments'
  end
  if #payload > MOST_PAYLOAD_BYTES then
    return 'the payload has ' .. #payload .. ' bytes; the most are ' .. MOST_PAYLOAD_BYTES .. ': store the data and pass its key'
  end
end

-- Wakes one who sleeps and serves the queue; for a job that is not yet due anyone, who then knows how long to sleep.
local function wake(queue)
  if call('ZCARD', prefix .. 'asleep') == 0 then return end
  local before = '(' .. string.format('%.0f', call('INCR', prefix .. 'sequence'))
  for first = 0, 9900, 100 do
    local entries = call('ZRANGEBYSCORE', prefix .. 'asleep', '-inf', before, 'LIMIT', first, 100)
    for _, entry in ipairs(entries) do
      local at = string.find(entry, '\n', 1, true)
      if not queue or at == #entry or string.find(entry, '\n' .. queue .. '\n', at, true) then
        local bell = prefix .. 'bell:' .. string.sub(entry, 1, at - 1)
        call('ZREM', prefix .. 'asleep', entry)
        call('ZADD', bell, 0, '1')
        call('PEXPIRE', bell, 60000)
        return
      end
    end
    if #entries < 100 then return end
  end
end

local wrong = complaint()
if wrong then return refuse('ARGUMENT', wrong) end

local version = call('GET', prefix .. 'version')
if version and version ~= tostring(VERSION) then
  return refuse('VERSION', 'this script is for version ' .. VERSION .. ', but the jobs at ' .. prefix .. ' have version ' .. version)
end

local known = call('HGET', prefix .. 'jobs', id)
if known then
  local _, _, _, _, _, _, _, q, t, r, at = struct.unpack('>I6I6I7i8dBBI2I2I4', known)
  local belongs = r > 0 and cmsgpack.unpack(string.sub(known, at + q + t, at + q + t + r - 1)).kin ~= nil
  if belongs or string.sub(known, at + q, at + q + t - 1) ~= task or string.sub(known, at + q + t + r) ~= payload then
    local by = belongs and 'by a job of a workflow or a batch' or 'with another task or payload'
    return refuse('ID', 'the id ' .. id .. ' was already used ' .. by .. '; an id is an idempotency key')
  end
  return 0
end

call('ZCARD', prefix .. 'ready:' .. options.queue) -- which fails now, before anything is stored, where another's key is in the way
call('SET', prefix .. 'version', VERSION, 'NX')
local time = call('TIME')
local now = time[1] * SECOND + time[2]
local due = options.delay and now + math.floor(tonumber(options.delay) * SECOND + 0.5)
local rare = due and cmsgpack.pack({ run_at = due }) or ''
local rank, number = 100 - tonumber(options.priority), call('INCR', prefix .. 'sequence')
local member = struct.pack('>I6', number) .. id
local tail = struct.pack(TAIL, now, tonumber(options.keep), rank, 0, #options.queue, #task, #rare)

local outline = struct.pack(HEAD, number, number, now) .. tail .. options.queue .. task .. rare

call('HSET', prefix .. 'jobs', id, outline .. payload)
call('ZADD', prefix .. 'all', string.format('%.0f', now), member)
if #payload > LARGE_BYTES then
  call('ZADD', prefix .. 'large', #payload, member)
  call('HSET', prefix .. 'outlines', id, outline)
end
if due and due > now then
  call('ZADD', prefix .. 'scheduled', string.format('%.0f', due), member)
  call('HINCRBY', prefix .. 'counts', 'SCHEDULED\n' .. options.queue, 1)
  wake(nil)
else
  call('ZADD', prefix .. 'ready:' .. options.queue, string.format('%.0f', rank * BAND + number), member)
  call('ZADD', prefix .. 'queues', 0, options.queue)
  wake(options.queue)
end
return 1
