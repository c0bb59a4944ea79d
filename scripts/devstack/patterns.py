"""The patterns as local processes: what `make up` and `make demo` start, and on which ports.

To add a pattern, add one entry to PATTERNS. Strings may hold placeholders, filled in when the process starts:
`{PORT_…}` is the port of that name, of any pattern; `{root}` the repository; `{state}` the pattern's own folder below
`.run/`. A port's name is also the environment variable that changes it: `PORT_06_PROXY=9100 make up`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

# Requests in hand are finished, and still the process is gone before the stack's grace of 8 s ends.
STOP_IN_TIME = {"SHUTDOWN_GRACE_S": "6"}

ReadyCheck = Callable[[Mapping[str, str]], Awaitable[bool]]


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process of a pattern."""

    name: str
    argv: tuple[str, ...]
    """Started in the pattern's folder; a first word `python` is the interpreter that runs this script."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """Default ports by the name of the environment variable that overrides them."""
    env: Mapping[str, str] = field(default_factory=dict)
    """What makes it this process. Fixed: a HOST or PORT that the caller's shell happens to export must not win."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    """Settings that the caller's environment wins over."""
    needs: tuple[str, ...] = ()
    """Processes that are ready before this one starts, as "03-redis"; those of other patterns are started too."""
    ready: str | ReadyCheck | None = None
    """An http:// URL that answers 200, a tcp:// address that accepts, or a check of the process's environment.
    None: ready as soon as it is started, as for a job that does its work and exits."""
    ready_within_s: float = 30


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """One pattern: its folder, the models it serves (names that models.build knows) and its processes."""

    number: str
    title: str
    folder: str
    artifacts: tuple[str, ...] = ()
    published: Mapping[str, int] = field(default_factory=dict)
    """The ports of docker compose, which its README shows, by the name of the port here."""
    vary: frozenset[str] = frozenset()
    """Keys of its answers whose values depend on which weights of its models could be had."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files of the reader's own that its README names, and what stands for them when the README is checked."""
    processes: tuple[Process, ...]


def table(patterns: Iterable[Pattern]) -> dict[str, Pattern]:
    """The patterns by number."""
    return {pattern.number: pattern for pattern in patterns}


def _iris_service(label: str, port: int) -> Process:
    port_name = f"PORT_06_SERVICE_{label.upper()}"
    return Process(
        name=f"service_{label}",
        argv=("python", "-m", "src.services.app"),
        ports={port_name: port},
        env={
            "SERVICE_NAME": label,
            "MODEL_FILEPATH": f"{{root}}/models/artifacts/iris_svc_0_{label}.onnx",
            "HOST": "127.0.0.1",
            "PORT": f"{{{port_name}}}",
            # As with compose, the caller's key guards the proxy; here it would keep the proxy out.
            "API_KEY": "",
            "API_KEY_FILE": "",
        },
        defaults=STOP_IN_TIME,
        ready=f"http://127.0.0.1:{{{port_name}}}/health",
    )


_BATCH_MODEL = {
    "MODEL_FILEPATH": "{root}/models/artifacts/iris_svc.onnx",
    "LABEL_FILEPATH": "{root}/models/artifacts/label.json",
}
_BATCH_DATABASE = {"DATABASE_URL": "sqlite:///{state}/items.db"}

_QUEUE = {
    "REDIS_HOST": "127.0.0.1",
    "REDIS_PORT": "{PORT_03_REDIS}",
    "TF_SERVING_HOST": "127.0.0.1",
    "TF_SERVING_GRPC_PORT": "{PORT_02_GRPC}",
}

_IMAGE_QUEUE = {
    "REDIS_HOST": "127.0.0.1",
    "REDIS_PORT": "{PORT_07_REDIS}",
    "SYNC_MODEL_PATH": "{root}/models/artifacts/mobilenet_v2.onnx",
    "ASYNC_MODEL_PATH": "{root}/models/artifacts/resnet50.onnx",
    "LABELS_PATH": "{root}/models/artifacts/imagenet_labels.json",
    "SAMPLE_IMAGE_PATH": "{root}/models/artifacts/sample.jpg",
}

