"""Headless Chromium, and what tests do with the page."""

from pathlib import Path

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from serving_testing.browser import WITHIN_S as WITHIN_S
from serving_testing.browser import browser as browser
from serving_testing.browser import text as text
from serving_testing.browser import wait_for as wait_for


def choose(page: Chrome, *files: Path) -> None:
    page.find_element(By.ID, "file").send_keys("\n".join(map(str, files)))
