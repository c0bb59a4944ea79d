"""scripts/setup.sh with an uv and a Python that only write down how they are called, and the words given to make."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
TOOLS = ("cat", "cksum", "dirname", "grep", "ln", "mkdir", "mktemp", "rm", "tr")
PIP = "pip 26.0"
UV = f"""#!/bin/sh
echo "$UV_CACHE_DIR|$UV_SYSTEM_CERTS|$*" >> calls
case $1 in
  cache) echo "${{UV_CACHE_DIR:-/cache}}" ;;
  venv) mkdir -p .venv/bin && ln -sf '{sys.executable}' .venv/bin/python ;;
esac
"""
# As one whose configuration has `user = true`, which PIP_USER=0 overrules.
PYTHON = f"""#!/bin/sh
case "$*" in
  *"print(sys.executable)"*) echo "$0" ;;
  "-m pip --version") echo "$PIP"; [ -n "$PIP" ] ;;
  "-m pip install"*)
    [ "$PIP_USER" = 0 ] || {{ echo "ERROR: Can not combine '--user' and '--target'"; exit 1; }}
    [ -z "$OFFLINE" ] || {{ printf 'WARNING: Retrying\\nERROR: No matching distribution found for uv\\n' >&2; exit 1; }}
    mkdir -p .tools/bin && ln -s ../../uv .tools/bin/uv ;;
  "-m venv .tools") exit 1 ;;
  *) exec '{sys.executable}' "$@" ;;
esac
"""


@pytest.fixture
def root(tmp_path):
    """A small repository, on a machine without uv."""
    for name in ("models", "common/shared", "91_shop_pattern", "92_bank_pattern"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "pyproject.toml").write_text(f'[project]\nname = "{name[-4:]}"\n')
    for name in ("constraints.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    for name, text in {"uv": UV, "my python": PYTHON}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for folder in ("bin", "scripts"):
        (tmp_path / folder).mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or "")
    shutil.copy(ROOT / "scripts/setup.sh", tmp_path / "scripts")
    return tmp_path


@pytest.fixture
def setup(root):
    """Runs scripts/setup.sh; its exit code, its messages, and the calls of uv."""

    def run(*words, **environ):
        calls = root / "calls"
        calls.write_text("")
        env = {"PATH": str(root / "bin"), "HOME": str(root), "PYTHON": str(root / "my python"), "PIP": PIP} | environ
        command = [shutil.which("bash") or "", str(root / "scripts/setup.sh"), *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr, calls.read_text().splitlines()

    return run


def test_pip_that_is_configured_for_the_user_installs_uv(setup):
    code, output, calls = setup("dev")
    assert code == 0, output
    assert any("pip install" in call for call in calls)


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"OFFLINE": "1"}, "setup: cannot install uv: ERROR: No matching distribution found for uv\n"),
        ({"PIP": ""}, "has neither pip nor ensurepip (on Debian: apt install python3-venv)\n"),
    ],
    ids=["no network", "no pip"],
)
def test_reason_why_uv_cannot_be_installed_is_the_last_line(setup, environ, reason):
    code, output, _ = setup("dev", **environ)
    assert code == 1
    assert output.endswith(reason)


def test_what_is_installed_needs_no_network_until_a_requirement_changes(setup, root):
    assert setup("run", "91_shop_pattern")[2]
    assert setup("run", "91_shop_pattern") == (0, "", [])
    assert setup("run", "91_shop_pattern", "92_bank_pattern")[2]
    assert setup("dev")[2]
    assert setup("run", "92_bank_pattern") == (0, "", [])  # development has everything
    (root / "constraints.txt").write_text("numpy==2\n")
    assert setup("run", "91_shop_pattern")[2]


def test_home_that_cannot_be_written_has_no_cache_and_the_systems_certificates_count(setup, root):
    assert {call.rpartition("|")[0] for call in setup("dev")[2]} == {"|1"}
    (root / "constraints.txt").write_text("numpy==2\n")
    _, _, calls = setup("dev", HOME="/nonexistent", UV_SYSTEM_CERTS="0")
    assert {call.rpartition("|")[0] for call in calls} == {f"{root}/.tools/cache|0"}


def make(*words):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", "-n", *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
@pytest.mark.parametrize("target", ["up", "demo", "bench", "prove", "smoke", "test-compose", "test"])
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("PATTERNS=6", 'PATTERNS: no pattern "6"; write for instance PATTERNS="04 06", of 02 03 '),
        ("PATTERNS=06,04", 'PATTERNS: no pattern "06,04"; '),
        ("FOLDERS=06,common", 'FOLDERS: no folder "06,common"; write for instance FOLDERS="06 common"'),
    ],
)
def test_unknown_word_is_named_by_every_target(target, word, message):
    done = make(target, word)
    assert done.returncode == 2
    assert message in done.stderr


@needs_make
def test_number_of_a_pattern_is_short_for_its_folder():
    done = make("test", "FOLDERS=06 models")
    assert done.stdout.endswith("scripts/test.sh 06_horizontal_microservice_pattern models\n")
