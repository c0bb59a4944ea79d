"""The SavedModel that build_model.py writes."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import IRIS_ROWS, PATTERN

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The base path with version 7, and what the script printed."""
    base = tmp_path_factory.mktemp("build") / "iris"
    done = subprocess.run(
        [sys.executable, "build_model.py", "--output", base, "--version", "7"],
        cwd=PATTERN,
        check=True,
        capture_output=True,
        text=True,
    )
    return base, done.stdout


def test_the_accuracy_on_held_out_rows_is_printed_and_above_95_percent(built: tuple[Path, str]) -> None:
    first = built[1].splitlines()[0]
    assert first.startswith("accuracy on 45 held-out rows: ")
    assert float(first.rsplit(" ", 1)[1].rstrip("%")) > 95


def test_only_the_finished_version_is_left(built: tuple[Path, str]) -> None:
    base, _ = built
    assert [child.name for child in base.iterdir()] == ["7"]
    assert (base / "7" / "saved_model.pb").is_file()
    assert (base / "7" / "variables").is_dir()


def test_signature(built: tuple[Path, str]) -> None:
    signatures = tf.saved_model.load(str(built[0] / "7")).signatures
    assert list(signatures) == ["serving_default"]
    function = signatures["serving_default"]
    [(name, given)] = function.structured_input_signature[1].items()
    assert (name, given.dtype, given.shape.as_list()) == ("input", tf.float32, [None, 4])
    [(name, result)] = function.structured_outputs.items()
    assert (name, result.dtype, result.shape.as_list()) == ("output", tf.float32, [None, 3])


def test_raw_measurements_give_probabilities(built: tuple[Path, str]) -> None:
    function = tf.saved_model.load(str(built[0] / "7")).signatures["serving_default"]
    output = function(input=tf.constant(IRIS_ROWS, tf.float32))["output"].numpy()
    assert output.argmax(axis=1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(output.sum(axis=1), 1, atol=1e-6)


def test_training_is_seeded(built: tuple[Path, str], iris_model: Path) -> None:
    a, b = (
        tf.saved_model.load(str(path)).signatures["serving_default"](input=tf.constant(IRIS_ROWS, tf.float32))["output"]
        for path in (built[0] / "7", iris_model / "1")
    )
    np.testing.assert_allclose(a, b, atol=1e-4)
