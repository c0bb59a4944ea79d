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
from serving_common.tasks import backoff_s
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


def seen(jobs: list[Job]) -> list[str]:
    return [job.data.decode() for job in jobs]


async def status(queue: JobQueue, job_id: JobId) -> JobStatus:
    return (await queue.get(job_id)).status


async def run_all(worker: Worker) -> list[list[str]]:
    """The batches in which a worker completes all that waits."""
    batches = []
    while jobs := await worker.claim(32, wait_s=0.05):
        await worker.complete([(job.id, b"r") for job in jobs])
        batches.append(seen(jobs))
    return batches


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Redis has no event for these conditions, so they are looked at again and again."""
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.02)


def nobody_listens(redis: Redis) -> Callable[[], Awaitable[bool]]:
    async def nobody() -> bool:
        return not await redis.pubsub_channels()

    return nobody


async def until_waiting(queue: JobQueue, jobs: int) -> None:
    async def are_back() -> bool:
        return (await queue.stats()).normal >= jobs

    await until(are_back)


class TestEnqueue:
    async def test_leaves_the_specified_keys(self, redis, queue):
        (job_id,) = await enqueue(queue, "[[1]]")

        assert len(job_id) == 6
        assert int(job_id, 16) >= 0
        assert await redis.lrange("queue:predict", 0, -1) == [job_id.encode()]
        assert await redis.get(f"job:{job_id}:data") == b"[[1]]"
        assert await redis.get(f"job:{job_id}:status") == b"pending"
        assert 86_000 < await redis.ttl(f"job:{job_id}:data") <= 86_400

    async def test_draws_again_when_an_id_is_taken(self, queue, monkeypatch):
        drawn = iter(["aaaaaa", "aaaaaa", "aaaaaa", "bbbbbb"])
        monkeypatch.setattr(secrets, "token_hex", lambda _: next(drawn))

        assert await enqueue(queue, "1", "2") == ["aaaaaa", "bbbbbb"]
        assert await queue.data(JobId("aaaaaa")) == b"1"

    async def test_no_two_of_many_jobs_share_an_id(self, redis):
        queue = JobQueue(redis, KEYS, max_length=IDS)
        crowd = [secrets.token_hex(3) for _ in range(200_000 - IDS)]
        for start in range(0, len(crowd), 5000):
            keys = [KEYS.status.replace("{}", each) for each in crowd[start : start + 5000]]
            await redis.eval("for _, key in ipairs(KEYS) do redis.call('SET', key, '', 'EX', 60) end", len(keys), *keys)

        async def some() -> list[JobId]:
            return await enqueue(queue, *["1"] * (IDS // 16))

        drawn = list(itertools.chain.from_iterable(await asyncio.gather(*(some() for _ in range(16)))))

        # Drawn without a look, of 200,000 ids of six hexadecimal characters 1,200 would be there twice on average.
        assert len(drawn) == len(set(drawn)) == await redis.llen("queue:predict")
        assert set(crowd).isdisjoint(drawn)
        await redis.flushall()  # a look at the TTL of each would take longer than all this

    async def test_no_more_than_fit_are_accepted_however_many_come_at_once(self, redis):
        queue = JobQueue(redis, KEYS, max_length=10)
        outcomes = await asyncio.gather(*(queue.enqueue(b"1") for _ in range(100)), return_exceptions=True)

        assert sum(isinstance(each, Overloaded) for each in outcomes) == 90
        assert await redis.llen("queue:predict") == 10

    async def test_refuses_when_the_queue_is_full(self, redis):
        queue = JobQueue(redis, KEYS, max_length=2)
        await enqueue(queue, "1")
        await enqueue(queue, "2", priority=Priority.HIGH)

        with pytest.raises(Overloaded, match="full"):
            await enqueue(queue, "3")

    async def test_the_same_idempotency_key_is_the_same_job(self, queue):
        first, second = [await queue.enqueue(b"1", idempotency_key="k") for _ in range(2)]

        assert first == second
        assert (await queue.stats()).normal == 1
        with pytest.raises(InvalidInput) as refused:
            await queue.enqueue(b"2", idempotency_key="k")
        assert refused.value.errors[0]["field"] == "Idempotency-Key"

    async def test_the_idempotency_key_of_a_purged_job_is_free_again(self, queue, worker):
        purged = await queue.enqueue(b"1", idempotency_key="k")
        await worker.claim(1)
        await worker.fail(purged, "no")
        await queue.discard(purged)

        again = await queue.enqueue(b"2", idempotency_key="k")
        assert await status(queue, again) is PENDING

    async def test_one_idempotency_key_many_times_at_once_is_one_job(self, queue):
        ids = await asyncio.gather(*(queue.enqueue(b"1", idempotency_key="k") for _ in range(50)))

        assert len(set(ids)) == 1
        assert (await queue.stats()).normal == 1

    async def test_an_id_is_given_out_only_once_redis_has_the_job(self, redis, queue):
        await enqueue(queue, "warm")
        await redis.config_set("maxmemory", 1)
        try:
            with pytest.raises(QueueUnavailable):
                await enqueue(queue, "1")
        finally:
            await redis.config_set("maxmemory", 0)
        assert (await queue.stats()).normal == 1


class TestClaim:
    async def test_takes_what_is_there_first_come_first_served(self, redis, queue, worker):
        ids = await enqueue(queue, "1", "2", "3")

        assert seen(await worker.claim(2)) == ["1", "2"]
        assert seen(await worker.claim(2)) == ["3"]
        assert await status(queue, ids[0]) is PROCESSING
        assert await redis.lrange(f"queue:predict:processing:{worker.id}", 0, -1) == [i.encode() for i in ids[::-1]]

    @pytest.mark.parametrize("priority", Priority)
    async def test_waits_for_the_first_job(self, redis, queue, worker, priority):
        waiting = asyncio.create_task(worker.claim(32, wait_s=4))

        async def is_blocked() -> bool:
            return bool((await redis.info("clients"))["blocked_clients"])

        await until(is_blocked)
        await enqueue(queue, "1", priority=priority)

        assert seen(await waiting) == ["1"]

    async def test_returns_nothing_when_nothing_comes(self, worker):
        assert await worker.claim(32, wait_s=0.05) == []

    async def test_takes_a_job_that_redis_cli_has_pushed(self, redis, queue, worker):
        await redis.set("job:a%b:data", "1", ex=60)
        await redis.lpush("queue:predict", "a%b")
        assert (await queue.stats()).normal == 1
        assert await status(queue, JobId("a%b")) is PENDING

        jobs = await worker.claim(32)
        await worker.complete([(jobs[0].id, b"done")])

        assert await redis.get("job:a%b:result") == b"done"

    async def test_finds_a_result_that_redis_cli_has_set(self, redis, queue):
        await redis.set("job:a%b:result", "done", ex=60)

        state = await queue.get(JobId("a%b"))
        assert (state.status, state.result) == (COMPLETED, b"done")

    async def test_drops_an_id_without_data(self, redis, worker):
        await redis.lpush("queue:predict", "a1b2c3")

        assert await worker.claim(32, wait_s=0.05) == []
        assert await redis.llen(f"queue:predict:processing:{worker.id}") == 0

    async def test_a_job_whose_data_has_expired_ends(self, redis, queue, worker):
        (job_id,) = await enqueue(queue, "1")
        await redis.delete(f"job:{job_id}:data")

        assert await worker.claim(32, wait_s=0.05) == []
        assert (await queue.get(job_id)).error == "The input has expired"

    async def test_high_goes_before_normal(self, queue, worker):
        await enqueue(queue, "n1", "n2")
        await enqueue(queue, "h1", "h2", priority=Priority.HIGH)

        assert seen(await worker.claim(3)) == ["h1", "h2", "n1"]

    @pytest.mark.parametrize("limit", [1, 8])
    async def test_high_does_not_starve_normal(self, redis, queue, limit):
        worker = Worker(redis, KEYS, overdue_s=0)
        await enqueue(queue, "normal")
        await enqueue(queue, *["high"] * 40, priority=Priority.HIGH)

        taken = []
        while "normal" not in taken:
            taken += seen(await worker.claim(limit))

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

    async def test_the_claim_is_dropped_only_once_the_result_is_stored(self, redis, redis_server, queue, worker):
        (job_id,) = await enqueue(queue, "1")
        await worker.claim(1)
        rights = ["on", "nopass", "+@all", "&*", "~queue:*", "~job:*:data", "~job:*:status"]
        await redis.execute_command("ACL", "SETUSER", "no-results", *rights)
        async with Redis(port=redis_server.port, username="no-results", password="") as refused:
            unable = Worker(refused, KEYS)
            unable.id = worker.id
            with pytest.raises(QueueUnavailable):
                await unable.complete([(job_id, b"r")])

        assert (await queue.stats()).processing == 1
        assert await worker.complete([(job_id, b"r")]) == {job_id}

    async def test_a_full_redis_takes_no_new_jobs_and_finishes_the_others(self, redis, queue, worker):
        first, second = await enqueue(queue, "1", "2")
        await worker.claim(1)
        await redis.config_set("maxmemory", 1)
        try:
            with pytest.raises(QueueUnavailable):
                await enqueue(queue, "3")
            assert await worker.complete([(first, b"r")]) == {first}
            assert seen(await worker.claim(1)) == ["2"]
            await worker.fail(second, "no")
        finally:
            await redis.config_set("maxmemory", 0)

        assert [await status(queue, each) for each in (first, second)] == [COMPLETED, FAILED]

    async def test_a_read_only_redis_is_unavailable(self, redis, queue):
        await redis.replicaof("127.0.0.1", 1)
        try:
            with pytest.raises(QueueUnavailable):
                await enqueue(queue, "1")
        finally:
            await redis.replicaof("NO", "ONE")

    @pytest.mark.parametrize("data", [pytest.param(True, id="deleted"), pytest.param(False, id="kept")])
    async def test_the_data_can_go_with_the_end(self, redis, queue, data):
        worker = Worker(redis, KEYS, delete_data=data)
        (job_id,) = await enqueue(queue, "1")
        await worker.claim(1)
        await worker.complete([(job_id, b"r")])
        await worker.deregister()

        assert (await queue.data(job_id) is None) == data

    async def test_what_comes_second_changes_nothing(self, queue, worker):
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
        assert seen(await worker.claim(2)) == ["2"]
        await worker.complete([(second, b"r")])
        with pytest.raises(Conflict, match="completed"):
            await queue.cancel(second)
        with pytest.raises(Conflict, match="cancelled"):
            await queue.cancel(first)
        with pytest.raises(JobNotFound):
            await queue.cancel(JobId("nobody"))

    async def test_cancel_a_job_in_hand(self, queue, worker):
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

    async def test_however_many_wait_they_need_one_connection(self, redis, queue, worker):
        (job_id,) = await enqueue(queue, "1")
        await worker.claim(1)
        waiting = [asyncio.create_task(queue.wait(job_id, 30)) for _ in range(200)]
        await until(redis.pubsub_channels)
        waiting.pop().cancel()
        assert [count for _, count in await redis.pubsub_numsub("queue:predict:ended")] == [1]
        await worker.complete([(job_id, b"r")])

        async with asyncio.timeout(10):
            assert {(await each).result for each in waiting} == {b"r"}
            await until(nobody_listens(redis))

    async def test_wait_returns_when_the_time_is_over(self, queue):
        (job_id,) = await enqueue(queue, "1")

        assert (await queue.wait(job_id, 0.05)).status is PENDING
        with pytest.raises(JobNotFound):
            await queue.wait(JobId("nobody"), 1)


class TestTrouble:
    async def test_given_back_jobs_are_first_again_and_in_order(self, queue, worker):
        await enqueue(queue, "1", "2", "3")
        await worker.requeue(await worker.claim(2))

        assert seen(await worker.claim(3)) == ["1", "2", "3"]

    async def test_a_failed_batch_is_run_again_one_by_one(self, queue, worker):
        await enqueue(queue, "1", "2", "3")
        await worker.retry(await worker.claim(2), "bad")

        assert [seen(await worker.claim(32)) for _ in range(3)] == [["1"], ["2"], ["3"]]

    async def test_a_job_that_fails_again_and_again_fails_for_good_behind_the_others(self, queue, worker):
        (bad,) = await enqueue(queue, "bad")
        jobs = await worker.claim(1)
        await enqueue(queue, "good")
        tries = 1
        await worker.retry(jobs, "no")
        assert seen(await worker.claim(1)) == ["good"]
        while jobs := await worker.claim(1, wait_s=0.05):
            tries += 1
            await worker.retry(jobs, "no")

        assert tries == 4
        state = await queue.get(bad)
        assert (state.status, state.error) == (FAILED, "no")
        assert await queue.dead_letters() == [bad]

    async def test_who_was_in_hand_beside_a_poison_job_is_not_taken_for_one(self, queue, worker):
        ids = await enqueue(queue, "innocent", "poison", "innocent")
        while not (await queue.get(ids[1])).status.is_final:
            in_hand = [await worker.claim(32, wait_s=0.05) for _ in range(3)]  # as by several tasks at once
            if any("poison" in seen(jobs) for jobs in in_hand):
                await worker.quarantine([job for jobs in in_hand for job in jobs])
            else:
                await worker.complete([(job.id, b"r") for jobs in in_hand for job in jobs])
            await enqueue(queue, "later")
        await run_all(worker)

        assert [await status(queue, each) for each in ids] == [COMPLETED, FAILED, COMPLETED]

    async def test_a_worker_that_was_only_paused_changes_nothing(self, redis, queue, worker):
        paused = Worker(redis, KEYS)
        first, second = await enqueue(queue, "1", "2")
        jobs = await paused.claim(2)
        await redis.delete(f"queue:predict:heartbeat:{paused.id}")
        living = asyncio.create_task(worker.heartbeat_loop())
        await until_waiting(queue, 2)
        living.cancel()
        again = await worker.claim(1)

        assert await paused.complete([(first, b"paused")]) == {first}
        await paused.retry(jobs[1:], "late")
        assert (await queue.stats()).normal == 1
        assert await worker.complete([(job.id, b"again") for job in again]) == set()
        assert await run_all(worker) == [["2"]]
        assert (await queue.get(first)).result == b"paused"
        assert (await queue.get(second)).result == b"r"

    async def test_a_failed_job_can_be_replayed_or_purged(self, redis, queue, worker):
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

    async def test_a_failed_job_that_has_expired_leaves_the_list(self, redis, queue, worker):
        expired, kept = await enqueue(queue, "1", "2")
        for job in await worker.claim(2):
            await worker.fail(job.id, "no")
        await redis.delete(f"job:{expired}:status")

        assert await queue.dead_letters() == [kept]
        assert (await queue.stats()).dead_letters == 1

    async def test_a_dead_workers_jobs_come_back_to_the_front_in_order(self, redis, queue, worker):
        dead = Worker(redis, KEYS, heartbeat_s=1)
        await enqueue(queue, "1", "2", "3")
        await dead.claim(2)
        living = asyncio.create_task(worker.heartbeat_loop())
        await until_waiting(queue, 3)
        living.cancel()

        # Each alone: one of them may be what killed the worker.
        assert await run_all(worker) == [["1"], ["2"], ["3"]]
        assert worker.is_alive
        assert (await queue.stats()).workers == 1

    async def test_a_job_that_kills_its_worker_three_times_is_poison(self, redis, queue, worker):
        poison, _ = await enqueue(queue, "poison", "good")
        living = asyncio.create_task(worker.heartbeat_loop())
        for _ in range(3):
            await until_waiting(queue, 2)
            dying = Worker(redis, KEYS)
            await dying.claim(32)
            await redis.delete(f"queue:predict:heartbeat:{dying.id}")

        state = await queue.wait(poison, 20)
        living.cancel()
        assert (state.status, state.error) == (FAILED, POISON)
        assert seen(await worker.claim(32)) == ["good"]

    async def test_a_job_that_kills_the_model_server_three_times_is_poison(self, queue, worker):
        (job_id,) = await enqueue(queue, "1")
        for _ in range(3):
            await worker.quarantine(await worker.claim(1))

        assert (await queue.get(job_id)).error == POISON

    async def test_leaving_gives_everything_back_and_uses_up_no_try(self, redis, queue, worker):
        leaving = Worker(redis, KEYS)
        await enqueue(queue, "1", "2", "3")
        await leaving.claim(2)
        await leaving.deregister()

        assert seen(await worker.claim(3)) == ["1", "2", "3"]
        assert not leaving.is_alive

    async def test_a_claim_whose_reply_was_lost_is_recovered(self, redis, queue, worker):
        await enqueue(queue, "1")
        await redis.lmove("queue:predict", f"queue:predict:processing:{worker.id}", "RIGHT", "LEFT")
        living = asyncio.create_task(worker.heartbeat_loop())
        await until_waiting(queue, 1)
        living.cancel()

        assert seen(await worker.claim(1)) == ["1"]

    async def test_a_restart_of_redis_loses_nothing(self, redis_server, queue, worker):
        ids = await enqueue(queue, "1", "2")
        await worker.claim(1)
        living = asyncio.create_task(worker.heartbeat_loop())
        redis_server.kill()
        with pytest.raises(QueueUnavailable):
            await queue.get(ids[0])
        with pytest.raises(QueueUnavailable):
            await worker.claim(1)
        await asyncio.to_thread(redis_server.start)

        assert await worker.complete([(ids[0], b"r")]) == {ids[0]}
        assert seen(await worker.claim(2)) == ["2"]
        living.cancel()


class TestOverview:
    async def test_pages_list_every_job_once_the_newest_first(self, queue):
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
        assert info.keys > 0
        assert info.memory_bytes > 0


def test_backoff_grows_and_is_random():
    waits = [{backoff_s(attempt) for _ in range(20)} for attempt in (0, 3, 100)]

    assert max(waits[0]) < min(waits[1]) < max(waits[2]) <= 2
    assert all(len(each) > 1 for each in waits)


async def test_a_silent_redis_is_not_waited_for_again():
    connections = []
    server = await asyncio.start_server(lambda _, writer: connections.append(writer), "127.0.0.1", 0)
    settings = RedisSettings(redis_host="127.0.0.1", redis_port=server.sockets[0].getsockname()[1])
    async with server, connect(settings) as silent:
        at_start = len(connections)
        with pytest.raises(QueueUnavailable):
            await JobQueue(silent, KEYS).get(JobId("a1b2c3"))
        assert len(connections) == at_start + 1
        for writer in connections:
            writer.close()


async def test_who_waits_without_redis_fails_together(redis):
    async with connect(RedisSettings(redis_host="127.0.0.1", redis_port=free_port())) as nowhere:
        queue = JobQueue(nowhere, KEYS)
        with structlog.testing.capture_logs() as logs:
            waits = [queue.wait(JobId("a1b2c3"), 30) for _ in range(20)]
            outcomes = await asyncio.gather(*waits, return_exceptions=True)

    assert {type(each) for each in outcomes} == {QueueUnavailable}
    assert [line["event"] for line in logs] == ["redis_failed"]


async def test_a_refused_password_is_an_error_at_the_start(redis, redis_server):
    await redis.config_set("requirepass", "right")
    try:
        with pytest.raises(StartupError, match="REDIS_PASSWORD"):
            async with connect(RedisSettings(redis_host="127.0.0.1", redis_port=redis_server.port)):
                pass
    finally:
        await redis.config_set("requirepass", "")
