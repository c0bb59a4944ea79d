"""Endpoints of the proxy."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast

from fastapi import APIRouter, Depends, Request

from serving_common import iris
from serving_common.problems import problem_responses
from src.models import Health, LabelResponse, Metadata, Prediction, PredictRequest, ServiceError
from src.proxy import fan_out
from src.proxy.backends import Backends, Call, Failure, Origin

T = TypeVar("T", bound=Mapping[str, object])


async def _backends(request: Request) -> Backends:
    return cast(Backends, request.app.state.backends)


async def _origin(request: Request) -> Origin:
    return Origin(request.state.request_id, request.state.arrived)


async def _question(request: Request, flowers: PredictRequest) -> Call[Prediction]:
    # The body goes on as it came. Written anew, every 1 would be a 1.0, and what this proxy's limit lets pass could be
    # more than the services' does.
    return fan_out.predict(await request.body(), len(flowers.data))


BackendsDep = Annotated[Backends, Depends(_backends)]
OriginDep = Annotated[Origin, Depends(_origin)]
QuestionDep = Annotated[Call[Prediction], Depends(_question)]


def create_routers(services: list[str]) -> tuple[APIRouter, APIRouter]:
    """The routers for health and for predictions; the schema of their answers names these services."""
    health_router = APIRouter(tags=["health"])
    router = APIRouter(tags=["prediction"], responses=problem_responses(401))

    @health_router.get("/health")
    async def health() -> Health:
        """Whether the proxy itself runs."""
        return {"health": "ok"}

    @health_router.get("/health/all", responses=_named(services))
    async def health_all(backends: BackendsDep, origin: OriginDep) -> dict[str, Health | ServiceError]:
        """How each service is, asked right now."""
        return _entries(await fan_out.check_all(backends, origin))

    @router.get("/metadata")
    async def metadata() -> Metadata:
        """What goes in and what comes out, per service."""
        return {
            "data_type": "float32",
            "data_structure": "(N,4)",
            "data_sample": iris.SAMPLE,
            "data_names": list(iris.FEATURES),
            "prediction_type": "float32",
            "prediction_structure": "(N,2)",
            "prediction_sample": [0.98, 0.02],
            "services": services,
        }

    @router.post("/predict", responses=_named(services) | problem_responses(413, 422, 429, 503))
    async def predict(
        question: QuestionDep, backends: BackendsDep, origin: OriginDep
    ) -> dict[str, Prediction | ServiceError]:
        """What each service thinks of the flowers."""
        return _entries(await fan_out.ask_all(backends, question, origin))

    @router.post("/predict/label", responses=problem_responses(413, 422, 429, 503), response_model_exclude_unset=True)
    async def predict_label(question: QuestionDep, backends: BackendsDep, origin: OriginDep) -> LabelResponse:
        """The class whose service is surest."""
        return fan_out.decide(await fan_out.ask_all(backends, question, origin))

    @router.get("/predict/get/test", responses=_named(services) | problem_responses(429, 503))
    async def predict_get_test(backends: BackendsDep, origin: OriginDep) -> dict[str, Prediction | ServiceError]:
        """What each service thinks of its own test data."""
        return _entries(await fan_out.ask_all(backends, fan_out.PREDICT_TEST, origin))

    @router.post("/predict/post/test", responses=_named(services) | problem_responses(429, 503))
    async def predict_post_test(backends: BackendsDep, origin: OriginDep) -> dict[str, Prediction | ServiceError]:
        """What each service thinks of a flower that is known to be a setosa."""
        return _entries(await fan_out.ask_all(backends, fan_out.PREDICT_SAMPLE, origin))

    return health_router, router


def _entries(answers: fan_out.Answers[T]) -> dict[str, T | ServiceError]:
    return {
        name: ServiceError(error=answer.reason) if isinstance(answer, Failure) else answer
        for name, answer in answers.items()
    }


def _named(services: list[str]) -> dict[int | str, dict[str, Any]]:
    """Adds to the schema of an answer with one entry per service which services these are."""
    schema = {"required": services, "propertyNames": {"enum": services}}
    return {200: {"content": {"application/json": {"schema": schema}}}}
