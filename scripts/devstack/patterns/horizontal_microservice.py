"""06: three services of one class each, and a proxy that calls them in parallel."""

import re
from dataclasses import replace
from functools import partial

import httpx

from scripts.devstack.load import Work
from scripts.devstack.own_model import answers_of, require_rows, with_card
from scripts.devstack.steps import FLOWERS, Demo, Steps, Urls, send
from scripts.devstack.table import STOP_IN_TIME, Pattern, ProcessDefinition, web_process
from serving_common.cards import Card, Task

_PORTS = {"PORT_06_SERVICE_SETOSA": 8000, "PORT_06_SERVICE_VERSICOLOR": 8001, "PORT_06_SERVICE_VIRGINICA": 8002}


# As in compose, the caller's key protects the proxy; on a service it would lock the proxy out.
_OPEN = {"API_KEY": "", "API_KEY_FILE": ""}


def _service(label: str, port: str) -> ProcessDefinition:
    env = {"SERVICE_NAME": label, "MODEL_FILEPATH": f"{{root}}/models/artifacts/iris_svc_0_{label}.onnx"}
    return web_process(f"service_{label}", "src.services.app", port, _PORTS[port], env=env | _OPEN)


_URLS = {label: f"http://127.0.0.1:{{{port}}}" for label, port in zip(FLOWERS, _PORTS, strict=True)}

PATTERN = Pattern(
    number="06",
    title="Horizontal microservices",
    folder="06_horizontal_microservice_pattern",
    artifacts=tuple(f"iris_svc_0_{label}" for label in FLOWERS),
    published={"PORT_06_PROXY": 9000} | _PORTS,
    processes=(
        *map(_service, FLOWERS, _PORTS),
        # It does not wait for the services: answering without them is the point of the pattern.
        web_process(
            *("proxy", "src.proxy.app", "PORT_06_PROXY", 9000),
            defaults={"SERVICES": ",".join(f"{label}={url}" for label, url in _URLS.items())},
        ),
    ),
)

WORK = Work(
    port="PORT_06_PROXY",
    path="/predict",
    body={"data": [FLOWERS["setosa"]]},
    state=lambda answer: "partial" if any("error" in entry for entry in answer.values()) else "completed",
)


async def demo(client: httpx.AsyncClient, urls: Urls) -> Steps:
    """The proxy calls three services that know one class each; then each service is called on its own."""
    proxy = urls["PORT_06_PROXY"]
    one_flower = {"data": [FLOWERS["setosa"]]}
    is_well = {"health": "ok"}
    probabilities = {"prediction": [float, float]}
    all_services = dict.fromkeys(FLOWERS, probabilities)

    yield await send(client, "GET", f"{proxy}/health", want=is_well)
    yield await send(client, "GET", f"{proxy}/health/all", want=dict.fromkeys(FLOWERS, is_well))
    yield await send(client, "GET", f"{proxy}/metadata", want=dict)
    yield await send(client, "POST", f"{proxy}/predict", one_flower, want=all_services)
    for label, row in FLOWERS.items():
        best = {"prediction": {"proba": float, "label": label}}
        yield await send(client, "POST", f"{proxy}/predict/label", {"data": [row]}, want=best, is_highlight=True)
    yield await send(client, "GET", f"{proxy}/predict/get/test", want=all_services)
    yield await send(client, "POST", f"{proxy}/predict/post/test", want=all_services)
    for label, row in FLOWERS.items():
        service = urls[f"PORT_06_SERVICE_{label.upper()}"]
        yield await send(client, "GET", f"{service}/health", want=is_well)
        yield await send(client, "GET", f"{service}/metadata", want=dict)
        yield await send(client, "POST", f"{service}/predict", {"data": [row]}, want=probabilities)
        yield await send(client, "GET", f"{service}/predict/test", want=probabilities)


def own_model(card: Card) -> tuple[Pattern, Demo]:
    """The proxy with one service, that of this card."""
    require_rows(card)
    name = re.sub(r"^[^A-Za-z]+|[^A-Za-z0-9_-]+", "_", card.name).lstrip("_") or "model"
    port = "PORT_06_SERVICE"
    service = web_process("service", "src.services.app", port, 8000, env={"SERVICE_NAME": name} | _OPEN)
    proxy = replace(
        PATTERN.process("proxy"), defaults=STOP_IN_TIME | {"SERVICES": f"{name}=http://127.0.0.1:{{{port}}}"}
    )
    return with_card(replace(PATTERN, processes=(service, proxy)), card), partial(_demo_of, card, name)


async def _demo_of(card: Card, name: str, client: httpx.AsyncClient, urls: Urls) -> Steps:
    proxy, service = urls["PORT_06_PROXY"], urls["PORT_06_SERVICE"]
    answers = [{"value": answer} if card.task is Task.REGRESSION else answer for answer in answers_of(card)]
    answer = {"prediction": answers[0] if len(answers) == 1 else answers}
    body = {"data": card.sample_rows}
    yield await send(client, "GET", f"{proxy}/health/all", want={name: {"health": "ok"}})
    yield await send(client, "GET", f"{proxy}/metadata", want={"data_names": card.names})
    yield await send(client, "POST", f"{proxy}/predict", body, want={name: answer}, is_highlight=True)
    if card.task is not Task.REGRESSION:
        label = {"prediction": {"proba": object, "label": object}}
        yield await send(client, "POST", f"{proxy}/predict/label", body, want=label, is_highlight=True)
    yield await send(client, "GET", f"{service}/metadata", want={"data_names": card.names})
    yield await send(client, "POST", f"{service}/predict", body, want=answer)
    yield await send(client, "GET", f"{service}/predict/test", want=answer)
