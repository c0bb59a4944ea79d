"""kill -9 of a service under load: the others keep answering, and it rejoins soon after its restart."""

import threading
import time
from collections import Counter

import httpx
import pytest

SAMPLE = {"data": [[5.1, 3.5, 1.4, 0.2]]}
CLIENTS = 4
BACK_WITHIN_S = 5


class ContinuousLoad:
    """CLIENTS clients in closed loop, and counts of the responses."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopping = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.entries: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30, trust_env=False) as client:
            while not self._stopping.is_set():
                response = client.post("/predict", json=SAMPLE)
                self.statuses[response.status_code] += 1
                for name, entry in response.json().items():
                    self.entries[f"{name} {'error' if 'error' in entry else 'answered'}"] += 1

    def __enter__(self) -> "ContinuousLoad":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, entry: str, more: int = 20) -> None:
        """Return after `more` further entries of this kind."""
        goal, deadline = self.entries[entry] + more, time.monotonic() + 30
        while self.entries[entry] < goal:
            assert time.monotonic() < deadline, (entry, self.entries)
            time.sleep(0.01)


def test_killed_service_fails_alone_and_rejoins(system):
    if not system.processes:
        pytest.skip("the services are not local processes (test_compose.py covers containers)")
    with ContinuousLoad(system.proxy) as load:
        load.wait_for("versicolor answered")
        system.processes["versicolor"].popen.kill()
        load.wait_for("versicolor error")
        system.start("versicolor")  # returns when it is ready
        returned = time.monotonic()
        load.wait_for("versicolor answered", more=1)
        assert time.monotonic() - returned < BACK_WITHIN_S

    assert set(load.statuses) == {200}
    assert set(load.entries) == {"setosa answered", "virginica answered", "versicolor answered", "versicolor error"}
