"""Headless Chromium (Debian's packages `chromium` and `chromium-driver`), and what tests do with a page."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

WITHIN_S = 60


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


def text(page: Chrome, selector: str) -> str:
    return str(page.find_element(By.CSS_SELECTOR, selector).text)


def wait_for(page: Chrome, selector: str) -> None:
    WebDriverWait(page, WITHIN_S, 0.05).until(
        lambda _: any(element.is_displayed() for element in page.find_elements(By.CSS_SELECTOR, selector))
    )


def choose(page: Chrome, *files: Path) -> None:
    page.find_element(By.ID, "file").send_keys("\n".join(map(str, files)))
