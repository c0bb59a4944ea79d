"""The console of a stack with 03 and 06: its page in headless Chromium, and what it refuses."""

import asyncio
import contextlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from selenium.webdriver import Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

from scripts.devstack import faults, spans
from scripts.devstack.console import app, live, requests
from scripts.devstack.console.app import TOKEN_HEADER
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.runs import require_redis
from scripts.devstack.spans import SpanStore
from scripts.devstack.stack import private_stack
from scripts.devstack.table import ROOT
from serving_testing.browser import browser as browser
from serving_testing.browser import text, until, wait_for
from serving_testing.processes import NO_COVERAGE

PATIENCE_S = 60
AXE = Path(os.environ.get("AXE_CORE", ROOT / ".tools/node_modules/axe-core/axe.min.js"))
VIEWS = ("overview", "03", "06", "choose")


class Site:
    """The console at `url`, and the stack that it shows."""

    def __init__(self, stack, address):
        self.stack, self.address = stack, address
        self.url, _, self.token = address.partition("#token=")
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=PATIENCE_S)

    def close(self):
        self.http.close()

    def post(self, path, body, **headers):
        return self.http.post(path, json=body, headers={TOKEN_HEADER: self.token} | headers)

    def states(self, id_):
        """The states of a process, as the page gets them."""
        with self.http.stream("GET", "/events") as events:
            for line in events.iter_lines():
                if line:
                    yield json.loads(line.removeprefix("data: "))["processes"][id_]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    require_redis()
    store = SpanStore()
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(spans.serving(store)) as receiver,
        # The worker's jobs are requeued a second after its death.
        contextlib.nullcontext(
            private_stack(
                ["03", "06"],
                tmp_path_factory.mktemp("run"),
                environ={"HEARTBEAT_S": "1"} | NO_COVERAGE | spans.variables(receiver),
            )
        ) as stack,
        portal.wrap_async_context_manager(app.serving(stack, PATTERNS, 0, store)) as address,
        portal.wrap_async_context_manager(stack),
        contextlib.closing(Site(stack, address)) as made,
    ):
        yield made


@pytest.fixture
def page(site, browser):
    browser.get("about:blank")  # or the same page would only change its view
    browser.get(site.address)
    browser.get_log("browser")
    wait_for(browser, "#cards svg .state")
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def open_view(page, view):
    page.find_element(By.CSS_SELECTOR, f'nav a[href="#{view}"]').click()
    if view in PATTERNS:
        until(page, lambda: page.find_element(By.ID, "path").get_attribute("value") == "/predict")
        wait_for(page, "#processes .state")


def button(page, name):
    return page.find_element(By.CSS_SELECTOR, f'[aria-label="{name}"]')


def number(page, id_):
    return int(text(page, f"#{id_}").replace(",", ""))


def boxes(page):
    """The lines of every box of the overview."""
    return [group.text.split("\n") for group in page.find_elements(By.CSS_SELECTOR, "#cards g")]


def test_overview_shows_what_every_process_does(page, site):
    until(page, lambda: sum("ready" in box or "busy" in box for box in boxes(page)) == 9)
    assert [box[0] for box in boxes(page)] == [
        *("callers", "model_server"),
        *("callers", "proxy", "redis", "worker", "model_server"),
        *("callers", "proxy", "setosa", "versicolor", "virginica"),
    ]
    assert "callers calls proxy" in page.find_elements(By.CSS_SELECTOR, "#cards svg")[1].accessible_name

    def is_busy():
        for _ in range(5):
            site.http.post(f"{site.stack.urls['PORT_06_PROXY']}/predict", json={"data": [[5.1, 3.5, 1.4, 0.2]]})
        proxy = [box for box in boxes(page) if box[0] == "proxy"][1]
        return proxy[1] == "busy" and not proxy[2].startswith("0") and proxy[3].startswith("p50")

    until(page, is_busy)
    assert page.current_url == f"{site.url}#overview"  # the token is not left in the address


