"""The clients of a Swarm test: runs in a task of the stack, whose image has only Python's standard library.

The first line of stdin is a JSON object: `url`, `body` and `headers` of a POST that each client sends, every `pace_s`
seconds, `right`, which a correct response matches, and for a pattern with jobs `id`, which finds ids in a response,
`path` and `done`: where to look a job up, and what a finished one matches. The end of stdin stops the clients; then the
jobs are looked up, and the result is printed as JSON.
"""

import http.client
import json
import re
import sys
import threading
import time
from urllib.parse import urlsplit

CLIENTS = 4
TIMEOUT_S = 30
DONE_WITHIN_S = 180


class Client:
    """One connection, kept open as long as the server does, and what came over it."""

    def __init__(self, load: dict[str, str]) -> None:
        self.load = load
        self.address = urlsplit(load["url"])
        self.requests = 0
        self.failures: list[tuple[float, float, str]] = []
        """When each failed request started and ended, and how it failed."""
        self.ids: list[str] = []
        self.lost = 0
        self.connection = self.connect()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.address.hostname or "", self.address.port, timeout=TIMEOUT_S)

    def send(self, method: str, path: str, body: str | None = None) -> str:
        """The text of a 200. Raises OSError, HTTPException, ValueError."""
        headers = {"Content-Type": "application/json", **json.loads(self.load["headers"])}
        try:
            self.connection.request(method, path, body, headers)
            response = self.connection.getresponse()
            text = response.read().decode()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            self.connection = self.connect()
            raise
        if response.status != 200:
            raise ValueError(f"status {response.status}: {text[:200]}")
        return text

    def run(self, stopping: threading.Event) -> None:
        """Send requests, then look up what became of the jobs. No request is repeated: users see each failure."""
        while not stopping.wait(float(self.load["pace_s"])):
            self.requests += 1
            started = time.time()
            try:
                text = self.send("POST", self.address.path, self.load["body"])
                if not re.search(self.load["right"], text):
                    raise ValueError(f"wrong: {text[:200]}")
                if "id" in self.load:
                    self.ids += re.findall(self.load["id"], text)
            except (OSError, http.client.HTTPException, ValueError) as exc:
                self.failures.append((started, time.time(), f"{type(exc).__name__}: {exc}"))

        deadline = time.time() + DONE_WITHIN_S
        self.lost = sum(not self.is_done(job_id, deadline) for job_id in self.ids)

    def is_done(self, job_id: str, deadline: float) -> bool:
        while True:
            try:
                if re.search(self.load["done"], self.send("GET", self.load["path"].format(job_id))):
                    return True
            except (OSError, http.client.HTTPException, ValueError) as exc:
                print(f"{job_id}: {exc}", file=sys.stderr)
            if time.time() > deadline:
                return False
            time.sleep(0.5)


def main() -> None:
    load = json.loads(sys.stdin.readline())
    stopping, clients = threading.Event(), [Client(load) for _ in range(CLIENTS)]
    threads = [threading.Thread(target=client.run, args=(stopping,)) for client in clients]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stopping.set()
    for thread in threads:
        thread.join()
    result = {
        "requests": sum(client.requests for client in clients),
        "failures": sorted(failure for client in clients for failure in client.failures),
        "ids": [job_id for client in clients for job_id in client.ids],
        "lost": sum(client.lost for client in clients),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