PATTERNS = table(
    [
        Pattern(
            number="02",
            title="Synchronous",
            folder="02_synchronous_pattern",
            artifacts=("iris_saved_model",),
            published={"PORT_02_GRPC": 8500, "PORT_02_REST": 8501},
            processes=(
                Process(
                    name="model_server",
                    argv=(
                        *("python", "-m", "model_server"),
                        *("--port={PORT_02_GRPC}", "--rest_api_port={PORT_02_REST}"),
                        *("--model_name=iris", "--model_base_path={root}/models/artifacts/saved_model/iris"),
                    ),
                    ports={"PORT_02_GRPC": 8500, "PORT_02_REST": 8501},
                    defaults={"TF_ENABLE_ONEDNN_OPTS": "0"},  # oneDNN is for larger models: see the README
                    ready="http://127.0.0.1:{PORT_02_REST}/v1/models/iris",
                ),
            ),
        ),
        Pattern(
            number="03",
            title="Asynchronous",
            folder="03_asynchronous_pattern",
            artifacts=("iris_saved_model",),
            published={"PORT_03_PROXY": 8000},
            processes=(
                Process(
                    name="redis",
                    argv=("python", "{root}/scripts/devstack/redis_server.py", "{PORT_03_REDIS}", "{state}"),
                    ports={"PORT_03_REDIS": 6303},
                    ready="tcp://127.0.0.1:{PORT_03_REDIS}",
                ),
                Process(
                    name="proxy",
                    argv=("python", "-m", "src.proxy.app"),
                    ports={"PORT_03_PROXY": 8300},
                    env=_QUEUE | {"HOST": "127.0.0.1", "PORT": "{PORT_03_PROXY}"},
                    defaults=STOP_IN_TIME,
                    needs=("03-redis", "02-model_server"),
                    ready="http://127.0.0.1:{PORT_03_PROXY}/health",
                ),
                Process(
                    name="worker",
                    argv=("python", "-m", "src.worker.main"),
                    ports={"PORT_03_WORKER": 9103},
                    env=_QUEUE | {"HOST": "127.0.0.1", "PORT": "{PORT_03_WORKER}"},
                    defaults=STOP_IN_TIME,
                    needs=("03-redis", "02-model_server"),
                    ready="http://127.0.0.1:{PORT_03_WORKER}/health",
                ),
            ),
        ),
        Pattern(
            number="04",
            title="Batch",
            folder="04_batch_pattern",
            artifacts=("iris_svc",),
            published={"PORT_04_API": 8000},
            processes=(
                Process(
                    name="api",
                    argv=("python", "-m", "src.api.app"),
                    ports={"PORT_04_API": 8400},
                    env=_BATCH_MODEL | {"HOST": "127.0.0.1", "PORT": "{PORT_04_API}"},
                    defaults=STOP_IN_TIME | _BATCH_DATABASE,
                    ready="http://127.0.0.1:{PORT_04_API}/health",
                ),
                # It runs once and exits; being started again is what makes it periodic.
                Process(
                    name="job",
                    argv=("python", "-m", "src.task.job"),
                    env=_BATCH_MODEL,
                    defaults=_BATCH_DATABASE | {"JOB_WAIT_SECONDS": "5"},
                    needs=("04-api",),
                ),
            ),
        ),
        Pattern(
            number="06",
            title="Horizontal microservices",
            folder="06_horizontal_microservice_pattern",
            artifacts=("iris_svc_0_setosa", "iris_svc_0_versicolor", "iris_svc_0_virginica"),
            published={
                "PORT_06_PROXY": 9000,
                "PORT_06_SERVICE_SETOSA": 8000,
                "PORT_06_SERVICE_VERSICOLOR": 8001,
                "PORT_06_SERVICE_VIRGINICA": 8002,
            },
            processes=(
                _iris_service("setosa", 8000),
                _iris_service("versicolor", 8001),
                _iris_service("virginica", 8002),
                # It does not wait for the services: answering without them is what the pattern is about.
                Process(
                    name="proxy",
                    argv=("python", "-m", "src.proxy.app"),
                    ports={"PORT_06_PROXY": 9000},
                    env={"HOST": "127.0.0.1", "PORT": "{PORT_06_PROXY}"},
                    defaults=STOP_IN_TIME
                    | {
                        "SERVICES": "setosa=http://127.0.0.1:{PORT_06_SERVICE_SETOSA},"
                        "versicolor=http://127.0.0.1:{PORT_06_SERVICE_VERSICOLOR},"
                        "virginica=http://127.0.0.1:{PORT_06_SERVICE_VIRGINICA}"
                    },
                    ready="http://127.0.0.1:{PORT_06_PROXY}/health",
                ),
            ),
        ),
        Pattern(
            number="07",
            title="Sync-async",
            folder="07_sync_async_pattern",
            artifacts=("mobilenet_v2", "resnet50"),
            published={"PORT_07_PROXY": 8000},
            vary=frozenset({"result_sync", "prediction", "label", "probability", "weights"}),
            files={"photo.jpg": "models/artifacts/sample.jpg"},
            processes=(
                Process(
                    name="redis",
                    argv=("python", "{root}/scripts/devstack/redis_server.py", "{PORT_07_REDIS}", "{state}"),
                    ports={"PORT_07_REDIS": 6307},
                    ready="tcp://127.0.0.1:{PORT_07_REDIS}",
                ),
                Process(
                    name="proxy",
                    argv=("python", "-m", "src.proxy.app"),
                    ports={"PORT_07_PROXY": 8700},
                    env=_IMAGE_QUEUE | {"HOST": "127.0.0.1", "PORT": "{PORT_07_PROXY}"},
                    defaults=STOP_IN_TIME,
                    needs=("07-redis",),
                    ready="http://127.0.0.1:{PORT_07_PROXY}/health",
                ),
                Process(
                    name="worker",
                    argv=("python", "-m", "src.worker.main"),
                    ports={"PORT_07_WORKER": 9107},
                    env=_IMAGE_QUEUE | {"HOST": "127.0.0.1", "PORT": "{PORT_07_WORKER}"},
                    defaults=STOP_IN_TIME,
                    needs=("07-redis",),
                    ready="http://127.0.0.1:{PORT_07_WORKER}/health",
                    ready_within_s=60,  # two processes that load 100 MB each, and give way to whatever else runs
                ),
            ),
        ),
    ]
)