def test_request_shows_its_answer_and_its_way(page):
    open_view(page, "03")
    page.find_element(By.CSS_SELECTOR, "#request button").click()
    wait_for(page, "#timeline .bar")
    assert '"status": "completed"' in text(page, "#answer")
    assert '"class_name": "setosa"' in text(page, "#answer")
    names = [name.text for name in page.find_elements(By.CSS_SELECTOR, "#timeline li > span:first-child")]
    assert names[0] == "POST /predict"
    assert names[1].startswith("GET /job/")
    assert {"03 proxy POST /predict", "03 worker wait queue:predict", "02 model_server run model"} <= set(names)
    assert text(page, "#source-of-timeline").startswith("From trace ")

    offered = [option.text for option in Select(page.find_element(By.ID, "operation")).options]
    assert "GET /jobs" in offered
    assert not any("/health" in each for each in offered)
    path = page.find_element(By.ID, "path")
    path.clear()
    path.send_keys("/<img src=x onerror=alert(1)>")
    page.find_element(By.CSS_SELECTOR, "#request button").click()
    until(page, lambda: "404 after" in text(page, "#answer"))
    assert "<img src=x onerror=alert(1)>" in text(page, "#answer")
    assert page.find_elements(By.CSS_SELECTOR, "#answer img") == []


def test_without_traces_the_metrics_have_the_durations(site, monkeypatch):
    monkeypatch.setattr(requests, "EXPORTED_WITHIN_S", 0)
    sent = site.post("/requests/06", {"method": "POST", "path": "/predict/post/test", "body": ""}).json()
    assert sent["source"].startswith("From the metrics")
    took = {span["process"]: span["ms"] for span in sent["timeline"]}
    services = [f"06 service_{name}" for name in ("setosa", "versicolor", "virginica")]
    assert list(took) == ["callers", "06 proxy", *services]
    assert all(0 < took[service] < took["06 proxy"] < took["callers"] for service in services)


def test_killed_worker_loses_nothing(page, monkeypatch):
    monkeypatch.setattr(live, "EVERY_S", 0.1)  # the supervisor waits half a second before the restart
    open_view(page, "03")
    page.find_element(By.CSS_SELECTOR, '#rates [value="10"]').click()
    until(page, lambda: number(page, "accepted") >= 20)
    button(page, "kill -9: 03 worker").click()
    until(page, lambda: "03 worker was killed by SIGKILL" in text(page, "#outcome"))
    until(page, lambda: page.find_elements(By.CSS_SELECTOR, "#large .restarting"))
    page.find_element(By.CSS_SELECTOR, '#rates [value="0"]').click()
    until(page, lambda: number(page, "completed") == number(page, "accepted") >= 20)
    assert [number(page, id_) for id_ in ("lost", "twice", "stuck", "refused")] == [0, 0, 0, 0]


def test_hanging_service_is_gone_until_it_goes_on(site, monkeypatch):
    may_go_on = Event()

    @contextlib.asynccontextmanager
    async def hanging(victim):
        async with faults.hanging(victim):
            yield
            await asyncio.to_thread(may_go_on.wait, PATIENCE_S)  # the console needs up to two seconds to see it

    monkeypatch.setattr(app, "hanging", hanging)
    monkeypatch.setattr(app, "HANG_S", 0)
    with ThreadPoolExecutor(1) as pool, contextlib.closing(site.states("06-service_setosa")) as seen:
        hang = pool.submit(site.post, "/faults/06-service_setosa", {"fault": "hang"})
        assert next(state for state in seen if state["state"] == "gone") == {"state": "gone", "why": "does not answer"}
        assert site.post("/faults/06-service_setosa", {"fault": "kill"}).status_code == 409
        may_go_on.set()
        assert next(state for state in seen if state["state"] == "ready")
        assert hang.result().json() == {"done": "06 service_setosa was stopped for 0 s, and goes on."}


def test_restarted_redis_keeps_what_was_accepted(site):
    job = site.post("/requests/03", {"method": "POST", "path": "/predict/test", "body": ""}).json()["job"]
    assert "SIGTERM" in site.post("/faults/03-redis", {"fault": "restart"}).json()["done"]
    again = site.post("/requests/03", {"method": "GET", "path": job["path"], "body": ""}).json()
    assert (again["status"], again["answer"]) == (200, job["answer"])


def test_page_is_usable_by_keyboard(page):
    def press(*keys):
        for key in keys:
            page.switch_to.active_element.send_keys(key)
        return page.switch_to.active_element

    def tab_to(selector):
        for _ in range(60):
            focused = press(Keys.TAB)
            if page.execute_script("return arguments[0].matches(arguments[1])", focused, selector):
                assert page.execute_script("return getComputedStyle(arguments[0]).outlineStyle", focused) == "solid"
                return
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to('a[href="#06"]')
    press(Keys.ENTER)
    until(page, lambda: page.find_element(By.ID, "path").get_attribute("value") == "/predict")
    tab_to('#rates [value="1"]')
    press(Keys.SPACE)
    until(page, lambda: number(page, "completed") >= 1)
    tab_to('#rates [value="0"]')
    press(Keys.ENTER)
    tab_to('[aria-label="kill -9: 06 proxy"]')
    tab_to("#request button")
    press(Keys.ENTER)
    wait_for(page, "#timeline .bar")
    assert "setosa" in text(page, "#answer")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1200, "light")])
