"""Ejects the patterns as they are in the working tree, and looks at what came out as its owner would."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from deploy.eject import eject, history, upgrade
from deploy.eject.eject import ROOT
from serving_testing.own_model import write_model
from serving_testing.processes import NO_COVERAGE, free_port

NUMBERS = sorted(path.name[:2] for path in ROOT.glob("[0-9][0-9]_*_pattern"))
SIX = "06_horizontal_microservice_pattern"
ALLOWED_OTHERS = {"03": {"02_synchronous_pattern"}}


def git(folder, *arguments, check=True):
    author = ("-c", "user.name=Owner", "-c", "user.email=owner@localhost", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", folder, *author, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """A repository with one commit: the working tree's files that git knows or would add."""
    folder = tmp_path_factory.mktemp("upstream")
    names = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in (name for name in names if name and (ROOT / name).is_file()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
        (folder / name).chmod((ROOT / name).stat().st_mode)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=First")
    return folder


@pytest.fixture(scope="module", params=NUMBERS)
def repository(request, upstream, tmp_path_factory):
    """(number, folder) of each pattern's own repository."""
    folder = tmp_path_factory.mktemp("ejected") / request.param
    assert eject.main([request.param, str(folder)], upstream) == 0
    return request.param, folder


def files(folder, suffix=""):
    return [path for path in folder.rglob(f"*{suffix}") if path.is_file() and ".git" not in path.parts]


def test_no_other_pattern_comes_along(repository):
    number, folder = repository
    assert {path.name for path in folder.glob("0*")} == ALLOWED_OTHERS.get(number, set())
    modules = {path.stem for path in folder.glob("scripts/devstack/patterns/*.py")} - {"__init__"}
    assert len(modules) == 1 + (number == "03")


def test_all_that_dockerfiles_and_compose_copy_is_there(repository):
    _, folder = repository
    context = (folder / ".dockerignore").read_text().splitlines()
    for dockerfile in [*folder.glob("Dockerfile*"), *folder.glob("0*/Dockerfile"), folder / "models/Dockerfile"]:
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile.read_text(), re.MULTILINE):
            *sources, target = [word for word in line.split() if not word.startswith("--")]
            assert sources, f"{dockerfile}: nothing is copied to {target}"
            for source in sources:
                is_client = source.startswith("02_synchronous_pattern/client")  # 03 builds no image of 02's client
                assert is_client or list(folder.glob(source.rstrip("/"))), f"{dockerfile}: {source}"
                top = source.split("/")[0]
                assert any(top in line or line in ("!02_*", "!models/*.py") for line in context), f"{source}: ignored"
    # Images are built where the packages for tests are not: uv cannot read a group that names one.
    groups = tomllib.loads((folder / "pyproject.toml").read_text())["dependency-groups"]
    assert not any(str(line).startswith("serving-") for lines in groups.values() for line in lines)
    for service in yaml.safe_load((folder / "docker-compose.yml").read_text())["services"].values():
        if "build" in service:
            assert service["build"]["context"] == "."
            assert (folder / service["build"]["dockerfile"]).is_file()
        for watched in service.get("develop", {}).get("watch", []):
            assert (folder / watched["path"]).exists(), watched
    for compose in folder.glob("docker-compose*.yml"):
        for mount in re.findall(r"(?:source: |- )(\$\{\w*MODEL\w*:.*)", compose.read_text()):
            # Without ./ compose takes a source for the name of a volume.
            assert re.match(r"\$\{\w+:[+-]\./models/artifacts/?\}", mount)


def test_the_readme_speaks_of_the_new_root(repository):
    number, folder = repository
    targets = set(re.findall(r"^([a-z-]+):", (folder / "Makefile").read_text(), re.M))
    for name in ("README.md", "README.ja.md"):
        text = (folder / name).read_text()
        assert "../.venv" not in text
        assert not re.search(rf"^ *cd {number}_", text, re.M)
    assert {"demo", "test", "up", "lint", "models", "setup", "upgrade"} <= targets


