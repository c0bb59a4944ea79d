import json

import pytest

from serving_common.manifest import ManifestEntry, read_manifest_entry

IRIS = {
    "file": "iris.onnx",
    "sha256": "0" * 64,
    "weights": "trained",
    "inputs": [{"name": "input", "dtype": "float32", "shape": ["N", 4]}],
    "metrics": {"accuracy": 0.97},
}


def test_entry_is_found_by_its_file_name(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"artifacts": {"other": {"file": "other"}, "first": IRIS}}))

    entry = read_manifest_entry(tmp_path / "iris.onnx")
    assert entry == ManifestEntry.model_validate(IRIS)
    assert entry.inputs == IRIS["inputs"]
    assert (entry.weights, entry.outputs, entry.metrics) == ("trained", [], {"accuracy": 0.97})


@pytest.mark.parametrize(
    "manifest",
    [
        pytest.param(None, id="no manifest"),
        pytest.param("{", id="not JSON"),
        pytest.param("[]", id="not an object"),
        pytest.param('{"artifacts": []}', id="artifacts are not an object"),
        pytest.param('{"artifacts": {"iris": {"file": "other.onnx"}}}', id="only other files"),
        pytest.param('{"artifacts": {"iris": {"file": "iris.onnx", "metrics": 1}}}', id="malformed entry"),
    ],
)
def test_no_entry_without_a_well_formed_record_of_the_file(tmp_path, manifest):
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)

    assert read_manifest_entry(tmp_path / "iris.onnx") is None
