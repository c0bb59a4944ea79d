"""The job queue against a real Redis."""

import asyncio
import itertools
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import structlog
from redis.asyncio import Redis

from serving_common.errors import Conflict, InvalidInput, Overloaded, StartupError
from serving_common.queue.client import JobQueue
from serving_common.queue.types import POISON, Job, JobId, JobKeys, JobNotFound, JobStatus, Priority
from serving_common.queue.worker import Worker
from serving_common.redis import QueueUnavailable, RedisSettings, connect
from serving_testing.fixtures import redis as redis
from serving_testing.fixtures import redis_server as redis_server
from serving_testing.processes import free_port

KEYS = JobKeys("queue:predict")
IDS = int(os.environ.get("CHAOS_IDS", "10000"))
PENDING, PROCESSING, COMPLETED, FAILED, CANCELLED = JobStatus


@pytest.fixture
async def queue(redis: Redis) -> AsyncIterator[JobQueue]:
    queue = JobQueue(redis, KEYS)
    yield queue
    await queue.close()


@pytest.fixture
async def worker(redis: Redis) -> AsyncIterator[Worker]:
    worker = Worker(redis, KEYS, heartbeat_s=1)
    yield worker
    await worker.deregister()


async def enqueue(queue: JobQueue, *data: str, priority: Priority = Priority.NORMAL) -> list[JobId]:
    return [await queue.enqueue(each.encode(), priority) for each in data]


def data_of(jobs: list[Job]) -> list[str]:
    return [job.data.decode() for job in jobs]


async def status(queue: JobQueue, job_id: JobId) -> JobStatus:
    return (await queue.get(job_id)).status


