"""Versions, configuration, faults, batching, TLS, signals."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from serving_testing.processes import wait_until
from tests.conftest import PACKAGE, ServerUnderTest, grpc_error, predict_request, running, slow_loops, starting
from tfserving_protos import messages
from tfserving_protos.services import InferenceServiceStub, PredictionServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator

FAST = ("--file_system_poll_wait_seconds=0.1", "--model_config_file_poll_wait_seconds=0.1")


def add_version(models: Path, base: Path, source: str, version: int) -> None:
    """Copy a version of a test model in; it appears complete."""
    base.mkdir(exist_ok=True)
    shutil.copytree(models / source, base / f".new-{version}")
    (base / f".new-{version}").rename(base / str(version))


def predict(server: ServerUnderTest, model: str) -> float:
    response = server.predictions.Predict(predict_request(model, x=[0.0]), timeout=30)
    value: float = response.outputs["y"].float_val[0]
    return value


def config(**entries: str) -> str:
    """A configuration file; each entry holds the settings of a model besides its name and platform."""
    lines = [f'config {{ name: "{name}" model_platform: "tensorflow" {content} }}' for name, content in entries.items()]
    return f"model_config_list {{ {' '.join(lines)} }}"


@pytest.fixture(scope="module")
def watcher(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    """A server that checks for new versions and configuration every 0.1 s. Each test gives it a model of its own."""
    folder = tmp_path_factory.mktemp("watcher")
    file = folder / "models.config"
    file.write_text(config())
    with running(folder, f"--model_config_file={file}", *FAST) as server:
        yield server


@contextlib.contextmanager
def serve(server: ServerUnderTest, base: Path) -> Iterator[None]:
    """Let `server` serve the model at `base`, under its folder's name, and no other."""
    reload = server.models.HandleReloadConfigRequest
    reload(reload_request(config(**{base.name: f'base_path: "{base}"'})), timeout=30)
    yield
    reload(reload_request(config()), timeout=30)
    wait_until(lambda: "AVAILABLE" not in server.states(base.name).values())


def reload_request(text: str) -> messages.ReloadConfigRequest:
    return messages.ReloadConfigRequest(config=text_format.Parse(text, messages.ModelServerConfig()))


def test_hot_reload_under_load_loses_no_request(models: Path, watcher: ServerUnderTest, tmp_path: Path) -> None:
    base = tmp_path / "reloaded"
    add_version(models, base, "counted/1", 1)
    with serve(watcher, base):
        stop = threading.Event()

        def work(number: int) -> list[float]:
            answers = []
            while not stop.is_set():
                if number % 2:
                    answers.append(predict(watcher, "reloaded"))
                else:
                    response = watcher.post("/v1/models/reloaded:predict", {"instances": [0.0]})
                    assert response.status_code == 200, response.text
                    answers.append(response.json()["predictions"][0])
            return answers

        with ThreadPoolExecutor(20) as pool:
            workers = [pool.submit(work, number) for number in range(20)]
            add_version(models, base, "counted/2", 2)
            wait_until(lambda: watcher.states("reloaded") == {"2": "AVAILABLE", "1": "END"})
            after = [predict(watcher, "reloaded") for _ in range(10)]
            stop.set()
            answers = [answer for worker in workers for answer in worker.result()]
    assert set(answers) == {1.0, 2.0}
    assert after == [2.0] * 10


