"""Versions, configuration, faults, batching, TLS, signals: a server of its own for each test."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
import tensorflow as tf
from client.grpc_client import GrpcClient
from google.protobuf import text_format

from model_server.manager import Poller
from tests.conftest import IRIS_ROWS, PATTERN, Server, command, free_port, running, wait_until
from tests.saved_models import export, half_plus
from tests.test_grpc_protocol import predict_request, refused
from tfserving_protos import messages
from tfserving_protos.services import PredictionServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator

FAST = ("--file_system_poll_wait_seconds=0.1", "--model_config_file_poll_wait_seconds=0.1")


def add_version(models: Path, base: Path, source: str, version: int) -> None:
    """Copy a version of a test model in, as build_model.py does it: complete or not at all."""
    base.mkdir(exist_ok=True)
    shutil.copytree(models / source, base / f".new-{version}")
    (base / f".new-{version}").rename(base / str(version))


def one_model(base: Path) -> list[str]:
    return ["--model_name=m", f"--model_base_path={base}", *FAST]


def predict(server: Server, model: str) -> float:
    response = server.predictions.Predict(predict_request(model, x=[0.0]), timeout=30)
    value: float = response.outputs["y"].float_val[0]
    return value


def config(**entries: str) -> str:
    """A configuration file; each entry is what stands behind the name of a model."""
    lines = [f'config {{ name: "{name}" model_platform: "tensorflow" {content} }}' for name, content in entries.items()]
    return f"model_config_list {{ {' '.join(lines)} }}"


@pytest.fixture(scope="module")
def watcher(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that looks for new versions all the time. Each test gives it a model of its own by `serve`."""
    folder = tmp_path_factory.mktemp("watcher")
    file = folder / "models.config"
    file.write_text(config())
    with running(folder, f"--model_config_file={file}", *FAST) as server:
        yield server


@contextlib.contextmanager
def serve(server: Server, base: Path) -> Iterator[None]:
    """Let `server` serve the model at `base`, by its folder's name, and no other."""
    reload = server.models.HandleReloadConfigRequest
    reload(reload_request(config(**{base.name: f'base_path: "{base}"'})), timeout=30)
    yield
    reload(reload_request(config()), timeout=30)
    wait_until(lambda: "AVAILABLE" not in server.states(base.name).values())


def reload_request(text: str) -> messages.ReloadConfigRequest:
    return messages.ReloadConfigRequest(config=text_format.Parse(text, messages.ModelServerConfig()))


def test_hot_reload_under_load_loses_no_request(models: Path, watcher: Server, tmp_path: Path) -> None:
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
                    answers.append(
                        watcher.post("/v1/models/reloaded:predict", {"instances": [0.0]}).json()["predictions"][0]
                    )
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


