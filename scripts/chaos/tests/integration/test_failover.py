"""A Redis that fails over: the address leads to the new primary, and the old one keeps its connections."""

from collections import Counter

import pytest
from redis.asyncio import Redis
from redis.exceptions import ReadOnlyError

from scripts.chaos.failover import Pair, attach_redis, promote_redis, with_redis_replica
from scripts.chaos.faults import Relay
from scripts.devstack.load import times_written
from scripts.devstack.stack import private_stack
from scripts.devstack.table import Pattern, by_number, redis_process
from serving_testing.processes import free_port

PATTERN = Pattern(number="70", title="", folder=".", processes=(redis_process("PORT_70_REDIS", 1),))


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_redis_fails_over_and_back_without_losing_or_repeating_a_write(tmp_path):
    async with private_stack(["70"], tmp_path, table=by_number([with_redis_replica(PATTERN)])) as stack:
        ports = stack.ports["PORT_70_PRIMARY"], stack.ports["PORT_70_REPLICA"]
        async with Relay(free_port(), ports[0]) as address:
            pair = Pair(address, ports)
            ids = ["000001", "000002", "000003", "000004"]
            async with Redis(port=address.port) as before:
                await before.set("result:000001", "1")
                await attach_redis(pair.primary, pair.replica)
                await before.set("result:000002", "2")
                for job_id in ids[2:]:
                    old = pair.primary
                    await promote_redis(old, pair.replica)
                    address.target_port = pair.replica
                    assert pair.primary != old
                    async with Redis(port=address.port) as after:
                        await after.set(f"result:{job_id}", "3")
                        assert await after.dbsize() == int(job_id)
                        if job_id == ids[2]:  # afterwards, `before` leads to the primary again
                            with pytest.raises(ReadOnlyError):
                                await before.set("result:000001", "5")
            assert times_written(tmp_path / "70", "result:{}", ids) == Counter(ids)