@pytest.mark.parametrize("protocol", ["gRPC", "REST", "V2"])
def test_a_request_in_flight_completes_on_the_version_that_is_replaced(
    models: Path, watcher: ServerUnderTest, tmp_path: Path, protocol: str
) -> None:
    name = f"replaced-{protocol}"
    add_version(models, tmp_path / name, "slow/1", 1)
    with serve(watcher, tmp_path / name), ThreadPoolExecutor(1) as pool:
        loops = 8 * slow_loops(watcher, name)

        def work() -> None:
            if protocol == "gRPC":
                watcher.predictions.Predict(predict_request(name, n=np.array(loops)), timeout=60)
                return
            tensor = {"name": "n", "shape": [], "datatype": "INT64", "data": [loops]}
            path, body = {
                "REST": (f"/v1/models/{name}:predict", {"inputs": loops}),
                "V2": (f"/v2/models/{name}/infer", {"inputs": [tensor]}),
            }[protocol]
            response = watcher.post(path, body)
            assert response.status_code == 200, response.text

        working = pool.submit(work)
        add_version(models, tmp_path / name, "slow/1", 2)
        wait_until(lambda: watcher.states(name).get("2") == "AVAILABLE")
        assert not working.done()
        working.result()
        wait_until(lambda: watcher.states(name) == {"2": "AVAILABLE", "1": "END"})


def test_broken_version_is_reported_and_old_version_keeps_serving(
    models: Path, watcher: ServerUnderTest, tmp_path: Path
) -> None:
    base = tmp_path / "broken"
    add_version(models, base, "counted/1", 1)
    with serve(watcher, base):
        (base / "2").mkdir()
        (base / "2" / "saved_model.pb").write_bytes(b"not a model")
        wait_until(lambda: watcher.states("broken").get("2") == "END")
        status = watcher.get("/v1/models/broken/versions/2").json()["model_version_status"][0]["status"]
        assert status["error_code"] != "OK"
        assert status["error_message"]
        assert predict(watcher, "broken") == 1.0
        # Repaired files are loaded without a new number.
        shutil.copytree(models / "counted" / "2", base / "2", dirs_exist_ok=True)
        wait_until(lambda: watcher.states("broken") == {"2": "AVAILABLE", "1": "END"})
        assert predict(watcher, "broken") == 2.0


def test_folder_whose_number_is_no_int64_is_ignored(models: Path, watcher: ServerUnderTest, tmp_path: Path) -> None:
    """As in TensorFlow Serving: a date with microseconds has 20 digits."""
    base = tmp_path / "dated"
    add_version(models, base, "counted/1", 1)
    add_version(models, base, "counted/2", 20261128235959123456)
    add_version(models, base, "counted/3", 2**63)
    with serve(watcher, base):
        assert watcher.states("dated") == {"1": "AVAILABLE"}
        assert watcher.get("/v1/models/dated/metadata").json()["model_spec"]["version"] == "1"
        assert predict(watcher, "dated") == 1.0


def test_slowly_copied_version_is_loaded_once_complete(models: Path, watcher: ServerUnderTest, tmp_path: Path) -> None:
    base = tmp_path / "copied"
    add_version(models, base, "counted/1", 1)
    with serve(watcher, base):
        (base / "2").mkdir()
        wait_until(lambda: watcher.states("copied").get("2") == "END")
        status = watcher.get("/v1/models/copied/versions/2").json()["model_version_status"][0]["status"]
        assert status["error_code"] == "NOT_FOUND"
        shutil.copytree(models / "counted" / "2" / "variables", base / "2" / "variables")
        shutil.copy(models / "counted" / "2" / "saved_model.pb", base / "2")
        wait_until(lambda: watcher.states("copied").get("2") == "AVAILABLE")


def test_removed_versions_are_unloaded_but_not_on_a_missing_base_path(
    models: Path, watcher: ServerUnderTest, tmp_path: Path
) -> None:
    base = tmp_path / "removed"
    add_version(models, base, "counted/1", 1)
    with serve(watcher, base):
        base.rename(tmp_path / "away")
        wait_until(lambda: "base_path_not_readable" in watcher.log.read_text())
        assert predict(watcher, "removed") == 1.0
        (tmp_path / "away").rename(base)
        shutil.rmtree(base / "1")
        wait_until(lambda: watcher.states("removed") == {"1": "END"})
        code, message = grpc_error(watcher.predictions.Predict, predict_request("removed", x=[0.0]))
        assert (code, message) == ("NOT_FOUND", "Servable not found for request: Latest(removed)")


