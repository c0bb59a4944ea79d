"""What /health and /health/ready ask the database, however busy the API's threads and connections are."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from serving_common.errors import Misconfigured, Unavailable
from src.configurations import ApiSettings
from src.constants import HEALTH_TIMEOUT_S
from src.db.database import Database, open_for_probes


class Probe:
    """One check of the database, on a thread and a connection of its own."""

    def __init__(self, settings: ApiSettings, check: Callable[[Database], None]) -> None:
        # Less than the probe waits, so that the thread is free again for the next one, and can say why.
        self._database = open_for_probes(settings, timeout_s=HEALTH_TIMEOUT_S - 0.2)
        self._executor = ThreadPoolExecutor(1)
        self._check = check

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._database.close()

    async def run(self) -> None:
        """Raises what the check raises; Unavailable after HEALTH_TIMEOUT_S."""
        loop = asyncio.get_running_loop()
        try:
            # A check that has not started by then is cancelled, so none pile up while the database hangs.
            await asyncio.wait_for(loop.run_in_executor(self._executor, self._check, self._database), HEALTH_TIMEOUT_S)
        except TimeoutError:
            raise Unavailable("The database does not answer") from None

    async def why_not(self) -> str | None:
        """The reason why the check fails, or None."""
        try:
            await self.run()
        except (Unavailable, Misconfigured) as exc:
            return str(exc)
        return None
