"""Writes one pattern as a repository of its own: `make eject PATTERN=03 TO=../churn-service`.

The files are those of a commit, copied: the pattern at the root, and beside it what it uses of common/, models/ and
scripts/. Only paths change, since the pattern's folder becomes the root. `upstream.json` records where each file came
from, for `make upgrade` (upgrade.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
RECORD = "upstream.json"
# What every pattern takes along, below the repository's root. Before Python 3.13, `**` alone finds only folders.
SHARED = (
    ".gitignore", ".dockerignore", ".python-version", "LICENSE", "constraints.txt", "models/*.py", "models/*.json",
    "models/README.md", "models/pyproject.toml", "models/Dockerfile", "deploy/kubernetes/**/*", "scripts/setup.sh",
    "scripts/devstack/*.py", "scripts/devstack/README.md", "scripts/devstack/patterns/__init__.py",
    "scripts/devstack/console/*.py", "scripts/devstack/console/static/*",
)  # fmt: skip
# 03's workers call the model server of 02, and it serves the model that 02 builds.
OF_OTHERS = {
    "03": (
        "02_synchronous_pattern/Dockerfile", "02_synchronous_pattern/tf_serving_entrypoint.sh",
        "02_synchronous_pattern/monitoring.config",
        "02_synchronous_pattern/build_model.py", "02_synchronous_pattern/pyproject.toml",
        "02_synchronous_pattern/kubernetes/model-server/*",
        "scripts/devstack/patterns/synchronous.py", "common/model_server/**/*",
    ),
    "02": ("common/model_server/**/*",),
}  # fmt: skip
# For `make trace` and `make test-compose`, which stay behind.
LEFT_BEHIND = ("SPECIFICATION.md", "tests/compose.sh")
LINK = re.compile(r"\[([^]\n]+)\]\((?!https?:|#)([^)\s#]+)(#[^)\s]*)?\)")


class EjectError(Exception):
    """One line for the user."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One file of the new repository."""

    source: str
    """Its path upstream."""
    content: bytes
    is_executable: bool


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Exit code: 0: written; 1: a failure, explained by one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", metavar="NN")
    parser.add_argument("to", type=Path)
    parser.add_argument("--model", metavar="NAME", help="of your own, in models/artifacts: comes along")
    parser.add_argument("--tree", type=Path, help="for upgrades: a checkout without its repository, of --revision")
    parser.add_argument("--revision", help="that of --tree")
    options = parser.parse_args(arguments)
    try:
        if options.to.exists() and any(path.name != ".git" for path in options.to.iterdir()):
            raise EjectError(f"{options.to} is not empty; name a folder that does not exist yet")
        model = root / "models/artifacts" / options.model if options.model else None
        if model and not (model / "model.toml").is_file():
            raise EjectError(f"MODEL={options.model}: there is no {model / 'model.toml'}; add it with models.add")
        if options.tree:
            revision, copies = options.revision, ejected(options.tree, options.pattern)
        else:
            revision = git(root, "rev-parse", "HEAD").decode().strip()
            with tempfile.TemporaryDirectory() as folder:
                checkout(root, revision, Path(folder))
                copies = ejected(Path(folder), options.pattern)
        write(copies, options.to, revision, options.pattern)
        if model:
            # Not of the commit, and not recorded: upgrades leave it alone.
            shutil.copytree(model, options.to / "models/artifacts" / model.name)
        if not options.tree:
            git(options.to, "init", "--quiet")
    except (EjectError, OSError) as exc:
        sys.stderr.write(f"eject: {exc}\n")
        return 1
    lines = sum(copy.content.count(b"\n") for copy in copies.values())
    demo = f"make demo MODEL={options.model}" if options.model else "make demo"
    print(f"{options.to}: {len(copies)} files, {lines:,} lines. Next: cd {shlex.quote(str(options.to))} && {demo}")
    return 0


def git(folder: Path, *arguments: str) -> bytes:
    """What git prints. Raises EjectError with its last line."""
    done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, check=False)
    if done.returncode:
        raise EjectError((done.stderr.decode() or done.stdout.decode()).strip().split("\n")[-1])
    return done.stdout


def checkout(repository: Path, revision: str, folder: Path) -> None:
    """The files of a commit, without what is not committed."""
    with tarfile.open(fileobj=BytesIO(git(repository, "archive", revision))) as archive:
        archive.extractall(folder, filter="data")


def ejected(upstream: Path, number: str) -> dict[str, Copy]:
    """The files of the new repository by path, made from a checkout. Raises EjectError: no such pattern."""
    found = list(upstream.glob(f"{number}_*_pattern"))
    if len(found) != 1:
        numbers = sorted(path.name[:2] for path in upstream.glob("[0-9][0-9]_*_pattern"))
        raise EjectError(f"PATTERN={number}: no such pattern; there are {', '.join(numbers)}")
    [pattern] = found
    origins = origins_of(upstream, pattern, number)
    copies = {}
    for target, path in origins.items():
        source = path.relative_to(upstream).as_posix()
        content = path.read_bytes()
        if b"\0" not in content:
            text = moved(content.decode(), source, target, pattern.name, origins)
            content = finished(text, target, number, pattern.name, upstream, origins).encode()
        copies[target] = Copy(source, content, bool(path.stat().st_mode & 0o100))
    return copies


