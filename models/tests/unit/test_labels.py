import json
from collections import Counter
from pathlib import Path

import pytest

from models.artifacts import IMAGENET_LABELS
from models.tests.conftest import python, run_build

LABELS = json.loads(IMAGENET_LABELS.read_text())


def test_labels_are_1000_clean_names():
    assert len(LABELS) == 1000
    assert all(isinstance(name, str) and name and name == name.strip() and "_" not in name for name in LABELS)


@pytest.mark.parametrize(
    ("index", "name"), [(0, "tench"), (283, "Persian cat"), (483, "castle"), (663, "monastery"), (698, "palace")]
)
def test_known_classes_have_their_index(index: int, name: str):
    assert LABELS[index] == name


def test_only_crane_and_maillot_occur_twice():
    """A bird and a machine; two classes of swimsuit with the same name in the data set."""
    assert {name: count for name, count in Counter(LABELS).items() if count > 1} == {"crane": 2, "maillot": 2}


def test_labels_are_the_first_names_in_the_metadata_of_timm(tmp_path: Path):
    fetched = python("-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, "timm")
    if fetched.returncode != 0:
        pytest.skip(f"timm cannot be fetched: {fetched.stderr.strip().splitlines()[-1]}")
    metadata = tmp_path / "timm" / "data" / "_info"
    lemmas = dict(line.split("\t", 1) for line in (metadata / "imagenet_synset_to_lemma.txt").read_text().splitlines())
    classes = (metadata / "imagenet_synsets.txt").read_text().split()
    assert [lemmas[synset].split(",")[0].strip() for synset in classes] == LABELS


def test_build_copies_the_labels(tmp_path: Path):
    done = run_build("--only", "imagenet_labels", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "imagenet_labels.json").read_text()) == LABELS
