"""Look at the built site in a browser: `python -m tools.screenshots` writes docs/screenshots.

It needs the dependency group `docs`, and Debian's packages chromium and chromium-driver.
"""

import contextlib
import io
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
SITE, FOLDER = ROOT / "build" / "site", ROOT / "docs" / "screenshots"
WIDTHS = {"desktop": (1280, 1400), "phone": (390, 844)}
PAGES = {"desktop": "compare", "phone": "dialects"}


def programs() -> tuple[str, str] | None:
    """The browser and its driver, where both are installed."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window, by its own driver: nothing is downloaded."""
    from selenium import webdriver

    found = programs()
    if found is None:
        raise FileNotFoundError("no chromium and chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location, driver = found
    for argument in (
        "--headless=new",
        "--hide-scrollbars",
        "--no-sandbox",
        "--disable-dev-shm-usage",
    ):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def main() -> None:
    """Write a picture for each width, light and dark."""
    FOLDER.mkdir(exist_ok=True)
    with chromium() as browser:
        for device, (width, height) in WIDTHS.items():
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
            metrics["mobile"] = device == "phone"
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            for scheme in ("light", "dark"):
                wish = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
                browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)
                browser.get((SITE / "docs" / f"{PAGES[device]}.html").as_uri())
                time.sleep(1)  # Colours change slowly.
                picture = Image.open(io.BytesIO(browser.get_screenshot_as_png()))
                picture = picture.convert("RGB").quantize(48, dither=Image.Dither.NONE)
                picture.save(FOLDER / f"{device}-{scheme}.png", optimize=True)


if __name__ == "__main__":
    main()
