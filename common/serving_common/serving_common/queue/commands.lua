-- The commands of queue.py, which has the keys and the states. A call runs one of them, whole or not at all:
--
--     EVALSHA … 1 queue  command data-pattern result-pattern status-pattern ttl  argument…  (some 8,000 at most)
--
-- Keys are made here and not passed as KEYS, because which jobs a claim meets is known only inside; so the queue wants
-- one Redis, not a cluster.

local Q, TTL = KEYS[1], tonumber(ARGV[5])
local HIGH, SUSPECTS, SUSPECT = Q .. ':high', Q .. ':suspects', Q .. ':suspect'
local JOBS, DEAD, WORKERS = Q .. ':jobs', Q .. ':dead', Q .. ':workers'
local FINAL = {completed = true, failed = true, cancelled = true}
local call, commands, ended = redis.call, {}, {}

local function named(pattern)
  local before, after = pattern:match('^(.-){}(.*)$')
  return function(name) return before .. name .. after end
end
local data, result, status = named(ARGV[2]), named(ARGV[3]), named(ARGV[4])
local function meta(id) return Q .. ':meta:' .. id end
local function heartbeat(worker) return Q .. ':heartbeat:' .. worker end
local function processing(worker) return Q .. ':processing:' .. worker end

-- Where a job waits.
local function list(id)
  local priority, deaths = unpack(call('HMGET', meta(id), 'priority', 'deaths'))
  return deaths and SUSPECTS or priority == 'high' and HIGH or Q
end

local function now()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

-- Until its end a job lives as long as its data; a status that somebody else has not set, or that has expired, is new.
local function set_status(id, value, was)
  if was then call('SET', status(id), value, 'KEEPTTL') else call('SET', status(id), value, 'EX', TTL) end
end

