"""The rules. Each is a generator of findings about one overlay; its name is what a finding is reported under."""

import re
from collections.abc import Callable, Iterator

from scripts.checks.tests.kubernetes.facts import MODEL_SERVER, STORES, drawn_arrows, image_name
from scripts.checks.tests.kubernetes.manifests import (
    Document,
    Overlay,
    Peer,
    external,
    labels_of,
    name_of,
    outside,
    ports_of,
    quantity,
    selects,
    strings,
    variables_of,
)

Rule = Callable[[Overlay], Iterator[str]]
RULES: dict[str, Rule] = {}
DRAIN_S = 5
"""Seconds for which a pod that ends is still sent requests: what endpoints and gateways take to learn of it."""


def rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


def findings(overlay: Overlay) -> list[str]:
    return [f"{name}: {text}" for name, check in RULES.items() for text in check(overlay)]


# Selectors and references


@rule
def selector_matches_a_pod(overlay: Overlay) -> Iterator[str]:
    labels = [pod.labels for pod in overlay.pods]
    for each in overlay.of("Service", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor"):
        spec, targets = each["spec"], labels
        if each["kind"] == "Service":
            selector = {"matchLabels": spec["selector"]}
        elif each["kind"] == "ServiceMonitor":
            selector, targets = spec["selector"], [service["metadata"]["labels"] for service in overlay.of("Service")]
        else:
            selector = spec["podSelector" if each["kind"] == "NetworkPolicy" else "selector"]
        if not any(selects(selector, target) for target in targets):
            yield f"{name_of(each)} selects nothing"


@rule
def service_selects_one_workload(overlay: Overlay) -> Iterator[str]:
    for each in overlay.of("Service"):
        selector = {"matchLabels": each["spec"]["selector"]}
        chosen = [pod.name for pod in overlay.pods if selects(selector, pod.labels)]
        if len(chosen) > 1:
            yield f"{name_of(each)} mixes {', '.join(chosen)}"


@rule
def workload_selects_its_own_pods(overlay: Overlay) -> Iterator[str]:
    for workload, template in overlay.workloads:
        selector = workload["spec"].get("selector")
        if selector and not (selector["matchLabels"] and selects(selector, labels_of(template))):
            yield f"{name_of(workload)} does not select its template"


@rule
def service_port_leads_to_a_container_port(overlay: Overlay) -> Iterator[str]:
    for each in overlay.of("Service"):
        for pod in overlay.pods:
            if selects({"matchLabels": each["spec"]["selector"]}, pod.labels):
                for port in each["spec"]["ports"]:
                    if port["targetPort"] not in (*pod.ports, *pod.ports.values()):
                        yield f"{name_of(each)}: {pod.name} has no port {port['targetPort']}"


@rule
def address_in_a_variable_is_a_service(overlay: Overlay) -> Iterator[str]:
    for workload, _, container, _ in overlay.served:
        variables = variables_of(container)
        text = " ".join(filter(None, variables.values()))
        named = re.findall(r"(?://|dns:///)([a-z][a-z0-9-]*):(\d+)", text)
        named += [
            (variables[host], variables.get(port) or default)
            for host, port, default in (("REDIS_HOST", "REDIS_PORT", "6379"), ("MYSQL_SERVER", "MYSQL_PORT", "3306"))
            if variables.get(host)
        ]
        for name, port in named:
            service = overlay.called("Service", name)
            if service is None or int(port) not in [each["port"] for each in service["spec"]["ports"]]:
                yield f"{name_of(workload)}: there is no Service {name} with port {port}"


@rule
def gateway_client_address_is_told_apart(overlay: Overlay) -> Iterator[str]:
    if overlay.of("HTTPRoute"):
        for workload, _, container, _ in overlay.served:
            variables = variables_of(container)
            if "RATE_LIMIT" in variables and "RATE_LIMIT_HEADER" not in variables:
                yield f"{name_of(workload)}: behind the gateway all clients share one RATE_LIMIT"


@rule
def route_leads_to_a_service(overlay: Overlay) -> Iterator[str]:
    for each in overlay.of("HTTPRoute", "GRPCRoute"):
        for way in each["spec"]["rules"]:
            for backend in way["backendRefs"]:
                service = overlay.called("Service", backend["name"])
                if service is None or backend["port"] not in [port["port"] for port in service["spec"]["ports"]]:
                    yield f"{name_of(each)}: there is no Service {backend['name']} with port {backend['port']}"


@rule
def every_object_is_in_the_namespace(overlay: Overlay) -> Iterator[str]:
    (namespace,) = overlay.of("Namespace")
    for each in overlay.documents:
        if each is not namespace and each["metadata"].get("namespace") != namespace["metadata"]["name"]:
            yield f"{name_of(each)} is in the namespace {each['metadata'].get('namespace')}"


@rule
def namespace_enforces_the_restricted_standard(overlay: Overlay) -> Iterator[str]:
    for each in overlay.of("Namespace"):
        if each["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{name_of(each)} admits pods with more rights"


# Settings


@rule
def variable_is_read(overlay: Overlay) -> Iterator[str]:
    for workload, _, container, program in overlay.served:
        known = program.variables | {f"{name}_FILE" for name in program.secrets}
        for name in variables_of(container).keys() - known:
            yield f"{name_of(workload)}: no setting reads {name}"


@rule
def secret_comes_from_a_file(overlay: Overlay) -> Iterator[str]:
    for each in overlay.of("Secret"):
        if each.get("data") or each.get("stringData"):
            yield f"{name_of(each)} has its content in the manifest"
    for workload, _, container, program in overlay.served:
        for name in variables_of(container).keys() & program.secrets:
            yield f"{name_of(workload)}: {name} is no file"
    for workload, template, container in overlay.containers:
        for name, value in variables_of(container).items():
            is_secret = re.search(r"PASSWORD|TOKEN|SECRET|API_KEY", name) and name != "MYSQL_RANDOM_ROOT_PASSWORD"
            if is_secret and value and not value.startswith("/"):
                yield f"{name_of(workload)}: {name} is in plain text"
        if any(re.search(r"://[^/\s:@]*:[^/\s@]+@", text) for text in strings(template)):
            yield f"{name_of(workload)}: an address contains a password"


@rule
def secret_file_is_mounted(overlay: Overlay) -> Iterator[str]:
    for workload, template, container in overlay.containers:
        volumes = {each["name"]: each for each in template["spec"].get("volumes", ())}
        files = {
            f"{mount['mountPath']}/{item['path']}"
            for mount in container.get("volumeMounts", ())
            if (secret := volumes.get(mount["name"], {}).get("secret"))
            for item in secret["items"]
        }
        for name, value in variables_of(container).items():
            if name.endswith("_FILE") and value not in files:
                yield f"{name_of(workload)}: {name}={value} is in no mounted Secret"


@rule
def store_outside_is_reached_with_an_address_from_a_secret(overlay: Overlay) -> Iterator[str]:
    for workload, _, container, program in overlay.served:
        for setting in ({"REDIS_URL", "DATABASE_URL"} & program.secrets) if overlay.name == "production" else ():
            if f"{setting}_FILE" not in variables_of(container):
                yield f"{name_of(workload)}: {setting}_FILE is not set"
    if overlay.name == "production" and overlay.of("StatefulSet"):
        yield "production has a store of its own"


@rule
def only_the_migration_may_change_tables(overlay: Overlay) -> Iterator[str]:
    for workload, template in overlay.workloads:
        keys = set(strings(template["spec"].get("volumes", [])))
        if "migrate_database_url" in keys and workload["metadata"]["name"] != "migrate":
            yield f"{name_of(workload)} can read migrate_database_url"


@rule
def model_lies_in_the_models_volume(overlay: Overlay) -> Iterator[str]:
    for workload, _, container, _ in overlay.served:
        mounts = {each["mountPath"]: each for each in container.get("volumeMounts", ())}
        for name, value in variables_of(container).items():
            is_path = re.search(r"MODEL.*_(PATH|FILEPATH)$|LABELS?_(FILE)?PATH$", name) and name != "MODEL_BASE_PATH"
            is_below = (value or "").startswith("/models/") and mounts.get("/models", {}).get("readOnly")
            if is_path and not is_below:
                yield f"{name_of(workload)}: {name}={value} is not below a read-only /models"


@rule
def models_are_those_of_the_annotation(overlay: Overlay) -> Iterator[str]:
    for workload, template in overlay.workloads:
        is_builder = workload["metadata"]["name"] == "models"  # it writes the manifest
        if is_builder or not any(each["name"] == "models" for each in template["spec"].get("volumes", ())):
            continue
        pinned = template["metadata"].get("annotations", {}).get("models/manifest-sha256", "")
        checks = [each for each in template["spec"].get("initContainers", ()) if "sha256sum -c" in str(each["args"])]
        if not re.fullmatch(r"[0-9a-f]{64}" if overlay.name == "production" else r"[0-9a-f]{64}|unpinned", pinned):
            yield f"{name_of(workload)}: the annotation models/manifest-sha256 is {pinned!r}"
        if not checks or "metadata.annotations['models/manifest-sha256']" not in set(strings(checks)):
            yield f"{name_of(workload)}: nothing compares the annotation with manifest.json"


# Ports, probes, ends


@rule
def container_port_is_listened_on(overlay: Overlay) -> Iterator[str]:
    for workload, _, container, program in overlay.served:
        variables = variables_of(container)
        listened = {int(variables[name] or 0) for name in ("PORT", "REST_API_PORT") if name in variables}
        for port in container.get("ports", ()):
            if port["containerPort"] not in (listened or program.ports):
                yield f"{name_of(workload)} does not listen on {port['containerPort']}"


@rule
def probe_exists(overlay: Overlay) -> Iterator[str]:
    for workload, template in overlay.workloads:
        if workload["kind"] in ("Deployment", "StatefulSet"):
            for name in ("startupProbe", "livenessProbe", "readinessProbe"):
                if not template["spec"]["containers"][0].get(name):
                    yield f"{name_of(workload)} has no {name}"


@rule
def probe_path_is_in_the_openapi_document(overlay: Overlay) -> Iterator[str]:
    for workload, _, container, program in overlay.served:
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            request = container.get(name, {}).get("httpGet")
            if request and request["path"] not in program.paths:
                yield f"{name_of(workload)}: the {name} asks for {request['path']}, which there is not"
            if request and request["port"] not in [port["name"] for port in container["ports"]]:
                yield f"{name_of(workload)}: the {name} asks the port {request['port']}, which there is not"


@rule
def liveness_asks_no_neighbour(overlay: Overlay) -> Iterator[str]:
    # A probe that fails while Redis is away would restart every pod, and help none.
    for workload, _, container, _ in overlay.served:
        for name in ("startupProbe", "livenessProbe"):
            request = container.get(name, {}).get("httpGet")
            if request and request["path"] != "/health/live":
                yield f"{name_of(workload)}: the {name} asks for {request['path']}"


@rule
def readiness_waits_longer_than_its_check(overlay: Overlay) -> Iterator[str]:
    for workload, _, container, _ in overlay.served:
        if container.get("readinessProbe", {"timeoutSeconds": 2}).get("timeoutSeconds", 1) < 2:
            yield f"{name_of(workload)}: the readiness check answers after up to 0.8 s, and a slow node is slower"


@rule
def start_has_a_minute(overlay: Overlay) -> Iterator[str]:
    for workload, _, container, _ in overlay.served:
        start = container.get("startupProbe")
        if start and start["failureThreshold"] * start.get("periodSeconds", 10) < 60:
            yield f"{name_of(workload)} has less than a minute to start"


@rule
def grace_is_longer_than_the_programs(overlay: Overlay) -> Iterator[str]:
    for workload, template, container, program in overlay.served:
        variables = {**program.defaults, **{k: v for k, v in variables_of(container).items() if v is not None}}
        needed = float(variables.get("DRAIN_DELAY_S", 0)) + float(variables.get("SHUTDOWN_GRACE_S", 0))
        needed = max(needed, program.stop_grace_s) + _sleep_s(container)
        if template["spec"].get("terminationGracePeriodSeconds", 30) <= needed:
            yield f"{name_of(workload)} is killed before it has ended by itself, after up to {needed:g} s"


def _sleep_s(container: Document) -> float:
    return float(container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0))


@rule
def end_is_announced(overlay: Overlay) -> Iterator[str]:
    for workload, template, container, _ in overlay.served:
        called = [
            each for each in overlay.of("Service") if each["spec"]["selector"].items() <= labels_of(template).items()
        ]
        # A worker has a Service for its metrics, but nobody's requests.
        is_called = called and labels_of(template).get("app.kubernetes.io/component") != "worker"
        if is_called and float(variables_of(container).get("DRAIN_DELAY_S") or 0) + _sleep_s(container) < DRAIN_S:
            yield f"{name_of(workload)} stops listening while it is still sent requests"


# Resources and replicas


@rule
def memory_limit_is_not_below_the_measured_figure(overlay: Overlay) -> Iterator[str]:
    for workload, _, container, program in overlay.served:
        if workload["kind"] != "Job" and quantity(_limit(container, "memory")) < program.memory:
            yield f"{name_of(workload)}: {_limit(container, 'memory')}; docker-compose.yml has {program.memory:g} bytes"


@rule
def cpu_limit_is_not_below_the_measured_figure(overlay: Overlay) -> Iterator[str]:
    for workload, _, container, program in overlay.served:
        if workload["kind"] != "Job" and quantity(_limit(container, "cpu")) < program.cpus:
            yield f"{name_of(workload)}: {_limit(container, 'cpu')} CPUs, but docker-compose.yml has {program.cpus:g}"


def _limit(container: Document, resource: str) -> str:
    return str(container.get("resources", {}).get("limits", {}).get(resource, 0))


@rule
def memory_is_requested_whole(overlay: Overlay) -> Iterator[str]:
    # Memory that is not requested is what a full node takes back, by killing.
    for workload, _, container in overlay.containers:
        asked = container.get("resources", {}).get("requests", {})
        if "cpu" not in asked or quantity(asked["cpu"]) > quantity(_limit(container, "cpu")):
            yield f"{name_of(workload)}: {container['name']} requests no CPU, or more than its limit"
        if image_name(container["image"]) != MODEL_SERVER and asked.get("memory") != _limit(container, "memory"):
            yield f"{name_of(workload)}: {container['name']} requests another amount of memory than its limit"


@rule
def disruption_budget_lets_nodes_drain(overlay: Overlay) -> Iterator[str]:
    for each in overlay.of("PodDisruptionBudget"):
        if each["spec"].get("maxUnavailable") != 1:
            yield f"{name_of(each)} does not say maxUnavailable: 1"


@rule
def deployment_has_a_disruption_budget(overlay: Overlay) -> Iterator[str]:
    budgets = [each["spec"]["selector"] for each in overlay.of("PodDisruptionBudget")]
    for workload, template in overlay.workloads:
        if workload["kind"] == "Deployment" and sum(selects(each, labels_of(template)) for each in budgets) != 1:
            yield f"{name_of(workload)} has not exactly one PodDisruptionBudget"


@rule
def update_keeps_every_replica(overlay: Overlay) -> Iterator[str]:
    for each in overlay.of("Deployment"):
        if each["spec"].get("strategy", {}).get("rollingUpdate", {}).get("maxUnavailable") != 0:
            yield f"{name_of(each)} is away during an update while it has one replica"


@rule
def replicas_of_one_version_are_spread(overlay: Overlay) -> Iterator[str]:
    for workload, template in overlay.workloads:
        spread = template["spec"].get("topologySpreadConstraints", [])
        is_spread = any(
            each.get("matchLabelKeys") == ["pod-template-hash"] and selects(each["labelSelector"], labels_of(template))
            for each in spread
            if each["topologyKey"] == "kubernetes.io/hostname"
        )
        if workload["kind"] == "Deployment" and not is_spread:
            yield f"{name_of(workload)} may have all its replicas on one node"


@rule
def autoscaler_has_its_target_to_itself(overlay: Overlay) -> Iterator[str]:
    targets = []
    for each in overlay.of("HorizontalPodAutoscaler", "ScaledObject"):
        name = each["spec"]["scaleTargetRef"]["name"]
        target = overlay.called("Deployment", name)
        if target is None:
            yield f"{name_of(each)}: there is no Deployment {name}"
        elif "replicas" in target["spec"]:
            yield f"{name_of(target)}: `replicas` undoes what {name_of(each)} has decided, at every apply"
        if name in targets:
            yield f"{name} has two autoscalers"
        targets.append(name)


@rule
def autoscaler_metric_is_reported(overlay: Overlay) -> Iterator[str]:
    for each in overlay.of("HorizontalPodAutoscaler"):
        reported = _metrics(overlay, each["spec"]["scaleTargetRef"]["name"])
        for metric in each["spec"]["metrics"]:
            if metric["type"] == "Pods" and metric["pods"]["metric"]["name"] not in reported:
                yield f"{name_of(each)}: {metric['pods']['metric']['name']} is not in /metrics"


@rule
def scaledobject_metric_is_reported(overlay: Overlay) -> Iterator[str]:
    for each in overlay.of("ScaledObject"):
        for trigger in each["spec"]["triggers"]:
            metadata = trigger["metadata"]
            found = re.fullmatch(r"http://([\w-]+)\.([\w-]+)\.svc\.cluster\.local:(\d+)(/.*)", metadata["url"])
            service = overlay.called("Service", found[1]) if found else None
            if not found or service is None or int(found[3]) != service["spec"]["ports"][0]["port"]:
                yield f"{name_of(each)}: {metadata['url']} is no Service"
            elif found[2] != service["metadata"]["namespace"] or found[4] != "/metrics":
                yield f"{name_of(each)}: {metadata['url']} is not /metrics in this namespace"
            elif metadata["valueLocation"] not in _metrics(overlay, found[1]):
                yield f"{name_of(each)}: {metadata['valueLocation']} is not in /metrics"


def _metrics(overlay: Overlay, workload: str) -> frozenset[str]:
    return frozenset().union(*(each[3].metrics for each in overlay.served if each[0]["metadata"]["name"] == workload))


@rule
def scaledobject_holds_still_in_an_outage(overlay: Overlay) -> Iterator[str]:
    for each in overlay.of("ScaledObject"):
        spec = each["spec"]
        if spec.get("minReplicaCount", 0) < 1 or "idleReplicaCount" in spec:
            yield f"{name_of(each)} may end the last worker"
        if "fallback" in spec:
            yield f"{name_of(each)}: a Redis that cannot be asked would change the number of workers"
        if {trigger["metadata"]["valueLocation"] for trigger in spec["triggers"]} != {
            "jobs_unfinished",
            "queue_oldest_job_age_seconds",
        }:
            yield f"{name_of(each)} follows something else than unfinished jobs and the age of the oldest"


@rule
def batch_runs_follow_each_other(overlay: Overlay) -> Iterator[str]:
    for each in overlay.of("CronJob"):
        spec, run = each["spec"], each["spec"]["jobTemplate"]["spec"]
        if spec.get("concurrencyPolicy") != "Forbid" or not spec.get("startingDeadlineSeconds"):
            yield f"{name_of(each)} needs concurrencyPolicy: Forbid and a startingDeadlineSeconds"
        if run.get("parallelism", 1) < 2 or "completions" in run:
            yield f"{name_of(each)}: pods that share rows need a parallelism and no completions"
        if variables_of(run["template"]["spec"]["containers"][0]).get("JOB_WAIT_SECONDS") != "0":
            yield f"{name_of(each)}: each run would wait before it begins"


# Confinement


@rule
def pod_is_not_root(overlay: Overlay) -> Iterator[str]:
    for workload, template in overlay.workloads:
        context = template["spec"].get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{name_of(workload)} has no numeric user other than root"


@rule
def pod_has_the_runtimes_seccomp_profile(overlay: Overlay) -> Iterator[str]:
    for workload, template in overlay.workloads:
        if template["spec"].get("securityContext", {}).get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name_of(workload)} may use any system call"


