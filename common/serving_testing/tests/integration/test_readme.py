"""Checks READMEs against a real server, with and without the program curl."""

import http.server
import json
import shutil
import textwrap
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving_testing import readme
from serving_testing.readme import check_examples, compare, count_unchecked, examples, has_current_tables

SHOWN_BASE = "http://localhost:9000"


class Shop(http.server.BaseHTTPRequestHandler):
    """POST /orders echoes the body under a new id; GET /orders/<id> knows that id only."""

    requests_of_soon = 0

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.respond({"order_id": "beef01", "at": "2026-01-02T03:04:05Z", "total": 0.12345, "body": body})

    def do_GET(self):
        if self.path == "/soon":
            Shop.requests_of_soon += 1
            return self.respond({"open": Shop.requests_of_soon > 1})
        if self.path.startswith("/items/"):
            return self.respond({"id": int(self.path.removeprefix("/items/")) + 1})
        known = {"/orders/beef01": {"beef01": self.headers.get("X-Customer")}, "/plain": None}
        return self.respond(known.get(self.path, {"detail": "not found"}))

    def respond(self, content):
        raw = b"up for 17 s\n" if content is None else json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def bases():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shop) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield {SHOWN_BASE: f"http://127.0.0.1:{server.server_port}"}
        server.shutdown()
        thread.join()


@pytest.fixture(params=["curl", "httpx"])
def sender(request, monkeypatch):
    if request.param == "httpx":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    elif not shutil.which("curl"):
        pytest.skip("no curl on this machine")


@pytest.fixture
def write(tmp_path):
    def write_readme(text):
        path = tmp_path / "README.md"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write_readme


CORRECT_README = """\
    # Shop

    ```bash
    make up
    ```

    ```bash
    curl -s -X POST http://localhost:9000/orders \\
      -H 'Content-Type: application/json' -d '{"n": [1, 2]}'
    ```

    ```json
    {"order_id": "c0ffee", "at": "2025-11-14T10:00:00+09:00", "total": 0.1235, "body": {"n": [1, 2]}}
    ```

    The id is good for a day.

    ```bash
    curl -s -H "X-Customer: ada" http://localhost:9000/orders/c0ffee   # the order of above
    curl -s http://localhost:9000/orders/nope
    ```
    ```json
    {"c0ffee": "ada"}
    {"detail": "not found"}
    ```

    ```bash
    curl -s http://localhost:9000/plain
    ```

    ```text
    up for 3 s
    ```
    """


@pytest.mark.usefixtures("sender")
def test_correct_readme_passes(write, bases):
    assert check_examples(write(CORRECT_README), bases) == []


@pytest.mark.usefixtures("sender")
@pytest.mark.parametrize(
    ("true", "false", "line", "difference"),
    [
        ('"total": 0.1235', '"total": 0.2', 8, "answer.total: shown 0.2, got 0.12345"),
        ('"total": 0.1235, ', "", 8, "answer.total: not shown, got 0.12345"),
        ('"total": 0.1235', '"total": 0.1235, "tax": 1', 8, "answer.tax: shown, but missing"),
        ('{"n": [1, 2]}}', '{"n": [1, "2"]}}', 8, 'answer.body.n[1]: shown "2", got 2'),
        ('{"n": [1, 2]}}', '{"n": [1]}}', 8, "answer.body.n: 1 items shown, got 2"),
        ('"not found"', '"gone"', 19, 'answer.detail: shown "gone", got "not found"'),
        ('{"detail": "not found"}', "", 19, "2 curl commands, but 1 answers are shown"),
        ("up for 3 s", "down for 3 s", 28, "shown: down for 3 s"),
        ("9000/plain", "9000/plain -d x -X GET --no-such-option", 28, "option"),
        ("```text", "```json", 28, "Expecting value"),
        ('{"c0ffee": "ada"}', '{"c0ffee": null}', 19, 'answer.c0ffee: shown null, got "ada"'),
    ],
)
def test_mismatch_is_reported_with_its_line(write, bases, true, false, line, difference):
    path = write(CORRECT_README.replace(true, false))
    (problem,) = check_examples(path, bases)
    assert problem.startswith(f"{path}:{line}:\n    curl -s")
    assert difference in problem


@pytest.mark.usefixtures("sender")
def test_response_that_is_not_json_is_reported(write, bases):
    (problem,) = check_examples(write(CORRECT_README.replace("orders/nope", "plain")), bases)
    assert "the answer is not JSON: 'up for 17 s" in problem


@pytest.mark.usefixtures("sender")
def test_unreachable_server_is_reported(write):
    text = "```bash\ncurl -s http://127.0.0.1:1/\n```\n```json\n{}\n```\n"
    (problem,) = check_examples(write(text))
    assert "curl -s http://127.0.0.1:1/" in problem
    assert "refused" in problem or "connect" in problem


