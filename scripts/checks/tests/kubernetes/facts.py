"""What the manifests are checked against: settings, OpenAPI, metrics, compose files, Dockerfiles, diagrams."""

import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[4]
DESCRIBE = Path(__file__).with_name("describe.py")

# Image: its settings class, and the module whose create_app makes what it serves.
PROGRAMS = {
    "asynchronous/proxy": "ProxySettings=src.proxy.app",
    "asynchronous/worker": "WorkerSettings=src.worker.main",
    "batch/api": "ApiSettings=src.api.app",
    "batch/job": "JobSettings",
    "horizontal-microservice/proxy": "ProxySettings=src.proxy.app",
    "horizontal-microservice/service": "ServiceSettings=src.services.app",
    "sync-async/proxy": "ProxySettings=src.proxy.app",
    "sync-async/worker": "WorkerSettings=src.worker.main",
}
MODEL_SERVER = "synchronous-pattern-tf-serving"
UNITS = {"M": 2**20, "G": 2**30, "m": 2**20, "g": 2**30}

# A participant of the sequence diagrams: its pods. The client comes through the gateway.
PARTICIPANTS = {
    "client": "gateway", "client (gRPC or REST)": "gateway", "proxy": "proxy", "API": "api", "job": "job",
    "worker": "worker", "model server": "model-server", "TensorFlow Serving": "model-server", "Redis": "redis",
    "MySQL": "mysql", "setosa": "service-setosa", "versicolor": "service-versicolor", "virginica": "service-virginica",
}  # fmt: skip
# Arrows that the diagrams leave out: (from, to), with the port where it is not the first.
UNDRAWN = {
    "03": {("proxy", "model-server")},  # /health and /metadata
    "04": {("migrate", "mysql")},
}
STORES = {"redis": {6379, 6380}, "mysql": {3306}}
"""Ports of a store outside the cluster; inside it has the first."""


@dataclass(frozen=True)
class Program:
    """What an image is known to read, serve and need. Memory in bytes, times in seconds."""

    variables: frozenset[str]
    secrets: frozenset[str] = frozenset()
    defaults: dict[str, str] = field(default_factory=dict)
    ports: frozenset[int] = frozenset()
    paths: frozenset[str] = frozenset()
    metrics: frozenset[str] = frozenset()
    memory: float = 0
    cpus: float = 0
    stop_grace_s: float = 0


@functools.cache
def folder(number: str) -> Path:
    return next(ROOT.glob(f"{number}_*_pattern"))


@functools.cache
def programs(number: str) -> dict[str, Program]:
    """The programs of a pattern's compose file, by image without prefix and tag."""
    services = yaml.safe_load((folder(number) / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    of_image = {image_name(each.get("image", "")): each for each in reversed(services.values())}
    ours = {image: PROGRAMS[image] for image in of_image if image in PROGRAMS}
    described = describe(number, sorted(set(ours.values()))) if ours else {}
    known = {image: _program(of_image[image], described[name]) for image, name in ours.items()}
    if MODEL_SERVER in of_image:
        entrypoint = (folder("02") / "tf_serving_entrypoint.sh").read_text(encoding="utf-8")
        # The portable server, which takes its place, reads these two as well.
        variables = {*re.findall(r"\$\{(\w+)", entrypoint), "DRAIN_DELAY_S", "MODEL_SERVER_MAX_BODY_MEMORY"}
        monitoring = (folder("02") / "monitoring.config").read_text(encoding="utf-8")
        described = {"variables": variables, "paths": re.findall(r'path: "([^"]+)"', monitoring)}
        known[MODEL_SERVER] = _program(of_image[MODEL_SERVER], described)
    return known


def image_name(image: str) -> str:
    """`batch/api` of `${IMAGE_PREFIX:-}batch/api:${IMAGE_TAG:-1.1.0}` and of `example.com/team/batch/api:1.1.0`."""
    bare = re.sub(r"\$\{SERVING_RUNTIME:-([\w-]+)\}", r"\1", image)
    bare = re.sub(r"\$\{[^}]*\}", "", bare)
    bare = re.sub(r"(@[^@]*|:[^/:]*)$", "", bare)
    return next((known for known in (*PROGRAMS, MODEL_SERVER) if f"/{bare}".endswith(f"/{known}")), bare)


def describe(number: str, arguments: list[str]) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV")}
    command = [sys.executable, str(DESCRIBE), *arguments]
    printed = subprocess.run(command, cwd=folder(number), env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(printed.stdout.splitlines()[-1]))


def _program(service: dict[str, Any], described: dict[str, Any]) -> Program:
    dockerfile = ROOT / service["build"]["dockerfile"]
    ports = set(map(int, re.findall(r"\b(?:REST_API_)?PORT=(\d+)", dockerfile.read_text(encoding="utf-8"))))
    limits = service["deploy"]["resources"]["limits"]
    memory = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(limits["memory"]))
    return Program(
        variables=frozenset(described["variables"]),
        secrets=frozenset(described.get("secrets", ())),
        defaults=described.get("defaults", {}),
        ports=frozenset(ports),
        paths=frozenset(described.get("paths", ())),
        metrics=frozenset(described.get("metrics", ())),
        memory=float(memory[:-1]) * UNITS[memory[-1]],
        cpus=float(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(limits["cpus"]))),
        stop_grace_s=float(service["stop_grace_period"].removesuffix("s")),
    )


@functools.cache
def drawn_arrows(number: str) -> frozenset[tuple[str, str]]:
    """Who calls whom, in the sequence diagram of the pattern's README and in UNDRAWN."""
    text = (folder(number) / "README.md").read_text(encoding="utf-8")
    diagram = text.partition("```mermaid\nsequenceDiagram\n")[2].partition("```")[0]
    names = {key: re.sub(r" :\d+$", "", name) for key, name in re.findall(r"participant (\w+) as (.+)", diagram)}
    pods = {key: PARTICIPANTS.get(name) for key, name in names.items()}
    calls = {(pods[one], pods[other]) for one, other in re.findall(r"^\s*(\w+)->>(\w+):", diagram, re.M)}
    drawn = {(one, other) for one, other in calls if one and other and one != other}
    return frozenset(drawn | UNDRAWN.get(number, set()))
