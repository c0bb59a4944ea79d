"""docs/kubernetes.md and its translation: the commands that need no cluster are run."""

import os
import re
import shutil
import subprocess

import pytest

from scripts.checks.tests.kubernetes.facts import ROOT, folder, programs
from scripts.checks.tests.kubernetes.manifests import KUBECTL, Overlay, parse, render
from scripts.checks.tests.kubernetes.rules import findings

PAGES = [ROOT / "docs/kubernetes.md", ROOT / "docs/kubernetes.ja.md"]
NEEDS = re.compile(r"  # needs: (cluster|engine|engine, registry)$")
# A program of these cannot do its work alone; kubectl kustomize can.
DEPENDENT = re.compile(r"^(DIGEST=\$\()?(docker|curl|kubectl (?!kustomize))")
DIGEST = "5" * 64

needs_kubectl = pytest.mark.skipif(not KUBECTL.exists(), reason="no kubectl here: `make test-kubernetes` installs it")


def commands(page):
    """The lines of all bash blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


def runnable(page):
    return [line for line in commands(page) if not NEEDS.search(line)]


def test_both_languages_have_the_same_commands():
    assert commands(PAGES[0]) == commands(PAGES[1])


def test_answers_are_ten_commands_away():
    first = re.search(r"^```bash\n(.*?)^```$", PAGES[0].read_text(encoding="utf-8"), re.M | re.S)
    assert first
    assert len(first[1].splitlines()) == 10


def test_exactly_the_commands_that_need_something_are_marked():
    for line in commands(PAGES[0]):
        assert bool(NEEDS.search(line)) == bool(DEPENDENT.search(line)), line


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """A copy of all manifests in which the page's commands were run, and what they printed."""
    copy = tmp_path_factory.mktemp("manifests")
    for source in [*ROOT.glob("[0-9]*_pattern/kubernetes"), ROOT / "deploy/kubernetes"]:
        shutil.copytree(source, copy / source.relative_to(ROOT))
    environment = {"PATH": f"{KUBECTL.parent}:{os.environ['PATH']}", "HOME": str(copy), "DIGEST": DIGEST}
    script = "\n".join(["set -euxo pipefail", *runnable(PAGES[0])])
    done = subprocess.run(
        ["bash", "-c", script], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return copy, done.stdout


@needs_kubectl
def test_commands_count_the_objects_of_every_overlay(deployed):
    counts = re.findall(r"^\d+$", deployed[1], re.M)
    assert len(counts) == 10
    assert all(int(count) > 5 for count in counts)


@needs_kubectl
@pytest.mark.parametrize(
    ("number", "component"),
    [("06", "models-image-volume"), ("04", "models-volume"), ("07", "models")],
)
def test_models_from_an_image_volume_or_a_volume_pass_the_rules(deployed, number, component):
    overlay = folder(number).name + "/kubernetes/overlays/production"
    assert f"components/{component}\n" in (deployed[0] / overlay / "kustomization.yaml").read_text()
    documents = parse(render(deployed[0] / overlay))
    images = [each["image"] for _, _, each in Overlay(number, "production", documents, {}).containers]

    assert findings(Overlay(number, "production", documents, programs(number))) == []
    assert all(image.startswith("registry.example.org/team/") for image in images)
    # Set by the page's command, for the two whose models that image has.
    assert (DIGEST in str(documents)) == (number != "07")


@needs_kubectl
@pytest.mark.parametrize("component", ["models", "models-image-volume"])
def test_pod_with_other_models_than_announced_does_not_start(deployed, tmp_path, component):
    pattern = {"models": "07_sync_async_pattern", "models-image-volume": "06_horizontal_microservice_pattern"}[
        component
    ]
    documents = parse(render(deployed[0] / pattern / "kubernetes/overlays/production"))
    deployment = next(
        each for each in documents if each["kind"] == "Deployment" and "models" in each["metadata"]["labels"]
    )
    [container] = deployment["spec"]["template"]["spec"]["initContainers"]
    for name in ("baked", "models"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    script = container["args"][0].replace("/baked", f"{tmp_path}/baked").replace("/models", f"{tmp_path}/models")
    of_braces = subprocess.run(
        ["sha256sum", tmp_path / "baked/manifest.json"], capture_output=True, text=True, check=True
    )

    def start(announced):
        environment = {"PATH": os.environ["PATH"], "MANIFEST_SHA256": announced}
        return subprocess.run(
            [*container["command"], script], env=environment, capture_output=True, check=False
        ).returncode

    assert start(of_braces.stdout[:64]) == 0
    assert start("unpinned") == 0
    assert start("0" * 64) != 0
