"""The page at / in headless Chromium (Debian's packages `chromium` and `chromium-driver`)."""

import base64

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from tests.browser import browser as browser
from tests.browser import choose, text, wait_for
from tests.images import encode, picture, png_header

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


@pytest.fixture
def page(browser: Chrome, system) -> Chrome:
    browser.get(f"{system.proxy}/")
    browser.get_log("browser")
    browser.execute_script(RECORD)
    return browser


def wait_for_the_better_answer(page: Chrome) -> None:
    wait_for(page, "#async li")


def test_better_answer_replaces_fast_answer(page, proxy, photo, tmp_path):
    file = tmp_path / "photo.jpg"
    file.write_bytes(photo)
    choose(page, file)
    wait_for_the_better_answer(page)

    seen = page.execute_script("return window.seen")
    # An answer of random weights replaces nothing.
    last = "fast" if proxy.get("/metadata").json()["weights"]["async"] == "random" else "better"
    states = list(dict.fromkeys(state for state, _ in seen))
    assert states == list(dict.fromkeys(["busy", "fast", last]))
    assert seen[-1] == [last, text(page, "#label")]
    fast = proxy.get("/predict/test").json()["result_sync"]
    assert ["fast", fast] in seen
    assert len(page.find_elements(By.CSS_SELECTOR, "#sync li")) == 5
    assert len(page.find_elements(By.CSS_SELECTOR, "#async li")) == 5
    assert text(page, f"#{'async' if last == 'better' else 'sync'} li").startswith(text(page, "#label"))
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
    wait_for(page, "#answer.wrong")

    assert "too many pixels" in text(page, "#note")


def test_next_image_follows_previous(page, photo, tmp_path):
    for number, image in enumerate([photo, encode(picture(), "PNG")]):
        (tmp_path / f"{number}").write_bytes(image)
        choose(page, tmp_path / f"{number}")
    wait_for(page, '#picture[alt="1"]')
    wait_for_the_better_answer(page)

    assert page.find_element(By.ID, "picture").get_attribute("alt") == "1"
    assert page.execute_script("return document.querySelector('#picture').naturalWidth") == 90


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1200])
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
    assert contrast(page, "#drop") >= 4.5
    assert contrast(page, "#drop", "borderTopColor") >= 3  # what WCAG asks of the edges of controls


def contrast(page: Chrome, selector: str, what: str = "color") -> float:
    """WCAG contrast ratio of an element's text, or of another of its colours, and its background."""
    colours = page.execute_script(
        """
        const element = document.querySelector(arguments[0]);
        let behind = element;
        while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        return [getComputedStyle(element)[arguments[1]], getComputedStyle(behind).backgroundColor];
        """,
        selector,
        what,
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
    assert page.find_element(By.ID, "answer").aria_role == "status"
