"""Deploys patterns to a Docker Swarm, changes them under load, and counts what is lost: `make test-swarm`.

`python -m deploy.swarm 03 06` for some of them. It builds the images, and the models that each node's volume is filled
with. Needs `docker swarm init`, or the container lab, with which it makes a Swarm of three nodes by itself. Clients run
in a task of the stack. Exit code 0 if no request failed but during kills, and no job was lost.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from deploy.swarm.render import OUR_IMAGE, as_yaml, render
from scripts.devstack.load import times_written
from scripts.devstack.machine import described
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.patterns.sync_async import photograph_body
from scripts.devstack.stack import StackError, build_models
from scripts.devstack.steps import FLOWERS
from scripts.devstack.table import ROOT, Pattern
from scripts.devstack.terminal import parsed, parser_of_patterns

LAB = ROOT.parent / "shared/container-lab/swarm"
CLIENT = (Path(__file__).parent / "client.py").read_text(encoding="utf-8")
CLIENT_IMAGE = "python:3.13-slim"
SECRET = "of-a-swarm-test"  # noqa: S105
NAMESPACE = "com.docker.stack.namespace"
WITHIN_S = 300
# An empty volume takes over what the image has there, on each node.
MODELS_IMAGE = """\
FROM python:3.13-slim
COPY --chown=10001:10001 . /models/
USER 10001:10001
ENTRYPOINT ["true"]
"""
SETTLED_S = 2  # between two steps, so that failures fall into one of them
HEADER = """\
| pattern | requests | failed | broken by kills (tasks killed) | jobs accepted | lost | done twice |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |"""
FLOWER = json.dumps(FLOWERS["setosa"])


@dataclass(frozen=True)
class StackLoad:
    """What the clients of a pattern send (see client.py), and the service that is scaled from 1 to 4."""

    url: str
    body: Callable[[], str]
    right: str
    scaled: str
    jobs: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    pace_s: float = 0.05
    """Of each client."""


LOADS = {
    "02": StackLoad(
        "http://model_server:8501/v1/models/iris:predict",
        lambda: f'{{"instances": [{FLOWER}]}}',
        r'"predictions": ?\[\s*\[0\.9',
        "model_server",
        environment={"SERVING_RUNTIME": "portable"},
    ),
    "03": StackLoad(
        "http://proxy:8000/predict",
        lambda: f'{{"data": [{FLOWER}]}}',
        "job_id",
        "worker",
        {"id": r'"job_id": ?"(\w+)"', "path": "/job/{}?wait=10", "done": '"status": ?"completed"'},
        {"SERVING_RUNTIME": "portable", "RATE_LIMIT": ""},
    ),
    "04": StackLoad(
        "http://api:8000/data",
        lambda: f'{{"values": {FLOWER}}}',
        '"prediction": ?null',
        "job",
        {"id": r'"id": ?(\d+)', "path": "/data/{}", "done": r'"prediction": ?\{'},
        # A task that ends within Swarm's monitor of 10 s counts as a failed update.
        {"JOB_WAIT_SECONDS": "12"},
    ),
    "06": StackLoad(
        "http://proxy:9000/predict/label",
        lambda: f'{{"data": [{FLOWER}]}}',
        r'^\{"prediction": ?\{[^{}]*"setosa"[^{}]*\}\}$',  # nothing is missing
        "service_setosa",
    ),
    "07": StackLoad(
        "http://proxy:8000/predict",
        lambda: json.dumps(photograph_body()),
        r'"job_id": ?"\w+"',
        "worker",
        {"id": r'"job_id": ?"(\w+)"', "path": "/job/{}?wait=10", "done": r'"prediction": ?"\w'},
        {"NUM_WORKERS": "1"},  # a process with its model each: eight would not fit a small machine
        pace_s=2,  # two workers take half a second for an image
    ),
}


@dataclass
class Row:
    """A pattern's line of the report."""

    pattern: str
    title: str
    requests: int = 0
    failed: int = 0
    """While scaled, rolled, drained, and in between."""
    broken_by_kills: int = 0
    """While tasks were killed: the requests that were in flight there."""
    accepted: int | None = None
    """Jobs whose id was given out; None: the pattern has none."""
    lost: int | None = None
    twice: int | None = None
    kills: int = 0
    seconds: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def is_passed(self) -> bool:
        """Whether every column that must be 0 is 0, with work done."""
        return bool(self.requests) and not (self.failed or self.lost or self.twice)

    def as_markdown(self) -> str:
        if not self.requests:
            return f"| {self.pattern} {self.title} | not measured: {'; '.join(self.failures)} | - | - | - | - | - |"
        zeros = ["-" if each is None else f"**{each}**" for each in (self.lost, self.twice)]
        jobs = "-" if self.accepted is None else f"{self.accepted:,}"
        cells = [f"{self.pattern} {self.title}", f"{self.requests:,}", f"**{self.failed}**"]
        return f"| {' | '.join([*cells, f'{self.broken_by_kills} ({self.kills})', jobs, *zeros])} |"


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def run(*words: str, stdin: str | None = None, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """The output of a command. Raises RuntimeError with what the command said last, after printing all of it."""
    done = subprocess.run(words, input=stdin, env=env, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        say(f"{' '.join(words[:6])}: {done.stderr.strip()}")
        raise RuntimeError(f"{' '.join(words[:3])}: {done.stderr.strip().rpartition(chr(10))[2]}")
    return done.stdout.strip()


def docker(*words: str, **options: Any) -> str:
    return run("docker", *words, **options)


def lab_number(node: str) -> str:
    """The number of a node in the container lab, where each has an engine of its own; "1" is this one."""
    number = docker("node", "inspect", node, "--format", '{{index .Spec.Labels "lab"}}')
    return number if number.isdecimal() else "1"


def on_node(node: str, *words: str) -> str:
    """The output of a docker command on a node."""
    number = lab_number(node)
    return docker(*words) if number == "1" else run(str(LAB), "node", number, *words)


def copy_images(node: str, images: set[str]) -> None:
    """Bring images to a node of the lab, in one stream: they share most of their layers."""
    missing = images - set(on_node(node, "image", "ls", "--all", "--quiet", "--no-trunc").split())
    if missing:
        with subprocess.Popen(["docker", "save", *sorted(missing)], stdout=subprocess.PIPE) as saving:
            words = [str(LAB), "node", lab_number(node), "load", "--quiet"]
            subprocess.run(words, stdin=saving.stdout, stdout=subprocess.DEVNULL, check=True)


class Stack:
    """A deployed stack; Swarm removes it with all that it made."""

    def __init__(self, pattern: Pattern, load: StackLoad) -> None:
        self.pattern, self.load = pattern, load
        self.name = f"test-swarm-{pattern.number}"
        self.rolled: dict[str, str] = {}
        """The next image of each service of ours that runs all the time."""

    def build(self) -> None:
        """Build the pattern's images, those of 02 and 03 with the portable model server, and its models."""
        environ = {**os.environ, "SERVING_RUNTIME": "portable"}
        run("docker", "compose", "build", "--quiet", env=environ, cwd=ROOT / self.pattern.folder)
        asyncio.run(build_models(self.pattern.artifacts))

    def deploy(self) -> None:
        """Deploy with one task of the service that will be scaled, and return when all run.

        Images are named by id: Swarm looks for a name in a registry first, for 20 s where there is none.
        """
        stack = render(self.pattern, published=False)
        environ = {**os.environ, **self.load.environment, f"{self.load.scaled.upper()}_REPLICAS": "1"}
        services: dict[str, Any] = stack["services"]
        services["client"] = {
            "image": CLIENT_IMAGE,
            "command": ["sleep", "infinity"],
            "deploy": {"placement": {"constraints": ["node.role == manager"]}},
        }
        named = yaml.safe_load(docker("stack", "config", "-c", "-", stdin=as_yaml(stack), env=environ))["services"]
        images = set()
        for name, service in services.items():
            image = named[name]["image"]
            is_rolled = service["image"].startswith(OUR_IMAGE) and "replicas" in service["deploy"]
            if service["deploy"].get("mode") == "global-job":
                service["image"] = docker("build", "--quiet", "-f-", str(ROOT / "models/artifacts"), stdin=MODELS_IMAGE)
            else:
                service["image"] = docker("image", "inspect", image, "--format", "{{.Id}}")
            if is_rolled:
                words = ("build", "--quiet", "--label", "swarm-test=next", "-")
                self.rolled[name] = docker(*words, stdin=f"FROM {image}\n")
            if "constraints" not in service["deploy"].get("placement", {}):
                images |= {service["image"], self.rolled.get(name, service["image"])}
        for node in nodes()[1:]:
            copy_images(node, images)
        environ["SECRETS_VERSION"] = "test"
        for secret in stack.get("secrets", {}).values():
            name = secret["name"].replace("${SECRETS_VERSION:-1}", "test")
            docker("secret", "create", "--label", f"stack={self.name}", name, "-", stdin=SECRET)
        docker("stack", "deploy", "--resolve-image", "never", "-c", "-", self.name, stdin=as_yaml(stack), env=environ)
        self.converge()

    def converge(self) -> None:
        """Return when every service has its tasks. Raises TimeoutError."""

        def is_converged() -> bool:
            # "2/2", and of a job "0/3 (3/3 completed)"
            listed = docker("stack", "services", self.name, "--format", "{{.Replicas}}").splitlines()
            counts = [re.findall(r"(\d+)/(\d+)", line)[-1] for line in listed]
            return all(running == wanted for running, wanted in counts)

        wait_until(is_converged, f"{self.name} has all its tasks")

    def scale(self, replicas: int) -> None:
        docker("service", "scale", "--detach", f"{self.name}_{self.load.scaled}={replicas}")
        self.converge()

    def roll(self) -> None:
        """Move all services to their next images, as a release does. Raises RuntimeError if Swarm rolls one back."""
        for name, image in self.rolled.items():
            service = f"{self.name}_{name}"
            docker("service", "update", "--detach", "--no-resolve-image", "--image", image, service)

        def is_done() -> bool:
            services = [f"{self.name}_{name}" for name in self.rolled]
            states = docker("service", "inspect", *services, "--format", "{{.UpdateStatus.State}}").split()
            if set(states) - {"updating", "completed"}:
                raise RuntimeError(f"the updates of {services} ended as {states}")
            return set(states) == {"completed"}

        wait_until(is_done, f"{self.name} is updated")

    def kill(self) -> int:
        """SIGKILL to a task of each service; how many it were."""
        formatted = "{{.Status.State}} {{.NodeID}} {{.Status.ContainerStatus.ContainerID}}"
        for name in self.rolled:
            listed = docker("service", "ps", f"{self.name}_{name}", "--filter", "desired-state=running", "--quiet")
            tasks = [docker("inspect", task, "--format", formatted).split() for task in listed.split()]
            _, node, container = next(task for task in tasks if task[0] == "running")
            on_node(node, "kill", container)
            time.sleep(SETTLED_S)  # until Swarm has noticed
        self.converge()
        return len(self.rolled)

    def drain(self, node: str) -> None:
        """Take a node out of service until nothing of the stack is left on it, and back."""
        docker("node", "update", "--availability", "drain", node)
        try:
            wait_until(lambda: not self._containers(node, "--quiet"), f"node {node} is empty")
            self.converge()
        finally:
            docker("node", "update", "--availability", "active", node)

    def _containers(self, node: str, *options: str, service: str = "") -> list[str]:
        label = f"com.docker.swarm.service.name={self.name}_{service}" if service else f"{NAMESPACE}={self.name}"
        return on_node(node, "ps", "--filter", f"label={label}", *options).split()

    def local_container(self, service: str) -> str:
        """The container of a service that is pinned to this node."""
        return self._containers("self", "--quiet", service=service)[0]

    def times_stored_again(self, ids: Sequence[str]) -> int:
        """How many results were stored more than once, by the books of Redis or MySQL."""
        if self.pattern.number == "04":
            sums = "SELECT (SELECT SUM(predicted_rows) FROM batch_runs) - (SELECT SUM(is_predicted) FROM items)"
            command = f'MYSQL_PWD=$(cat $MYSQL_PASSWORD_FILE) mysql -u user -N -e "{sums}" sample_db'
            return int(docker("exec", self.local_container("mysql"), "sh", "-c", command))
        key = "job:{}:result" if self.pattern.number == "03" else "result:{}"
        with tempfile.TemporaryDirectory() as folder:
            docker("cp", f"{self.local_container('redis')}:/data", folder)
            return sum(times - 1 for times in times_written(Path(folder), key, ids).values())

    @contextmanager
    def clients(self) -> Iterator[dict[str, Any]]:
        """Clients that send requests all the time; their result is there afterwards."""
        first = {"url": self.load.url, "body": self.load.body(), "right": self.load.right, **self.load.jobs}
        first["pace_s"] = str(self.load.pace_s)
        first["headers"] = json.dumps({"X-API-Key": SECRET})
        words = ["docker", "exec", "--interactive", self.local_container("client"), "python", "-c", CLIENT]
        result: dict[str, Any] = {}
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("subprocess has made no pipes")
            process.stdin.write(json.dumps(first) + "\n")
            process.stdin.flush()
            try:
                yield result
            finally:
                process.stdin.close()
                result.update(json.loads(process.stdout.read()))

    def remove(self) -> None:
        """Remove the stack, its secrets and, on every node, its volumes."""
        docker("stack", "rm", self.name)
        everywhere = nodes()
        wait_until(lambda: not any(self._containers(node, "--all", "--quiet") for node in everywhere), "all is gone")
        for node in everywhere:
            for volume in on_node(
                node, "volume", "ls", "--quiet", "--filter", f"label={NAMESPACE}={self.name}"
            ).split():
                on_node(node, "volume", "rm", volume)
        for secret in docker("secret", "ls", "--quiet", "--filter", f"label=stack={self.name}").split():
            docker("secret", "rm", secret)


def nodes() -> list[str]:
    """The ids of all nodes, this one first."""
    this = docker("info", "--format", "{{.Swarm.NodeID}}")
    return [this, *(node for node in docker("node", "ls", "--quiet").split() if node != this)]


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Raises TimeoutError."""
    deadline = time.monotonic() + WITHIN_S
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {WITHIN_S} s: {what}")
        time.sleep(0.5)


def is_answering(stack: Stack) -> bool:
    with stack.clients() as result:
        time.sleep(stack.load.pace_s + 1)
    return bool(result["requests"]) and not result["failures"]


def measure(pattern: Pattern, load: StackLoad) -> Row:
    """Deploy, change everything under load, remove. A row without requests says why there are none."""
    row, stack, begun = Row(pattern.number, pattern.title), Stack(pattern, load), time.monotonic()
    try:
        stack.build()
        stack.deploy()
        wait_until(lambda: is_answering(stack), f"{stack.name} answers")
        say(f"{pattern.number} runs after {time.monotonic() - begun:.0f} s")
        with stack.clients() as result:
            time.sleep(SETTLED_S)
            for replicas in (4, 2):
                say(f"{load.scaled}: {replicas} tasks")
                stack.scale(replicas)
            say("another image of each service")
            stack.roll()
            time.sleep(SETTLED_S)
            say("kill -9 to a task of each service")
            killed_at = time.time()
            row.kills = stack.kill()
            replaced_at = time.time()
            time.sleep(SETTLED_S)
            if others := nodes()[1:]:
                say("drain a node")
                stack.drain(others[0])
            time.sleep(SETTLED_S)
        if load.jobs:
            row.accepted, row.lost = len(result["ids"]), result["lost"]
            row.twice = stack.times_stored_again(result["ids"])
        row.requests = result["requests"]
        unexplained = [
            f"{time.strftime('%H:%M:%S', time.localtime(started))}, after {ended - started:.1f} s: {text}"
            for started, ended, text in result["failures"]
            if ended < killed_at or started > replaced_at
        ]
        row.failed, row.broken_by_kills = len(unexplained), len(result["failures"]) - len(unexplained)
        row.failures = unexplained[:20]
    except (OSError, RuntimeError, StackError, StopIteration, ValueError, subprocess.CalledProcessError) as exc:
        row = replace(row, requests=0, failures=[f"{type(exc).__name__}: {exc}"])
    finally:
        stack.remove()
    row.seconds = round(time.monotonic() - begun)
    say(row.as_markdown())
    return row


@contextmanager
def swarm() -> Iterator[str]:
    """A Swarm: the one that is there, or one that the container lab makes for now; the reason if there is none."""
    if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True).returncode:
        yield "no Docker engine answers"
    elif docker("info", "--format", "{{.Swarm.ControlAvailable}}") == "true":
        yield ""
    elif LAB.exists() and os.geteuid() == 0:
        run(str(LAB), "up", "3")
        try:
            yield ""
        finally:
            run(str(LAB), "down")
    else:
        yield "this engine manages no Swarm (docker swarm init)"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 if every column that must be 0 is, and where there is no Swarm; 1 if not."""
    parser = parser_of_patterns(__doc__, LOADS)
    parser.add_argument("--output", type=Path, default=ROOT / "prove-results", help="folder for the results")
    options = parsed(parser, argv, LOADS)
    with swarm() as reason:
        if reason:
            say(f"SKIPPED: {reason}")
            return 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler)  # after either, the stack is removed
        rows = [measure(PATTERNS[each], LOADS[each]) for each in options.patterns]
        write(options.output / "swarm.json", rows, len(nodes()))
    for row in rows:
        for failure in row.failures:
            say(f"FAILED: {row.pattern} {failure}")
    return 0 if all(row.is_passed for row in rows) else 1


def write(path: Path, rows: Sequence[Row], count: int) -> None:
    """Print the table and write it, with every number; patterns not measured keep what the file says of them."""
    known = json.loads(path.read_text(encoding="utf-8"))["patterns"] if path.exists() else []
    found = {each["pattern"]: Row(**each) for each in known} | {row.pattern: row for row in rows if row.requests}
    everything = [found[number] for number in sorted(found)]
    content = {
        "machine": described(),
        "nodes": count,
        "requests": sum(row.requests for row in everything),
        "failed": sum(row.failed for row in everything),
        "rows": [row.as_markdown() for row in everything],
        "patterns": [asdict(row) for row in everything],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print("\n".join([HEADER, *(row.as_markdown() for row in rows)]))


if __name__ == "__main__":
    sys.exit(main())
