"""The table of artifacts: the file of each, and the plans to build it.

This module imports no machine learning library; a plan does when it builds.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from models.download import Downloader, DownloadError, Source
from models.files import BuildError, sha256_of
from models.manifest import Entry, Facts, Recipe, load

Weights = Literal["auto", "pretrained", "random"]

IRIS_CLASSES = ("setosa", "versicolor", "virginica")
SAVED_MODEL_BUILDER = Path(__file__).parents[1] / "02_synchronous_pattern/build_model.py"
IMAGENET_LABELS = Path(__file__).with_name("imagenet_labels.json")
VISION_DEPENDENCIES = ("imagenet_labels", "sample_image")

# From the ONNX Model Zoo, which moved to Hugging Face in July 2025.
MODEL_ZOO: Mapping[str, Source] = {
    "mobilenet_v2": Source(
        "https://huggingface.co/onnxmodelzoo/mobilenetv2-12/resolve/main/mobilenetv2-12.onnx",
        13_964_571,
        "c0c3f76d93fa3fd6580652a45618618a220fced18babf65774ed169de0432ad5",
    ),
    "resnet50": Source(
        "https://huggingface.co/onnxmodelzoo/resnet50-v2-7/resolve/main/resnet50-v2-7.onnx",
        102_442_452,
        "79102261eb6e5fd7af5d27f41316293e388c5cb691e5d25bfb035c4f64fefe31",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command line that affect a build."""

    downloader: Downloader
    output: Path
    weights: Weights = "auto"
    weights_files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to build an artifact. The artifact is up to date while its manifest entry has the same recipe.

    recipe: everything besides the versions of `libraries` (names of distributions) that determines the content. Raise
    its "version" when a change of the code changes the content.
    checked_with: libraries that are recorded but do not determine the content.
    make: writes and checks the file. Raises BuildError; after a DownloadError the next plan is tried.
    """

    recipe: Recipe
    make: Callable[[Path], Facts]
    libraries: tuple[str, ...] = ()
    checked_with: tuple[str, ...] = ()
    weights: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """plans: from the options and the recorded manifest entry, the ways to build it, the best first.

    depends_on: artifacts that are built before it.
    is_extra: built only on request.
    """

    file: str
    plans: Callable[[Options, Entry | None], list[Plan]]
    depends_on: tuple[str, ...] = ()
    is_extra: bool = False


def iris(class_index: int | None) -> Artifact:
    def plans(_options: Options, _recorded: Entry | None) -> list[Plan]:
        split = {"folds": 5, "repeats": 5, "seed": 0}

        def make(target: Path) -> Facts:
            from models.iris import build

            return build(target, class_index, **split)

        libraries = ("scikit-learn", "scipy", "numpy", "skl2onnx", "onnx")
        return [
            Plan(
                recipe={"version": 1, **split},
                libraries=libraries,
                checked_with=("onnxruntime",),
                weights="trained",
                make=make,
            )
        ]

    name = "iris_svc" if class_index is None else f"iris_svc_0_{IRIS_CLASSES[class_index]}"
    return Artifact(file=f"{name}.onnx", plans=plans, depends_on=("label",))


def iris_saved_model() -> Artifact:
    """Pattern 02's SavedModel, and its ONNX file beside it, in a folder that is named after the version."""

    def plans(_options: Options, _recorded: Entry | None) -> list[Plan]:
        if not SAVED_MODEL_BUILDER.is_file():
            raise BuildError(f"{SAVED_MODEL_BUILDER} is missing: pattern 02 builds this model")

        def make(target: Path) -> Facts:
            from models.saved_model import build

            return build(SAVED_MODEL_BUILDER, target)

        recipe: Recipe = {"version": 1, "builder_sha256": sha256_of(SAVED_MODEL_BUILDER)}
        libraries = ("tensorflow", "keras", "numpy", "onnx", "scikit-learn")
        return [Plan(recipe=recipe, libraries=libraries, weights="trained", make=make)]

    return Artifact(file="saved_model/iris/1", plans=plans)