def test_real_command_line_starts(converted: Path, tmp_path: Path) -> None:
    """With a configuration file as TensorFlow Serving's guide has it, and flags that have no effect here."""
    file = tmp_path / "models.config"
    file.write_text(f"""
        model_config_list {{
          config {{
            name: "m" base_path: "{converted}/counted" model_type: TENSORFLOW
            logging_config {{ sampling_config {{ sampling_rate: 0.01 }} }}
          }}
        }}""")
    flags = ["--rest_api_num_threads=8", "--tensorflow_intra_op_parallelism=1", "--tensorflow_inter_op_parallelism=1"]
    others = ["--enable_signature_method_name_check=false", "--flush_filesystem_caches", "--max_num_load_retries=2"]
    with running(tmp_path, f"--model_config_file={file}", *flags, *others) as server:
        assert predict(server, "m") == 3.0
        assert "flags_without_effect" in server.log.read_text()
        assert "config_without_effect" in server.log.read_text()


def test_readiness_names_the_model_without_a_version(models: Path, watcher: ServerUnderTest, tmp_path: Path) -> None:
    base = tmp_path / "unready"
    add_version(models, base, "counted/1", 1)
    with serve(watcher, base):
        assert watcher.get("/health/ready").status_code == 200
        shutil.rmtree(base / "1")
        wait_until(lambda: watcher.get("/health/ready").status_code == 503)
        reason = "No version is available of: unready"
        assert watcher.get("/health/ready").json() == {"status": "not ready", "reason": reason}
        assert watcher.get("/health/live").json() == {"status": "alive"}
        response = watcher.get("/v2/health/ready")
        assert (response.status_code, response.json()) == (503, {"ready": False, "error": reason})
        assert watcher.get("/v2/models/unready/ready").status_code == 503
        assert watcher.get("/v2/health/live").json() == {"live": True}
        v2 = InferenceServiceStub(watcher.channel)
        assert not v2.ServerReady(messages.ServerReadyRequest(), timeout=30).ready
        assert not v2.ModelReady(messages.ModelReadyRequest(name="unready"), timeout=30).ready
    assert watcher.get("/health/ready").status_code == 200


def test_ports_open_when_the_first_version_arrives(converted: Path, tmp_path: Path) -> None:
    base = tmp_path / "m"
    base.mkdir()
    with starting(tmp_path, "--model_name=m", f"--model_base_path={base}", *FAST) as server:
        wait_until(lambda: "no_versions_found" in server.log.read_text())
        assert not server.is_up()
        add_version(converted, base, "counted/1", 1)
        wait_until(server.is_up)
        assert server.terminate() == 0


def test_config_file_policies_labels_and_polling(models: Path, watcher: ServerUnderTest) -> None:
    file, base = watcher.log.with_name("models.config"), f'base_path: "{models}/counted"'
    label = "version_labels {{ key: 'stable' value: {} }}"
    every = f"{base} model_version_policy {{ all {{}} }}"
    file.write_text(config(filed=every))
    wait_until(lambda: watcher.states("filed") == dict.fromkeys(["3", "2", "1"], "AVAILABLE"))

    def labelled() -> object:
        return watcher.post("/v1/models/filed/labels/stable:predict", {"instances": [0.0]}).json()

    file.write_text(config(filed=f"{every} {label.format(1)}"))
    wait_until(lambda: labelled() == {"predictions": [1.0]})
    file.write_text(config(filed=f"{base} model_version_policy {{ latest {{ num_versions: 2 }} }} {label.format(2)}"))
    wait_until(lambda: watcher.states("filed").get("1") == "END")
    assert labelled() == {"predictions": [2.0]}
    file.write_text("not a configuration")
    wait_until(lambda: "config_refused" in watcher.log.read_text())
    assert watcher.states("filed")["3"] == "AVAILABLE"
    file.write_text(config(other=base))
    wait_until(lambda: watcher.states("filed") == dict.fromkeys(["3", "2", "1"], "END"))
    assert watcher.states("other") == {"3": "AVAILABLE"}
    file.write_text(config())
    wait_until(lambda: watcher.states("other") == {"3": "END"})


