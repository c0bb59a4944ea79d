import asyncio

import pytest
from starlette.responses import PlainTextResponse

from serving_testing.layers import measure


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def read_body(scope, receive, send):
    assert (await receive())["body"] == b"[1]"
    await PlainTextResponse("read")(scope, receive, send)


async def fail(scope, receive, send):
    await PlainTextResponse("broken", 500)(scope, receive, send)


async def test_apps_are_measured_in_turns():
    found = await measure({"constant": PlainTextResponse("all"), "reads": read_body}, b"[1]", rounds=2, connections=2)
    assert list(found) == ["constant", "reads"]
    assert all(0 < microseconds < 1e6 for microseconds in found.values())


async def test_a_response_other_than_200_is_an_error():
    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(measure({"fails": fail}, b"[1]", rounds=1), 10)
