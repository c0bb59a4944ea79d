-- The queue's commands; __init__.py has the keys and the states. A call runs one command, whole or not at all:
--
--     EVALSHA … 1 queue  command data-pattern result-pattern status-pattern ttl  argument…  (some 8,000 at most)
--
-- Key names are built here rather than passed as KEYS, because only the command itself finds out which jobs a claim
-- meets. The queue therefore needs a single Redis, not a cluster.

local QUEUE, TTL = KEYS[1], tonumber(ARGV[5])
local HIGH, QUARANTINE, QUARANTINED_IN_FLIGHT = QUEUE .. ':high', QUEUE .. ':suspects', QUEUE .. ':suspect'
local JOBS, DEAD_LETTERS, WORKERS = QUEUE .. ':jobs', QUEUE .. ':dead', QUEUE .. ':workers'
local MAX_REMOVALS = 1000 -- of expired ids in one call, 5 to 15 ms: Redis serves nobody else meanwhile
local FINAL = {completed = true, failed = true, cancelled = true}
local call, commands, ended = redis.call, {}, {}

local function key_function(pattern)
  local before, after = pattern:match('^(.-){}(.*)$')
  return function(id) return before .. id .. after end
end
local data, result, status = key_function(ARGV[2]), key_function(ARGV[3]), key_function(ARGV[4])
local function meta(id) return QUEUE .. ':meta:' .. id end
local function heartbeat(worker) return QUEUE .. ':heartbeat:' .. worker end
local function processing(worker) return QUEUE .. ':processing:' .. worker end

-- The list that a job waits in.
local function waiting_list(id)
  local priority, deaths = unpack(call('HMGET', meta(id), 'priority', 'deaths'))
  return deaths and QUARANTINE or priority == 'high' and HIGH or QUEUE
end

local function now_us()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

-- Until it ends, a job lives as long as its data. `old` is nil when the status has expired or the job came from
-- redis-cli; then the status starts a new TTL.
local function set_status(id, new, old)
  if old then call('SET', status(id), new, 'KEEPTTL') else call('SET', status(id), new, 'EX', TTL) end
end