def test_every_import_and_every_link_leads_somewhere(repository):
    _, folder = repository
    tops = {"src": folder, "models": folder, "scripts": folder, "client": folder, "tests": folder}
    tops |= {
        package.name: package.parent for package in folder.glob("common/*/*") if (package / "__init__.py").exists()
    }
    for path in files(folder, ".py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top, *rest = name.split(".")
                if top in tops:
                    module = tops[top].joinpath(top, *rest)
                    assert module.is_dir() or module.with_suffix(".py").is_file(), f"{path}: {name}"
                else:
                    assert not (ROOT / "common" / top).exists(), f"{path}: {name}"
    for path in files(folder, ".md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)\s#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path}: {target}"


def test_record_names_the_origin_of_every_file(repository):
    number, folder = repository
    record = json.loads((folder / "upstream.json").read_text())
    assert record["pattern"] == number
    assert set(record["files"]) == {path.relative_to(folder).as_posix() for path in files(folder)} - {"upstream.json"}
    assert (
        git(folder, "status", "--porcelain", "--ignored").count("!!") == 0
    )  # no file that its own git would leave out


def test_the_demo_runs_in_the_new_repository(upstream, tmp_path):
    to = tmp_path / "six"
    assert eject.main(["06", str(to)], upstream) == 0
    (to / "models/artifacts").symlink_to(ROOT / "models/artifacts")
    roots = [to, *(package.parent for package in to.glob("common/*/pyproject.toml"))]
    names = re.findall(r"PORT_06_\w+", (to / "scripts/devstack/patterns/horizontal_microservice.py").read_text())
    ports = {name: str(free_port()) for name in names}
    environment = os.environ | NO_COVERAGE | ports | {"PYTHONPATH": os.pathsep.join(map(str, roots))}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.devstack.demo", "06"],
        cwd=to, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 wrong." in done.stdout


PAGES = [ROOT / "docs/eject.md", ROOT / "docs/eject.ja.md"]


def commands_of(page):
    return re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def test_commands_of_the_page_move_a_pattern_out_and_upgrade_it(upstream, tmp_path):
    """All but those that set up an environment: of these it is seen that they would be run."""
    assert commands_of(PAGES[0]) == commands_of(PAGES[1])
    move, own, update = commands_of(PAGES[0])
    git(tmp_path, "clone", "--quiet", upstream, "serving-patterns")
    (tmp_path / "serving-patterns/.venv").symlink_to(ROOT / ".venv")
    script = f"""set -eu
make() {{ case $1 in demo | test) command make --dry-run "$@" ;; *) command make "$@" ;; esac; }}
docker() {{ test "$1" = compose; }}
{move}{own}
cd ../serving-patterns
echo '# new' >> 06_horizontal_microservice_pattern/src/models.py
git commit --quiet --all --message Next
cd ../flower-service
{update}"""
    identity = {f"GIT_{who}_{what}": "owner" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path / "serving-patterns", env=os.environ | identity,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "-m scripts.devstack.demo  06" in done.stdout
    assert (tmp_path / "flower-service/src/models.py").read_text().endswith("# new\n")
    assert git(tmp_path / "flower-service", "log", "--format=%s") == "Eject pattern 06\n"


def test_folders_may_have_spaces(upstream, tmp_path):
    git(tmp_path, "clone", "--quiet", upstream, "up stream")
    (tmp_path / "up stream/.venv").symlink_to(ROOT / ".venv")
    make = ["make", "--silent", "-C"]
    subprocess.run([*make, tmp_path / "up stream", "eject", "PATTERN=06", "TO=../a pattern/of mine"], check=True)
    own = tmp_path / "a pattern/of mine"
    git(own, "add", "--all")
    git(own, "commit", "--quiet", "--message=First")
    done = subprocess.run([*make, own, "upgrade", "FROM=../../up stream"], capture_output=True, text=True, check=False)
    assert done.stdout == "Nothing to do: upstream is where it was.\n", done.stderr


def test_upgrades_through_history_find_edits_kept_and_lost(upstream, tmp_path, capsys, monkeypatch):
    git(tmp_path, "clone", "--quiet", upstream, "upstream")
    for name in ("src/models.py", "README.md"):
        path = tmp_path / "upstream" / SIX / name
        path.write_text(f"{path.read_text()}# new in {name}\n")
    git(tmp_path / "upstream", "commit", "--quiet", "--all", "--message=Next")
    keep = history.resolved
    monkeypatch.setattr(history, "resolved", lambda found: found[2] if "README" in found[2] else keep(found))
    assert history.main(["06", "--commits", "1", "--output", "docs"], tmp_path / "upstream") == 1
    [upgrade] = capsys.readouterr().out.splitlines()[2:]
    assert upgrade.endswith(" Next | 2 | 2 | 0 | 1 | 0 |")
    for page in ("eject.md", "eject.ja.md"):
        text = (tmp_path / "upstream/docs" / page).read_text()
        assert f"{history.HEAD}\n{upgrade}\n<!-- /prove -->" in text


def test_a_model_of_ones_own_comes_along(upstream, tmp_path, capsys):
    write_model(upstream / "models/artifacts/churn")
    to = tmp_path / "six"
    assert eject.main(["06", str(to), "--model", "churn"], upstream) == 0
    assert (to / "models/artifacts/churn/1/model.onnx").is_file()
    assert "make demo MODEL=churn" in capsys.readouterr().out
    assert "models/artifacts/churn" not in (to / "upstream.json").read_text()

    assert eject.main(["06", str(tmp_path / "other"), "--model", "chrun"], upstream) == 1
    assert capsys.readouterr().err.startswith("eject: MODEL=chrun: there is no ")


@pytest.mark.parametrize(
    ("number", "reason"), [("09", "PATTERN=09: no such pattern; there are 02, 03"), ("", "PATTERN=: no such pattern")]
)
def test_an_unknown_pattern_is_named(upstream, tmp_path, capsys, number, reason):
    assert eject.main([number, str(tmp_path / "x")], upstream) == 1
    assert list(tmp_path.iterdir()) == []
    assert reason in capsys.readouterr().err


def test_a_folder_with_files_is_left_alone(upstream, tmp_path, capsys):
    (tmp_path / "mine").write_text("")
    assert eject.main(["06", str(tmp_path)], upstream) == 1
    reason = f"eject: {tmp_path} is not empty; name a folder that does not exist yet\n"
    assert capsys.readouterr().err == reason


def test_packages_of_packages_come_along(upstream):
    found = eject.packages(upstream, upstream / "03_asynchronous_pattern")
    assert found == {"serving_common", "serving_testing", "tfserving_protos"}


def test_without_a_commit_there_is_nothing_to_eject(tmp_path, capsys):
    git(tmp_path, "init", "--quiet", "empty")
    assert eject.main(["06", str(tmp_path / "to")], tmp_path / "empty") == 1
    assert capsys.readouterr().err.count("\n") == 1


class Owned:
    """An ejected 06 in which its owner has worked, and the checkout that it came from."""

    def __init__(self, upstream, folder):
        self.upstream, self.here = folder / "upstream", folder / "own"
        git(folder, "clone", "--quiet", upstream, self.upstream)
        assert eject.main(["06", str(self.here)], self.upstream) == 0
        git(self.here, "add", "--all")
        git(self.here, "commit", "--quiet", "--message=First")

    def edit(self, folder, name, old, new):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    def commit(self, folder):
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message=Next")

    def upgrade(self):
        return upgrade.main([str(self.upstream)], self.here)


@pytest.fixture
def owned(upstream, tmp_path):
    return Owned(upstream, tmp_path)


def test_an_upgrade_keeps_edits_and_follows_renames(owned, capfd):
    owned.edit(owned.here, "src/proxy/fan_out.py", "import", "# mine\nimport")
    owned.edit(owned.here, "docker-compose.yml", "cpus:", "# mine\n          cpus:")
    (owned.here / "src/own.py").write_text("MINE = 1\n")
    owned.commit(owned.here)
    owned.edit(owned.upstream, f"{SIX}/src/proxy/fan_out.py", '"""', '"""Theirs: ')
    owned.edit(owned.upstream, f"{SIX}/docker-compose.yml", "# docker compose up ", "# docker compose  up ")
    git(owned.upstream, "mv", f"{SIX}/src/models.py", f"{SIX}/src/forms.py")
    (owned.upstream / SIX / "src/new.py").write_text(f'FOLDER = "{SIX}/src"\n')
    git(owned.upstream, "rm", "--quiet", f"{SIX}/docker-compose.secrets.yml")
    (owned.upstream / "07_sync_async_pattern/src/of_another.py").write_text("")
    owned.commit(owned.upstream)

    assert owned.upgrade() == 0

    text = (owned.here / "src/proxy/fan_out.py").read_text()
    assert "# mine\n" in text
    assert text.startswith('"""Theirs: ')
    compose = (owned.here / "docker-compose.yml").read_text()
    assert "# mine\n" in compose
    assert "# docker compose  up " in compose
    assert (owned.here / "src/own.py").exists()
    assert not (owned.here / "src/models.py").exists()
    assert (owned.here / "src/forms.py").exists()
    assert (owned.here / "src/new.py").read_text() == 'FOLDER = "src"\n'
    assert not (owned.here / "docker-compose.secrets.yml").exists()
    assert git(owned.here, "status", "--porcelain").count("of_another") == 0
    owned.commit(owned.here)
    assert owned.upgrade() == 0
    assert "Nothing to do" in capfd.readouterr().out


def test_a_conflict_is_left_to_resolve_and_can_be_taken_back(owned, capfd):
    owned.edit(owned.here, "src/proxy/fan_out.py", "import", "import  # mine\nimport")
    owned.commit(owned.here)
    before = git(owned.here, "rev-parse", "HEAD^{tree}")
    owned.edit(owned.upstream, f"{SIX}/src/proxy/fan_out.py", "import", "import  # theirs\nimport")
    owned.commit(owned.upstream)

    assert owned.upgrade() == 1

    assert "CONFLICT (content): Merge conflict in src/proxy/fan_out.py" in capfd.readouterr().out
    assert "<<<<<<<" in (owned.here / "src/proxy/fan_out.py").read_text()
    git(owned.here, "reset", "--quiet", "--hard")
    assert git(owned.here, "status", "--porcelain") == ""
    assert git(owned.here, "rev-parse", "HEAD^{tree}") == before


def test_an_upgrade_refuses_what_it_could_not_take_back(owned, capsys):
    (owned.here / "src/own.py").write_text("")
    assert owned.upgrade() == 1
    assert capsys.readouterr().err == "upgrade: there are changes that are not committed; commit or stash them first\n"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda record: record["files"]["Makefile"].update(sha256="0"), "Makefile: not the file that upstream.json"),
        (lambda record: record.update(revision="0" * 40), "0" * 40),
    ],
)
def test_an_upgrade_refuses_a_checkout_of_something_else(owned, capsys, spoil, reason):
    record = json.loads((owned.here / "upstream.json").read_text())
    spoil(record)
    (owned.here / "upstream.json").write_text(json.dumps(record))
    owned.commit(owned.here)
    (owned.upstream / "VERSION").write_text("9.9.9\n")
    owned.commit(owned.upstream)
    assert owned.upgrade() == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert git(owned.here, "status", "--porcelain") == ""


@pytest.mark.parametrize("arguments", [["."], [], ["a", "b"]])
def test_an_upgrade_elsewhere_says_how_it_is_called(tmp_path, capsys, arguments):
    assert upgrade.main(arguments, tmp_path) == 1
    assert "usage: upgrade.py UPSTREAM" in capsys.readouterr().err
