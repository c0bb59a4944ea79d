"""Every overlay against every rule, and for each rule a mutant that it must catch. `make test-kubernetes` runs this."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest

from scripts.checks.tests.kubernetes import facts, manifests
from scripts.checks.tests.kubernetes.manifests import KUBECTL, OVERLAYS, Overlay, parse, render
from scripts.checks.tests.kubernetes.rules import RULES, findings

PATTERNS = ("02", "03", "04", "06", "07")

pytestmark = pytest.mark.skipif(not KUBECTL.exists(), reason="no kubectl here: `make test-kubernetes` installs it")


@pytest.fixture(scope="module")
def overlays():
    """All of them, by pattern and name."""

    def load(number):
        folder = facts.folder(number) / "kubernetes/overlays"
        programs = facts.programs(number)
        return {(number, name): Overlay(number, name, parse(render(folder / name)), programs) for name in OVERLAYS}

    with ThreadPoolExecutor(2) as pool:
        return {key: overlay for each in pool.map(load, PATTERNS) for key, overlay in each.items()}


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("number", PATTERNS)
def test_overlay_has_no_finding(overlays, number, name):
    assert findings(overlays[number, name]) == []


class Objects(list[manifests.Document]):
    """The documents of a mutant, with short ways into them."""

    def get(self, kind, name=None):
        return next(each for each in self if each["kind"] == kind and name in (None, each["metadata"]["name"]))

    def spec(self, name, kind="Deployment"):
        """The spec of a workload's pods."""
        spec = self.get(kind, name)["spec"]
        return (spec["jobTemplate"]["spec"] if kind == "CronJob" else spec)["template"]["spec"]

    def main(self, name, kind="Deployment"):
        return self.spec(name, kind)["containers"][0]

    def annotate(self, workload, name, value):
        self.get("Deployment", workload)["spec"]["template"]["metadata"]["annotations"][name] = value

    def variable(self, workload, name, value, kind="Deployment"):
        container = self.main(workload, kind)
        others = [each for each in container["env"] if each["name"] != name]
        container["env"] = others + ([{"name": name, "value": value}] if value is not None else [])


def mount_anywhere(objects):
    objects.spec("proxy")["volumes"].append({"name": "node", "hostPath": {"path": "/"}})


def the_trap_of_include_selectors(objects):
    """What kustomize makes of `from` when `labels: includeSelectors` passes over a NetworkPolicy."""
    sources = objects.get("NetworkPolicy", "service")["spec"]["ingress"][0]["from"]
    sources[0]["podSelector"]["matchLabels"]["app.kubernetes.io/name"] = "service-setosa"


def two_autoscalers(objects):
    objects.get("HorizontalPodAutoscaler", "proxy")["spec"]["scaleTargetRef"]["name"] = "worker"