def test_a_broken_version_leaves_the_old_one_serving_and_is_reported(
    models: Path, watcher: Server, tmp_path: Path
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
        # 中身が直されたら、番号を変えなくても読み込まれる。
        shutil.copytree(models / "counted" / "2", base / "2", dirs_exist_ok=True)
        wait_until(lambda: watcher.states("broken") == {"2": "AVAILABLE", "1": "END"})
        assert predict(watcher, "broken") == 2.0


def test_a_version_folder_that_is_copied_slowly_is_loaded_once_complete(
    models: Path, watcher: Server, tmp_path: Path
) -> None:
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


def test_removing_all_versions_unloads_them_and_a_lost_base_path_does_not(
    models: Path, watcher: Server, tmp_path: Path
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
        code, message = refused(watcher.predictions.Predict, predict_request("removed", x=[0.0]))
        assert (code, message) == ("NOT_FOUND", "Servable not found for request: Latest(removed)")


def test_the_ports_open_when_the_first_version_arrives(models: Path, tmp_path: Path) -> None:
    base, rest_port = tmp_path / "m", free_port()
    base.mkdir()
    log = tmp_path / "log"
    flags = [f"--port={free_port()}", f"--rest_api_port={rest_port}", *one_model(base)]
    with log.open("w") as output, subprocess.Popen(command(*flags), cwd=PATTERN, stderr=output) as process:
        wait_until(lambda: "no_versions_found" in log.read_text())
        server = Server("127.0.0.1:1", f"http://127.0.0.1:{rest_port}", process, log)
        assert not server.is_up()
        add_version(models, base, "counted/1", 1)
        wait_until(server.is_up)
        assert server.terminate() == 0


def test_config_file_policies_labels_and_polling(models: Path, tmp_path: Path) -> None:
    file, base = tmp_path / "models.config", f'base_path: "{models}/counted"'
    labels = "version_labels {{ key: 'stable' value: {} }}"
    file.write_text(config(m=f"{base} model_version_policy {{ all {{}} }} {labels.format(1)}"))
    with running(tmp_path, f"--model_config_file={file}", *FAST) as server:
        assert server.states("m") == dict.fromkeys(["3", "2", "1"], "AVAILABLE")

        def labelled() -> object:
            return server.post("/v1/models/m/labels/stable:predict", {"instances": [0.0]}).json()

        assert labelled() == {"predictions": [1.0]}
        file.write_text(config(m=f"{base} model_version_policy {{ latest {{ num_versions: 2 }} }} {labels.format(2)}"))
        wait_until(lambda: server.states("m").get("1") == "END")
        assert labelled() == {"predictions": [2.0]}
        file.write_text("not a configuration")
        wait_until(lambda: "config_refused" in server.log.read_text())
        assert server.states("m")["3"] == "AVAILABLE"
        file.write_text(config(other=base))
        wait_until(lambda: server.states("m") == dict.fromkeys(["3", "2", "1"], "END"))
        assert server.states("other") == {"3": "AVAILABLE"}


def test_reload_by_rpc(models: Path, tmp_path: Path) -> None:
    base = f'base_path: "{models}/counted"'

    with running(tmp_path, "--model_name=m", f"--model_base_path={models}/counted") as server:
        reload = server.models.HandleReloadConfigRequest
        both = f"{base} model_version_policy {{ specific {{ versions: 1 versions: 3 }} }}"
        assert reload(reload_request(config(m=both)), timeout=30).status.error_code == 0
        assert server.states("m") == {"3": "AVAILABLE", "1": "AVAILABLE"}
        label = "version_labels { key: 'canary' value: 1 }"
        reload(reload_request(config(m=f"{both} {label}")), timeout=30)
        assert server.get("/v1/models/m/labels/canary").json()["model_version_status"][0]["version"] == "1"
        moved = label.replace("1", "2")
        assert refused(reload, reload_request(config(m=f"{both} {moved}"))) == (
            "FAILED_PRECONDITION",
            "Request to assign label to version 2 of model m, which is not currently available for inference",
        )
        assert refused(reload, messages.ReloadConfigRequest())[0] == "INVALID_ARGUMENT"
        assert refused(reload, reload_request(config(m='base_path: "relative"')))[0] == "INVALID_ARGUMENT"
        twice = config(m=base).replace("} }", "} " + config(m=base)[len("model_config_list {") :], 1)
        assert "multiple times" in refused(reload, reload_request(twice))[1]
        (tmp_path / "bad" / "1").mkdir(parents=True)
        code, message = refused(reload, reload_request(config(m=base, bad=f'base_path: "{tmp_path}/bad"')))
        assert code == "UNKNOWN"
        assert "did not become available: {{{name: bad version: 1} due to error: NOT_FOUND: Could not find" in message
        code, message = refused(reload, reload_request(config(m=base, new='base_path: "/nowhere"')))
        assert code == "UNKNOWN"
        assert "No versions of servable new found under base path /nowhere" in message
        assert server.get("/v1/models/new").json() == {"error": "Could not find any versions of model new"}
        assert server.states("m")["3"] == "AVAILABLE"


def failure(*flags: str) -> tuple[int, str]:
    """Exit code and last line of a server that cannot start."""
    ports = [f"--port={free_port()}", f"--rest_api_port={free_port()}"]
    done = subprocess.run(command(*ports, *flags), cwd=PATTERN, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        pytest.param([], 1, "model_base_path and server_options.model_config_file are empty!", id="nothing to serve"),
        pytest.param(["--model_config_file=/nowhere"], 1, "Cannot read '/nowhere'", id="no config file"),
        pytest.param(["--unknown_flag=1"], 2, "unrecognized arguments: --unknown_flag=1", id="unknown flag"),
        pytest.param(["--enable_batching=maybe"], 2, "expected true or false, got 'maybe'", id="not a boolean"),
        pytest.param(["--port=99999"], 2, "expected 0 to 65535, got '99999'", id="port"),
        pytest.param(["--rest_api_port=x"], 2, "argument --rest_api_port: invalid", id="not a port"),
        pytest.param(["--grpc_max_threads=0"], 2, "expected 1 or more, got '0'", id="threads"),
        pytest.param(["--grpc_channel_arguments=a"], 2, "expected name=value, got 'a'", id="channel argument"),
        pytest.param(
            ["--model_base_path=/m", "--batching_parameters_file=/b"], 1, "without setting", id="batching is off"
        ),
        pytest.param(["--model_base_path=relative"], 1, "to have an absolute path", id="relative base path"),
    ],
)
def test_wrong_command_lines(flags: list[str], code: int, message: str) -> None:
    found = failure(*flags)
    assert found[0] == code
    assert message in found[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "model_config_list { oops }",
            "Invalid protobuf file: '{file}': Error parsing text-format tensorflow.serving.ModelServerConfig: ",
        ),
        (
            "model_config_list {{ config {{ name: 'a' base_path: '/a' model_platform: 'pytorch' }} }}",
            "unsupported plat",
        ),
        (
            "model_config_list {{ config {{ name: 'a' base_path: '{folder}' model_platform: 'tensorflow' }} }}",
            "{{name: a version: 1}} due to error: NOT_FOUND: Could not find SavedModel",
        ),
    ],
    ids=["syntax", "platform", "broken model"],
)
def test_wrong_configurations(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "models.config"
    (tmp_path / "1").mkdir()
    file.write_text(content.format(folder=tmp_path) if "{{" in content else content)
    code, line = failure(f"--model_config_file={file}")
    assert code == 1
    assert line.startswith("Failed to start server. Error: ")
    assert message.replace("{file}", str(file)).replace("{{", "{").replace("}}", "}") in line


@pytest.mark.parametrize("flag", ["port", "rest_api_port"])
def test_a_taken_port_is_reported(models: Path, flag: str) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = failure(f"--{flag}={port}", f"--model_base_path={models}/counted")
    assert code == 1
    assert str(port) in line


def test_a_poll_period_of_zero_is_no_polling() -> None:
    stop, calls = threading.Event(), {"never": 0, "often": 0}

    def count(name: str) -> None:
        calls[name] += 1

    poller = Poller(stop, [(0, lambda: count("never")), (0.001, lambda: count("often"))])
    poller.start()
    wait_until(lambda: calls["often"] > 20)
    stop.set()
    poller.join()
    assert calls["never"] == 0


def test_version_flag() -> None:
    done = subprocess.run(command("--version"), cwd=PATTERN, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "TensorFlow ModelServer: portable",
        f"TensorFlow Library: {tf.__version__}",
    ]


def test_sigterm_finishes_what_is_under_way(models: Path, tmp_path: Path) -> None:
    with running(tmp_path, "--model_name=m", f"--model_base_path={models}/slow") as server:
        request = messages.PredictRequest(model_spec=messages.ModelSpec(name="m"))
        request.inputs["n"].dtype = messages.DT_INT64
        request.inputs["n"].int64_val.append(20_000)
        request.inputs["n"].tensor_shape.SetInParent()
        before = cpu_ticks(server)
        with ThreadPoolExecutor(2) as pool:
            over_grpc = pool.submit(server.predictions.Predict, request, timeout=60)
            over_rest = pool.submit(server.post, "/v1/models/m:predict", {"inputs": 20_000})
            # 両方の要求が、確かに計算の途中にある。
            wait_until(lambda: cpu_ticks(server) > before + 20)
            assert server.terminate() == 0
            assert over_grpc.result().outputs["done"].float_val
            assert over_rest.result().status_code == 200


def cpu_ticks(server: Server) -> int:
    """User CPU time that the server has used."""
    assert server.process is not None
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11])


