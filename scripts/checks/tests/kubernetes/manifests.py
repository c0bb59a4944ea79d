"""Rendered manifests: kubectl renders them, and one class answers questions about an overlay."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import yaml

from scripts.checks.tests.kubernetes.facts import ROOT, Program, image_name

Document = dict[str, Any]
OVERLAYS = ("development", "production")
RUN = ROOT / ".run/kubernetes"
KUBECTL = RUN / "tools/bin/kubectl"
# Plain SafeLoader would be ten times slower, and is what there is without libyaml.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def render(folder: Path, kubectl: Path = KUBECTL) -> str:
    """What `kubectl apply -k` would send. Raises RuntimeError with kubectl's own words."""
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{folder}: {done.stderr.strip()}")
    return done.stdout


def parse(text: str) -> list[Document]:
    return [each for each in yaml.load_all(text, LOADER) if each]


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod, another namespace, or an address outside the cluster."""

    name: str
    labels: Mapping[str, str]
    ports: Mapping[str, int]
    namespace: str | None = None
    address: str | None = None


def outside(name: str) -> Peer:
    """A pod of another namespace."""
    return Peer(name, {}, {}, namespace=name)


def external(name: str, address: str) -> Peer:
    return Peer(name, {}, {}, address=address)


@dataclass(frozen=True)
class Overlay:
    """The objects of one overlay of a pattern."""

    number: str
    name: str
    documents: Sequence[Document]
    programs: Mapping[str, Program]

    def of(self, *kinds: str) -> list[Document]:
        return [each for each in self.documents if each["kind"] in kinds]

    def called(self, kind: str, name: str) -> Document | None:
        return next((each for each in self.of(kind) if each["metadata"]["name"] == name), None)

    @cached_property
    def workloads(self) -> list[tuple[Document, Document]]:
        """Whatever starts pods, and the template of its pods."""
        found = []
        for each in self.of("Deployment", "StatefulSet", "Job", "CronJob"):
            spec = each["spec"]["jobTemplate"]["spec"] if each["kind"] == "CronJob" else each["spec"]
            found.append((each, spec["template"]))
        return found

    @cached_property
    def containers(self) -> list[tuple[Document, Document, Document]]:
        """(workload, template, container), with init containers."""
        return [
            (workload, template, container)
            for workload, template in self.workloads
            for container in [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]
        ]

    @cached_property
    def served(self) -> list[tuple[Document, Document, Document, Program]]:
        """The containers that run a program of this repository."""
        return [
            (*each, self.programs[image])
            for each in self.containers
            if (image := image_name(each[2]["image"])) in self.programs
        ]

    @cached_property
    def pods(self) -> list[Peer]:
        return [
            Peer(workload["metadata"]["name"], labels_of(template), ports_of(template))
            for workload, template in self.workloads
        ]

    def allows(self, one: Peer, other: Peer, port: int) -> bool:
        """Whether the NetworkPolicies let `one` open a connection to `other`."""
        return all(
            self._allows(way, subject, peer, port, other)
            for way, subject, peer in (("egress", one, other), ("ingress", other, one))
            if subject.namespace is None and subject.address is None
        )

    def _allows(self, way: str, subject: Peer, peer: Peer, port: int, target: Peer) -> bool:
        policies = [
            each["spec"]
            for each in self.of("NetworkPolicy")
            if way.capitalize() in each["spec"]["policyTypes"] and selects(each["spec"]["podSelector"], subject.labels)
        ]
        return not policies or any(
            _names_port(rule, port, target) and _names_peer(rule.get("from" if way == "ingress" else "to"), peer)
            for spec in policies
            for rule in spec.get(way) or ()
        )


def _names_port(rule: Document, port: int, target: Peer) -> bool:
    if not rule.get("ports"):
        return True
    return any(target.ports.get(str(each["port"]), each["port"]) == port for each in rule["ports"])


def _names_peer(peers: list[Document] | None, peer: Peer) -> bool:
    if not peers:
        return True
    for each in peers:
        if block := each.get("ipBlock"):
            if peer.address and ip_address(peer.address) in ip_network(block["cidr"]):
                return True
        elif (namespaces := each.get("namespaceSelector")) is not None:
            labels = {"kubernetes.io/metadata.name": peer.namespace} if peer.namespace else {}
            if peer.namespace and selects(namespaces, labels) and selects(each.get("podSelector", {}), peer.labels):
                return True
        elif peer.namespace is None and peer.address is None and selects(each["podSelector"], peer.labels):
            return True
    return False


def selects(selector: Document, labels: Mapping[str, str | None]) -> bool:
    """Whether a label selector matches; an empty one matches everything."""
    for each in selector.get("matchExpressions") or ():
        value, operator = labels.get(each["key"]), each["operator"]
        if operator not in ("In", "Exists"):
            raise ValueError(f"the operator {operator} is not used here")
        if value is None or (operator == "In" and value not in each["values"]):
            return False
    return all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())


def labels_of(template: Document) -> dict[str, str]:
    return dict(template["metadata"].get("labels") or {})


def ports_of(template: Document) -> dict[str, int]:
    """Ports by name."""
    named = [each for container in template["spec"]["containers"] for each in container.get("ports", ())]
    return {each["name"]: each["containerPort"] for each in named}


def variables_of(container: Document) -> dict[str, str | None]:
    """The environment; None for what comes from elsewhere."""
    return {each["name"]: each.get("value") for each in container.get("env", ())}


def quantity(text: str | int) -> float:
    """`512Mi` in bytes, `500m` in CPUs."""
    text = str(text)
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "m": 1e-3}
    unit = next((each for each in units if text.endswith(each)), "")
    return float(text.removesuffix(unit)) * units.get(unit, 1)


def name_of(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def strings(value: Any) -> Iterator[str]:
    """Every string inside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for each in value.values() for text in strings(each))
    elif isinstance(value, list):
        yield from (text for each in value for text in strings(each))
