"""Take the picture of a report: ``python tools/screenshot.py runs/demo/report.html docs/images/report.png``.

A third argument is the key of one section: ``python tools/screenshot.py REPORT docs/images/split.png splits``.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]

with sync_playwright() as tool:
    browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
    page = browser.new_page(viewport={"width": 1200, "height": 1900})
    page.goto(Path(sys.argv[1]).resolve().as_uri())
    page.wait_for_selector(".main-svg")
    page.wait_for_timeout(1000)
    if len(sys.argv) > 3:
        page.locator(f"#section-{sys.argv[3]}").screenshot(path=sys.argv[2])
    else:
        page.screenshot(path=sys.argv[2], clip={"x": 0, "y": 0, "width": 1200, "height": 1900})
    browser.close()