def test_skip_others_ignores_examples_of_other_servers(write, bases):
    text = CORRECT_README + "\n    ```bash\n    curl http://127.0.0.1:1/\n    ```\n    ```json\n    {}\n    ```\n"
    assert check_examples(write(text), bases, skip_others=True) == []
    assert len(check_examples(write(text), bases)) == 1
    (problem,) = check_examples(write(text.replace("not found", "gone")), bases, skip_others=True)
    assert "gone" in problem


def test_curl_without_response_is_reported(write):
    path = write("text\n\n```bash\ncurl -s http://127.0.0.1:1/\n```\n\nprose\n\n```json\n{}\n```\n")
    assert check_examples(path) == [f"{path}: line 4: no ```json or ```text block follows this curl"]


def test_quoted_command_spans_lines():
    text = "```bash\ncurl -d '{\n  \"a\": 1}' http://x/\n```\n\n```json\n{}\n```\n"
    (example,) = examples(text)
    assert example.commands == [["curl", "-d", '{\n  "a": 1}', "http://x/"]]


SOON = """\
    <!-- within 5 s -->
    ```bash
    curl http://localhost:9000/soon
    ```
    ```json
    {"open": true}
    ```
    """


@pytest.mark.usefixtures("sender")
def test_within_retries_until_the_response_matches(write, bases, monkeypatch):
    monkeypatch.setattr(Shop, "requests_of_soon", 0)
    assert check_examples(write(SOON), bases) == []
    monkeypatch.setattr(Shop, "requests_of_soon", 0)
    (problem,) = check_examples(write(SOON.replace("5 s", "0 s")), bases)
    assert "answer.open: shown true, got false" in problem


COUNTED = """\
    ```bash
    curl http://localhost:9000/items/7
    curl http://localhost:9000/items/8
    ```
    ```json
    {"id": 1}
    {"id": 9}
    ```
    ```bash
    curl http://localhost:9000/items/1
    ```
    ```json
    {"id": 2}
    ```
    ```bash
    curl http://localhost:9000/orders/beef01 -H 'X-Customer: /items/2, /items/21'
    ```
    ```json
    {"beef01": "/items/9, /items/21"}
    ```
    """


@pytest.mark.usefixtures("sender")
def test_integer_id_replaces_the_shown_one_in_later_commands(write, bases):
    assert check_examples(write(COUNTED), bases) == []


PIPE = """\
    ```bash
    printf '{"image": "%s"}' "$(base64 < photo.jpg)" |
      curl http://localhost:9000/orders -d @-
    ```
    ```json
    {"order_id": "c0ffee", "at": "2025-11-14T10:00:00+09:00", "total": 0.1235, "body": {"image": "AAEC"}}
    ```
    """


def test_pipe_into_curl_runs_in_a_shell(write, bases, tmp_path):
    (tmp_path / "mine.jpg").write_bytes(bytes([0, 1, 2]))
    path = write(PIPE)
    assert count_unchecked(path.read_text()) == 0
    if not shutil.which("curl"):
        pytest.skip("no curl on this machine")
    assert check_examples(path, bases | {"photo.jpg": "mine.jpg"}) == []
    (problem,) = check_examples(write(PIPE.replace("AAEC", "AAED")), bases | {"photo.jpg": "mine.jpg"})
    assert "printf" in problem
    assert 'shown "AAED", got "AAEC"' in problem


CONSOLE = """\
    ```console
    $ buy --all
    done
    $ curl -s \\
        http://localhost:9000/orders/nope
    {"detail":
     "not found"}
    $ curl -s http://localhost:9000/orders/beef01
    {"beef01": null}
    ```

        curl -s http://localhost:9000/plain
    """


@pytest.mark.usefixtures("sender")
def test_console_block_is_checked(write, bases):
    path = write(CONSOLE)
    assert check_examples(path, bases) == []
    assert count_unchecked(path.read_text()) == 1
    (problem,) = check_examples(write(CONSOLE.replace("not found", "gone")), bases)
    assert problem.startswith(f"{path}:4:\n    curl -s")
    assert 'answer.detail: shown "gone", got "not found"' in problem


@pytest.mark.parametrize(
    ("shown", "got", "is_same"),
    [
        (1, 1.0005, True),
        (1, 1.1, False),
        (True, 1, False),
        (None, 0, False),
        (None, None, True),
        ("a1b2c3", "00ff00", True),
        ("a1b2c3", "failed", False),
        ("6f1c2a34-0000-4000-8000-000000000001", "6f1c2a34-0000-4000-8000-0000000000ff", True),
        ("2025-11-14T10:00:00Z", "2026-11-14T10:00:00.123456+00:00", True),
        ("2025-11-14T10:00:00Z", "yesterday", False),
        ({"a1b2c3": 1}, {"00ff00": 1}, True),
        ({"a1b2c3": 1}, {"result": 1}, False),
        ({"id": 1}, {"id": 17}, True),
        ({"id": 1}, {"id": "17"}, False),
        ({"ids": 1}, {"ids": 17}, False),
    ],
)
def test_compare_accepts_only_ids_times_and_small_differences(shown, got, is_same):
    assert (list(compare(shown, got)) == []) is is_same


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_compare_is_reflexive(value):
    assert list(compare(value, value)) == []


