"""Prints a pattern's stack for Docker Swarm, made from its compose files:

python -m deploy.swarm.render 06 | docker stack deploy -c - iris

`${…}` stays as it is: `docker stack deploy` fills it in from its own environment. What a service becomes depends only
on what its compose file says about it: one that others wait for until it has completed is a job, one of another's image
holds state, and one published on all addresses is the entry.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING, Any

import yaml

from scripts.devstack.patterns import PATTERNS
from scripts.devstack.table import ROOT, Pattern

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Service = dict[str, Any]

DRAIN_S = 5
"""From the end of a task's DNS record to the last client that still uses it."""
OUR_IMAGE = "${IMAGE_PREFIX:-}"
OWN_MODEL = "/own_model"
KEPT = {
    *("image", "user", "entrypoint", "command", "environment", "secrets", "volumes", "healthcheck"),
    *("read_only", "cap_drop", "logging", "stop_grace_period"),
}
DROPPED = {
    "build": "nodes pull images",
    "cpu_shares": "stack deploy has only limits and reservations",
    "depends_on": "Swarm starts all at once; what lacks a neighbour waits or is started again",
    "develop": "for docker compose watch",
    "profiles": "",
    "pull_policy": "",
    "restart": "see restart_policy",
    "security_opt": "stack deploy ignores it; no-new-privileges can be made the default of each engine",
}


def render(pattern: Pattern, *, published: bool = True) -> dict[str, Any]:
    """The stack of a pattern, as `docker stack deploy` takes it.

    Args:
        pattern: whose folder has the compose files.
        published: whether the entry's ports are published, by Swarm's routing mesh; if not, only the stack reaches it.

    Raises:
        ValueError: a compose file says something that this function does not know.
    """
    compose = _merged(pattern)
    services = {name: each for name, each in compose["services"].items() if "profiles" not in each}
    jobs = {
        name
        for each in services.values()
        for name, condition in each.get("depends_on", {}).items()
        if condition["condition"] == "service_completed_successfully"
    }
    stack = {
        "version": "3.13",
        "services": {name: _service(name, each, name in jobs, published) for name, each in services.items()},
        "volumes": {name: volume or {} for name, volume in compose.get("volumes", {}).items()},
        "secrets": {
            # Swarm cannot change a secret: a new one gets a new name, and the services move to it one by one.
            name: {"external": True, "name": f"{pattern.name}_{name}_${{SECRETS_VERSION:-1}}"}
            for name in compose.get("secrets", {})
        },
    }
    return {key: value for key, value in stack.items() if value}


def _merged(pattern: Pattern) -> dict[str, Any]:
    """The compose file, with that of the secrets laid over it."""
    folder = ROOT / pattern.folder
    text = (folder / "docker-compose.yml").read_text(encoding="utf-8")
    # Nodes have no folder of the user's own models, and no service mounts it.
    text = re.sub(r"\$\{(ASYNC_)?MODEL:\+[^}]*\}", "", text)
    text = re.sub(r"\$\{(?:ASYNC_)?MODEL:-([^}]*)\}", r"\1", text)
    compose: dict[str, Any] = yaml.safe_load(text)
    for service in compose["services"].values():
        service["volumes"] = [each for each in service.get("volumes", []) if OWN_MODEL not in str(each)]
        service["environment"] = {
            name: value for name, value in service.get("environment", {}).items() if value is not None
        }
    overlay_path = folder / "docker-compose.secrets.yml"
    if overlay_path.exists():
        overlay = yaml.safe_load(overlay_path.read_text(encoding="utf-8"))
        for name, added in overlay["services"].items():
            service = compose["services"][name]
            # An empty value only takes away the one below it. Copied: YAML's anchors share their objects.
            environment = {**service.get("environment", {}), **added["environment"]}
            environment = {key: value for key, value in environment.items() if added["environment"].get(key) != ""}
            compose["services"][name] = {**service, "environment": environment, "secrets": added["secrets"]}
        compose["secrets"] = overlay["secrets"]
    return compose


def _service(name: str, compose: Service, is_job: bool, published: bool) -> Service:
    if unknown := compose.keys() - KEPT - DROPPED.keys() - {"deploy", "ports", "tmpfs"}:
        raise ValueError(f"{name}: render.py does not know {', '.join(sorted(unknown))}")
    service: Service = {key: value for key, value in compose.items() if key in KEPT}
    # `tmpfs:` is another key that stack deploy ignores, without a word.
    if mounts := [{"type": "tmpfs", "target": target} for target in compose.get("tmpfs", [])]:
        service["volumes"] = [*service.get("volumes", []), *mounts]
    is_ours = service["image"].startswith(OUR_IMAGE)
    entry_ports = [port for port in compose.get("ports", []) if "127.0.0.1" not in port]
    deploy: Service = {key: value for key, value in compose.get("deploy", {}).items() if key == "resources"}
    if is_job:
        # On every node, also on those that join later: named volumes are a node's own.
        service["deploy"] = deploy | {
            "mode": "global-job",
            "restart_policy": {"condition": "on-failure", "delay": "5s"},
        }
        return service
    deploy["endpoint_mode"] = "dnsrr"
    deploy["restart_policy"] = {"condition": "any", "delay": "2s"}
    if is_ours:
        order = {"order": "start-first", "parallelism": 1, "failure_action": "pause"}
        deploy["replicas"] = f"${{{name.upper()}_REPLICAS:-2}}"
        deploy["update_config"] = {**order, "monitor": "10s", "failure_action": "rollback"}
        deploy["rollback_config"] = order
        # Swarm kills what is unhealthy: a process that misses its neighbour, or is slow on a busy node, must not be.
        # What is not said here is as in the image.
        service["healthcheck"] = {"timeout": "15s", "retries": 6}
        service["environment"] = {**service.get("environment", {}), "HEALTH_PATH": "/health/live"}
        if compose.get("ports"):
            service["environment"]["DRAIN_DELAY_S"] = DRAIN_S
            service["stop_grace_period"] = f"{int(service['stop_grace_period'].removesuffix('s')) + DRAIN_S}s"
        if entry_ports and published:
            service["ports"] = [re.sub(r"^\$\{\w+_BIND:[^}]*\}:", "", port) for port in entry_ports]
            deploy["endpoint_mode"] = "vip"  # the routing mesh needs it
    else:
        # Its volume does not follow it to another node.
        deploy["replicas"] = 1
        deploy["placement"] = {"constraints": ["${STATE_NODE:-node.role == manager}"]}
        deploy["update_config"] = {"order": "stop-first"}
    return service | {"deploy": deploy}


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Scripts stay readable: text of several lines is a literal block."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def as_yaml(stack: Mapping[str, Any]) -> str:
    """The stack as text, the same for the same compose files."""
    without_anchors = json.loads(json.dumps(stack))
    text: str = yaml.dump(without_anchors, Dumper=_Dumper, sort_keys=False, width=200)
    return text


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", choices=PATTERNS)
    parser.add_argument(
        "--internal", action="store_true", help="publish nothing: a gateway in the stack's network does"
    )
    options = parser.parse_args(argv)
    sys.stdout.write(as_yaml(render(PATTERNS[options.pattern], published=not options.internal)))


if __name__ == "__main__":
    main()
