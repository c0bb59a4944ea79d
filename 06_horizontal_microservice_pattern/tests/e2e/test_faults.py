"""kill -9 of a service under load: nobody else notices, and it is back in the answers soon after it has returned."""

import threading
import time
from collections import Counter

import httpx
import pytest

SAMPLE = {"data": [[5.1, 3.5, 1.4, 0.2]]}
CLIENTS = 4
BACK_WITHIN_S = 5


class Load:
    """So many clients that ask without a pause, and what they were answered."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopping = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.entries: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30, trust_env=False) as client:
            while not self._stopping.is_set():
                response = client.post("/predict", json=SAMPLE)
                self.statuses[response.status_code] += 1
                for name, entry in response.json().items():
                    self.entries[f"{name} {'error' if 'error' in entry else 'answered'}"] += 1

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, entry: str, more: int = 20) -> None:
        """Returns when there are so many more entries of this kind."""
        goal, deadline = self.entries[entry] + more, time.monotonic() + 30
        while self.entries[entry] < goal:
            assert time.monotonic() < deadline, (entry, self.entries)
            time.sleep(0.01)


def test_a_killed_service_is_missed_by_nobody_else_and_comes_back(system):
    if not system.processes:
        pytest.skip("the services are not processes of this test; compose has a test of its own")
    with Load(system.proxy) as load:
        load.wait_for("versicolor answered")
        system.processes["versicolor"].popen.kill()
        load.wait_for("versicolor error")
        system.start("versicolor")  # returns when it is ready
        returned = time.monotonic()
        load.wait_for("versicolor answered", more=1)
        assert time.monotonic() - returned < BACK_WITHIN_S

    assert set(load.statuses) == {200}
    assert set(load.entries) == {"setosa answered", "virginica answered", "versicolor answered", "versicolor error"}
