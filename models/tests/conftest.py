import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

ROOT = Path(__file__).parents[2]
MODEL_ZOO = Path(os.environ.get("MODEL_ZOO", ROOT.parent / "shared" / "model_zoo"))
IRIS_MODELS = ("iris_svc", "iris_svc_0_setosa", "iris_svc_0_versicolor", "iris_svc_0_virginica")

Completed = subprocess.CompletedProcess[str]


def python(*arguments: object) -> Completed:
    """Run a fresh interpreter in the repository's root."""
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)


def run_build(*arguments: object) -> Completed:
    return python("-m", "models.build", *arguments)


def scores(model: Path | bytes, images: np.ndarray) -> np.ndarray:
    """The only output of an ONNX model for one batch."""
    session = onnxruntime.InferenceSession(model)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


@pytest.fixture(scope="session")
def iris_build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Completed]:
    """The folder with all Iris models, built once by the command line, and the completed command."""
    folder = tmp_path_factory.mktemp("iris")
    done = run_build("--only", *IRIS_MODELS, "--output", folder)
    assert done.returncode == 0, done.stderr
    return folder, done


@dataclass
class Site:
    """A web site with one file and configurable faults."""

    body: bytes = b""
    status: int = 200
    has_ranges: bool = True
    sends_length: bool = True
    content_range: str | None = None  # instead of the correct one
    drop_at: list[int] = field(default_factory=list)  # for each coming response: cut the connection at this byte
    hang: threading.Event | None = None  # send no response until it is set
    requested_ranges: list[str | None] = field(default_factory=list)
    url: str = ""


def handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested = self.headers.get("Range")
            site.requested_ranges.append(requested)
            if site.hang:
                site.hang.wait()
                return
            start = int(requested.removeprefix("bytes=").rstrip("-")) if requested and site.has_ranges else 0
            self.send_response(206 if start and site.status == 200 else site.status)
            if start:
                usual = f"bytes {start}-{len(site.body) - 1}/{len(site.body)}"
                self.send_header("Content-Range", site.content_range or usual)
            if site.sends_length:
                self.send_header("Content-Length", str(len(site.body) - start))
            self.end_headers()
            self.wfile.write(site.body[start : site.drop_at.pop(0) if site.drop_at else None])

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(site))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/resolve/main/model.onnx"
    yield site
    if site.hang:
        site.hang.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Text written to stderr since the last call."""
    return lambda: capsys.readouterr().err
