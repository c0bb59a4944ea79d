"""Says, as JSON, what a pattern's programs read and serve; run in the pattern's folder: SETTINGS[=APP MODULE] …

It imports the pattern, so it runs as a process of its own: every pattern has a package called `src`.
"""

import importlib
import json
import re
import sys
from typing import Any

from prometheus_client import generate_latest

from serving_common.settings import Settings, is_secret


def settings_of(settings_class: type[Settings]) -> dict[str, Any]:
    """The variables, which of them are secret, and their defaults as text."""
    fields = {str(field.validation_alias or name).upper(): field for name, field in settings_class.model_fields.items()}
    return {
        "variables": sorted(fields),
        "secrets": sorted(name for name, field in fields.items() if is_secret(field.annotation)),
        "defaults": {name: str(field.default) for name, field in fields.items()},
    }


def app_of(module: str, settings: Settings) -> dict[str, Any]:
    """The paths of the OpenAPI document and the names in /metrics, with a queue that Redis has answered for."""
    app = importlib.import_module(module).create_app(settings)
    if queue := sys.modules.get("serving_common.queue.metrics"):
        queue.COLLECTOR.stats = importlib.import_module("serving_common.queue.types").QueueStats(0, 0, 0, 0, 0, 0.0)
    metrics = re.findall(r"^# TYPE (\w+)", generate_latest().decode(), re.M)
    return {"paths": [*app.openapi()["paths"], "/metrics"], "metrics": metrics}


def main(arguments: list[str]) -> None:
    """Print one JSON object, with an entry for each argument."""
    sys.path.insert(0, ".")
    configurations = importlib.import_module("src.configurations")
    described = {}
    for argument in arguments:
        name, _, module = argument.partition("=")
        settings_class = getattr(configurations, name)
        described[argument] = settings_of(settings_class) | (app_of(module, settings_class()) if module else {})
    print(json.dumps(described))


if __name__ == "__main__":
    main(sys.argv[1:])
