"""`make smoke` on a pattern that serves one JSON file."""

import json
import signal
import socket
import subprocess
import sys
import textwrap

import httpx
import pytest

from scripts.checks.smoke import main
from scripts.devstack.table import ROOT, Pattern, ProcessDefinition, by_number
from serving_testing.processes import free_port, running

README = """\
    # Files

    ```bash
    curl http://localhost:PORT/data.json
    ```

    ```json
    {"id": 1, "name": "iris"}
    ```

    ```console
    $ python -m client
    ignored
    $ curl localhost:PORT/data.json
    {"id": 7,
     "name": "iris"}
    ```

    ```
    $ curl localhost:PORT/later.json
    soon
    ```
    """


def files(folder):
    server = ProcessDefinition(
        name="server",
        argv=("python", "-m", "http.server", "{PORT_97_SERVER}", "--bind", "127.0.0.1"),
        ports={"PORT_97_SERVER": 9700},
        ready="http://127.0.0.1:{PORT_97_SERVER}/data.json",
        ready_within_s=10,
    )
    pattern = Pattern(
        number="97", title="Files", folder=str(folder), published={"PORT_97_SERVER": 8000}, processes=(server,)
    )
    return by_number([pattern])


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "97_files_pattern"
    folder.mkdir()
    (folder / "data.json").write_text(json.dumps({"id": 7, "name": "iris"}))
    write(folder, 8000)
    write(tmp_path, 9700)
    return tmp_path


def write(folder, port):
    (folder / "README.md").write_text(textwrap.dedent(README).replace("PORT", str(port)))


@pytest.fixture
def smoke(root, capsys):
    def run_smoke(*argv):
        code = main([*argv], files(root / "97_files_pattern"), root)
        return code, capsys.readouterr().out

    return run_smoke


def test_stopped_pattern_is_started_for_the_check(smoke, root, monkeypatch):
    monkeypatch.setenv("PORT_97_SERVER", str(free_port()))
    code, output = smoke()
    assert code == 0, output
    assert "Starting 97." in output
    assert [line.split("|")[1:6] for line in output.splitlines() if "README.md" in line] == [
        [
            " 97_files_pattern/README.md ",
            " started     ",
            " 2              ",
            " 0              ",
            " 1                      ",
        ],
        [
            " README.md                  ",
            " all of them ",
            " 2              ",
            " 0              ",
            " 1                      ",
        ],
    ]


def test_running_pattern_is_checked_and_keeps_running(smoke, root, monkeypatch):
    port = free_port()
    monkeypatch.setenv("PORT_97_SERVER", str(port))
    url = f"http://127.0.0.1:{port}/data.json"
    module, log = f"http.server {port} --bind 127.0.0.1", root / "log"
    with running(module, cwd=root / "97_files_pattern", env={}, log=log, ready=url):
        code, output = smoke("97")
        assert httpx.get(url, trust_env=False).status_code == 200
    assert code == 0, output
    assert "Starting" not in output
    assert "| running " in output


def test_as_shown_uses_the_urls_of_the_readme(smoke, root):
    port = free_port()
    write(root / "97_files_pattern", port)
    (root / "README.md").unlink()
    url, module = f"http://127.0.0.1:{port}/data.json", f"http.server {port} --bind 127.0.0.1"
    with running(module, cwd=root / "97_files_pattern", env={}, log=root / "log", ready=url):
        assert smoke("97", "--as-shown")[0] == 0
    code, output = smoke("97", "--as-shown")  # and nothing is started
    assert code == 1
    assert f"curl http://localhost:{port}/data.json" in output


@pytest.mark.parametrize(
    ("true", "false", "message"),
    [
        ('"iris"', '"rose"', 'answer.name: shown "rose", got "iris"'),
        ("```json", "prose\n\n```json", "no ```json or ```text block follows this curl"),
    ],
)
def test_wrong_example_exits_1(smoke, root, monkeypatch, true, false, message):
    monkeypatch.setenv("PORT_97_SERVER", str(free_port()))
    readme = root / "97_files_pattern/README.md"
    readme.write_text(readme.read_text().replace(true, false, 1))
    code, output = smoke("97")
    assert code == 1
    assert "WRONG: " in output
    assert message in output


def test_sigint_ends_the_program_while_an_example_waits(root, monkeypatch):
    monkeypatch.setenv("PORT_97_SERVER", str(free_port()))
    folder = root / "97_files_pattern"
    with socket.create_server(("127.0.0.1", 0)) as held:
        url = f"http://127.0.0.1:{held.getsockname()[1]}/"
        (folder / "README.md").write_text(f"```bash\ncurl {url}\n```\n\n```json\n{{}}\n```\n")
        call = f"smoke.main(['97'], test_smoke.files({str(folder)!r}), pathlib.Path({str(root)!r}))"
        imports = (
            "import pathlib; from scripts.checks import smoke; from scripts.checks.tests.integration import test_smoke"
        )
        command = [sys.executable, "-c", f"{imports}; raise SystemExit({call})"]
        held.settimeout(60)
        with subprocess.Popen(command, cwd=ROOT) as program, held.accept()[0]:
            program.send_signal(signal.SIGINT)
            assert program.wait(30) == 130  # less than curl waits for an answer


def test_invalid_port_exits_1(smoke, root, monkeypatch):
    monkeypatch.setenv("PORT_97_SERVER", "many")
    code, output = smoke("97")
    assert code == 1
    assert "make smoke: PORT_97_SERVER=many: a port is a number" in output


def test_unknown_pattern_is_rejected(smoke, capsys):
    with pytest.raises(SystemExit):
        smoke("05")
    assert "no pattern 05; there are 97" in capsys.readouterr().err
