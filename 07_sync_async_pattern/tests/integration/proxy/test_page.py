"""The page in headless Chromium, with the proxy in this process; the tests act as the worker and hold its answers."""

import base64
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from starlette.responses import HTMLResponse, JSONResponse, Response

from serving_common.queue.worker import Worker
from serving_common.redis import RedisSettings, connect
from src import jobs
from src.ml.classifier import ImagePrediction
from src.proxy.app import create_app
from tests.browser import WITHIN_S, choose, text, wait_for
from tests.browser import browser as browser
from tests.images import encode, picture
from tests.integration.proxy.conftest import make_settings
from tests.integration.proxy.test_proxy import serving

BETTER = ImagePrediction("Siamese cat", [("Siamese cat", 0.75)])
PASTE = """
const bytes = Uint8Array.from(atob(arguments[0]), (character) => character.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
"""


class Gateway:
    """What stands between browser and proxy, and answers some paths itself while the proxy is away."""

    def __init__(self, app) -> None:
        self._app = app
        self.answers: dict[str, Response] = {}

    async def __call__(self, scope, receive, send) -> None:
        own = (answer for path, answer in self.answers.items() if scope["path"].startswith(path))
        await next(own, self._app)(scope, receive, send)


class Site:
    """A running proxy, and the worker's side of its queue."""

    def __init__(self, portal: BlockingPortal, gateway: Gateway, redis, worker: Worker, url: str) -> None:
        self.portal, self.gateway, self.redis, self.worker, self.url = portal, gateway, redis, worker, url

    def answer(self) -> None:
        """Complete the waiting jobs."""

        async def complete() -> None:
            claimed = await self.worker.claim(10)
            await jobs.store(self.redis, self.worker, [(job.id, BETTER) for job in claimed], 3600)

        self.portal.call(complete)

    def fill_queue(self) -> None:
        self.portal.call(self.redis.lpush, "queue:jobs", *"abc")

    def empty(self) -> None:
        self.portal.call(self.redis.flushall)


@asynccontextmanager
async def open_site(settings, weights):
    app = create_app(settings)
    redis_settings = RedisSettings(redis_host="127.0.0.1", redis_port=settings.redis_port)
    gateway = Gateway(app)
    async with app.router.lifespan_context(app), serving(gateway) as port, connect(redis_settings) as redis:
        app.state.page["weights"] = weights
        worker = Worker(redis, jobs.keys("queue:jobs"), ttl_s=3600)
        yield gateway, redis, worker, f"http://127.0.0.1:{port}"
        await worker.deregister()


@pytest.fixture(scope="module")
def site_of(models, redis_server):
    """Starts a proxy with these settings, and says what weights its models have."""
    with start_blocking_portal() as portal:
        opened = []

        def start(weights: dict[str, str], **overrides: object) -> Site:
            settings = make_settings(models, redis_server, max_queue_length=3, **overrides)
            context = portal.wrap_async_context_manager(open_site(settings, weights))
            site = Site(portal, *context.__enter__())
            opened.append(context)
            return site

        yield start
        for context in opened:
            context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def pretrained(site_of: Callable[..., Site]) -> Site:
    return site_of({"sync": "pretrained", "async": "pretrained"}, max_image_bytes=200_000)


@pytest.fixture(scope="module")
def random_with_key(site_of: Callable[..., Site]) -> Site:
    return site_of({"sync": "pretrained", "async": "random"}, api_key="secret")


@pytest.fixture
def page(browser: Chrome, pretrained: Site) -> Iterator[Chrome]:
    pretrained.empty()
    pretrained.gateway.answers.clear()
    browser.get(f"{pretrained.url}/")
    wait_for(browser, "#limits:not(:empty)")
    yield browser
    browser.set_network_conditions(offline=False, latency=0, throughput=-1)


@pytest.fixture
def small(tmp_path):
    file = tmp_path / "small.png"
    file.write_bytes(encode(picture(), "PNG"))
    return file


