"""Checks in the compose files and Dockerfiles how each container is confined.

There is one exception. If another becomes necessary, list it here with its reason.
"""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[4]
COMPOSE_FILES = sorted(
    [*ROOT.glob("[0-9][0-9]_*_pattern/docker-compose.yml"), ROOT / "deploy/observability/docker-compose.yml"]
)
SECRET_FILES = sorted(ROOT.glob("[0-9][0-9]_*_pattern/docker-compose.secrets.yml"))
DOCKERFILES = sorted([*ROOT.glob("[0-9][0-9]_*_pattern/Dockerfile*"), *ROOT.glob("models/Dockerfile")])

ROOT_USER = re.compile(r"(root|0)(:|$)")
A_SECRET = re.compile(r"PASSWORD|API_KEY|TOKEN|SECRET|DATABASE_URL")
# Neither the random password of MySQL's root nor the path of a secret is a secret.
NO_SECRET = re.compile(r"MYSQL_RANDOM_ROOT_PASSWORD|.*_FILE")

# The folders of the user's own models, which no image has. Without MODEL, the compose file stands in its place.
OWN_MODELS = [
    {
        "type": "bind",
        "source": f"${{{variable}:+../models/artifacts/}}${{{variable}:-./docker-compose.yml}}",
        "target": target,
        "read_only": True,
        "bind": {"create_host_path": False},
    }
    for variable, target in (("MODEL", "/own_model"), ("ASYNC_MODEL", "/own_model_async"))
]


def services(paths):
    return [
        pytest.param(service, id=f"{path.parent.name}-{name}")
        for path in paths
        for name, service in yaml.safe_load(path.read_text(encoding="utf-8"))["services"].items()
    ]


def is_our_own(service):
    """Whether this repository builds its image, here or for another service."""
    return "build" in service or service.get("pull_policy") == "never"


def run_stages():
    """The stages with a CMD or an ENTRYPOINT, each as the list of its lines."""
    stages = []
    for path in DOCKERFILES:
        text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
        for stage in re.split(r"^(?=FROM )", text, flags=re.MULTILINE)[1:]:
            lines = stage.splitlines()
            if any(line.startswith(("CMD ", "ENTRYPOINT ")) for line in lines):
                stages.append(pytest.param(lines, id=f"{path.relative_to(ROOT)} {lines[0]}"))
    return stages


def test_every_pattern_has_a_compose_file_and_images():
    assert len(COMPOSE_FILES) == len(list(ROOT.glob("[0-9][0-9]_*_pattern"))) + 1  # the overlay
    assert len(run_stages()) > len(COMPOSE_FILES)


@pytest.mark.parametrize("service", services(COMPOSE_FILES))
def test_container_is_confined(service):
    assert service.get("read_only") is True
    assert service.get("cap_drop") == ["ALL"]
    assert service.get("security_opt") == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "pid", "ipc", "network_mode", "devices"}
    # Named volumes only: a host path would let the container reach outside.
    volumes = [volume for volume in service.get("volumes", []) if volume not in OWN_MODELS]
    assert all(re.match(r"[a-z]", volume) for volume in volumes)


@pytest.mark.parametrize("service", services(COMPOSE_FILES))
def test_container_does_not_run_as_root(service):
    # Our own images name their user, see below. Others start as root unless told otherwise.
    assert is_our_own(service) or "user" in service
    assert not ROOT_USER.match(str(service.get("user", "app")))


@pytest.mark.parametrize("stage", run_stages())
def test_own_image_does_not_run_as_root(stage):
    users = [line.split()[1] for line in stage if line.startswith("USER ")]

    assert users
    assert not ROOT_USER.match(users[-1])


@pytest.mark.parametrize("stage", run_stages())
def test_image_contains_no_secret(stage):
    assert not [line for line in stage if line.startswith(("ARG ", "ENV ")) and A_SECRET.search(line)]


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: path.parent.name)
def test_image_is_built_by_one_service_and_only_used_by_others(path):
    """Builds under one tag, at the same time, leave all images but the last without a name."""
    all_services = yaml.safe_load(path.read_text(encoding="utf-8"))["services"].values()
    own = [service for service in all_services if is_our_own(service) and "image" in service]
    built = [service["image"] for service in own if "build" in service]
    assert sorted(built) == sorted({service["image"] for service in own})
    assert all(service["pull_policy"] == "never" for service in own if "build" not in service)


@pytest.mark.parametrize("service", services(COMPOSE_FILES))
def test_database_is_published_on_the_loopback_address_only(service):
    if not is_our_own(service):
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_scaled_services_are_published_on_the_loopback_address_as_the_readmes_say():
    """On a port that Docker chooses. Without the address it would be one past the proxy and its key."""
    texts = [path.read_text(encoding="utf-8") for path in ROOT.glob("[0-9][0-9]_*_pattern/*") if path.is_file()]
    ports = [port for text in texts for port in re.findall(r"_PORT=(\S+) docker compose up .*--scale", text)]
    assert len(ports) >= 3
    assert set(ports) == {"127.0.0.1:0"}


@pytest.mark.parametrize("service", services(COMPOSE_FILES))
def test_secret_comes_from_outside_the_compose_file(service):
    for name, value in service.get("environment", {}).items():
        if A_SECRET.search(name) and not NO_SECRET.fullmatch(name):
            assert re.fullmatch(r"\$\{\w+:?-[\w-]*\}", value), f"{name} cannot be set from outside"


@pytest.mark.parametrize("path", SECRET_FILES, ids=lambda path: path.parent.name)
def test_secret_file_is_the_only_source_of_its_secret(path):
    base, overlay = (
        yaml.safe_load(each.read_text(encoding="utf-8")) for each in (path.with_name("docker-compose.yml"), path)
    )
    for name, service in overlay["services"].items():
        environment = base["services"][name].get("environment", {}) | service["environment"]
        files = {variable: value for variable, value in service["environment"].items() if variable.endswith("_FILE")}
        assert set(files.values()) == {f"/run/secrets/{secret}" for secret in service["secrets"]}
        assert not [variable for variable in files if environment.get(variable.removesuffix("_FILE"))]
        secrets = {
            variable for variable in environment if A_SECRET.search(variable) and not NO_SECRET.fullmatch(variable)
        }
        assert secrets <= {variable.removesuffix("_FILE") for variable in files}
    assert overlay["secrets"].keys() == {secret for each in overlay["services"].values() for secret in each["secrets"]}
