"""The proxy with sequential calls, the baseline of `make bench PATTERNS=06`: `python -m tests.sequential_proxy`."""

from serving_common.service import serve
from serving_common.settings import load
from src.configurations import ProxySettings
from src.proxy.app import create_app
from src.proxy.backends import BackendRequest, Backends, RequestContext
from src.proxy.fan_out import Results, T


async def call_in_turn(backends: Backends, request: BackendRequest[T], context: RequestContext) -> Results[T]:
    return {name: await backend.call(request, context) for name, backend in backends.by_name.items()}


if __name__ == "__main__":
    settings = load(ProxySettings)
    serve(create_app(settings, fan_out=call_in_turn), "proxy", settings)