def origins_of(upstream: Path, pattern: Path, number: str) -> dict[str, Path]:
    """Which file each file of the new repository is a copy of."""
    module = pattern.name.removeprefix(f"{number}_").removesuffix("_pattern")
    globs = [*SHARED, f"scripts/devstack/patterns/{module}.py", *OF_OTHERS.get(number, ())]
    globs += [f"common/{name}/**/*" for name in packages(upstream, pattern)]
    shared = {path.relative_to(upstream).as_posix(): path for glob in globs for path in upstream.glob(glob)}
    shared = {target: path for target, path in shared.items() if "/tests/" not in target}
    for folder in (pattern, upstream / "deploy/eject/ejected"):
        shared |= {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {target: path for target, path in shared.items() if path.is_file() and target not in LEFT_BEHIND}


def packages(upstream: Path, pattern: Path) -> set[str]:
    """The folders in common/ of the packages that the pattern, its devstack and its tests depend on."""
    known = {}
    for file in upstream.glob("common/*/pyproject.toml"):
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        known[data["project"]["name"]] = (file.parent.name, requirements(data))
    wanted = requirements(tomllib.loads((pattern / "pyproject.toml").read_text(encoding="utf-8"))) | {"serving-testing"}
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in known and known[name][0] not in found:
            found.add(known[name][0])
            wanted |= known[name][1]
    return found


def requirements(project: dict[str, dict[str, object]]) -> set[str]:
    """Names of the distributions that a pyproject.toml requires, extras included."""
    declared = project["project"]
    lists = [declared.get("dependencies", []), *dict(declared.get("optional-dependencies", {})).values()]  # type: ignore[call-overload]
    return {re.split(r"[\[<>=~! ;]", str(line))[0] for lines in lists for line in lines}


def moved(text: str, source: str, target: str, folder: str, kept: Collection[str]) -> str:
    """The text of a file with its paths as they are now that the pattern's folder is the root."""
    text = re.sub(rf"(\s)(\./)?{folder}/(?=\s)", r"\1./", text)  # the folder itself, as the target of a COPY
    text = re.sub(rf"(\./)?{folder}/", "", text).replace(f'"{folder}"', '"."')
    is_own = source == f"{folder}/{target}"
    if is_own and target.endswith((".yml", ".yaml")):
        text = text.replace("context: ..\n", "context: .\n")
        # With ./ where nothing else is left: without, compose takes the source of a volume for a name.
        text = re.sub(r"(\.\./)?\.\./(?=common|models|deploy|0)", lambda found: found[1] or "./", text)
    if is_own and target.startswith("tests/"):
        text = text.replace("PATTERN.parent", "PATTERN")
        text = re.sub(r"^ROOT = Path\(__file__\)\.parents\[2\]", "ROOT = Path(__file__).parents[1]", text, flags=re.M)
    if target.endswith(".md"):
        if is_own:
            text = re.sub(rf"^ *cd {folder}\n", "", text, flags=re.M).replace("../.venv/", ".venv/")
        text = LINK.sub(lambda link: relinked(link, source, folder, kept), text)
    return text


def finished(text: str, target: str, number: str, folder: str, upstream: Path, origins: Mapping[str, Path]) -> str:
    """The text of the three files that know which folders there are."""
    others = sorted({path.split("/")[0] for path in origins if re.match(r"\d\d_", path)})
    if target == "Makefile":
        return text.replace(":= NN\n", f":= {number}\n").replace(":= .\n", f":= {' '.join([*others, '.'])}\n")
    if target == ".dockerignore":
        own = {path.split("/")[0] for path, origin in origins.items() if origin.is_relative_to(upstream / folder)}
        return text.replace("!*_pattern\n", "".join(f"!{name}\n" for name in [*others, *sorted(own - {"tests"})]))
    if target == "pyproject.toml":
        members = json.dumps(["common/*", "models", *others])
        workspace = (upstream / "pyproject.toml").read_text(encoding="utf-8").split("\n\n", 1)[1]
        workspace = re.sub(r"^members = .*$", f"members = {members}", workspace, flags=re.M)
        sources = re.compile(r"^\[tool\.uv\.sources\]\n((?:.+\n)*)\n?", re.M)
        found = {line for part in (text, workspace) for lines in sources.findall(part) for line in lines.splitlines()}
        if "common/model_server/pyproject.toml" not in origins:
            found -= {"portable-model-server = { workspace = true }"}
        merged = "\n".join(["[tool.uv.sources]", *sorted(found)])
        return f"{sources.sub('', text)}{merged}\n\n{sources.sub('', workspace)}"
    return text


def relinked(link: re.Match[str], source: str, folder: str, kept: Collection[str]) -> str:
    """A link of a README, from where the file is now; its text alone where the target stayed behind."""
    parts: list[str] = []
    for part in PurePosixPath(source).parent.joinpath(link[2]).parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    here = "/".join(parts).removeprefix(folder).removeprefix("/")
    if not any(path == here or path.startswith(f"{here}/") for path in kept):
        return link[1]
    at = PurePosixPath(source).parent
    depth = len(at.parts) - (at.parts[:1] == (folder,))
    return f"[{link[1]}]({'../' * depth}{here}{link[3] or ''})"


def write(copies: dict[str, Copy], folder: Path, revision: str, number: str) -> None:
    """The files, and the record of where they came from."""
    for target, copy in copies.items():
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(copy.content)
        if copy.is_executable:
            path.chmod(0o755)
    files = {
        target: {"from": copy.source, "sha256": hashlib.sha256(copy.content).hexdigest()}
        for target, copy in sorted(copies.items())
    }
    record = {"pattern": number, "revision": revision, "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