def test_rest_timeout(models: Path, tmp_path: Path) -> None:
    flags = ["--model_name=m", f"--model_base_path={models}/slow", "--rest_api_timeout_in_ms=200"]
    with running(tmp_path, *flags) as server:
        response = server.post("/v1/models/m:predict", {"inputs": 30_000})
        assert response.status_code == 504
        assert response.json() == {"error": "Timed out waiting for notification"}
        # 混んだ機械では、短い要求も制限時間を超えることがある。
        wait_until(lambda: server.post("/v1/models/m:predict", {"inputs": 1}).status_code == 200)


def test_batching_joins_waiting_requests(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "batching.config"
    file.write_text(
        "max_batch_size { value: 8 } batch_timeout_micros { value: 60000000 } "
        "max_enqueued_batches { value: 2 } num_batch_threads { value: 1 } allowed_batch_sizes: [4, 8]"
    )
    flags = ["--model_name=m", f"--model_base_path={models}/half_plus_two"]
    with running(tmp_path, *flags, "--enable_batching", f"--batching_parameters_file={file}") as server:

        def call(value: float) -> list[float]:
            response = server.predictions.Predict(predict_request("m", x=[value, value]), timeout=50)
            return list(response.outputs["y"].float_val)

        # 待ち時間は 1 分なので、8 行がそろって初めて、4 つの要求が一度に答えを得る。
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(call, [0.0, 2.0, 4.0, 6.0])) == [[2, 2], [3, 3], [4, 4], [5, 5]]
        too_big = predict_request("m", x=[1.0] * 9)
        assert refused(server.predictions.Predict, too_big) == (
            "INVALID_ARGUMENT",
            "Task size 9 is larger than maximum input batch size 8",
        )
        wrong = predict_request("m", x=[[1.0]])
        assert 'Expects input "x" to have shape' in refused(server.predictions.Predict, wrong)[1]