# Rule: what is done to which overlay.
MUTANTS = {
    "selector_matches_a_pod": [
        ("06", "production", lambda o: o.get("PodDisruptionBudget", "proxy")["spec"].update(
            selector={"matchLabels": {"app.kubernetes.io/name": "proxi"}})),
        ("07", "production", lambda o: o.get("ServiceMonitor")["spec"].update(
            selector={"matchLabels": {"app": "proxy"}})),
    ],
    "service_selects_one_workload": [
        ("06", "production", lambda o: o.get("Service", "proxy")["spec"].update(
            selector={"app.kubernetes.io/part-of": "horizontal-microservice"})),
    ],
    "workload_selects_its_own_pods": [
        ("06", "production", lambda o: o.get("Deployment", "proxy")["spec"]["selector"].update(matchLabels={})),
    ],
    "service_port_leads_to_a_container_port": [
        ("03", "production", lambda o: o.get("Service", "proxy")["spec"]["ports"][0].update(targetPort="web")),
    ],
    "address_in_a_variable_is_a_service": [
        ("06", "production", lambda o: o.variable("proxy", "SERVICES", "setosa=http://service_setosa:8000,a=http://b:1")),
        ("03", "production", lambda o: o.variable("worker", "TF_SERVING_TARGET", "dns:///model-server:8502")),
        ("07", "development", lambda o: o.variable("worker", "REDIS_HOST", "cache")),
    ],
    "gateway_client_address_is_told_apart": [
        ("03", "production", lambda o: o.variable("proxy", "RATE_LIMIT_HEADER", None)),
    ],
    "route_leads_to_a_service": [
        ("06", "production", lambda o: o.get("HTTPRoute")["spec"]["rules"][0]["backendRefs"][0].update(port=8000)),
        ("02", "production", lambda o: o.get("GRPCRoute")["spec"]["rules"][0]["backendRefs"][0].update(name="serving")),
    ],
    "every_object_is_in_the_namespace": [
        ("04", "development", lambda o: o.get("CronJob")["metadata"].update(namespace="default")),
    ],
    "namespace_enforces_the_restricted_standard": [
        ("02", "development", lambda o: o.get("Namespace")["metadata"].pop("labels")),
    ],
    "variable_is_read": [
        ("03", "production", lambda o: o.variable("proxy", "MAX_QUEUE_LENGHT", "10")),
        ("02", "production", lambda o: o.variable("model-server", "MODEL_BASEPATH", "/models")),
    ],
    "secret_comes_from_a_file": [
        ("03", "development", lambda o: o.variable("proxy", "REDIS_PASSWORD", "iris")),
        ("04", "development", lambda o: o.variable("mysql", "MYSQL_ROOT_PASSWORD", "root", "StatefulSet")),
        ("03", "production", lambda o: o.append({"kind": "Secret", "metadata": {"name": "x"}, "data": {"a": "b"}})),
        ("07", "production", lambda o: o.main("worker").update(args=["--redis=redis://user:password@redis/0"])),
    ],
    "secret_file_is_mounted": [
        ("06", "production", lambda o: o.variable("proxy", "API_KEY_FILE", "/run/secrets/api_key")),
    ],
    "store_outside_is_reached_with_an_address_from_a_secret": [
        ("07", "production", lambda o: o.variable("worker", "REDIS_URL_FILE", None)),
        ("04", "production", lambda o: o.variable("job", "DATABASE_URL_FILE", None, "CronJob")),
    ],
    "only_the_migration_may_change_tables": [
        ("04", "production", lambda o: o.spec("api").update(volumes=o.spec("migrate", "Job")["volumes"])),
    ],
    "model_lies_in_the_models_volume": [
        ("06", "production", lambda o: o.variable("service-setosa", "MODEL_FILEPATH", "/app/models/iris.onnx")),
    ],
    "models_are_those_of_the_annotation": [
        ("07", "production", lambda o: o.annotate("worker", "models/manifest-sha256", "unpinned")),
        ("06", "production", lambda o: o.spec("service-setosa")["initContainers"][0].update(args=["cp -r /baked/. ."])),
        ("04", "development", lambda o: o.spec("job", "CronJob").pop("initContainers")),
    ],
    "container_port_is_listened_on": [
        ("06", "production", lambda o: o.main("proxy")["ports"][0].update(containerPort=8000)),
        ("02", "production", lambda o: o.variable("model-server", "REST_API_PORT", "9501")),
    ],
    "probe_exists": [("07", "production", lambda o: o.main("worker").pop("livenessProbe"))],
    "probe_path_is_in_the_openapi_document": [
        ("03", "production", lambda o: o.main("worker")["readinessProbe"]["httpGet"].update(path="/healthz")),
        ("03", "production", lambda o: o.main("worker")["readinessProbe"]["httpGet"].update(port="metrics")),
    ],
    "liveness_asks_no_neighbour": [
        ("03", "production", lambda o: o.main("proxy")["livenessProbe"]["httpGet"].update(path="/health")),
    ],
    "readiness_waits_longer_than_its_check": [
        ("03", "production", lambda o: o.main("proxy")["readinessProbe"].update(timeoutSeconds=1)),
    ],
    "start_has_a_minute": [("07", "production", lambda o: o.main("worker")["startupProbe"].update(failureThreshold=3))],
    "grace_is_longer_than_the_programs": [
        ("06", "production", lambda o: o.spec("proxy").update(terminationGracePeriodSeconds=10)),
        ("03", "production", lambda o: o.variable("worker", "SHUTDOWN_GRACE_S", "120")),
        ("02", "production", lambda o: o.spec("model-server").update(terminationGracePeriodSeconds=30)),
    ],
    "end_is_announced": [
        ("06", "production", lambda o: o.variable("service-setosa", "DRAIN_DELAY_S", None)),
        ("03", "production", lambda o: o.main("model-server").pop("lifecycle")),
    ],
    "memory_limit_is_not_below_the_measured_figure": [
        ("07", "production", lambda o: o.main("worker")["resources"]["limits"].update(memory="1Gi")),
        ("04", "production", lambda o: o.main("job", "CronJob")["resources"]["limits"].pop("memory")),
    ],
    "cpu_limit_is_not_below_the_measured_figure": [
        ("07", "production", lambda o: o.main("proxy")["resources"]["limits"].update(cpu="500m")),
    ],
    "memory_is_requested_whole": [
        ("07", "production", lambda o: o.main("worker")["resources"]["requests"].update(memory="64Mi")),
        ("07", "production", lambda o: o.main("worker")["resources"]["requests"].update(cpu="4")),
    ],
    "disruption_budget_lets_nodes_drain": [
        ("06", "production", lambda o: o.get("PodDisruptionBudget", "proxy")["spec"].update(maxUnavailable=0)),
    ],
    "deployment_has_a_disruption_budget": [
        ("03", "production", lambda o: o.remove(o.get("PodDisruptionBudget", "worker"))),
    ],
    "update_keeps_every_replica": [
        ("06", "development", lambda o: o.get("Deployment", "proxy")["spec"].pop("strategy")),
    ],
    "replicas_of_one_version_are_spread": [
        ("06", "production", lambda o: o.spec("proxy")["topologySpreadConstraints"][0].pop("matchLabelKeys")),
    ],
    "autoscaler_has_its_target_to_itself": [
        ("06", "production", lambda o: o.get("Deployment", "proxy")["spec"].update(replicas=1)),
        ("03", "production", two_autoscalers),
        ("07", "production", lambda o: o.get("ScaledObject")["spec"]["scaleTargetRef"].update(name="workers")),
    ],
    "autoscaler_metric_is_reported": [
        ("06", "production", lambda o: o.get("HorizontalPodAutoscaler", "proxy")["spec"]["metrics"][1]["pods"].update(
            metric={"name": "in_flight"})),
    ],
    "scaledobject_metric_is_reported": [
        ("03", "production", lambda o: o.get("ScaledObject")["spec"]["triggers"][0]["metadata"].update(
            valueLocation="jobs_waiting")),
        ("07", "production", lambda o: o.get("ScaledObject")["spec"]["triggers"][1]["metadata"].update(
            url="http://proxy.asynchronous.svc.cluster.local:8000/metrics")),
        ("07", "production", lambda o: o.get("ScaledObject")["spec"]["triggers"][1]["metadata"].update(
            url="http://proxy.sync-async.svc.cluster.local:9000/metrics")),
    ],
    "scaledobject_holds_still_in_an_outage": [
        ("03", "production", lambda o: o.get("ScaledObject")["spec"].update(minReplicaCount=0)),
        ("03", "production", lambda o: o.get("ScaledObject")["spec"].update(
            fallback={"failureThreshold": 3, "replicas": 10})),
        ("03", "production", lambda o: o.get("ScaledObject")["spec"]["triggers"].pop()),
    ],
    "batch_runs_follow_each_other": [
        ("04", "production", lambda o: o.get("CronJob")["spec"].update(concurrencyPolicy="Allow")),
        ("04", "production", lambda o: o.get("CronJob")["spec"]["jobTemplate"]["spec"].update(completions=2)),
        ("04", "production", lambda o: o.variable("job", "JOB_WAIT_SECONDS", None, "CronJob")),
    ],
    "pod_is_not_root": [
        ("03", "development", lambda o: o.spec("redis", "StatefulSet")["securityContext"].pop("runAsUser")),
    ],
    "pod_has_the_runtimes_seccomp_profile": [
        ("06", "production", lambda o: o.spec("proxy")["securityContext"].pop("seccompProfile")),
    ],
    "pod_has_no_service_account_token": [
        ("04", "production", lambda o: o.spec("job", "CronJob").update(automountServiceAccountToken=True)),
    ],
    "pod_has_no_service_links": [("07", "production", lambda o: o.spec("worker").pop("enableServiceLinks"))],
    "container_is_confined": [
        ("06", "production", lambda o: o.main("proxy")["securityContext"].update(readOnlyRootFilesystem=False)),
        ("06", "production", lambda o: o.spec("service-setosa")["initContainers"][0].pop("securityContext")),
    ],
    "volume_is_bounded_and_off_the_node": [
        ("06", "production", mount_anywhere),
        ("06", "production", lambda o: o.main("proxy")["volumeMounts"].append({"name": "data", "mountPath": "/data"})),
    ],
    "image_is_of_one_version": [
        ("06", "production", lambda o: o.main("proxy").update(image="registry.example.com:5000/proxy")),
        ("06", "production", lambda o: o.main("proxy").update(image="registry.example.com/proxy:latest")),
    ],
    "image_is_one_of_the_patterns": [
        ("06", "production", lambda o: o.main("proxy").update(image="registry.example.com/asynchronous/proxy:1.1.0")),
    ],
    "everything_is_denied_by_default": [
        ("03", "production", lambda o: o.remove(o.get("NetworkPolicy", "default-deny"))),
    ],
    "names_can_be_resolved": [("03", "production", lambda o: o.remove(o.get("NetworkPolicy", "dns")))],
    "arrow_of_the_diagram_is_open": [
        ("03", "production", lambda o: o.get("NetworkPolicy", "worker")["spec"]["egress"].pop(0)),
        ("06", "production", the_trap_of_include_selectors),
        ("07", "production", lambda o: o.remove(o.get("NetworkPolicy", "keda"))),
        ("04", "development", lambda o: o.get("NetworkPolicy", "mysql")["spec"]["ingress"].clear()),
    ],
    "no_other_arrow_is_open": [
        ("06", "production", lambda o: o.get("NetworkPolicy", "gateway")["spec"].update(podSelector={})),
        ("03", "production", lambda o: o.get("NetworkPolicy", "worker")["spec"]["egress"].append({})),
        ("07", "development", lambda o: o.get("NetworkPolicy", "redis")["spec"].update(
            ingress=[{"from": [{"namespaceSelector": {}}]}])),
    ],
    "metrics_are_collected": [
        ("03", "production", lambda o: o.get("Service", "model-server")["spec"]["ports"].pop()),
        ("06", "production", lambda o: o.get("ServiceMonitor")["spec"]["endpoints"][0].update(path="/prometheus")),
        ("06", "production", lambda o: o.get("ServiceMonitor")["spec"]["endpoints"][0].update(port="metrics")),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "number", "name", "mutate"),
    [
        pytest.param(rule, *each, id=f"{rule}-{number}")
        for rule, mutants in MUTANTS.items()
        for number, each in enumerate(mutants, 1)
    ],
)
def test_mutant_is_caught_by_its_rule(overlays, rule, number, name, mutate):
    objects = Objects(copy.deepcopy(overlays[number, name].documents))
    mutate(objects)

    assert list(RULES[rule](Overlay(number, name, objects, overlays[number, name].programs)))


def test_every_rule_has_a_mutant():
    assert MUTANTS.keys() == RULES.keys()
    assert len(RULES) >= 25


def test_kubectls_own_words_are_the_error(tmp_path):
    with pytest.raises(RuntimeError, match="unable to find one of"):
        render(tmp_path)


def test_selector_with_an_unknown_operator_is_an_error_and_not_a_match():
    with pytest.raises(ValueError, match="NotIn"):
        manifests.selects({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}, {})
