"""Predicts over REST: python -m client.rest_client 5.1 3.5 1.4 0.2"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import requests

from client.iris import IrisPrediction, PredictionError, backoff_s, run, trace_headers

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from types import TracebackType

DEFAULT_ADDRESS = "http://localhost:8501"


class RestClient:
    """One connection pool to one model, for any number of calls. Use it in a `with` block, or call close()."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        model: str = "iris",
        timeout_s: float = 10.0,
        retries: int = 3,
        ca_file: str | None = None,
    ) -> None:
        scheme = "https" if ca_file else "http"
        base = address if "://" in address else f"{scheme}://{address}"
        self._url = f"{base.rstrip('/')}/v1/models/{quote(model, safe='')}:predict"
        self._timeout_s = timeout_s
        self._retries = retries
        self._session = requests.Session()
        # 環境変数のプロキシ設定に左右されず、指定されたサーバーに直接つなぐ。
        self._session.trust_env = False
        if ca_file:
            self._session.verify = ca_file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def predict(self, rows: Sequence[Sequence[float]]) -> list[IrisPrediction]:
        """The prediction for each row of sepal length, sepal width, petal length and petal width, in cm.

        Raises:
            PredictionError: the server returned an error, or no response within the timeout.
        """
        document = self._post({"instances": [list(row) for row in rows]})
        return [IrisPrediction.of(probabilities) for probabilities in document["predictions"]]

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        # 期限は再試行も含めた全体にかける。呼び出し側が待つ時間は timeout_s を超えない。
        deadline = time.monotonic() + self._timeout_s
        headers = trace_headers()
        attempt = 0
        while True:
            left_s = max(deadline - time.monotonic(), 0.001)
            try:
                response = self._session.post(self._url, json=body, headers=headers, timeout=left_s)
            except requests.ConnectionError as error:
                failure, retryable = f"UNAVAILABLE: cannot connect to {self._url}: {_reason(error)}", True
            except requests.Timeout:
                raise PredictionError(f"DEADLINE_EXCEEDED: no answer within {self._timeout_s:g} s") from None
            except requests.RequestException as error:
                raise PredictionError(str(error)) from None
            else:
                if response.ok:
                    return _document(response)
                # 503 は gRPC の UNAVAILABLE にあたり、要求は処理されていない。他の誤りは繰り返しても変わらない。
                failure, retryable = f"HTTP {response.status_code}: {_message(response)}", response.status_code == 503
            wait_s = backoff_s(attempt)
            if not retryable or attempt >= self._retries or time.monotonic() + wait_s >= deadline:
                raise PredictionError(failure)
            time.sleep(wait_s)
            attempt += 1


def _document(response: requests.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except requests.JSONDecodeError:
        document = None
    if not isinstance(document, dict) or "predictions" not in document:
        raise PredictionError(f"{response.url} did not answer as a model server does")
    return document


def _message(response: requests.Response) -> str:
    try:
        return str(response.json()["error"])
    except (requests.JSONDecodeError, KeyError, TypeError):
        return response.reason


def _reason(error: requests.ConnectionError) -> str:
    """The innermost cause. The outer ones repeat it over several lines."""
    cause: BaseException = error
    while isinstance(inner := getattr(cause, "reason", None) or cause.__context__, BaseException):
        cause = inner
    return str(cause)


def _connect(options: argparse.Namespace) -> RestClient:
    return RestClient(
        options.address,
        model=options.model,
        timeout_s=options.timeout,
        retries=options.retries,
        ca_file=str(options.ca) if options.ca else None,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    run("Predicts the species of iris flowers over REST.", DEFAULT_ADDRESS, _connect, arguments)


if __name__ == "__main__":
    main()
