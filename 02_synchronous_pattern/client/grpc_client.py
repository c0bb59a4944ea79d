"""Predicts over gRPC, without TensorFlow: python -m client.grpc_client 5.1 3.5 1.4 0.2"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import grpc

from client.iris import CLASSES, FEATURES, IrisPrediction, PredictionError, run, trace_headers
from tfserving_protos import channels, messages
from tfserving_protos.services import PredictionServiceStub

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from types import TracebackType

DEFAULT_ADDRESS = "localhost:8500"


class GrpcClient:
    """One channel to one model, for any number of calls and threads. Use it in a `with` block, or call close().

    `address` is `host:port`, a gRPC target such as `dns:///name:8500`, or `ip:port,ip:port`. Calls take turns among all
    servers behind it.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        model: str = "iris",
        timeout_s: float = 10.0,
        retries: int = 3,
        root_certificates: bytes | None = None,
    ) -> None:
        self._model = model
        self._timeout_s = timeout_s
        target = channels.target(address)
        # 再試行は UNAVAILABLE のときだけ、次のサーバーに対して行う。予測は何度行っても結果が変わらないので安全である。
        options = channels.options(retries=retries)
        if root_certificates is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(root_certificates), options)
        self._stub = PredictionServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def predict(self, rows: Sequence[Sequence[float]]) -> list[IrisPrediction]:
        """The prediction for each row of sepal length, sepal width, petal length and petal width, in cm.

        Raises:
            PredictionError: the server returned an error, or no response within the timeout.
        """
        request = messages.PredictRequest(model_spec=messages.ModelSpec(name=self._model))
        tensor = request.inputs["input"]
        tensor.dtype = messages.DT_FLOAT
        for size in (len(rows), FEATURES):
            tensor.tensor_shape.dim.add().size = size
        for row in rows:
            tensor.float_val.extend(row)
        output = self._call(request).outputs["output"].float_val
        width = len(CLASSES)
        return [IrisPrediction.of(output[start : start + width]) for start in range(0, len(output), width)]

    def _call(self, request: messages.PredictRequest) -> messages.PredictResponse:
        try:
            # 期限は gRPC による再試行も含めた全体にかかる。呼び出し側が待つ時間は timeout_s を超えない。
            metadata = tuple(trace_headers().items())
            response: messages.PredictResponse = self._stub.Predict(request, timeout=self._timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise PredictionError(f"{error.code().name}: {error.details()}") from None
        return response


def _connect(options: argparse.Namespace) -> GrpcClient:
    return GrpcClient(
        options.address,
        model=options.model,
        timeout_s=options.timeout,
        retries=options.retries,
        root_certificates=options.ca.read_bytes() if options.ca else None,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    run("Predicts the species of iris flowers over gRPC.", DEFAULT_ADDRESS, _connect, arguments)


if __name__ == "__main__":
    main()
