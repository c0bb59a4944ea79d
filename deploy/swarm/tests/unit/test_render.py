import functools
import re
from dataclasses import replace

import pytest
import yaml

from deploy.swarm.__main__ import LOADS
from deploy.swarm.render import DRAIN_S, as_yaml, main, render
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.table import ROOT

SHUTDOWN_GRACE_S = 10  # the default of our services
ENTRIES = {
    "02": {"model_server": [8500, 8501]},
    "03": {"proxy": [8000]},
    "04": {"api": [8000]},
    "06": {"proxy": [9000]},
    "07": {"proxy": [8000]},
}
STACKS = {number: render(pattern) for number, pattern in PATTERNS.items()}
SERVICES = [
    pytest.param(number, name, service, id=f"{number}-{name}")
    for number, stack in STACKS.items()
    for name, service in stack["services"].items()
]


@functools.cache
def compose(number):
    text = (ROOT / PATTERNS[number].folder / "docker-compose.yml").read_text(encoding="utf-8")
    # What the models' command has instead with a model of the user's own, which Swarm does not know.
    return yaml.safe_load(re.sub(r"\$\{MODEL:\+[^}]*#\}", "", text))


@pytest.mark.parametrize("number", PATTERNS)
def test_stack_is_the_same_each_time_and_survives_yaml(number, capsys):
    main([number])
    printed = capsys.readouterr().out
    assert printed == as_yaml(STACKS[number])
    assert yaml.safe_load(printed) == STACKS[number]
    assert "&id" not in printed  # an anchor, which hides what a service has


@pytest.mark.parametrize("number", PATTERNS)
def test_only_the_entry_is_published(number):
    services = STACKS[number]["services"]
    published = {name: each["ports"] for name, each in services.items() if "ports" in each}
    assert {name: [int(port.rpartition(":")[2]) for port in ports] for name, ports in published.items()} == ENTRIES[
        number
    ]
    # Addresses of the host cannot be kept.
    assert all(re.fullmatch(r"\$\{\w+_PORT:-\d+\}:\d+", port) for ports in published.values() for port in ports)
    assert all("ports" not in each for each in render(PATTERNS[number], published=False)["services"].values())


@pytest.mark.parametrize("number", PATTERNS)
def test_no_service_is_left_out_but_those_of_a_profile(number):
    wanted = {name for name, service in compose(number)["services"].items() if "profiles" not in service}
    assert STACKS[number]["services"].keys() == wanted


@pytest.mark.parametrize(("number", "name", "service"), SERVICES)
def test_service_is_as_confined_as_in_compose(number, name, service):
    same = ("image", "command", "read_only", "cap_drop", "user", "logging")
    original = compose(number)["services"][name]
    assert {key: service.get(key) for key in same} == {key: original.get(key) for key in same}
    mounts = [{"type": "tmpfs", "target": target} for target in original.get("tmpfs", [])]
    # Nodes have no folder of the user's own models.
    volumes = [volume for volume in original.get("volumes", []) if "/own_model" not in str(volume)]
    assert "MODEL:" not in str(service)
    assert service.get("volumes", []) == [*volumes, *mounts]
    assert service["deploy"].get("resources") == original.get("deploy", {}).get("resources")


@pytest.mark.parametrize(("number", "name", "service"), SERVICES)
def test_service_mounts_only_named_volumes_and_has_no_secret_in_its_environment(number, name, service):
    assert all(isinstance(each, dict) or re.match(r"[a-z]", each) for each in service.get("volumes", []))
    names = [each for each in service.get("environment", {}) if re.search("PASSWORD|API_KEY|TOKEN|SECRET", each)]
    assert [each for each in names if not each.endswith("_FILE") and each != "MYSQL_RANDOM_ROOT_PASSWORD"] == []
    files = [str(value) for key, value in service.get("environment", {}).items() if key.endswith("_FILE")]
    assert {path.removeprefix("/run/secrets/") for path in files} == set(service.get("secrets", []))


@pytest.mark.parametrize(("number", "name", "service"), SERVICES)
def test_service_is_deployed_by_what_it_is(number, name, service):
    deploy = service["deploy"]
    if name == "models":
        assert (deploy["mode"], deploy["restart_policy"]["condition"]) == ("global-job", "on-failure")
    elif name in ("redis", "mysql"):
        assert deploy["replicas"] == 1
        assert service["healthcheck"] == compose(number)["services"][name]["healthcheck"]
        assert deploy["update_config"]["order"] == "stop-first"
        assert "node.role == manager" in deploy["placement"]["constraints"][0]
    else:
        assert deploy["replicas"] == f"${{{name.upper()}_REPLICAS:-2}}"
        assert deploy["update_config"]["order"] == deploy["rollback_config"]["order"] == "start-first"
        assert deploy["update_config"]["failure_action"] == "rollback"
        assert service["environment"]["HEALTH_PATH"] == "/health/live"
        assert "test" not in service["healthcheck"]  # that is the image's
    if name != "models":
        assert deploy["endpoint_mode"] == ("vip" if "ports" in service else "dnsrr")
        assert deploy["restart_policy"]["condition"] == "any"


@pytest.mark.parametrize(("number", "name", "service"), SERVICES)
def test_what_takes_requests_gets_time_to_drain(number, name, service):
    takes_requests = bool(compose(number)["services"][name].get("ports")) and name not in ("redis", "mysql")
    assert service.get("environment", {}).get("DRAIN_DELAY_S") == (DRAIN_S if takes_requests else None)
    if takes_requests:
        assert int(service["stop_grace_period"].removesuffix("s")) >= DRAIN_S + SHUTDOWN_GRACE_S


def test_secrets_are_made_by_hand_and_renamed_to_be_changed():
    assert STACKS["03"]["secrets"] == {
        name: {"external": True, "name": f"asynchronous_{name}_${{SECRETS_VERSION:-1}}"}
        for name in ("redis_password", "api_key")
    }


def test_a_key_that_is_not_known_is_named(tmp_path):
    (tmp_path / "docker-compose.yml").write_text("services: {a: {image: x, privileged: true}}")
    with pytest.raises(ValueError, match=r"a: .*privileged"):
        render(replace(PATTERNS["02"], folder=str(tmp_path)))


@pytest.mark.parametrize("number", PATTERNS)
def test_swarm_test_scales_a_service_that_is_there(number):
    assert LOADS[number].scaled in STACKS[number]["services"]
