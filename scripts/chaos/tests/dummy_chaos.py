"""Chaos runs of dummies: one that passes, and three that do not."""

import asyncio

import httpx

from scripts.devstack.faults import hanging, kill_and_wait
from scripts.devstack.runs import SkippedError
from scripts.devstack.stack import private_stack
from scripts.devstack.tests.dummies import DUMMIES


async def inject(run):
    if run.pattern.title == "skipped":
        raise SkippedError("no dummies here")
    async with (
        private_stack(["91" if run.pattern.title == "Pattern 91" else "90"], run.run_dir, table=DUMMIES) as stack,
        httpx.AsyncClient(base_url=stack.urls["PORT_90_GOOD"], timeout=10, trust_env=False) as client,
    ):
        good = stack.process("90-good")

        async def send(number):
            run.accepted += 1
            response = await run.request(client, "GET", "/env", blame="good")
            return "GET", None if isinstance(response, httpx.Response) else response

        async with run.clients(2, send):
            await BODIES[run.pattern.title](run, stack, good)


async def passes(run, stack, good):
    async with run.incident("kill -9", "good") as incident:
        await kill_and_wait(stack, good)
        await run.recovered(since=incident.started)
    async with run.incident("hang", "good", is_outage=False) as incident:
        async with hanging(good):
            await asyncio.sleep(0.2)
        await run.recovered(since=incident.end_fault())
    run.remarks.append("It was a dummy.")


async def blames_another(run, stack, good):
    """The violations blame a process that was up."""
    async with run.incident("kill -9", "parent") as incident:
        await kill_and_wait(stack, good)
        await run.recovered(since=incident.started)


async def never_recovers(run, stack, good):
    async with run.incident("hang", "good", within_s=0.3), hanging(good):
        await asyncio.sleep(60)


async def raises(run, stack, good):
    raise RuntimeError("the chaos module is wrong")


BODIES = {"passes": passes, "blames": blames_another, "stuck": never_recovers, "raises": raises}
