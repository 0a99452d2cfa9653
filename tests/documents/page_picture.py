"""Take the picture of a report's page that docs/report.md shows.

    python tests/documents/page_picture.py PAGE.html docs/pictures/report_page.png

PAGE.html is what ``btcompress report`` made of the result in README.md, with --against and --inputs. The picture shows
the beginning of the page in both colour schemes, beside one another.
"""

import argparse
import io
import os
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

#: The view, and how much smaller the picture is.
_WIDTH, _HEIGHT, _SHRUNK = 1180, 1330, 0.55


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser(description="Take the picture of a report's page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        halves = []
        for scheme in ("light", "dark"):
            tab = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT}, color_scheme=scheme)
            tab.goto(given.page.resolve().as_uri())
            # Figures are what the picture is for: the texts above them stand in the page.
            tab.evaluate("document.querySelector('#sizes').scrollIntoView()")
            halves.append(Image.open(io.BytesIO(tab.screenshot())).convert("RGB"))
        browser.close()
    both = Image.new("RGB", (2 * _WIDTH, _HEIGHT))
    for place, half in enumerate(halves):
        both.paste(half, (place * _WIDTH, 0))
    small = both.resize((round(both.width * _SHRUNK), round(both.height * _SHRUNK)), Image.Resampling.LANCZOS)
    small.quantize(255, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(given.picture, optimize=True)


if __name__ == "__main__":
    main()
