"""Pattern 06 with one thing changed for the benchmark: `sequential` (a proxy) or `slow` (a service of DELAY_S seconds).

Runs in the pattern's folder, with the repository's root on PYTHONPATH.
"""

import asyncio
import os
import sys
from typing import Any

from src.ml import predictor
from src.proxy import app as proxy
from src.proxy import fan_out
from src.proxy.backends import Backends, Call, Origin
from src.services import app as service


async def ask_in_turn(backends: Backends, call: Call[Any], origin: Origin) -> fan_out.Answers[Any]:
    return {name: await backend.ask(call, origin) for name, backend in backends.by_name.items()}


class SlowPredictor(predictor.Predictor):
    async def predict(self, rows: list[list[float]]) -> list[list[float]]:
        await asyncio.sleep(float(os.environ["DELAY_S"]))
        return await super().predict(rows)


match sys.argv[1]:
    case "sequential":
        fan_out.ask_all = ask_in_turn
        proxy.main()
    case "slow":
        predictor.Predictor = SlowPredictor
        service.main()