@rule
def pod_has_no_service_account_token(overlay: Overlay) -> Iterator[str]:
    for workload, template in overlay.workloads:
        if template["spec"].get("automountServiceAccountToken") is not False:
            yield f"{name_of(workload)} has a token for the API server"


@rule
def pod_has_no_service_links(overlay: Overlay) -> Iterator[str]:
    for workload, template in overlay.workloads:
        if template["spec"].get("enableServiceLinks") is not False:
            yield f"{name_of(workload)} gets REDIS_PORT=tcp://… from a Service called redis"


@rule
def container_is_confined(overlay: Overlay) -> Iterator[str]:
    expected = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    for workload, _, container in overlay.containers:
        if container.get("securityContext") != expected:
            yield f"{name_of(workload)}: {container['name']} has other rights than {expected}"


@rule
def volume_is_bounded_and_off_the_node(overlay: Overlay) -> Iterator[str]:
    for workload, template, container in overlay.containers:
        volumes = {each["name"]: each for each in template["spec"].get("volumes", ())}
        claimed = {each["metadata"]["name"] for each in workload["spec"].get("volumeClaimTemplates", ())}
        for volume in volumes.values():
            if "hostPath" in volume or ("emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]):
                yield f"{name_of(workload)}: the volume {volume['name']} is of the node, or unbounded"
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in volumes.keys() | claimed:
                yield f"{name_of(workload)}: there is no volume {mount['name']}"


@rule
def image_is_of_one_version(overlay: Overlay) -> Iterator[str]:
    for workload, _, container in overlay.containers:
        tag = container["image"].partition("@")[0].rpartition(":")[2]
        if "/" in tag or ":" not in container["image"] or tag == "latest":
            yield f"{name_of(workload)}: {container['image']} is another image tomorrow"


@rule
def image_is_one_of_the_patterns(overlay: Overlay) -> Iterator[str]:
    # The rules about programs say nothing of an image that they do not know.
    known = {*overlay.programs, "redis", "mysql"}
    for workload, template in overlay.workloads:
        name = image_name(template["spec"]["containers"][0]["image"])
        if name not in known and workload["metadata"]["name"] != "models":
            yield f"{name_of(workload)}: the compose file has no image {name}"


# Network


@rule
def everything_is_denied_by_default(overlay: Overlay) -> Iterator[str]:
    pod = Peer("any", {}, {})
    if overlay.allows(outside("default"), pod, 8000) or overlay.allows(pod, external("internet", "1.1.1.1"), 443):
        yield "a pod without a policy of its own may talk to others"


@rule
def names_can_be_resolved(overlay: Overlay) -> Iterator[str]:
    dns = Peer("dns", {"k8s-app": "kube-dns"}, {}, namespace="kube-system")
    for pod in overlay.pods:
        if not overlay.allows(pod, dns, 53):
            yield f"{pod.name} cannot ask DNS"


def _open(overlay: Overlay) -> set[tuple[str, str, int]]:
    """Every connection that the policies allow, DNS apart."""
    stores = [external(name, "10.0.0.1") for name in STORES]
    others = [outside(name) for name in ("gateway", "monitoring", "keda", "default")]
    ports = {port for pod in overlay.pods for port in pod.ports.values()} | {443, *STORES["redis"], *STORES["mysql"]}
    within = [(one, other) for one in [*overlay.pods, *others] for other in overlay.pods]
    beyond = [(one, other) for one in overlay.pods for other in [*stores, external("internet", "1.1.1.1")]]
    return {
        (one.name, other.name, port)
        for one, other in within + beyond
        for port in (ports if other.address is None else STORES.get(other.name, ports))
        if overlay.allows(one, other, port)
    }


def _wanted(overlay: Overlay) -> set[tuple[str, str, int]]:
    """The arrows of the pattern's diagram, and those of whoever reads metrics."""
    ports = {pod.name: list(pod.ports.values()) for pod in overlay.pods}
    is_production = overlay.name == "production"
    # The builder of models downloads pretrained weights.
    wanted: set[tuple[str, str, int]] = {("models", "internet", 443)} & {(name, "internet", 443) for name in ports}
    for one, other in drawn_arrows(overlay.number):
        if one == "gateway":
            wanted |= {(one, other, port) for port in ports[other]} if is_production else set()
        elif other in ports:
            wanted.add((one, other, ports[other][0]))
        else:
            wanted |= {(one, other, port) for port in STORES[other]}
    if is_production:
        wanted |= {
            ("monitoring", name, port)
            for name, named in _ports(overlay).items()
            for kind, port in named.items()
            if kind in ("http", "rest")
        }
        if overlay.of("ScaledObject"):
            wanted.add(("keda", "proxy", ports["proxy"][0]))
    return wanted


def _ports(overlay: Overlay) -> dict[str, dict[str, int]]:
    return {workload["metadata"]["name"]: ports_of(template) for workload, template in overlay.workloads}


@rule
def arrow_of_the_diagram_is_open(overlay: Overlay) -> Iterator[str]:
    for one, other, port in sorted(_wanted(overlay) - _open(overlay)):
        yield f"{one} cannot reach {other}:{port}"


@rule
def no_other_arrow_is_open(overlay: Overlay) -> Iterator[str]:
    # A policy cannot tell one store outside from another: both addresses stand for all private ones.
    private = {"redis", "mysql"} - {pod.name for pod in overlay.pods}
    for one, other, port in sorted(_open(overlay) - _wanted(overlay)):
        if not (other in private and any((one, each, port) in _wanted(overlay) for each in private)):
            yield f"{one} can reach {other}:{port}"


@rule
def metrics_are_collected(overlay: Overlay) -> Iterator[str]:
    for each in overlay.of("ServiceMonitor"):
        paths = {endpoint["port"]: endpoint["path"] for endpoint in each["spec"]["endpoints"]}
        for workload, template, _, program in overlay.served:
            selects_it = [
                s for s in overlay.of("Service") if s["spec"]["selector"].items() <= labels_of(template).items()
            ]
            for service in selects_it:
                scraped = [paths[port["name"]] for port in service["spec"]["ports"] if port["name"] in paths]
                if len(scraped) != 1 or scraped[0] not in program.paths:
                    yield f"{name_of(each)} scrapes {scraped or 'nothing'} of {name_of(workload)}"
