"""Failover: an address leads to the new primary, while the old one lives on as its replica and keeps its connections.

That is what hosters of Redis and MariaDB do for maintenance, and what a restart does not show: the pools' connections
stay open, and answer reads.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from sqlalchemy import Connection, NullPool, create_engine, text

from scripts.chaos.faults import Relay
from scripts.chaos.harness import POLL_S, ChaosRun
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.stack import DevStack, free_ports
from scripts.devstack.table import HOST, Pattern, mysql_process, redis_process
from serving_testing.processes import free_port

LIMIT_S = 5  # from the moment at which the address leads to the new primary
CAUGHT_UP_WITHIN_S = 60
SETTLE_S = 0.1  # far longer than a commit


@dataclass
class Pair:
    """Two servers, one of them the primary, and the address of the primary."""

    address: Relay
    ports: tuple[int, int]

    @property
    def primary(self) -> int:
        """Port of the primary."""
        return self.address.target_port

    @property
    def replica(self) -> int:
        """Port of the other server."""
        return next(port for port in self.ports if port != self.primary)

    async def fail_over(
        self,
        run: ChaosRun,
        target: str,
        promote: Callable[[int, int], Awaitable[None]],
        works: Callable[[], Awaitable[None]],
    ) -> None:
        """An incident: `promote` exchanges two ports' roles; as before once clients are served and `works` returns."""
        started = time.monotonic()
        await run.recovered(since=started)
        await works()
        usual_s = time.monotonic() - started  # on a slow machine, the same takes long without a fault
        async with run.incident("failover", target) as incident:
            new = self.replica
            await promote(self.primary, new)
            self.address.target_port = new
            await run.recovered(since=incident.end_fault())
            await works()
            incident.note = f"without a fault: {usual_s:.1f} s"
        if (incident.recovery_s or 0) > max(LIMIT_S, 2 * usual_s):
            run.fail(f"the failover of {target} took {incident.recovery_s:.1f} s; without a fault: {usual_s:.1f} s")


def with_redis_replica(pattern: Pattern) -> Pattern:
    """Redis on PORT_NN_PRIMARY and a second one on PORT_NN_REPLICA, so that PORT_NN_REDIS can be their address."""
    # What a replica is sent at first must be readable for `times_written`, too.
    options = (*pattern.process("redis").argv[5:], "--aof-use-rdb-preamble", "no", "--repl-diskless-sync-delay", "0")
    return pattern.without("redis").with_processes(
        redis_process(f"PORT_{pattern.number}_PRIMARY", 1, *options),
        redis_process(f"PORT_{pattern.number}_REPLICA", 1, *options, name="replica", folder="{state}/replica"),
    )


@asynccontextmanager
async def redis_pair(run: ChaosRun, pattern: Pattern) -> AsyncIterator[tuple[Pair, DevStack]]:
    """The pattern with two Redis behind one address; the second is a replica once `attach_redis` has made it one."""
    number, pattern = pattern.number, with_redis_replica(pattern)
    ports = free_ports([number], PATTERNS | {number: pattern})
    two = ports[f"PORT_{number}_PRIMARY"], ports[f"PORT_{number}_REPLICA"]
    async with Relay(free_port(), two[0]) as address:
        ports[f"PORT_{number}_REDIS"] = address.port
        async with run.stack(pattern, ports, {"HEARTBEAT_S": "1"}) as stack:
            yield Pair(address, two), stack


@asynccontextmanager
async def mariadb_pair(pattern: Pattern) -> AsyncIterator[tuple[Pair, Pattern, dict[str, int]]]:
    """An address, the pattern with two databases behind it, and its ports; `attach_mariadb` comes once they run."""
    primary, replica = f"PORT_{pattern.number}_PRIMARY", f"PORT_{pattern.number}_REPLICA"
    options = ("--log-bin", "--binlog-format=ROW", "--log-slave-updates")
    pattern = pattern.with_processes(
        mysql_process(primary, *options, f"--server-id={{{primary}}}"),
        mysql_process(replica, *options, f"--server-id={{{replica}}}", name="replica", folder="{state}/replica"),
    )
    ports = free_ports([pattern.number], PATTERNS | {pattern.number: pattern})
    async with Relay(free_port(), ports[primary]) as address:
        yield Pair(address, (ports[primary], ports[replica])), pattern, ports


async def attach_redis(primary: int, replica: int) -> None:
    """Make the second a replica of the first, with all its data."""
    async with Redis(port=replica) as redis:
        await redis.replicaof(HOST, str(primary))
        await _replication(redis, lambda state: state["master_link_status"] == "up")


async def promote_redis(old: int, new: int) -> None:
    """Exchange the two without losing a write: the old primary waits until its replica has everything."""
    async with Redis(port=old) as redis:
        # Refused before the replica's first acknowledgement, which comes after its link is up.
        await _replication(redis, lambda state: state.get("slave0", {}).get("state") == "online")
        await redis.execute_command("FAILOVER", "TO", HOST, new)  # type: ignore[no-untyped-call]
        await _replication(redis, lambda state: state["role"] == "slave")


async def _replication(redis: Redis, is_reached: Callable[[dict[str, Any]], bool]) -> None:
    """Return once INFO's section on replication is as wanted. Raises TimeoutError, with what it is."""
    deadline = time.monotonic() + CAUGHT_UP_WITHIN_S
    while not is_reached(state := await redis.info("replication")):
        if time.monotonic() > deadline:
            raise TimeoutError(f"Redis is not where it should be after {CAUGHT_UP_WITHIN_S} s: {state}")
        await asyncio.sleep(POLL_S)


async def attach_mariadb(primary: int, replica: int) -> None:
    """Make the second a read-only replica of the first."""

    def attach() -> None:
        with _administrator(replica) as connection:
            connection.execute(text("SET GLOBAL read_only = 1"))
            _follow(connection, primary)

    await asyncio.to_thread(attach)


async def promote_mariadb(old: int, new: int) -> None:
    """Exchange the two without losing a commit: the old primary is read-only before the new one is not any more."""

    def promote() -> None:
        with _administrator(old) as before, _administrator(new) as after:
            before.execute(text("SET GLOBAL read_only = 1"))
            position = _final_position(before)
            waited = text("SELECT MASTER_GTID_WAIT(:position, :seconds)")
            if after.scalar(waited, {"position": position, "seconds": CAUGHT_UP_WITHIN_S}) != 0:
                raise TimeoutError(f"the replica has not caught up within {CAUGHT_UP_WITHIN_S} s")
            for statement in ("STOP SLAVE", "RESET SLAVE ALL", "SET GLOBAL read_only = 0"):
                after.execute(text(statement))
            _follow(before, new)

    await asyncio.to_thread(promote)


def _final_position(connection: Connection) -> object:
    """That of a server that has become read-only: a commit that had begun still arrives, a lock only delays it."""
    position = None
    while position != (position := connection.scalar(text("SELECT @@gtid_binlog_pos"))):
        time.sleep(SETTLE_S)
    return position


def _administrator(port: int) -> Connection:
    url = f"mysql+pymysql://root@{HOST}:{port}"
    return create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect()


def _follow(connection: Connection, primary: int) -> None:
    source = f"MASTER_HOST = '{HOST}', MASTER_PORT = {primary}, MASTER_USER = 'root'"
    connection.execute(text(f"CHANGE MASTER TO {source}, MASTER_USE_GTID = current_pos, MASTER_CONNECT_RETRY = 1"))
    connection.execute(text("START SLAVE"))