def test_example_is_one_click_and_better_answer_replaces_fast_one(page, pretrained):
    page.find_element(By.ID, "example").click()
    wait_for(page, "#answer.fast")
    assert page.execute_script("return document.querySelector('#picture').naturalWidth") == 640

    pretrained.answer()
    wait_for(page, "#answer.better")
    assert text(page, "#label") == "Siamese cat"


def test_busy_state_shows_at_once_with_upload_progress(page, pretrained, small):
    page.execute_script(
        "window.seen = [];"
        "const see = () => window.seen.push([answer.className, progress.checkVisibility(), progress.value]);"
        "for (const each of [answer, progress]) new MutationObserver(see).observe(each, { attributes: true });"
    )
    page.set_network_conditions(offline=False, latency=0, download_throughput=10**6, upload_throughput=60_000)
    big = small.with_name("big.png")
    big.write_bytes(small.read_bytes() + bytes(150_000))
    choose(page, big)
    wait_for(page, "#answer.fast")
    seen = page.execute_script("return window.seen")
    assert seen[0][:2] == ["busy", True]
    assert any(0 < value < 1 for state, is_visible, value in seen if state == "busy" and is_visible)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("large.png", bytes(200_001), "The file has 200,001 bytes, and at most 200,000 are accepted."),
        ("photo.tiff", b"II*", "TIFF is not supported. Export the image as JPEG, PNG, WEBP, GIF, BMP or AVIF."),
        ("empty.png", b"", "The file is empty."),
    ],
)
def test_size_and_type_are_checked_before_the_upload(page, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    choose(page, tmp_path / name)
    wait_for(page, "#answer.wrong")

    assert text(page, "#note") == message
    requests = page.execute_script("return performance.getEntriesByType('resource').map(({ name }) => name)")
    assert not any(name.endswith("/predict") for name in requests)


def test_lost_connection_is_named_and_same_file_can_be_tried_and_chosen_again(page, small):
    page.set_network_conditions(offline=True, latency=0, throughput=-1)
    choose(page, small)
    wait_for(page, "#answer.wrong")
    assert text(page, "#note") == "The server cannot be reached. Check the connection, then try again."
    choose(page, small)
    wait_for(page, "#images li:nth-child(2) [aria-current=true]")
    wait_for(page, "#answer.wrong")

    page.set_network_conditions(offline=False, latency=0, throughput=-1)
    page.find_element(By.ID, "retry").click()
    wait_for(page, "#answer.fast")
    assert not page.find_element(By.ID, "retry").is_displayed()


def test_waiting_survives_a_lost_connection(page, pretrained, small):
    choose(page, small)
    wait_for(page, "#answer.fast")
    page.set_network_conditions(offline=True, latency=0, throughput=-1)
    WebDriverWait(page, WITHIN_S, 0.05).until(lambda _: "keeps trying" in text(page, "#note"))
    pretrained.answer()
    page.set_network_conditions(offline=False, latency=0, throughput=-1)
    wait_for(page, "#answer.better")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (HTMLResponse("<h1>Bad gateway</h1>", 502), "The server has a problem (502). Try again in a moment."),
        (
            JSONResponse({"detail": "Service temporarily unavailable"}, 503),
            "The server has a problem (Service temporarily unavailable). Try again in a moment.",
        ),
        (JSONResponse({"detail": "Too many requests"}, 429), "The server is busy. Try again in a moment."),
        (
            HTMLResponse("<h1>Log in</h1>"),
            "The server's answer (200) is not one of this service. Is something else in front of it?",
        ),
    ],
    ids=["HTML of a gateway", "503", "429", "HTML with 200"],
)
def test_answer_that_is_none_is_put_in_words(page, pretrained, small, answer, message):
    pretrained.gateway.answers["/predict"] = answer
    choose(page, small)
    wait_for(page, "#answer.wrong")
    assert text(page, "#note") == message

    pretrained.gateway.answers.clear()
    page.find_element(By.ID, "retry").click()
    wait_for(page, "#answer.fast")


