"""What tests of pages and documents share: a browser to open them in."""

import os
import shutil

import pytest

#: Names that browsers of the Chromium family have.
_NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium that playwright drives; where one of the two is missing, the test is skipped and says so.

    It is the one of the system, which ``CHROMIUM`` may name: playwright's own would be downloaded.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    # As root, as in containers, Chromium has no sandbox.
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=arguments)
        yield started
        started.close()