def test_reload_by_rpc(models: Path, watcher: ServerUnderTest, tmp_path: Path) -> None:
    base = f'base_path: "{models}/counted"'
    reload = watcher.models.HandleReloadConfigRequest
    both = f"{base} model_version_policy {{ specific {{ versions: 1 versions: 3 }} }}"
    assert reload(reload_request(config(m=both)), timeout=30).status.error_code == 0
    assert watcher.states("m") == {"3": "AVAILABLE", "1": "AVAILABLE"}
    label = "version_labels { key: 'canary' value: 1 }"
    reload(reload_request(config(m=f"{both} {label}")), timeout=30)
    assert watcher.get("/v1/models/m/labels/canary").json()["model_version_status"][0]["version"] == "1"
    moved = label.replace("1", "2")
    assert grpc_error(reload, reload_request(config(m=f"{both} {moved}"))) == (
        "FAILED_PRECONDITION",
        "Request to assign label to version 2 of model m, which is not currently available for inference",
    )
    assert grpc_error(reload, messages.ReloadConfigRequest())[0] == "INVALID_ARGUMENT"
    assert grpc_error(reload, reload_request(config(m='base_path: "relative"')))[0] == "INVALID_ARGUMENT"
    twice = config(m=base).replace("} }", "} " + config(m=base)[len("model_config_list {") :], 1)
    assert "multiple times" in grpc_error(reload, reload_request(twice))[1]
    (tmp_path / "bad" / "1").mkdir(parents=True)
    code, message = grpc_error(reload, reload_request(config(m=base, bad=f'base_path: "{tmp_path}/bad"')))
    assert code == "UNKNOWN"
    assert "did not become available: {{{name: bad version: 1} due to error: NOT_FOUND: Could not find" in message
    code, message = grpc_error(reload, reload_request(config(m=base, new='base_path: "/nowhere"')))
    assert code == "UNKNOWN"
    assert "No versions of servable new found under base path /nowhere" in message
    assert watcher.get("/v1/models/new").json() == {"error": "Could not find any versions of model new"}
    assert watcher.states("m")["3"] == "AVAILABLE"
    reload(reload_request(config()), timeout=30)


def test_damaged_model_exits_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    command = [sys.executable, "-m", "model_server", "--port=0", f"--grpc_socket_path={tmp_path}/socket"]
    done = subprocess.run(
        [*command, "--model_name=a", f"--model_base_path={tmp_path}"],
        cwd=PACKAGE,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Failed to start server. Error: ")
    assert "{name: a version: 1} due to error: NOT_FOUND: Could not find SavedModel" in last


def test_sigterm_completes_requests_in_flight(models: Path, tmp_path: Path) -> None:
    with running(tmp_path, "--model_name=m", f"--model_base_path={models}/slow") as server:
        request = predict_request("m", n=np.array(20_000))
        before = cpu_ticks(server)
        with ThreadPoolExecutor(2) as pool:
            over_grpc = pool.submit(server.predictions.Predict, request, timeout=60)
            over_rest = pool.submit(server.post, "/v1/models/m:predict", {"inputs": 20_000})
            # Both requests are being computed.
            wait_until(lambda: cpu_ticks(server) > before + 20)
            assert server.terminate() == 0
            assert over_grpc.result().outputs["done"].float_val
            assert over_rest.result().status_code == 200


def test_drain_delay_keeps_the_ports_open_but_not_ready(converted: Path, tmp_path: Path) -> None:
    # Nothing here waits that long: the second signal ends the delay.
    flags = ("--model_name=counted", f"--model_base_path={converted}/counted")
    with running(tmp_path, *flags, DRAIN_DELAY_S="3600") as server:
        health: Any = HealthStub(server.channel)
        assert health.Check(HealthCheckRequest(), timeout=30).status == HealthCheckResponse.SERVING
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.get("/health/ready").status_code == 503)
        response = server.get("/health/ready")
        assert response.json() == {"status": "not ready", "reason": "the server is stopping"}
        assert response.headers["connection"] == "close"
        response = server.get("/v2/health/ready")
        assert (response.status_code, response.json()) == (503, {"ready": False, "error": "the server is stopping"})
        assert server.get("/v2/models/counted/ready").json() == {"name": "counted", "ready": False}
        assert server.get("/v2/health/live").json() == {"live": True}
        v2 = InferenceServiceStub(server.channel)
        assert not v2.ServerReady(messages.ServerReadyRequest(), timeout=30).ready
        assert v2.ServerLive(messages.ServerLiveRequest(), timeout=30).live
        wait_until(lambda: health.Check(HealthCheckRequest(), timeout=30).status == HealthCheckResponse.NOT_SERVING)
        assert predict(server, "counted") == 3.0
        assert server.post("/v1/models/counted:predict", {"instances": [0.0]}).status_code == 200
        tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}
        assert server.post("/v2/models/counted/infer", {"inputs": [tensor]}).status_code == 200
        assert server.terminate() == 0


