"""Replicas of a process, and the client that sends its requests to those that are ready."""

import asyncio

import httpx

from scripts.chaos import draining
from scripts.chaos.draining import RoundRobin
from scripts.chaos.faults import replica_of
from scripts.devstack.patterns import PATTERNS, sync_async


def test_a_replica_has_ports_of_its_own_wherever_they_are_named():
    server = PATTERNS["02"].process("model_server")
    replica = replica_of(server, 1)
    assert replica.name == "model_server_1"
    assert [*replica.ports] == ["PORT_02_GRPC_1", "PORT_02_REST_1"]
    assert "--rest_api_port={PORT_02_REST_1}" in replica.argv
    assert replica.ready == "http://127.0.0.1:{PORT_02_REST_1}/v1/models/iris"


def test_requests_go_in_turn_to_the_replicas_that_were_ready_when_last_asked(monkeypatch):
    monkeypatch.setattr(draining, "KNOWN_FOR_S", 3600)  # on any machine
    health: dict[str, int | None] = {"one": 200, "two": 200}

    def answer(request: httpx.Request) -> httpx.Response:
        if (status := health[request.url.host]) is None:
            raise httpx.ConnectError("refused")
        return httpx.Response(status)

    async def checked(balancer: RoundRobin) -> list[str]:
        await balancer.check_all()
        return [await balancer.next() for _ in range(4)]

    async def scenario() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            balancer = RoundRobin(client, ["http://one", "http://two"])
            assert balancer.known_ready() == []
            assert sorted(await checked(balancer)) == ["http://one", "http://one", "http://two", "http://two"]
            for down in (503, None):
                health["two"] = down
                assert set(await checked(balancer)) == {"http://one"}
                assert balancer.known_ready() == ["http://one"]
            health["two"] = 200
            await balancer.check_all()
            assert len(balancer.known_ready()) == 2

    asyncio.run(scenario())


def test_bodies_are_read_only_when_the_models_have_been_built(monkeypatch, tmp_path):
    image = tmp_path / "sample.jpg"
    monkeypatch.setattr(sync_async, "PHOTOGRAPH", image)
    monkeypatch.setattr(draining, "redis_binary", lambda: "redis-server")
    (of_07,) = (service for service in draining.services() if service.number == "07")
    image.write_bytes(b"photograph")
    assert of_07.body() == {"image_data": "cGhvdG9ncmFwaA=="}