def test_layout_and_accessibility(page, width, scheme):
    emulate(page, scheme, width)
    for view in VIEWS:
        open_view(page, view)
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth"), view
        background = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(20, 23, 26)") == (scheme == "dark")
        if AXE.exists():
            page.execute_script(AXE.read_text(encoding="utf-8"))
            found = page.execute_async_script("axe.run().then(arguments[0])")["violations"]
            serious = [each for each in found if each["impact"] in ("serious", "critical")]
            assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in serious] == [], view
    if not AXE.exists():
        pytest.skip(f"the layout is as it should be; axe-core is not at {AXE} (npm install --prefix .tools axe-core)")


def emulate(page, scheme, width):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )


def test_choosing_follows_the_needs(page):
    open_view(page, "choose")
    until(page, lambda: text(page, "#best") == "02 Synchronous")
    page.find_element(By.NAME, "lossless").click()
    until(page, lambda: text(page, "#best") == "03 Asynchronous")
    assert "retry" in text(page, "#fits tr")


FAULT, LOAD = ("/faults/03-worker", {"fault": "kill"}), ("/load/03", {"rate": 100})


@pytest.mark.parametrize(("path", "body"), [FAULT, LOAD], ids=["fault", "load"])
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({TOKEN_HEADER: ""}, id="no token"),
        pytest.param({TOKEN_HEADER: "guessed"}, id="wrong token"),
        pytest.param({"Host": "attacker.example"}, id="DNS rebinding"),
        pytest.param({"Origin": "http://attacker.example"}, id="another site"),
        pytest.param({"Origin": "null"}, id="sandboxed frame"),
    ],
)
def test_nobody_else_presses_the_buttons(site, path, body, headers):
    worker = site.stack.process("03-worker").pid
    assert site.post(path, body, **headers).status_code == 403
    assert site.stack.process("03-worker").pid == worker


def test_other_sites_read_nothing(site):
    for path in ("/", "/events", "/patterns", "/static/page.js"):
        refused = site.http.get(path, headers={"Host": "attacker.example"})
        assert refused.status_code == 403
        assert "frame-ancestors 'none'" in refused.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/load/03", {"rate": 7}, 400),
        ("/load/03", {"rate": True}, 400),
        ("/load/99", {"rate": 1}, 404),
        ("/faults/03-worker", {"fault": "fire"}, 404),
        ("/faults/99-worker", {"fault": "kill"}, 404),
        ("/faults/03-worker", [], 400),
        ("/requests/03", {"method": "GET", "path": "http://attacker.example/", "body": ""}, 400),
        ("/requests/03", {"method": "CONNECT", "path": "/", "body": ""}, 400),
        ("/requests/03", {"method": "GET", "path": "/\ud800", "body": ""}, 400),
        ("/requests/03", {"method": "POST", "path": "/predict", "body": "x" * 1024 * 1024}, 413),
    ],
)
def test_invalid_wishes_are_refused_with_a_reason(site, path, body, status):
    refused = site.http.post(path, content=json.dumps(body), headers={TOKEN_HEADER: site.token})
    assert (refused.status_code, list(refused.json())) == (status, ["detail"])


@pytest.mark.parametrize("path", ["//attacker.example/", "/\x00", "/a b?c=d#e", "/job/" + "x" * 70_000])
def test_odd_paths_reach_only_the_pattern(site, path, monkeypatch):
    monkeypatch.setattr(requests, "EXPORTED_WITHIN_S", 0)  # not every one of them has a trace to wait for
    content = json.dumps({"method": "GET", "path": path, "body": ""})
    answer = site.http.post("/requests/06", content=content)
    assert answer.status_code == 200
    assert answer.json()["status"] in (None, 400, 404, 414)


def test_choose_without_numbers_says_which(site):
    for query in ("", "?model_ms=x&wait_s=1&rate=1", "?model_ms=nan&wait_s=1&rate=1", "?model_ms=-1&wait_s=1&rate=1"):
        refused = site.http.get(f"/choose{query}")
        assert (refused.status_code, refused.json()["detail"]) == (
            400,
            "model_ms, wait_s, rate are numbers from 0 to 10,000,000",
        )