def test_warmup_requests_are_replayed_and_must_succeed(watcher: Server, tmp_path: Path) -> None:
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


def test_tls_unix_socket_and_channel_arguments(
    iris_model: Path, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    key, crt = certificate
    ssl = tmp_path / "ssl.config"
    quoted = {name: path.read_text().replace("\n", "\\n") for name, path in (("key", key), ("crt", crt))}
    ssl.write_text(f'server_key: "{quoted["key"]}" server_cert: "{quoted["crt"]}" client_verify: false')
    flags = [f"--ssl_config_file={ssl}", f"--grpc_socket_path={tmp_path}/socket", "--grpc_channel_arguments=a=1,b=c"]
    with running(tmp_path, "--model_name=iris", f"--model_base_path={iris_model}", *flags) as server:
        port = server.grpc_address.rsplit(":", 1)[1]
        with GrpcClient(f"localhost:{port}", root_certificates=crt.read_bytes()) as client:
            assert client.predict(IRIS_ROWS)[0].label == "setosa"
        with grpc.insecure_channel(f"unix:{tmp_path}/socket") as channel:
            request = messages.GetModelMetadataRequest(
                model_spec=messages.ModelSpec(name="iris"), metadata_field=["signature_def"]
            )
            assert PredictionServiceStub(channel).GetModelMetadata(request, timeout=30).metadata


def test_more_than_fifty_connections_at_the_same_time(server: Server) -> None:
    barrier = threading.Barrier(60)

    def connect(_: int) -> bool:
        with GrpcClient(server.grpc_address) as client:
            client.predict(IRIS_ROWS)
            barrier.wait(30)
            return client.predict(IRIS_ROWS)[2].label == "virginica"

    with ThreadPoolExecutor(60) as pool:
        assert all(pool.map(connect, range(60)))