def test_idle_connection_stays_open_for_keep_alive_s(converted: Path, tmp_path: Path) -> None:
    flags = ("--model_name=counted", f"--model_base_path={converted}/counted")
    with (
        running(tmp_path, *flags, KEEP_ALIVE_S="1") as server,
        socket.create_connection(("127.0.0.1", int(server.rest_url.rpartition(":")[2])), timeout=30) as connection,
    ):
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        asked = time.monotonic()
        received = b"".join(iter(lambda: connection.recv(65536), b""))  # until it is closed, 30 s at most
        assert received.startswith(b"HTTP/1.1 200")
        assert time.monotonic() - asked > 0.9


def cpu_ticks(server: ServerUnderTest) -> int:
    """User CPU time of the server, in ticks of 10 ms."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11])


def test_batching_joins_waiting_requests(converted: Path, tmp_path: Path) -> None:
    file = tmp_path / "batching.config"
    file.write_text(
        "max_batch_size { value: 8 } batch_timeout_micros { value: 60000000 } "
        "max_enqueued_batches { value: 2 } num_batch_threads { value: 1 } allowed_batch_sizes: [4, 8]"
    )
    flags = ["--model_name=m", f"--model_base_path={converted}/half_plus_two"]
    with running(tmp_path, *flags, "--enable_batching", f"--batching_parameters_file={file}") as server:

        def call(value: float) -> list[float]:
            response = server.predictions.Predict(predict_request("m", x=[value, value]), timeout=50)
            return list(response.outputs["y"].float_val)

        # The timeout is a minute: the four requests are answered together, once the batch has its 8 rows.
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(call, [0.0, 2.0, 4.0, 6.0])) == [[2, 2], [3, 3], [4, 4], [5, 5]]
        too_big = predict_request("m", x=[1.0] * 9)
        assert grpc_error(server.predictions.Predict, too_big) == (
            "INVALID_ARGUMENT",
            "Task size 9 is larger than maximum input batch size 8",
        )
        wrong = predict_request("m", x=np.ones(1))
        assert 'Expects input "x" to be float' in grpc_error(server.predictions.Predict, wrong)[1]


def test_warmup_requests_are_run_and_must_succeed(watcher: ServerUnderTest, tmp_path: Path) -> None:
    import tensorflow as tf

    from tests.saved_models import export, half_plus

    base = tmp_path / "warmed"
    export(base / "1", half_plus(1.0))
    extra = base / "1" / "assets.extra"
    extra.mkdir()
    good = messages.PredictionLog(predict_log=messages.PredictLog(request=predict_request("warmed", x=[1.0])))
    path = extra / "tf_serving_warmup_requests"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(3):
            writer.write(good.SerializeToString())
    with serve(watcher, base):
        assert '"requests": 3' in watcher.log.read_text()
        export(base / ".new", half_plus(2.0))
        (base / ".new" / "assets.extra").mkdir()
        (base / ".new" / "assets.extra" / path.name).write_bytes(b"no records" * 10)
        (base / ".new").rename(base / "2")
        wait_until(lambda: watcher.states("warmed").get("2") == "END")
        status = watcher.get("/v1/models/warmed/versions/2").json()["model_version_status"][0]["status"]
        assert "TFRecord" in status["error_message"]
        assert predict(watcher, "warmed") == 1.0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key and a self-signed certificate for localhost."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    key, crt = folder / "key.pem", folder / "crt.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["-keyout", str(key), "-out", str(crt), "-days", "2"]
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", *made, *names], check=True, capture_output=True
    )
    return key, crt


@pytest.fixture(scope="module")
def tls_server(
    converted: Path, tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]
) -> Iterator[ServerUnderTest]:
    """TLS on the gRPC port, a UNIX socket, channel arguments, and a timeout of 200 ms over REST."""
    folder = tmp_path_factory.mktemp("tls_server")
    ssl, models_config = folder / "ssl.config", folder / "models.config"
    key, crt = (path.read_text().replace("\n", "\\n") for path in certificate)
    ssl.write_text(f'server_key: "{key}" server_cert: "{crt}" client_verify: false')
    models_config.write_text(
        config(half_plus_two=f'base_path: "{converted}/half_plus_two"', slow=f'base_path: "{converted}/slow"')
    )
    flags = [f"--ssl_config_file={ssl}", f"--grpc_socket_path={folder}/socket", "--grpc_channel_arguments=a=1,b=c"]
    with running(folder, f"--model_config_file={models_config}", "--rest_api_timeout_in_ms=200", *flags) as server:
        yield server


def test_tls_unix_socket_and_channel_arguments(tls_server: ServerUnderTest, certificate: tuple[Path, Path]) -> None:
    port = tls_server.grpc_address.rsplit(":", 1)[1]
    credentials = grpc.ssl_channel_credentials(certificate[1].read_bytes())
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        response = PredictionServiceStub(channel).Predict(predict_request("half_plus_two", x=[1.0]), timeout=30)
        assert response.outputs["y"].float_val == [2.5]
    with grpc.insecure_channel(f"unix:{tls_server.log.with_name('socket')}") as channel:
        request = messages.GetModelMetadataRequest(
            model_spec=messages.ModelSpec(name="half_plus_two"), metadata_field=["signature_def"]
        )
        assert PredictionServiceStub(channel).GetModelMetadata(request, timeout=30).metadata


def test_rest_timeout_returns_504(tls_server: ServerUnderTest) -> None:
    response = tls_server.post("/v1/models/slow:predict", {"inputs": 10_000_000})  # it ends at the deadline
    assert response.status_code == 504
    assert response.json() == {"error": "Timed out waiting for notification"}
    # On a busy machine, a short request can exceed the limit, too.
    wait_until(lambda: tls_server.post("/v1/models/slow:predict", {"inputs": 1}).status_code == 200)


def test_sixty_simultaneous_connections_are_served(server: ServerUnderTest) -> None:
    barrier = threading.Barrier(60)

    def connect(_: int) -> bool:
        with grpc.insecure_channel(server.grpc_address) as channel:
            stub, request = PredictionServiceStub(channel), predict_request("half_plus_two", x=[1.0])
            stub.Predict(request, timeout=30)
            barrier.wait(30)
            return bool(stub.Predict(request, timeout=30).outputs["y"].float_val == [2.5])

    with ThreadPoolExecutor(60) as pool:
        assert all(pool.map(connect, range(60)))
