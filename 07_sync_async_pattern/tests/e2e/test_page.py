"""The page at / in headless Chromium (Debian's packages `chromium` and `chromium-driver`)."""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.images import encode, picture, png_header

WITHIN_S = 60

# Drops a file as the browser does for a user: a DragEvent with a DataTransfer.
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (character) => character.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
const drop = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
document.querySelector("#drop").dispatchEvent(drop);
"""
# Records every state of the answer from now on, as [class, label].
RECORD = """
window.seen = [];
new MutationObserver(() => {
  const answer = document.querySelector("#answer");
  if (!answer.hidden) window.seen.push([answer.className, document.querySelector("#label").textContent]);
}).observe(document.querySelector("#answer"), { subtree: true, childList: true, attributes: true });
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver on PATH (on Debian: apt install chromium chromium-driver)")
    options = ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-proxy-server"):
        options.add_argument(argument)
    # The better label fades in, and WebDriver returns no text for the transparent first frame.
    options.add_argument("--force-prefers-reduced-motion")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options, ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser: Chrome, system) -> Chrome:
    browser.get(f"{system.proxy}/")
    browser.get_log("browser")
    browser.execute_script(RECORD)
    return browser


def text(page: Chrome, selector: str) -> str:
    return str(page.find_element(By.CSS_SELECTOR, selector).text)


def wait_for(page: Chrome, selector: str) -> None:
    WebDriverWait(page, WITHIN_S, 0.05).until(
        lambda _: any(element.is_displayed() for element in page.find_elements(By.CSS_SELECTOR, selector))
    )


def choose(page: Chrome, file: Path) -> None:
    page.find_element(By.ID, "file").send_keys(str(file))


def wait_for_the_better_answer(page: Chrome) -> None:
    wait_for(page, "#answer.better")


def test_better_answer_replaces_fast_answer(page, proxy, photo, tmp_path):
    file = tmp_path / "photo.jpg"
    file.write_bytes(photo)
    choose(page, file)
    wait_for_the_better_answer(page)

    seen = page.execute_script("return window.seen")
    assert seen[0][0] == "fast"
    assert [state for state, _ in seen] == sorted((state for state, _ in seen), reverse=True)
    assert seen[-1] == ["better", text(page, "#label")]
    fast = proxy.get("/predict/test").json()["result_sync"]
    assert ["fast", fast] in seen
    assert len(page.find_elements(By.CSS_SELECTOR, "#sync li")) == 5
    assert len(page.find_elements(By.CSS_SELECTOR, "#async li")) == 5
    assert text(page, "#async li").startswith(text(page, "#label"))
    sync_ms, async_ms = (
        int(text(page, f"#{model} .time").removesuffix(" ms").replace(",", "")) for model in ("sync", "async")
    )
    assert 0 < sync_ms < async_ms
    assert page.execute_script("return document.querySelector('#picture').naturalWidth") == 640
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_dropped_image_is_classified(page):
    page.execute_script(DROP, base64.b64encode(encode(picture(), "PNG")).decode())
    wait_for_the_better_answer(page)

    assert text(page, "#label")
    assert page.current_url.endswith("/")


def test_unreadable_image_shows_error(page, tmp_path):
    file = tmp_path / "large.png"
    file.write_bytes(png_header(10_000, 10_000))
    choose(page, file)
    wait_for(page, "#error")

    assert "too many pixels" in text(page, "#error")
    assert not page.find_element(By.ID, "answer").is_displayed()


def test_next_image_replaces_previous(page, photo, tmp_path):
    for number, image in enumerate([photo, encode(picture(), "PNG")]):
        (tmp_path / f"{number}").write_bytes(image)
        choose(page, tmp_path / f"{number}")
    wait_for_the_better_answer(page)

    assert page.find_element(By.ID, "picture").get_attribute("alt") == "1"
    assert page.execute_script("return document.querySelector('#picture').naturalWidth") == 90


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_text_contrast_and_layout(page, scheme, width, photo, tmp_path):
    page.set_window_size(width, 900)
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    (tmp_path / "photo.jpg").write_bytes(photo)
    choose(page, tmp_path / "photo.jpg")
    wait_for_the_better_answer(page)

    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    for selector in ("h1 em", "header p", "#stage", "#label", "#note", "#async .time", "#sync li", "footer a"):
        assert contrast(page, selector) >= 4.5, (selector, scheme)


def contrast(page: Chrome, selector: str) -> float:
    """WCAG contrast ratio of an element's text and its background."""
    colours = page.execute_script(
        """
        const element = document.querySelector(arguments[0]);
        let behind = element;
        while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        """,
        selector,
    )

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def test_page_is_usable_by_keyboard(page):
    """Tab reaches the file field first; it has an accessible name and a visible focus."""
    page.switch_to.active_element.send_keys("\ue004")  # Tab
    focused = page.switch_to.active_element

    assert focused.get_attribute("id") == "file"
    assert "image" in focused.accessible_name
    assert page.execute_script("return getComputedStyle(document.querySelector('#drop')).outlineStyle") == "solid"
    assert page.find_element(By.ID, "answer").get_attribute("aria-live") == "polite"
