"""Proofs of dummies: one that holds, and three that do not."""

import asyncio

import httpx

from scripts.chaos.faults import RUN_DIR, back, hanging, kill, process
from scripts.chaos.proof import Problem
from scripts.devstack.stack import private_stack
from scripts.devstack.tests.dummies import DUMMIES


async def prove(proof):
    async with (
        private_stack([proof.number], RUN_DIR, table=DUMMIES) as stack,
        httpx.AsyncClient(base_url=stack.urls["PORT_90_GOOD"], timeout=10, trust_env=False) as client,
    ):
        good = process(stack, "90-good")

        async def ask(number):
            proof.accepted += 1
            try:
                await client.get("/env")
            except httpx.TransportError as exc:
                return "GET", Problem(repr(exc), blame="good")
            return "GET", None

        async with proof.clients(2, ask):
            await BODIES[proof.title](proof, good)


async def holds(proof, good):
    async with proof.incident("kill -9", "good") as incident:
        await back(good, kill(good))
        await proof.all_well(since=incident.started)
    async with proof.incident("hang", "good", is_outage=False) as incident:
        async with hanging(good):
            await asyncio.sleep(0.2)
        await proof.all_well(since=incident.is_over())
    proof.remarks.append("It was a dummy.")


async def blames_another(proof, good):
    """The answers that failed lay the blame on a process that was well."""
    async with proof.incident("kill -9", "parent") as incident:
        await back(good, kill(good))
        await proof.all_well(since=incident.started)


async def never_comes_back(proof, good):
    async with proof.incident("hang", "good", within_s=0.3), hanging(good):
        await asyncio.sleep(60)


async def breaks_off(proof, good):
    raise RuntimeError("the proof is wrong")


BODIES = {"holds": holds, "blames": blames_another, "stuck": never_comes_back, "breaks": breaks_off}
