# /// script
# dependencies = ["kserve==0.21.0", "pyyaml"]
# ///
"""Validates deploy/kserve-runtime.yaml against the models of the kserve package: fields, their types, what is required.

They are generated from KServe's CRD. What the CRD's webhook and a cluster would check besides is not validated.
"""

import copy
import re
from pathlib import Path
from typing import Any

import kserve.models
import kubernetes.client
import yaml

MANIFEST = Path(__file__).parents[2] / "deploy/kserve-runtime.yaml"
PLAIN = {"str": str, "int": int, "bool": bool, "object": object}


def build(kind: str, value: Any, where: str) -> Any:
    """`value` as an object of the generated class; ValueError for a field that it does not know, or lacks."""
    if found := re.fullmatch(r"[Ll]ist\[(.*)\]", kind):
        return [build(found[1], each, f"{where}[{i}]") for i, each in enumerate(value)]
    if found := re.fullmatch(r"[Dd]ict[(\[]str, (.*)[)\]]", kind):
        return {key: build(found[1], each, f"{where}.{key}") for key, each in value.items()}
    if kind in PLAIN:
        if not isinstance(value, PLAIN[kind]):
            raise ValueError(f"{where}: {value!r} is not of type {kind}")
        return value
    model = getattr(kserve.models, kind, None) or getattr(kubernetes.client, kind)
    fields = {json_name: name for name, json_name in model.attribute_map.items()}
    if unknown := value.keys() - fields.keys():
        raise ValueError(f"{where}: {kind} has no field {', '.join(sorted(unknown))}")
    given = {
        fields[key]: build(model.openapi_types[fields[key]], each, f"{where}.{key}") for key, each in value.items()
    }
    return model(**given)


def main() -> None:
    """Raises ValueError if the manifest is wrong, or if a wrong one passes."""
    document = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    build("V1alpha1ServingRuntime", document, "ServingRuntime")
    misspelt, untyped, incomplete = (copy.deepcopy(document) for _ in range(3))
    misspelt["spec"]["supportedModelFormat"] = misspelt["spec"].pop("supportedModelFormats")
    untyped["spec"]["containers"][0]["ports"][0]["containerPort"] = "http"
    del incomplete["spec"]["containers"]
    for name, wrong in (("misspelt", misspelt), ("untyped", untyped), ("incomplete", incomplete)):
        try:
            build("V1alpha1ServingRuntime", wrong, "ServingRuntime")
        except ValueError:
            continue
        raise AssertionError(f"the {name} manifest passes")


if __name__ == "__main__":
    main()