def test_waiting_survives_a_restart_of_the_proxy_behind_a_gateway(page, pretrained, small):
    pretrained.gateway.answers["/job"] = HTMLResponse("<h1>Bad gateway</h1>", 502)
    choose(page, small)
    WebDriverWait(page, WITHIN_S, 0.05).until(lambda _: "keeps trying" in text(page, "#note"))
    pretrained.answer()
    pretrained.gateway.answers.clear()
    wait_for(page, "#answer.better")


def test_several_files_are_answered_one_after_another(page, pretrained, small):
    files = [small.with_name(f"{number}.png") for number in range(3)]
    for file in files:
        file.write_bytes(small.read_bytes())
    choose(page, *files)
    wait_for(page, '#answer.fast, #picture[alt="2.png"]')
    page.execute_script(PASTE, base64.b64encode(small.read_bytes()).decode())
    wait_for(page, "#images li:nth-child(4)")

    def are_answered(page: Chrome) -> bool:
        pretrained.answer()  # the queue holds three, so that the fourth may have no job
        return len(page.find_elements(By.XPATH, "//nav//button[contains(., 'Siamese cat')]")) >= 3

    WebDriverWait(page, WITHIN_S, 0.05).until(are_answered)


def test_files_beyond_the_limit_are_named_as_left_out(page, small):
    page.set_network_conditions(offline=False, latency=0, download_throughput=10**6, upload_throughput=1)
    choose(page, *[small] * 52)
    wait_for(page, "#images li:nth-child(50)")

    assert "2 of the files were left out: at most 50 can wait." in text(page, "#note")
    assert len(page.find_elements(By.CSS_SELECTOR, "#images li")) == 50


def test_missing_job_is_explained(page, pretrained, small):
    pretrained.fill_queue()
    choose(page, small)
    wait_for(page, "#retry")

    assert text(page, "#label")
    assert "because the queue is full or its Redis does not answer (job_id is null)" in text(page, "#note")


def test_random_weights_show_a_banner_and_replace_nothing_also_with_an_api_key(browser, random_with_key, small):
    random_with_key.empty()
    browser.get(f"{random_with_key.url}/")
    wait_for(browser, "#banner")
    assert "ResNet50: random weights" in text(browser, "#banner")

    choose(browser, small)
    wait_for(browser, "#answer.wrong")
    assert text(browser, "#note") == "Enter the API key above, then try again."
    browser.find_element(By.ID, "key").send_keys("secret\n")
    wait_for(browser, "#answer.fast")
    fast = text(browser, "#label")
    random_with_key.answer()
    wait_for(browser, "#async li")
    assert (text(browser, "#label"), text(browser, "#stage")) == (fast, "FAST ANSWER")
    assert "means nothing and does not replace" in text(browser, "#note")


def test_page_fits_a_phone_which_has_a_camera_button(page, small):
    """Also with a long file name, of an image that is neither shown nor accepted."""
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    file = small.with_name("a" * 100 + ".tiff")
    file.write_bytes(b"II*")
    choose(page, file, file)
    wait_for(page, "#images")

    assert page.find_element(By.ID, "camera").is_displayed()
    assert page.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_cards_have_names_and_one_region_is_live(page):
    names = page.execute_script(
        "return [...document.querySelectorAll('article')].map((a) => a.ariaLabelledByElements[0].textContent)"
    )
    assert names == ["Fast: MobileNetV2", "Better: ResNet50"]
    live = page.find_elements(By.CSS_SELECTOR, "[role=status], [role=alert], [aria-live], output")
    assert [element.get_attribute("id") for element in live] == ["answer"]


def test_docs_work_without_another_host(browser, pretrained):
    browser.get(f"{pretrained.url}/docs")
    wait_for(browser, ".opblock")
    requests = browser.execute_script("return performance.getEntriesByType('resource').map(({ name }) => name)")
    assert requests
    assert all(name.startswith(pretrained.url) for name in requests)
