"""Validates rendered manifests against the schemas of the API and of the operators' CRDs: FOLDER, of YAML files.

Runs in the environment of requirements.txt. What only npm has schemas for is left to schemas.mjs, as one JSON file.
"""

import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

API_VERSION = "1.37.0"
# Models of the CRDs; as they come, they ignore unknown fields.
PYTHON_MODELS = {"keda.sh": "cloudcoil.models.keda", "monitoring.coreos.com": "cloudcoil.models.prometheus_operator"}
NPM_MODELS = ("gateway.networking.k8s.io", "external-secrets.io")


def strict(schema: Any) -> Any:
    """The same, and no field that the schema does not name."""
    if isinstance(schema, dict):
        schema = {key: strict(each) for key, each in schema.items()}
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return [strict(each) for each in schema] if isinstance(schema, list) else schema


def validate(document: dict[str, Any], schemas: dict[str, Any]) -> str | None:
    """What is wrong; `schemas` keeps those of the CRDs by kind."""
    group, _, version = document["apiVersion"].rpartition("/")
    try:
        if group in PYTHON_MODELS:
            kind = document["kind"]
            if kind not in schemas:
                model = getattr(importlib.import_module(f"{PYTHON_MODELS[group]}.{version}"), kind)
                schemas[kind] = strict(model.model_json_schema(by_alias=True))
            jsonschema.validate(document, schemas[kind])
        else:
            kubernetes_validate.validate(document, API_VERSION, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as exc:
        return f"{'.'.join(map(str, exc.path))}: {exc.message}"
    return None


def main(folder: Path) -> int:
    """Exit code: 0: all valid, 1: findings, one line each. Writes npm.json for schemas.mjs."""
    schemas: dict[str, Any] = {}
    for_npm, findings, kinds = [], [], Counter[str]()
    for path in sorted(folder.glob("*.yaml")):
        for document in yaml.load_all(path.read_text(encoding="utf-8"), yaml.CSafeLoader):
            name = f"{path.stem} {document['kind']}/{document['metadata']['name']}"
            if document["apiVersion"].startswith(NPM_MODELS):
                for_npm.append({"name": name, "document": document})
                continue
            kinds[document["kind"]] += 1
            if finding := validate(document, schemas):
                findings.append(f"{name}: {finding}")
    (folder / "npm.json").write_text(json.dumps(for_npm))
    print(*findings, sep="\n", end="\n" if findings else "")
    print(f"schemas: {sum(kinds.values())} objects, {len(findings)} findings: {dict(kinds)}")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