-- Ends a job that has not ended. The caller drops the claim afterwards: if anything fails here, the claim remains.
local function finish(id, old, outcome, body, delete_data)
  if FINAL[old or ''] then return end
  if outcome == 'completed' then
    call('SET', result(id), body, 'EX', TTL)
    call('DEL', meta(id))
    if delete_data then call('DEL', data(id)) end
  elseif outcome == 'failed' then
    call('HSET', meta(id), 'error', body)
    call('EXPIRE', meta(id), TTL)
    call('EXPIRE', data(id), TTL)
    call('LPUSH', DEAD_LETTERS, id)
    call('LTRIM', DEAD_LETTERS, 0, 9999)
  end
  call('SET', status(id), outcome, 'EX', TTL)
  ended[#ended + 1] = id
end

-- From when on a job with a context waits again, for its trace.
local function note_requeue(id)
  if call('HEXISTS', meta(id), 'context') == 1 then
    call('HSET', meta(id), 'requeued', string.format('%.0f', now_us()))
  end
end

-- Requeues a job that the worker holds. With a limit, counts under `field` (attempts or deaths); at the limit it fails.
local function requeue(worker, id, field, limit, error, to_the_back)
  if not call('LPOS', processing(worker), id) then return end
  local old = call('GET', status(id))
  if not FINAL[old or ''] then
    if field == 'attempts' then call('HSET', meta(id), 'alone', '1') end
    note_requeue(id)
    local times = limit > 0 and call('HINCRBY', meta(id), field, 1) or -1
    call('EXPIRE', meta(id), TTL)
    if times >= limit then
      finish(id, old, 'failed', error)
    else
      set_status(id, 'pending', old)
      call(to_the_back and 'LPUSH' or 'RPUSH', waiting_list(id), id)
    end
  end
  call('LREM', processing(worker), 1, id)
end

function commands.enqueue(id, body, priority, max_length, idempotency_key, context)
  local key = QUEUE .. ':once:' .. idempotency_key
  local digest = idempotency_key ~= '' and redis.sha1hex(priority .. body)
  local known = digest and call('GET', key)
  local first_id, first_digest = (known or ''):match('^(%S+) (%S+)$')
  if first_id and call('EXISTS', status(first_id)) == 1 then -- otherwise it has been discarded
    return {first_digest == digest and 'queued' or 'conflict', first_id}
  end
  if call('LLEN', QUEUE) + call('LLEN', HIGH) >= tonumber(max_length) then return {'full', ''} end
  if not call('SET', status(id), 'pending', 'NX', 'EX', TTL) then return {'taken', ''} end
  call('SET', data(id), body, 'EX', TTL)
  if priority == 'high' then call('HSET', meta(id), 'priority', priority) end
  if context ~= '' then call('HSET', meta(id), 'context', context) end
  call('EXPIRE', meta(id), TTL)
  local created = now_us()
  call('ZADD', JOBS, string.format('%.0f', created), id)
  local expired = call('ZCOUNT', JOBS, '-inf', string.format('%.0f', created - TTL * 1000000))
  if expired > 0 then call('ZREMRANGEBYRANK', JOBS, 0, math.min(expired, MAX_REMOVALS) - 1) end
  call('EXPIRE', JOBS, TTL)
  if digest then call('SET', key, id .. ' ' .. digest, 'EX', TTL) end
  call('LPUSH', priority == 'high' and HIGH or QUEUE, id)
  return {'queued', id}
end

function commands.heartbeat(worker, seconds)
  call('SET', heartbeat(worker), '1', 'EX', seconds)
  if not call('LPOS', WORKERS, worker) then call('LPUSH', WORKERS, worker) end
end

-- Returns what is taken (1: nothing yet, because it stopped at MAX_REMOVALS, and jobs may follow; 2: a quarantined job),
-- and id, data, context and, if the context has a trace, microseconds in the queue of each job in turn.
function commands.claim(worker, heartbeat_s, limit, reserved, overdue_s)
  commands.heartbeat(worker, heartbeat_s)
  local claims, taken, is_full, removed = processing(worker), {}, false, 0

  local function take(from, places)
    while places > 0 and not is_full and removed < MAX_REMOVALS do
      local id = call('LMOVE', from, claims, 'RIGHT', 'LEFT')
      if not id then return end
      -- A job whose batch has failed runs alone, so that it cannot fail others again.
      local is_alone, context, requeued = unpack(call('HMGET', meta(id), 'alone', 'context', 'requeued'))
      if is_alone and #taken > 0 then
        call('LMOVE', claims, from, 'LEFT', 'RIGHT')
        is_full = true
        return
      end
      local old, body = call('GET', status(id)), call('GET', data(id))
      if body and (not old or old == 'pending') then
        set_status(id, 'processing', old)
        local since = context and context:find(' ', 1, true) and (requeued or call('ZSCORE', JOBS, id))
        for _, part in ipairs({id, body, context or '', since and now_us() - since or 0}) do
          taken[#taken + 1] = part
        end
        places, is_full = places - 1, is_alone
      else -- cancelled, expired, or in the list twice
        if old == 'pending' then finish(id, old, 'failed', 'The input has expired') end
        call('LREM', claims, 1, id)
        removed = removed + 1
      end
    end
  end

  -- A quarantined job may kill again. Only one at a time is in flight, so that no innocent job shares its blame.
  local quarantined = call('GET', QUARANTINED_IN_FLIGHT)
  if not quarantined or call('GET', status(quarantined)) ~= 'processing' then
    take(QUARANTINE, 1)
    if #taken > 0 then
      call('SET', QUARANTINED_IN_FLIGHT, taken[1], 'EX', TTL)
      return {2, taken}
    end
  end

  limit, reserved = tonumber(limit), tonumber(reserved)
  local oldest = reserved > 0 and call('LINDEX', QUEUE, -1)
  local created = oldest and call('ZSCORE', JOBS, oldest)
  if created and now_us() - created > overdue_s * 1000000 then take(QUEUE, reserved) end
  take(HIGH, limit - #taken / 4)
  take(QUEUE, limit - #taken / 4)
  return {removed < MAX_REMOVALS and 0 or 1, taken}
end

function commands.finish(worker, outcome, delete_data, ...)
  local bodies = {...}
  for i = 1, #bodies, 2 do
    local id = bodies[i]
    finish(id, call('GET', status(id)), outcome, bodies[i + 1], delete_data == '1')
    call('LREM', processing(worker), -1, id)
  end
  return ended
end

function commands.requeue(worker, field, limit, error, to_the_back, ...)
  local ids = {...}
  for i = #ids, 1, -1 do requeue(worker, ids[i], field, tonumber(limit), error, to_the_back == '1') end
  return ended
end

-- Of a dead worker (limit > 0), or of one that stops. Its list starts with the newest id; the last one pushed is first.
function commands.deregister(worker, limit, error)
  limit = tonumber(limit)
  if limit > 0 and call('EXISTS', heartbeat(worker)) == 1 then return 0 end
  local claims = call('LRANGE', processing(worker), 0, -1)
  for _, id in ipairs(claims) do requeue(worker, id, limit > 0 and 'deaths' or '', limit, error) end
  call('LREM', WORKERS, 0, worker)
  call('DEL', heartbeat(worker))
  return #claims
end

function commands.cancel(id)
  local old = call('GET', status(id))
  if old == 'pending' then call('LREM', waiting_list(id), 1, id) end
  if old then finish(id, old, 'cancelled') end
  return old
end

function commands.redrive(id)
  if call('GET', status(id)) ~= 'failed' or call('EXISTS', data(id)) == 0 then return 0 end
  call('HDEL', meta(id), 'attempts', 'deaths', 'error')
  note_requeue(id)
  call('EXPIRE', data(id), TTL)
  call('SET', status(id), 'pending', 'EX', TTL)
  call('LPUSH', waiting_list(id), id)
  return call('LREM', DEAD_LETTERS, 0, id)
end

function commands.discard(id)
  local removed = call('LREM', DEAD_LETTERS, 0, id)
  if call('GET', status(id)) == 'failed' then
    call('DEL', status(id), data(id), meta(id))
    call('ZREM', JOBS, id)
  end
  return removed
end

function commands.stats()
  local claims, now = 0, now_us()
  local oldest = now
  for _, worker in ipairs(call('LRANGE', WORKERS, 0, -1)) do claims = claims + call('LLEN', processing(worker)) end
  for _, from in ipairs({QUEUE, HIGH, QUARANTINE}) do
    local id = call('LINDEX', from, -1)
    oldest = math.min(oldest, id and tonumber(call('ZSCORE', JOBS, id)) or oldest)
  end
  local normal = call('LLEN', QUEUE) + call('LLEN', QUARANTINE)
  return {normal, call('LLEN', HIGH), claims, call('LLEN', DEAD_LETTERS), call('LLEN', WORKERS), now - oldest}
end

-- A full Redis rejects commands that need memory, but not from a script that has already written. All commands but
-- enqueue therefore begin with a write that changes nothing, so that accepted jobs are finished.
if ARGV[1] ~= 'enqueue' then call('DEL', QUEUE .. ':nothing') end
local reply = commands[ARGV[1]](unpack(ARGV, 6))
if #ended > 0 then call('PUBLISH', QUEUE .. ':ended', table.concat(ended, ' ')) end
return reply