-- Ends a job, unless it has ended. The claim is dropped by the caller, after this: what fails here leaves it in place.
local function finish(id, was, outcome, body, delete_data)
  if FINAL[was or ''] then return end
  if outcome == 'completed' then
    call('SET', result(id), body, 'EX', TTL)
    if delete_data then call('DEL', data(id)) end
  elseif outcome == 'failed' then
    call('HSET', meta(id), 'error', body)
    call('EXPIRE', meta(id), TTL)
    call('EXPIRE', data(id), TTL)
    call('LPUSH', DEAD, id)
    call('LTRIM', DEAD, 0, 9999)
  end
  call('SET', status(id), outcome, 'EX', TTL)
  ended[#ended + 1] = id
end

-- Takes a job back from a worker, counting what has befallen it under `field`; one that has reached the limit fails.
local function requeue(worker, id, field, limit, error, to_the_back)
  if not call('LPOS', processing(worker), id) then return end
  local was = call('GET', status(id))
  if not FINAL[was or ''] then
    if field == 'attempts' then call('HSET', meta(id), 'alone', '1') end
    local times = limit > 0 and call('HINCRBY', meta(id), field, 1) or -1
    call('EXPIRE', meta(id), TTL)
    if times >= limit then
      finish(id, was, 'failed', error)
    else
      set_status(id, 'pending', was)
      call(to_the_back and 'LPUSH' or 'RPUSH', list(id), id)
    end
  end
  call('LREM', processing(worker), 1, id)
end

function commands.enqueue(id, body, priority, max_length, once)
  local key, digest = Q .. ':once:' .. once, once ~= '' and redis.sha1hex(priority .. body)
  local known = digest and call('GET', key)
  local first, same = (known or ''):match('^(%S+) (%S+)$')
  if first and call('EXISTS', status(first)) == 1 then -- else it has been purged
    return {same == digest and 'queued' or 'conflict', first}
  end
  if call('LLEN', Q) + call('LLEN', HIGH) >= tonumber(max_length) then return {'full', ''} end
  if not call('SET', status(id), 'pending', 'NX', 'EX', TTL) then return {'taken', ''} end
  call('SET', data(id), body, 'EX', TTL)
  if priority == 'high' then
    call('HSET', meta(id), 'priority', priority)
    call('EXPIRE', meta(id), TTL)
  end
  local created = now()
  call('ZADD', JOBS, string.format('%.0f', created), id)
  call('ZREMRANGEBYSCORE', JOBS, '-inf', string.format('%.0f', created - TTL * 1000000))
  call('EXPIRE', JOBS, TTL)
  if digest then call('SET', key, id .. ' ' .. digest, 'EX', TTL) end
  call('LPUSH', priority == 'high' and HIGH or Q, id)
  return {'queued', id}
end

function commands.beat(worker, seconds)
  call('SET', heartbeat(worker), '1', 'EX', seconds)
  if not call('LPOS', WORKERS, worker) then call('LPUSH', WORKERS, worker) end
end

function commands.claim(worker, heartbeat_s, limit, reserved, overdue_s)
  commands.beat(worker, heartbeat_s)
  local mine, taken, is_full = processing(worker), {}, false

  local function take(from, places)
    while places > 0 and not is_full do
      local id = call('LMOVE', from, mine, 'RIGHT', 'LEFT')
      if not id then return end
      -- A job whose batch has failed runs alone, so that it cannot take others with it again.
      local is_alone = call('HGET', meta(id), 'alone')
      if is_alone and #taken > 0 then
        call('LMOVE', mine, from, 'LEFT', 'RIGHT')
        is_full = true
        return
      end
      local was, body = call('GET', status(id)), call('GET', data(id))
      if body and (not was or was == 'pending') then
        set_status(id, 'processing', was)
        taken[#taken + 1] = id
        taken[#taken + 1] = body
        places, is_full = places - 1, is_alone
      else -- cancelled, expired, or there twice
        if was == 'pending' then finish(id, was, 'failed', 'The input has expired') end
        call('LREM', mine, 1, id)
      end
    end
  end

  -- What was in hand when something died may let it die again: no two of those are in hand at once, so that the others
  -- are not taken for its accomplices.
  local suspect = call('GET', SUSPECT)
  if not suspect or call('GET', status(suspect)) ~= 'processing' then
    take(SUSPECTS, 1)
    if #taken > 0 then
      call('SET', SUSPECT, taken[1], 'EX', TTL)
      return taken
    end
  end

  limit, reserved = tonumber(limit), tonumber(reserved)
  local oldest = reserved > 0 and call('LINDEX', Q, -1)
  local created = oldest and call('ZSCORE', JOBS, oldest)
  if created and now() - created > overdue_s * 1000000 then take(Q, reserved) end
  take(HIGH, limit - #taken / 2)
  take(Q, limit - #taken / 2)
  return taken
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

-- Of a dead worker (limit > 0), or of one that leaves: its list begins with the newest, and the last pushed is in front.
function commands.deregister(worker, limit, error)
  limit = tonumber(limit)
  if limit > 0 and call('EXISTS', heartbeat(worker)) == 1 then return 0 end
  local held = call('LRANGE', processing(worker), 0, -1)
  for _, id in ipairs(held) do requeue(worker, id, limit > 0 and 'deaths' or '', limit, error) end
  call('LREM', WORKERS, 0, worker)
  call('DEL', heartbeat(worker))
  return #held
end

function commands.cancel(id)
  local was = call('GET', status(id))
  if was == 'pending' then call('LREM', list(id), 1, id) end
  if was then finish(id, was, 'cancelled') end
  return was
end

function commands.redrive(id)
  if call('GET', status(id)) ~= 'failed' or call('EXISTS', data(id)) == 0 then return 0 end
  call('HDEL', meta(id), 'attempts', 'deaths', 'error')
  call('EXPIRE', data(id), TTL)
  call('SET', status(id), 'pending', 'EX', TTL)
  call('LPUSH', list(id), id)
  return call('LREM', DEAD, 0, id)
end

function commands.discard(id)
  local known = call('LREM', DEAD, 0, id)
  if call('GET', status(id)) == 'failed' then
    call('DEL', status(id), data(id), meta(id))
    call('ZREM', JOBS, id)
  end
  return known
end

function commands.stats()
  local held, at = 0, now()
  local oldest = at
  for _, worker in ipairs(call('LRANGE', WORKERS, 0, -1)) do held = held + call('LLEN', processing(worker)) end
  for _, from in ipairs({Q, HIGH, SUSPECTS}) do
    local id = call('LINDEX', from, -1)
    oldest = math.min(oldest, id and tonumber(call('ZSCORE', JOBS, id)) or oldest)
  end
  local normal = call('LLEN', Q) + call('LLEN', SUSPECTS)
  return {normal, call('LLEN', HIGH), held, call('LLEN', DEAD), call('LLEN', WORKERS), at - oldest}
end

-- Redis, when full, refuses what needs memory, but not to a script that has begun to write. So that the jobs that were
-- accepted are finished, all but new ones begin with a write that does nothing.
if ARGV[1] ~= 'enqueue' then call('DEL', Q .. ':nothing') end
local reply = commands[ARGV[1]](unpack(ARGV, 6))
if #ended > 0 then call('PUBLISH', Q .. ':ended', table.concat(ended, ' ')) end
return reply
