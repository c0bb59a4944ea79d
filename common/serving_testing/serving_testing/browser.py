"""Headless Chromium (Debian's packages `chromium` and `chromium-driver`), and what tests do with a page."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

T = TypeVar("T")

WITHIN_S = 60


class BrowserMissing(Exception):
    """There is no Chromium here, or nothing to drive it with; the text says how to get both."""


@contextmanager
def chromium() -> Iterator[Chrome]:
    """A browser of its own. Raises BrowserMissing."""
    binary, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if binary is None or driver is None:
        raise BrowserMissing("no chromium and chromedriver on PATH (on Debian: apt install chromium chromium-driver)")
    options = ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-proxy-server"):
        options.add_argument(argument)
    # WebDriver returns no text for the transparent first frame of what fades in.
    options.add_argument("--force-prefers-reduced-motion")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options, ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    """One for each module; skips the test where there is none."""
    try:
        with chromium() as started:
            yield started
    except BrowserMissing as exc:
        pytest.skip(str(exc))


def text(page: Chrome, selector: str) -> str:
    """What the first element of this CSS selector shows."""
    return str(page.find_element(By.CSS_SELECTOR, selector).text)


def until(page: Chrome, condition: Callable[[], T], within_s: float = WITHIN_S) -> T:
    """The condition's value once it is true."""
    ignored = [StaleElementReferenceException]  # the page has replaced an element between two questions about it
    return WebDriverWait(page, within_s, 0.05, ignored).until(lambda _: condition())


def wait_for(page: Chrome, selector: str) -> None:
    """Return once an element of this CSS selector is visible."""
    until(page, lambda: any(element.is_displayed() for element in page.find_elements(By.CSS_SELECTOR, selector)))
