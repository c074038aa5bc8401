"""The page of a diagnosis in a real browser: draws, fits a phone, and asks nothing of the network."""

import pytest

from bench.test_report_browser import BROKEN_WORDS
from bench.test_report_browser import browser as browser
from counterpoint.bench import diagnose_page
from diagnostics.test_findings import make

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("width", [1280, 390])
def test_page_draws_and_fits(browser, width, tmp_path):
    record = make([0.1, 0.9, 0.2, 0.8, 0.1], 0.8, tasks=("a", "b", "c"), norms=(9.0, 1.0, 1.0))
    path = diagnose_page(record, tmp_path / "diagnose.html", config="{}")
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    page = context.new_page()
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached")
    drawn = page.evaluate("[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('svg.main-svg').length)")
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    ticks = page.evaluate("[...document.querySelectorAll('#figure-map-0 .xtick text')].map(t => t.textContent)")
    scale = page.locator("#figure-map-0 .cbtitle").text_content()
    broken = page.eval_on_selector_all("#results .method", BROKEN_WORDS)
    context.close()
    assert len(drawn) == 7
    assert all(drawn)
    assert wide == 0
    assert ticks[0].startswith("step ")
    assert scale == "mean cosine"
    assert broken == []
    assert problems == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
