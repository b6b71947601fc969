"""A real Chromium, driven by its own driver, for tests of pages."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

BROWSERS = ("chromium", "google-chrome", "chromium-browser")
TIMEOUT_S = 20.0


@contextmanager
def chromium(width: int = 1280, height: int = 800) -> Iterator["Page"]:
    """Start a headless browser; it ends with the context."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    service = shutil.which("chromedriver")
    assert found, "no browser: install chromium (scripts/test.sh does on Debian)"
    assert service, "no chromedriver: install chromium-driver (scripts/test.sh does on Debian)"
    options = webdriver.ChromeOptions()
    options.binary_location = found
    # A test as root, as in a container, has no sandbox; it opens only files it wrote itself.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(service))
    try:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield Page(driver)
    finally:
        driver.quit()


class Page:
    """What a reader does with a page and sees of it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, address: str | Path, anchor: str = "") -> None:
        """Open a file or an address, from nothing, so that no state is left of an earlier one."""
        self.driver.get("about:blank")
        url = address.resolve().as_uri() if isinstance(address, Path) else address
        self.driver.get(url + anchor)

    def run(self, script: str, *arguments: object) -> Any:
        """Run a script in the page and return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait until ``condition`` is true."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, f"waited {TIMEOUT_S} s for {what}"
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """Return the text of what fits a selector, as a reader sees it."""
        script = (
            "return [...document.querySelectorAll(arguments[0])]"
            ".map((e) => e.innerText ?? e.textContent)"
        )
        parts = self.run(script, selector)
        return "\n".join(parts)

    def count(self, selector: str) -> int:
        """Return how many elements fit a selector."""
        return int(self.run("return document.querySelectorAll(arguments[0]).length", selector))

    def click(self, selector: str, index: int = 0) -> None:
        """Click one of the elements that fit a selector."""
        script = (
            "document.querySelectorAll(arguments[0])[arguments[1]]"
            ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
        )
        self.run(script, selector, index)

    def choose(self, identifier: str, value: str) -> None:
        """Set a field of a form and tell the page."""
        self.run(
            "const f = document.getElementById(arguments[0]); f.value = arguments[1];"
            "f.dispatchEvent(new Event('input', {bubbles: true}));"
            "f.dispatchEvent(new Event('change', {bubbles: true}))",
            identifier,
            value,
        )

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, wherever the focus is."""
        for key in keys:
            webdriver.ActionChains(self.driver).send_keys(key).perform()

    def complaints(self) -> list[str]:
        """Return what the browser logged since the last call: errors, refused scripts, requests."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]
