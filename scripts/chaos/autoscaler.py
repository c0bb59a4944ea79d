"""How many replicas KEDA and the HorizontalPodAutoscaler give a workload, by the ScaledObject's own file.

KEDA hands each trigger's value to the autoscaler, whose algorithm is published: kubernetes.io, "Horizontal Pod
Autoscaling", and in its source `horizontal.go`. With minReplicaCount 1 the autoscaler alone decides: pollingInterval
and cooldownPeriod govern only the way from and to 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from scripts.devstack.table import ROOT

SCALED_OBJECT = ROOT / "deploy/kubernetes/components/keda/scaledobject.yaml"
SYNC_S = 15  # of the autoscaler: --horizontal-pod-autoscaler-sync-period
TOLERANCE = 0.1  # --horizontal-pod-autoscaler-tolerance


def scaled_object(path: Path = SCALED_OBJECT) -> dict[str, Any]:
    """The ScaledObject in a file of manifests."""
    documents = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    return next(each for each in documents if each["kind"] == "ScaledObject")


@dataclass(frozen=True, slots=True)
class Trigger:
    """One metric, and how much of it one replica is for."""

    metric: str
    target: float
    is_age: bool


@dataclass
class Autoscaler:
    """The replicas that a ScaledObject asks for; `now` in its own seconds."""

    triggers: Sequence[Trigger]
    least: int
    most: int
    behavior: Mapping[str, Any]
    _recommended: list[tuple[float, int]] = field(default_factory=list)
    _changed: list[tuple[float, int]] = field(default_factory=list)

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Self:
        """Raises ValueError for what this driver does not follow."""
        if spec["minReplicaCount"] < 1 or any(each["metricType"] != "AverageValue" for each in spec["triggers"]):
            raise ValueError("minReplicaCount must be at least 1, and every metricType AverageValue")
        metadata = [trigger["metadata"] for trigger in spec["triggers"]]
        found = [(each["valueLocation"], float(each["targetValue"])) for each in metadata]
        triggers = [Trigger(name, target, name.endswith("_age_seconds")) for name, target in found]
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        return cls(triggers, spec["minReplicaCount"], spec["maxReplicaCount"], behavior)

    def formula(self, current: int, values: Sequence[float | None]) -> int | None:
        """ceil(value / target) of the trigger that asks for most; None while it cannot be known.

        A value that is missing is no 0: if one is, the others can only scale out.
        """
        wanted = [
            current if abs(value / (trigger.target * current) - 1) <= TOLERANCE else math.ceil(value / trigger.target)
            for trigger, value in zip(self.triggers, values, strict=True)
            if value is not None
        ]
        if not wanted or (None in values and max(wanted) < current):
            return None
        return min(max(max(wanted), self.least), self.most)

    def replicas(self, now: float, current: int, values: Sequence[float | None]) -> int:
        """The formula, stabilised, and no faster than the policies allow."""
        wanted = self.formula(current, values)
        if wanted is None:
            return current
        self._recommended.append((now, wanted))
        up, down = self.behavior["scaleUp"], self.behavior["scaleDown"]
        lowest = min(count for at, count in self._recommended if now - at <= up["stabilizationWindowSeconds"])
        highest = max(count for at, count in self._recommended if now - at <= down["stabilizationWindowSeconds"])
        stable = min(max(current, lowest), highest)
        if stable > current:
            stable = min(stable, max(self._limit(policy, 1, now, current) for policy in up["policies"]), self.most)
        elif stable < current:
            stable = max(stable, min(self._limit(policy, -1, now, current) for policy in down["policies"]), self.least)
        if stable != current:
            self._changed.append((now, stable - current))
        return stable

    def _limit(self, policy: Mapping[str, Any], sign: int, now: float, current: int) -> int:
        """How far this policy lets the replicas go, counted from where they were when its period began."""
        before = current - sum(change for at, change in self._changed if now - at < policy["periodSeconds"])
        if policy["type"] == "Pods":
            limit = before + sign * int(policy["value"])
        else:
            share = before * (1 + sign * policy["value"] / 100)
            limit = math.ceil(share) if sign > 0 else math.floor(share)
        return max(limit, current) if sign > 0 else min(limit, current)