def vision(name: str, source: Source) -> Artifact:
    def plans(options: Options, recorded: Entry | None) -> list[Plan]:
        if path := options.weights_files.get(name):
            if not path.is_file():
                raise BuildError(f"{path} does not exist")
            return [adopted("local", sha256_of(path), lambda: path)]
        pretrained = adopted("pretrained", source.sha256, lambda: options.downloader.fetch(source))
        if options.weights == "pretrained":
            return [pretrained]
        if options.weights == "random":
            return [randomized(seed=0)]
        ways = [pretrained, randomized(seed=0)]
        if recorded and recorded.weights == "local":
            ways.insert(0, adopted("local", str(recorded.recipe.get("source_sha256")), lost))
        return ways

    def adopted(weights: str, sha256: str, find: Callable[[], Path]) -> Plan:
        def make(target: Path) -> Facts:
            path = find()
            from models.imagenet import adopt

            return adopt(path, target)

        # All weights come from the source: a new version of onnx does not require another download.
        return Plan(
            recipe={"version": 1, "source_sha256": sha256},
            checked_with=("onnx", "onnxruntime"),
            weights=weights,
            make=make,
        )

    def lost() -> Path:
        raise DownloadError("its weights came from a local file, which --weights-file must name again")

    def randomized(seed: int) -> Plan:
        def make(target: Path) -> Facts:
            from models.imagenet import randomize

            return randomize(name, seed, target)

        libraries = ("tensorflow", "keras", "tf2onnx", "numpy", "onnx")
        return Plan(
            recipe={"version": 2, "seed": seed},
            libraries=libraries,
            checked_with=("onnxruntime",),
            weights="random",
            make=make,
        )

    return Artifact(file=f"{name}.onnx", plans=plans, depends_on=VISION_DEPENDENCIES)


def quantised(name: str) -> Artifact:
    """A vision model in 8-bit integers, made from the float32 model."""

    def plans(options: Options, _recorded: Entry | None) -> list[Plan]:
        source = load(options.output / "manifest.json")[name]
        calibration = {"images": 48, "seed": 0}

        def make(target: Path) -> Facts:
            from models.quantization import quantize

            return quantize(options.output / source.file, target, **calibration)

        return [
            Plan(
                recipe={"version": 2, "source_sha256": source.sha256, **calibration},
                libraries=("onnxruntime", "onnx", "numpy", "pillow", "scikit-learn"),
                weights=source.weights,
                make=make,
            )
        ]

    return Artifact(file=f"{name}_int8.onnx", plans=plans, depends_on=(name, *VISION_DEPENDENCIES), is_extra=True)


def sample_image() -> Artifact:
    """A photograph for the vision models: the palace in scikit-learn's sample data."""

    def plans(_options: Options, _recorded: Entry | None) -> list[Plan]:
        def make(target: Path) -> Facts:
            from importlib.resources import files

            target.write_bytes((files("sklearn") / "datasets/images/china.jpg").read_bytes())
            return Facts(inputs=[], outputs=[], metrics={})

        return [Plan(recipe={"version": 1, "image": "china.jpg"}, libraries=("scikit-learn",), make=make)]

    return Artifact(file="sample.jpg", plans=plans)


def text(file: str, content: str) -> Artifact:
    def make(target: Path) -> Facts:
        target.write_text(content, encoding="utf-8")
        return Facts(inputs=[], outputs=[], metrics={})

    recipe = {"content_sha256": hashlib.sha256(content.encode()).hexdigest()}
    return Artifact(file=file, plans=lambda _options, _recorded: [Plan(recipe=recipe, make=make)])


def table(zoo: Mapping[str, Source] = MODEL_ZOO) -> dict[str, Artifact]:
    return {
        "label": text("label.json", json.dumps(dict(enumerate(IRIS_CLASSES))) + "\n"),
        "iris_svc": iris(None),
        "iris_svc_0_setosa": iris(0),
        "iris_svc_0_versicolor": iris(1),
        "iris_svc_0_virginica": iris(2),
        "iris_saved_model": iris_saved_model(),
        "imagenet_labels": text("imagenet_labels.json", IMAGENET_LABELS.read_text(encoding="utf-8")),
        "sample_image": sample_image(),
        "mobilenet_v2": vision("mobilenet_v2", zoo["mobilenet_v2"]),
        "resnet50": vision("resnet50", zoo["resnet50"]),
        "mobilenet_v2_int8": quantised("mobilenet_v2"),
        "resnet50_int8": quantised("resnet50"),
    }