async def run_all(worker: Worker) -> list[list[str]]:
    """Complete all waiting jobs; returns the data of each batch."""
    batches = []
    while jobs := await worker.claim(32, wait_s=0.05):
        await worker.complete([(job.id, b"r") for job in jobs])
        batches.append(data_of(jobs))
    return batches


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Polls, because Redis has no event for these conditions."""
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.02)


async def until_waiting(queue: JobQueue, jobs: int) -> None:
    async def are_waiting() -> bool:
        return (await queue.stats()).normal >= jobs

    await until(are_waiting)


class TestEnqueue:
    async def test_enqueue_writes_the_specified_keys(self, redis, queue):
        (job_id,) = await enqueue(queue, "[[1]]")

        assert len(job_id) == 6
        assert int(job_id, 16) >= 0
        assert await redis.lrange("queue:predict", 0, -1) == [job_id.encode()]
        assert await redis.get(f"job:{job_id}:data") == b"[[1]]"
        assert await redis.get(f"job:{job_id}:status") == b"pending"
        assert 86_000 < await redis.ttl(f"job:{job_id}:data") <= 86_400

    async def test_a_taken_id_is_drawn_again(self, queue, monkeypatch):
        drawn = iter(["aaaaaa", "aaaaaa", "aaaaaa", "bbbbbb"])
        monkeypatch.setattr(secrets, "token_hex", lambda _: next(drawn))

        assert await enqueue(queue, "1", "2") == ["aaaaaa", "bbbbbb"]
        assert await queue.data(JobId("aaaaaa")) == b"1"

    async def test_many_jobs_have_unique_ids(self, redis):
        queue = JobQueue(redis, KEYS, max_length=IDS)
        taken = [secrets.token_hex(3) for _ in range(200_000 - IDS)]
        for start in range(0, len(taken), 5000):
            keys = [KEYS.status.replace("{}", each) for each in taken[start : start + 5000]]
            await redis.eval("for _, key in ipairs(KEYS) do redis.call('SET', key, '', 'EX', 60) end", len(keys), *keys)

        async def enqueue_some() -> list[JobId]:
            return await enqueue(queue, *["1"] * (IDS // 16))

        drawn = list(itertools.chain.from_iterable(await asyncio.gather(*(enqueue_some() for _ in range(16)))))

        # Without the check, about 1,200 of 200,000 random ids of six hexadecimal characters would be duplicates.
        assert len(drawn) == len(set(drawn)) == await redis.llen("queue:predict")
        assert set(taken).isdisjoint(drawn)
        await redis.flushall()  # the fixture's check of every TTL would take longer than this test

    async def test_concurrent_enqueues_never_exceed_max_length(self, redis):
        queue = JobQueue(redis, KEYS, max_length=10)
        outcomes = await asyncio.gather(*(queue.enqueue(b"1") for _ in range(100)), return_exceptions=True)

        assert sum(isinstance(each, Overloaded) for each in outcomes) == 90
        assert await redis.llen("queue:predict") == 10

    async def test_a_full_queue_raises_overloaded(self, redis):
        queue = JobQueue(redis, KEYS, max_length=2)
        await enqueue(queue, "1")
        await enqueue(queue, "2", priority=Priority.HIGH)

        with pytest.raises(Overloaded, match="full"):
            await enqueue(queue, "3")

    async def test_a_repeated_idempotency_key_returns_the_same_job(self, queue):
        first, second = [await queue.enqueue(b"1", idempotency_key="k") for _ in range(2)]

        assert first == second
        assert (await queue.stats()).normal == 1
        with pytest.raises(InvalidInput) as refused:
            await queue.enqueue(b"2", idempotency_key="k")
        assert refused.value.errors[0]["field"] == "Idempotency-Key"

    async def test_discarding_a_job_frees_its_idempotency_key(self, queue, worker):
        discarded = await queue.enqueue(b"1", idempotency_key="k")
        await worker.claim(1)
        await worker.fail(discarded, "no")
        await queue.discard(discarded)

        again = await queue.enqueue(b"2", idempotency_key="k")
        assert await status(queue, again) is PENDING

    async def test_concurrent_requests_with_one_idempotency_key_create_one_job(self, queue):
        ids = await asyncio.gather(*(queue.enqueue(b"1", idempotency_key="k") for _ in range(50)))

        assert len(set(ids)) == 1
        assert (await queue.stats()).normal == 1

    async def test_enqueue_returns_an_id_only_after_redis_stored_the_job(self, redis, queue):
        await enqueue(queue, "warm")
        await redis.config_set("maxmemory", 1)
        try:
            with pytest.raises(QueueUnavailable):
                await enqueue(queue, "1")
        finally:
            await redis.config_set("maxmemory", 0)
        assert (await queue.stats()).normal == 1


class TestClaim:
    async def test_claim_is_first_come_first_served(self, redis, queue, worker):
        ids = await enqueue(queue, "1", "2", "3")

        assert data_of(await worker.claim(2)) == ["1", "2"]
        assert data_of(await worker.claim(2)) == ["3"]
        assert await status(queue, ids[0]) is PROCESSING
        assert await redis.lrange(f"queue:predict:processing:{worker.id}", 0, -1) == [i.encode() for i in ids[::-1]]

    @pytest.mark.parametrize("priority", Priority)
    async def test_claim_blocks_until_a_job_arrives(self, redis, queue, worker, priority):
        waiting = asyncio.create_task(worker.claim(32, wait_s=4))

        async def is_blocked() -> bool:
            return bool((await redis.info("clients"))["blocked_clients"])

        await until(is_blocked)
        await enqueue(queue, "1", priority=priority)

        assert data_of(await waiting) == ["1"]

    async def test_claim_returns_nothing_after_the_wait(self, worker):
        assert await worker.claim(32, wait_s=0.05) == []

    async def test_claim_takes_a_job_pushed_with_redis_cli(self, redis, queue, worker):
        await redis.set("job:a%b:data", "1", ex=60)
        await redis.lpush("queue:predict", "a%b")
        assert (await queue.stats()).normal == 1
        assert await status(queue, JobId("a%b")) is PENDING

        jobs = await worker.claim(32)
        await worker.complete([(jobs[0].id, b"done")])

        assert await redis.get("job:a%b:result") == b"done"

    async def test_get_finds_a_result_set_with_redis_cli(self, redis, queue):
        await redis.set("job:a%b:result", "done", ex=60)

        state = await queue.get(JobId("a%b"))
        assert (state.status, state.result) == (COMPLETED, b"done")

    async def test_claim_drops_an_id_without_data(self, redis, worker):
        await redis.lpush("queue:predict", "a1b2c3")

        assert await worker.claim(32, wait_s=0.05) == []
        assert await redis.llen(f"queue:predict:processing:{worker.id}") == 0

    async def test_a_job_with_expired_data_fails(self, redis, queue, worker):
        (job_id,) = await enqueue(queue, "1")
        await redis.delete(f"job:{job_id}:data")

        assert await worker.claim(32, wait_s=0.05) == []
        assert (await queue.get(job_id)).error == "The input has expired"

    async def test_high_priority_is_claimed_before_normal(self, queue, worker):
        await enqueue(queue, "n1", "n2")
        await enqueue(queue, "h1", "h2", priority=Priority.HIGH)

        assert data_of(await worker.claim(3)) == ["h1", "h2", "n1"]

    @pytest.mark.parametrize("limit", [1, 8])
    async def test_high_priority_does_not_starve_normal(self, redis, queue, limit):
        worker = Worker(redis, KEYS, overdue_s=0)
        await enqueue(queue, "normal")
        await enqueue(queue, *["high"] * 40, priority=Priority.HIGH)

        taken = []
        while "normal" not in taken:
            taken += data_of(await worker.claim(limit))

        assert len(taken) <= 8
        await worker.deregister()


class TestEnd:
    async def test_complete_stores_the_result_and_drops_the_claim(self, redis, queue, worker):
        (job_id,) = await enqueue(queue, "1")
        await worker.claim(1)

        assert await worker.complete([(job_id, b"r")]) == {job_id}

        state = await queue.get(job_id)
        assert (state.status, state.result) == (COMPLETED, b"r")
        assert (await queue.stats()).processing == 0

    async def test_the_claim_is_dropped_only_after_the_result_is_stored(self, redis, redis_server, queue, worker):
        (job_id,) = await enqueue(queue, "1")
        await worker.claim(1)
        rights = ["on", "nopass", "+@all", "&*", "~queue:*", "~job:*:data", "~job:*:status"]
        await redis.execute_command("ACL", "SETUSER", "no-results", *rights)
        async with Redis(port=redis_server.port, username="no-results", password="") as refused:
            restricted = Worker(refused, KEYS)
            restricted.id = worker.id
            with pytest.raises(QueueUnavailable):
                await restricted.complete([(job_id, b"r")])

        assert (await queue.stats()).processing == 1
        assert await worker.complete([(job_id, b"r")]) == {job_id}

    async def test_a_full_redis_rejects_new_jobs_and_finishes_accepted_ones(self, redis, queue, worker):
        first, second = await enqueue(queue, "1", "2")
        await worker.claim(1)
        await redis.config_set("maxmemory", 1)
        try:
            with pytest.raises(QueueUnavailable):
                await enqueue(queue, "3")
            assert await worker.complete([(first, b"r")]) == {first}
            assert data_of(await worker.claim(1)) == ["2"]
            await worker.fail(second, "no")
        finally:
            await redis.config_set("maxmemory", 0)

        assert [await status(queue, each) for each in (first, second)] == [COMPLETED, FAILED]

    async def test_a_read_only_redis_raises_queue_unavailable(self, redis, queue):
        await redis.replicaof("127.0.0.1", 1)
        try:
            with pytest.raises(QueueUnavailable):
                await enqueue(queue, "1")
        finally:
            await redis.replicaof("NO", "ONE")

    @pytest.mark.parametrize("data", [pytest.param(True, id="deleted"), pytest.param(False, id="kept")])
    async def test_delete_data_deletes_the_data_on_completion(self, redis, queue, data):
        worker = Worker(redis, KEYS, delete_data=data)
        (job_id,) = await enqueue(queue, "1")
        await worker.claim(1)
        await worker.complete([(job_id, b"r")])
        await worker.deregister()

        assert (await queue.data(job_id) is None) == data

    async def test_a_second_outcome_changes_nothing(self, queue, worker):
        (job_id,) = await enqueue(queue, "1")
        jobs = await worker.claim(1)
        await worker.complete([(job_id, b"first")])

        assert await worker.complete([(job_id, b"second")]) == set()
        await worker.fail(job_id, "late")
        await worker.requeue(jobs)

        assert (await queue.get(job_id)).result == b"first"
        assert (await queue.stats()).normal == 0

    async def test_cancel_a_pending_job(self, queue, worker):
        first, second = await enqueue(queue, "1", "2")
        await queue.cancel(first)

        assert await status(queue, first) is CANCELLED
        assert data_of(await worker.claim(2)) == ["2"]
        await worker.complete([(second, b"r")])
        with pytest.raises(Conflict, match="completed"):
            await queue.cancel(second)
        with pytest.raises(Conflict, match="cancelled"):
            await queue.cancel(first)
        with pytest.raises(JobNotFound):
            await queue.cancel(JobId("unknown"))

    async def test_cancel_a_job_in_flight(self, queue, worker):
        (job_id,) = await enqueue(queue, "1")
        await worker.claim(1)
        await queue.cancel(job_id)

        assert await worker.complete([(job_id, b"r")]) == set()
        assert (await queue.get(job_id)).result is None

    async def test_wait_returns_when_the_job_ends(self, redis, queue, worker):
        (job_id,) = await enqueue(queue, "1")
        await worker.claim(1)
        waiting = asyncio.create_task(queue.wait(job_id, 30))
        await until(redis.pubsub_channels)
        await worker.complete([(job_id, b"r")])

        async with asyncio.timeout(10):
            assert (await waiting).result == b"r"

    async def test_all_waiting_callers_share_one_connection(self, redis, queue, worker):
        (job_id,) = await enqueue(queue, "1")
        await worker.claim(1)
        waiting = [asyncio.create_task(queue.wait(job_id, 30)) for _ in range(200)]
        await until(redis.pubsub_channels)
        waiting.pop().cancel()
        assert [count for _, count in await redis.pubsub_numsub("queue:predict:ended")] == [1]
        await worker.complete([(job_id, b"r")])

        async with asyncio.timeout(10):
            assert {(await each).result for each in waiting} == {b"r"}

            async def is_unsubscribed() -> bool:
                return not await redis.pubsub_channels()

            await until(is_unsubscribed)

    async def test_wait_returns_after_the_timeout(self, queue):
        (job_id,) = await enqueue(queue, "1")

        assert (await queue.wait(job_id, 0.05)).status is PENDING
        with pytest.raises(JobNotFound):
            await queue.wait(JobId("unknown"), 1)


class TestFailures:
    async def test_requeued_jobs_return_to_the_front_in_order(self, queue, worker):
        await enqueue(queue, "1", "2", "3")
        await worker.requeue(await worker.claim(2))

        assert data_of(await worker.claim(3)) == ["1", "2", "3"]

    async def test_a_failed_batch_is_retried_one_job_at_a_time(self, queue, worker):
        await enqueue(queue, "1", "2", "3")
        await worker.retry(await worker.claim(2), "bad")

        assert [data_of(await worker.claim(32)) for _ in range(3)] == [["1"], ["2"], ["3"]]

    async def test_a_job_becomes_a_dead_letter_after_its_last_retry(self, queue, worker):
        (bad,) = await enqueue(queue, "bad")
        jobs = await worker.claim(1)
        await enqueue(queue, "good")
        tries = 1
        await worker.retry(jobs, "no")
        assert data_of(await worker.claim(1)) == ["good"]
        while jobs := await worker.claim(1, wait_s=0.05):
            tries += 1
            await worker.retry(jobs, "no")

        assert tries == 4
        state = await queue.get(bad)
        assert (state.status, state.error) == (FAILED, "no")
        assert await queue.dead_letters() == [bad]

    async def test_jobs_in_flight_beside_a_poison_job_complete(self, queue, worker):
        ids = await enqueue(queue, "innocent", "poison", "innocent")
        while not (await queue.get(ids[1])).status.is_final:
            claims = [await worker.claim(32, wait_s=0.05) for _ in range(3)]  # as by several concurrent tasks
            if any("poison" in data_of(jobs) for jobs in claims):
                await worker.quarantine([job for jobs in claims for job in jobs])
            else:
                await worker.complete([(job.id, b"r") for jobs in claims for job in jobs])
            await enqueue(queue, "later")
        await run_all(worker)

        assert [await status(queue, each) for each in ids] == [COMPLETED, FAILED, COMPLETED]

    async def test_a_paused_worker_cannot_change_finished_jobs(self, redis, queue, worker):
        paused = Worker(redis, KEYS)
        first, second = await enqueue(queue, "1", "2")
        jobs = await paused.claim(2)
        await redis.delete(f"queue:predict:heartbeat:{paused.id}")
        heartbeat = asyncio.create_task(worker.heartbeat_loop())
        await until_waiting(queue, 2)
        heartbeat.cancel()
        again = await worker.claim(1)

        assert await paused.complete([(first, b"paused")]) == {first}
        await paused.retry(jobs[1:], "late")
        assert (await queue.stats()).normal == 1
        assert await worker.complete([(job.id, b"again") for job in again]) == set()
        assert await run_all(worker) == [["2"]]
        assert (await queue.get(first)).result == b"paused"
        assert (await queue.get(second)).result == b"r"

    async def test_redrive_and_discard_of_dead_letters(self, redis, queue, worker):
        first, second = await enqueue(queue, "1", "2")
        for job in await worker.claim(2):
            await worker.fail(job.id, "no")

        assert await queue.redrive(first)
        assert not await queue.redrive(first)
        assert await status(queue, first) is PENDING
        assert await queue.discard(second)
        assert not await queue.discard(second)
        with pytest.raises(JobNotFound):
            await queue.get(second)
        assert await queue.dead_letters() == []

    async def test_expired_dead_letters_leave_the_list(self, redis, queue, worker):
        expired, kept = await enqueue(queue, "1", "2")
        for job in await worker.claim(2):
            await worker.fail(job.id, "no")
        await redis.delete(f"job:{expired}:status")

        assert await queue.dead_letters() == [kept]
        assert (await queue.stats()).dead_letters == 1

    async def test_a_dead_workers_jobs_return_to_the_front_in_order(self, redis, queue, worker):
        dead_worker = Worker(redis, KEYS, heartbeat_s=1)
        await enqueue(queue, "1", "2", "3")
        await dead_worker.claim(2)
        heartbeat = asyncio.create_task(worker.heartbeat_loop())
        await until_waiting(queue, 3)
        heartbeat.cancel()

        # Each alone, because one of them may have killed the worker.
        assert await run_all(worker) == [["1"], ["2"], ["3"]]
        assert worker.is_alive
        assert (await queue.stats()).workers == 1

    async def test_a_job_that_kills_three_workers_fails_as_poison(self, redis, queue, worker):
        poison, _ = await enqueue(queue, "poison", "good")
        heartbeat = asyncio.create_task(worker.heartbeat_loop())
        for _ in range(3):
            await until_waiting(queue, 2)
            dying = Worker(redis, KEYS)
            await dying.claim(32)
            await redis.delete(f"queue:predict:heartbeat:{dying.id}")

        state = await queue.wait(poison, 20)
        heartbeat.cancel()
        assert (state.status, state.error) == (FAILED, POISON)
        assert data_of(await worker.claim(32)) == ["good"]

    async def test_a_job_that_kills_the_model_server_three_times_fails_as_poison(self, queue, worker):
        (job_id,) = await enqueue(queue, "1")
        suspected = []
        for _ in range(3):
            [job] = await worker.claim(1)
            suspected.append(job.is_suspect)
            await worker.quarantine([job])

        assert suspected == [False, True, True]
        assert (await queue.get(job_id)).error == POISON

    async def test_deregister_requeues_claims_without_using_up_a_try(self, redis, queue, worker):
        stopping = Worker(redis, KEYS)
        await enqueue(queue, "1", "2", "3")
        await stopping.claim(2)
        await stopping.deregister()

        assert data_of(await worker.claim(3)) == ["1", "2", "3"]
        assert not stopping.is_alive

    async def test_a_claim_with_a_lost_reply_is_requeued(self, redis, queue, worker):
        await enqueue(queue, "1")
        await redis.lmove("queue:predict", f"queue:predict:processing:{worker.id}", "RIGHT", "LEFT")
        heartbeat = asyncio.create_task(worker.heartbeat_loop())
        await until_waiting(queue, 1)
        heartbeat.cancel()

        assert data_of(await worker.claim(1)) == ["1"]

    async def test_a_redis_restart_loses_no_job(self, redis_server, queue, worker):
        ids = await enqueue(queue, "1", "2")
        await worker.claim(1)
        heartbeat = asyncio.create_task(worker.heartbeat_loop())
        redis_server.kill()
        with pytest.raises(QueueUnavailable):
            await queue.get(ids[0])
        with pytest.raises(QueueUnavailable):
            await worker.claim(1)
        await asyncio.to_thread(redis_server.start)

        assert await worker.complete([(ids[0], b"r")]) == {ids[0]}
        assert data_of(await worker.claim(2)) == ["2"]
        heartbeat.cancel()


class TestOverview:
    async def test_pages_list_every_job_once_newest_first(self, queue):
        ids = await enqueue(queue, *"12345")

        listed, cursor = [], None
        while True:
            page, cursor = await queue.page(2, cursor)
            await enqueue(queue, "meanwhile")
            listed += [entry.id for entry in page]
            if cursor is None:
                break

        assert listed == ids[::-1]

    async def test_pages_filter_by_status(self, queue):
        ids = await enqueue(queue, *"12345")
        await queue.cancel(ids[1])
        await queue.cancel(ids[3])

        first, cursor = await queue.page(1, None, CANCELLED)
        second, cursor = await queue.page(1, cursor, CANCELLED)

        assert [entry.id for entry in first + second] == [ids[3], ids[1]]
        assert await queue.page(1, cursor, CANCELLED) == ([], None)

    async def test_stats_and_info(self, queue, worker):
        assert (await queue.stats()).oldest_age_s == 0
        await enqueue(queue, "1", "2", "3")
        await enqueue(queue, "4", priority=Priority.HIGH)
        taken = await worker.claim(2)
        await worker.fail(taken[0].id, "no")

        stats = await queue.stats()
        assert (stats.normal, stats.high, stats.processing, stats.dead_letters, stats.workers) == (2, 0, 1, 1, 1)
        assert stats.oldest_age_s > 0
        info = await queue.redis_info()
        assert info is not None
        assert info.keys > 0
        assert info.memory_bytes > 0


async def test_expired_jobs_are_removed_in_several_short_calls(redis):
    queue, worker = JobQueue(redis, KEYS, max_length=10_000), Worker(redis, KEYS)
    for start in range(0, 2500, 500):
        await redis.lpush("queue:predict", *(f"{start + each:06x}" for each in range(500)))
    job_id = await queue.enqueue(b"1")
    await redis.config_resetstat()

    assert [job.id for job in await worker.claim(1)] == [job_id]

    commands = await redis.info("commandstats")
    assert commands["cmdstat_evalsha"]["calls"] == 3
    assert commands["cmdstat_lrem"]["calls"] == 2500
    await worker.deregister()
    await redis.flushall()


async def test_a_claim_of_nothing_but_expired_jobs_ends(redis):
    worker = Worker(redis, KEYS)
    await redis.lpush("queue:predict", *(f"{each:06x}" for each in range(2000)))

    assert await worker.claim(1, wait_s=0.05) == []
    assert await redis.llen("queue:predict") == 0
    await worker.deregister()


async def test_one_enqueue_removes_a_limited_number_of_expired_jobs_from_the_listing(redis):
    queue = JobQueue(redis, KEYS)
    for start in range(0, 2500, 500):
        await redis.zadd("queue:predict:jobs", {f"{start + each:06x}": start + each for each in range(500)})

    left = []
    for _ in range(3):
        await queue.enqueue(b"1")
        left.append(await redis.zcard("queue:predict:jobs"))

    assert left == [1501, 502, 3]


async def test_a_redis_timeout_is_not_retried():
    connections = []
    server = await asyncio.start_server(lambda _, writer: connections.append(writer), "127.0.0.1", 0)
    settings = RedisSettings(redis_host="127.0.0.1", redis_port=server.sockets[0].getsockname()[1])
    async with server, connect(settings) as hanging:
        at_start = len(connections)
        with pytest.raises(QueueUnavailable):
            await JobQueue(hanging, KEYS).get(JobId("a1b2c3"))
        assert len(connections) == at_start + 1
        for writer in connections:
            writer.close()


async def test_waiting_callers_share_one_connection_failure(redis):
    async with connect(RedisSettings(redis_host="127.0.0.1", redis_port=free_port())) as unreachable:
        queue = JobQueue(unreachable, KEYS)
        with structlog.testing.capture_logs() as logs:
            waits = [queue.wait(JobId("a1b2c3"), 30) for _ in range(20)]
            outcomes = await asyncio.gather(*waits, return_exceptions=True)

    assert {type(each) for each in outcomes} == {QueueUnavailable}
    assert [line["event"] for line in logs] == ["redis_failed"]


async def test_a_rejected_password_raises_startup_error(redis, redis_server):
    await redis.config_set("requirepass", "right")
    try:
        with pytest.raises(StartupError, match="REDIS_PASSWORD"):
            async with connect(RedisSettings(redis_host="127.0.0.1", redis_port=redis_server.port)):
                pass
    finally:
        await redis.config_set("requirepass", "")