@given(st.dictionaries(st.text(min_size=1, max_size=8), json_values, min_size=1, max_size=3), st.data())
def test_compare_reports_a_missing_key(value, data):
    key = data.draw(st.sampled_from(sorted(value)))
    assert list(compare(value, {name: each for name, each in value.items() if name != key}))


SETTINGS = """\
from enum import Enum
from pathlib import Path
from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

class Level(Enum):
    INFO = "info"

class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="shop_")
    where: Path = Field(Path("/data"), description="Where | how.")
    level: Level = Field(Level.INFO, description="How much.")
    is_open: bool = Field(True, description="Whether.")
    urls: dict[str, str] = Field(default_factory=lambda: {"a": "http://a"}, description="Whom.")
    sizes: list[int] = Field([1, 2])
    note: str = ""
    token: SecretStr = SecretStr("hush")
    key: SecretStr | None = None
    host: str = Field(validation_alias="HOSTNAME")
    port: int = Field(80, validation_alias=AliasChoices("PORT", "port"))
"""

TABLE = """\
| variable | default | description |
|---|---|---|
| `SHOP_WHERE` | `/data` | Where \\| how. |
| `SHOP_LEVEL` | `info` | How much. |
| `SHOP_IS_OPEN` | `true` | Whether. |
| `SHOP_URLS` | `a=http://a` | Whom. |
| `SHOP_SIZES` | `1,2` |  |
| `SHOP_NOTE` | empty |  |
| `SHOP_TOKEN` | unset |  |
| `SHOP_KEY` | unset |  |
| `HOSTNAME` | required |  |
| `PORT` | `80` |  |
"""


@pytest.fixture
def pattern(tmp_path):
    """A folder with settings in its package `src`, as every pattern has."""

    def make(name, settings=SETTINGS):
        folder = tmp_path / name
        (folder / "src").mkdir(parents=True)
        (folder / "src/__init__.py").touch()
        (folder / "src/configurations.py").write_text(settings)
        marked = "before\n<!-- settings:src.configurations.Settings -->\nold\n<!-- /settings -->\nafter\n"
        (folder / "README.md").write_text(marked)
        return folder

    return make


def test_write_updates_settings_tables(pattern, capsys):
    folder = pattern("a")
    assert not has_current_tables(folder / "README.md")
    assert readme.main([str(folder)]) == 1
    assert "out of date" in capsys.readouterr().out
    assert readme.main(["--write", str(folder)]) == 0
    assert (folder / "README.md").read_text() == (
        f"before\n<!-- settings:src.configurations.Settings -->\n{TABLE}<!-- /settings -->\nafter\n"
    )
    assert readme.main([str(folder)]) == 0


def test_settings_table_marks_settings_that_accept_a_file(pattern):
    settings = """\
from pydantic import Field, SecretStr
from serving_common.settings import Settings as Base

class Settings(Base):
    key: SecretStr | None = Field(None, description="A key.")
    note: str = Field("", description="No key.")
"""
    folder = pattern("files", settings)
    assert readme.main(["--write", str(folder)]) == 0
    text = (folder / "README.md").read_text()
    assert "| `KEY` or `…_FILE` | unset | A key. |\n" in text
    assert "| `NOTE` | empty | No key. |\n" in text


def test_settings_of_two_patterns_are_kept_apart(pattern):
    one, other = pattern("one"), pattern("other", SETTINGS.replace("where", "whence"))
    assert readme.main(["--write", str(one), str(other)]) == 0
    assert "SHOP_WHERE" in (one / "README.md").read_text()
    assert "SHOP_WHENCE" in (other / "README.md").read_text()


def test_unknown_settings_class_is_reported(pattern):
    folder = pattern("a", "")
    with pytest.raises(ValueError, match=r"no settings table of src.configurations.Settings:\n(.|\n)*has no"):
        has_current_tables(folder / "README.md")


def test_command_line_maps_base_urls(write, bases):
    path = write(CORRECT_README)
    ((shown, actual),) = bases.items()
    assert readme.main([str(path.parent), "--base", f"{shown}={actual}"]) == 0


def test_varying_keys_are_compared_by_type_only():
    shown = {"label": "castle", "top5": [{"label": "castle", "probability": 0.3}], "status": "ok"}
    assert not list(
        compare(
            shown,
            {**shown, "label": "cat", "top5": [{"label": "x", "probability": 0.9}]},
            varying={"label", "probability"},
        )
    )
    assert list(compare(shown, {**shown, "label": None}, varying={"label"})) == [
        'answer.label: shown "castle", got null'
    ]
    assert list(compare(shown, {**shown, "status": "failed"}, varying={"label"}))
