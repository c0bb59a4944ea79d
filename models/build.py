"""Builds the artifacts that are missing or out of date: python -m models.build --help."""

import argparse
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from models.artifacts import MODEL_ZOO, Artifact, Options, Plan, table
from models.download import Downloader, DownloadError
from models.files import BuildError, locked, replacing, say, sha256_of, size_of
from models.manifest import Entry, installed, load, save

HERE = Path(__file__).parent
PRECISIONS = ("float32", "int8")


def main(arguments: Sequence[str] | None = None, artifacts: Mapping[str, Artifact] | None = None) -> int:
    """Exit code: 0: all built or up to date; 1: a failure, explained by one line on stderr; 2: bad arguments."""
    artifacts = artifacts or table()
    parsed = parse(arguments, artifacts)
    options = Options(
        downloader=Downloader(parsed.cache),
        output=parsed.output,
        weights=parsed.weights,
        weights_files=dict(parsed.weights_file),
    )
    names = parsed.only or [name for name, artifact in artifacts.items() if not artifact.is_extra]
    if parsed.precision == "int8":
        names += [extra for name in names if (extra := f"{name}_int8") in artifacts]
    try:
        build(with_dependencies(names, artifacts), artifacts, options, force=parsed.force)
    except (BuildError, OSError) as exc:
        say(f"error: {exc}")
        return 1
    except ModuleNotFoundError as exc:
        say(f"error: {exc.name} is not installed: run `make setup`")
        return 1
    except KeyboardInterrupt:
        say("interrupted; finished artifacts are kept")
        return 130
    return 0


def parse(arguments: Sequence[str] | None, artifacts: Collection[str]) -> argparse.Namespace:
    def weights_file(argument: str) -> tuple[str, Path]:
        name, separator, path = argument.partition("=")
        if not separator or not path or name not in MODEL_ZOO:
            raise argparse.ArgumentTypeError(f"{argument!r} is not NAME=PATH with a NAME of {', '.join(MODEL_ZOO)}")
        return name, Path(path)

    parser = argparse.ArgumentParser(prog="python -m models.build", description="Builds the models that are served.")
    add = parser.add_argument
    add("--only", nargs="+", choices=list(artifacts), metavar="NAME", help=f"of {', '.join(artifacts)}")
    add(
        "--weights",
        choices=["auto", "pretrained", "random"],
        default="auto",
        help="of the vision models; auto (default): pretrained, or random if the download is unreachable",
    )
    add(
        "--weights-file",
        action="extend",
        nargs="+",
        default=[],
        type=weights_file,
        metavar="NAME=PATH",
        help="use this ONNX file for a vision model",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default=os.environ.get("MODEL_PRECISION") or "float32",
        help="int8: also build the vision models in 8-bit integers; default: MODEL_PRECISION, else float32",
    )
    add("--force", action="store_true", help="rebuild artifacts that are up to date")
    add("--output", type=Path, default=HERE / "artifacts", metavar="DIR", help="default: models/artifacts")
    add(
        "--cache",
        type=Path,
        default=os.environ.get("MODELS_CACHE") or HERE / "cache",
        metavar="DIR",
        help="folder of downloads; default: MODELS_CACHE, else models/cache",
    )
    options = parser.parse_args(arguments)
    if options.precision not in PRECISIONS:
        parser.error(f"MODEL_PRECISION={options.precision}: choose from {', '.join(PRECISIONS)}")
    for name, _ in options.weights_file:
        if options.only and name not in options.only:
            parser.error(f"--weights-file names {name}, which --only leaves out")
    return options


def with_dependencies(names: Collection[str], artifacts: Mapping[str, Artifact]) -> list[str]:
    """These artifacts and their dependencies, in the table's order."""
    dependencies = {each for name in names for each in artifacts[name].depends_on}
    return [name for name in artifacts if name in names or name in dependencies]


def build(names: Sequence[str], artifacts: Mapping[str, Artifact], options: Options, *, force: bool) -> None:
    """Bring these artifacts and the manifest up to date. Raises BuildError, OSError."""
    output = options.output
    manifest = output / "manifest.json"
    with locked(output):
        entries = load(manifest)
        for name in names:
            artifact, recorded = artifacts[name], None if force else entries.get(name)
            plans = artifact.plans(options, recorded)
            if recorded and is_current(recorded, artifact, plans, output):
                report(name, recorded, "up to date")
                if recorded.weights == "random" and options.weights == "auto" and not artifact.is_extra:
                    say(f"{name}: its weights are random; to try the download again: --weights pretrained")
                continue
            started = time.monotonic()
            # Saved at once, so that finished artifacts remain if a later one fails.
            entries[name] = make(name, artifact.file, plans, output)
            save(manifest, entries)
            report(name, entries[name], f"built in {time.monotonic() - started:.1f} s")


def is_current(recorded: Entry, artifact: Artifact, plans: Sequence[Plan], output: Path) -> bool:
    return (
        recorded.file == artifact.file
        and any(plan.weights == recorded.weights and recorded.made_by(plan.recipe, plan.libraries) for plan in plans)
        and recorded.describes(output / artifact.file)
    )


def make(name: str, file: str, plans: Sequence[Plan], output: Path) -> Entry:
    """Build the artifact by the first plan; by the next one if a download is not available."""
    plan, *others = plans
    try:
        with replacing(output / file) as temporary:
            facts = plan.make(temporary)
            return Entry(
                file=file,
                sha256=sha256_of(temporary),
                size_bytes=size_of(temporary),
                weights=plan.weights,
                inputs=facts.inputs,
                outputs=facts.outputs,
                metrics=facts.metrics,
                libraries=installed((*plan.libraries, *plan.checked_with)),
                recipe=plan.recipe,
            )
    except BuildError as exc:
        if not isinstance(exc, DownloadError) or not others:
            raise BuildError(f"{name}: {exc}") from exc
        say(f"warning: {name}: {exc}; taking {others[0].weights} weights instead")
    return make(name, file, others, output)


def report(name: str, entry: Entry, state: str) -> None:
    quality = f"accuracy {entry.metrics['accuracy']:.4f}" if "accuracy" in entry.metrics else ""
    if entry.weights and not quality:
        quality = f"weights {entry.weights}"
    if "agreement" in entry.metrics:
        first, among_5, difference = (
            entry.metrics[name] for name in ("agreement", "agreement_among_5", "mean_absolute_difference")
        )
        quality += f", says what float32 says for {first:.0%} of the images"
        quality += f" ({among_5:.0%} among the best five; scores differ by {difference:.3f} on average)"
    print(f"{name:<22} {state:<16} {entry.size_bytes / 1000:>10,.1f} kB  {quality}".rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
