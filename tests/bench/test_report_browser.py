"""The report in a real browser: draws, answers, fits and prints, with the network off."""

import re
import shutil

import pytest

from counterpoint.bench.numbers import format_exact
from counterpoint.bench.report import write_report

pytestmark = pytest.mark.browser

ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("no chromium on the path")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(comparison, tmp_path_factory):
    return write_report(comparison, tmp_path_factory.mktemp("browser") / "report.html").as_uri()


@pytest.fixture
def open_page(browser, address):
    """Opens the report at a width; at the end nothing may have gone wrong or asked for the network."""
    contexts, problems, requests = [], [], []

    def start(width=1280):
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.wait_for_selector("html[data-drawn]", state="attached")
        return page

    yield start
    for context in contexts:
        context.close()
    assert problems == []
    assert requests
    assert all(url.startswith(("file://", "data:")) for url in requests)


def until(page, expression):
    """Wait for an expression to hold; Playwright's own way needs eval, which the report forbids."""
    for _ in range(100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(30)
    raise AssertionError(f"never came true: {expression}")


def column(page, index, reading="final"):
    return page.eval_on_selector_all(
        f'#results tbody[data-reading="{reading}"] tr',
        "(rows, index) => rows.map((row) => row.children[index].dataset.sort)",
        index,
    )


def drawn_points(page, figure):
    """Return the number of markers or lines that a figure shows."""
    return page.locator(f"#figure-{figure} .scatterlayer .trace :is(.point, .js-line)").count()


def test_every_figure_is_drawn_and_nothing_hostile_ran(open_page, comparison):
    page = open_page()
    plots = page.eval_on_selector_all(".plot", "(plots) => plots.map((plot) => plot.id.replace('figure-', ''))")
    assert len(plots) == 11
    for plot in plots:
        assert page.locator(f"#figure-{plot} svg.main-svg").count() >= 1
        assert drawn_points(page, plot) >= 3, plot
    finite = [
        spread for row in comparison.rows for r in (row.final, row.equal_time) if r for spread in [r.delta["tasks"]]
    ]
    assert drawn_points(page, "delta") == sum(len(spread.finite) + 1 for spread in finite)
    assert page.evaluate("window.boom") is None
    assert page.locator("main img").count() == 0


def test_hovering_shows_the_exact_value(open_page, comparison):
    page = open_page()
    index = next(i for i, row in enumerate(comparison.rows) if row.method == "cagrad")
    position = page.evaluate(
        "(method) => document.getElementById('figure-delta').data.findIndex((t) => t.meta.method === method)", index
    )
    point = page.locator("#figure-delta .scatterlayer .trace").nth(position).locator(".point").nth(1)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    value = comparison.rows[index].final.delta["tasks"].values[1]
    for shift in range(30, -1, -1):  # approach the point; plotly shows a tooltip a moment after the mouse has moved
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2 + shift)
        page.wait_for_timeout(60 if shift < 3 else 5)
    until(page, "document.querySelector('#figure-delta .hoverlayer .hovertext')?.textContent.includes('seed 1')")
    shown = page.locator("#figure-delta .hoverlayer .hovertext").text_content()
    assert "cagrad" in shown
    assert format_exact(value, signed=True) in shown


def test_tooltip_of_a_curve_shows_a_hostile_name_as_text(open_page, comparison, synthetic):
    page = open_page()
    index = next(i for i, row in enumerate(comparison.rows) if row.method == synthetic.HOSTILE)
    page.eval_on_selector_all(f'.chip[data-method="{index}"][aria-pressed="false"]', "(chips) => chips[0]?.click()")
    position = page.evaluate(
        """(method) => {
          const plot = document.getElementById("figure-curve-0");
          const curve = plot.data.findIndex((t) => t.meta.method === method && t.meta.kind === "mean");
          Plotly.Fx.hover(plot, [{ curveNumber: curve, pointNumber: 9 }]);
          return curve;
        }""",
        index,
    )
    shown = page.locator("#figure-curve-0 .hoverlayer .hovertext").text_content()
    assert synthetic.HOSTILE in shown
    value = page.evaluate(f"document.getElementById('figure-curve-0').data[{position}].y[9]")
    assert float(re.search(r"epoch 10(?P<value>\d+\.\d+) ?%", shown)["value"]) == pytest.approx(value, rel=1e-5)


def test_headings_sort_both_ways_by_number(open_page, comparison):
    page = open_page()
    names = page.locator("#results thead tr").last.locator("th")
    index = next(i for i in range(names.count()) if "abs_err" in names.nth(i).text_content())

    def act(way):
        button = names.nth(index).locator("button")
        if way == "mouse":
            button.click()
        else:
            button.focus()
            page.keyboard.press(way)

    def check(direction):
        assert names.nth(index).get_attribute("aria-sort") == direction
        assert page.locator('#results th[aria-sort]:not([aria-sort="none"])').count() == 1
        found = column(page, index)
        values = [float(text) for text in found if text]
        assert values == sorted(values, reverse=direction == "descending")
        assert len(values) == len(comparison.rows) - 1
        assert found[-1] == ""  # the failed method is last either way

    for way in ("mouse", "Enter", "Space"):
        act(way)
        check("ascending")  # lower is better, so the best is on top first
        act(way)
        check("descending")


def test_numbers_are_not_sorted_as_text(open_page):
    page = open_page()
    names = page.locator("#results thead tr").last.locator("th")
    index = next(i for i in range(names.count()) if "Train" in names.nth(i).text_content())
    names.nth(index).locator("button").click()
    found = [text for text in column(page, index) if text]
    assert found == sorted(found, key=float)
    page.evaluate(
        """(index) => [...document.querySelectorAll('#results tbody[data-reading="final"] tr')]
             .forEach((row, place) => {
               row.children[index].dataset.sort = ["9", "10", "-2", "1e3", "", ""][place % 6];
             })""",
        index,
    )
    names.nth(index).locator("button").click()
    names.nth(index).locator("button").click()
    found = column(page, index)
    values = [float(text) for text in found if text]
    assert values == sorted(values)
    assert values[0] == -2
    assert found[len(values) :] == [""] * (len(found) - len(values))


def test_reading_switch_changes_table_and_figures(open_page, comparison):
    page = open_page()
    first = page.locator("#results tbody:visible tr").first.locator("td").first
    before = first.text_content()
    row = next(row for row in comparison.rows if row.method == "cagrad")
    index = comparison.rows.index(row)
    read = f"document.getElementById('figure-change-0').data.find((t) => t.meta.method === {index}).x"
    assert page.evaluate(read) == pytest.approx(row.final.change["seg"].values, rel=1e-6)
    page.get_by_label("at equal wall-clock").check()
    assert page.locator('tbody[data-reading="equal_time"]').is_visible()
    assert page.locator('tbody[data-reading="final"]').is_hidden()
    after = page.locator('tbody[data-reading="equal_time"] tr').first.locator("td").first.text_content()
    assert after != before
    assert "at equal wall-clock" in page.locator("#results caption").text_content()
    assert page.evaluate(read) == pytest.approx(row.equal_time.change["seg"].values, rel=1e-6)
    page.keyboard.press("ArrowLeft")
    assert page.locator('tbody[data-reading="final"]').is_visible()


def test_axis_switch_and_legend_change_the_curves(open_page, comparison):
    page = open_page()
    last = "document.getElementById('figure-curve-0').data[3].x.at(-1)"
    assert page.evaluate(last) == 20
    page.get_by_label("training seconds").check()
    run = next(run for run in comparison.runs if run.method == "equal")
    assert page.evaluate(last) == pytest.approx(run.history[-1]["train_seconds"], rel=1e-6)
    before = drawn_points(page, "curve-0"), drawn_points(page, "cosine-0"), drawn_points(page, "delta")
    page.locator('#section-curves .chip[data-method="1"]').click()
    assert page.locator('.chip[data-method="1"][aria-pressed="false"]').count() == 3
    after = drawn_points(page, "curve-0"), drawn_points(page, "cosine-0"), drawn_points(page, "delta")
    assert after[0] == before[0] - len(comparison.seeds) - 1  # a line per seed and their mean
    assert after[1] < before[1]
    assert after[2] == before[2]


@pytest.mark.parametrize("width", [390, 1280])
def test_page_never_scrolls_sideways_but_the_table_does(open_page, width):
    page = open_page(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator(".scroll")
    assert box.evaluate("(box) => box.scrollWidth > box.clientWidth")
    head = page.locator("#results tbody:visible th[scope=row]").first
    before = head.bounding_box()["x"]
    box.evaluate("(box) => { box.scrollLeft = 300; }")
    assert head.bounding_box()["x"] == pytest.approx(before, abs=2)  # the first column stays
    widths = page.eval_on_selector_all(
        ".plot svg.main-svg", "(all) => all.map((svg) => svg.getBoundingClientRect().right)"
    )
    assert max(widths) <= width


def test_a_table_that_goes_on_says_so(open_page):
    page = open_page()
    assert page.locator("#more").is_visible()
    page.eval_on_selector_all(
        "#results tr", "(rows) => rows.forEach((row) => [...row.children].slice(2).forEach((cell) => cell.remove()))"
    )
    page.set_viewport_size({"width": 1200, "height": 900})
    until(page, "document.getElementById('more').hidden")


def test_the_buttons_of_a_figure_cover_no_dot(open_page):
    page = open_page()
    for key in ("delta", "change-0", "cost"):
        plot = page.locator(f"#figure-{key}")
        plot.scroll_into_view_if_needed()
        plot.hover(position={"x": 300, "y": 100})
        until(page, f"getComputedStyle(document.querySelector('#figure-{key} .modebar')).opacity > 0.1")
        bar = page.locator(f"#figure-{key} .modebar").first.bounding_box()
        boxes = [point.bounding_box() for point in plot.locator(".scatterlayer .point").all()]
        assert all(box["y"] + box["height"] / 2 > bar["y"] + bar["height"] for box in boxes), key


def test_no_title_of_an_axis_is_cut_off_on_a_phone(open_page):
    page = open_page(375)
    cut = page.eval_on_selector_all(
        ".plot :is(.xtitle, .ytitle)",
        """(titles) => titles.filter((title) => {
          const [own, plot] = [title, title.closest(".plot")].map((element) => element.getBoundingClientRect());
          return own.left < plot.left - 1 || own.right > plot.right + 1 || own.bottom > plot.bottom + 1;
        }).map((title) => title.textContent)""",
    )
    assert cut == []


def test_figures_follow_the_window(open_page):
    page = open_page(1280)
    page.set_viewport_size({"width": 390, "height": 800})
    until(
        page,
        "[...document.querySelectorAll('.plot svg.main-svg')].every((svg) => svg.getBoundingClientRect().right <= 390)",
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


BROKEN_WORDS = """(all) => all.flatMap((box) => {
  const walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT), broken = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode())
    for (const found of node.data.matchAll(/[^ ]+/g)) {
      const range = document.createRange();
      range.setStart(node, found.index);
      range.setEnd(node, found.index + found[0].length);
      const lines = new Set([...range.getClientRects()].map((r) => r.top)).size;
      if (found[0].length <= 11 && lines > 1) broken.push(found[0]);
    }
  return broken;
})"""  # words of a common length that stand on two lines


def test_print_breaks_no_name_and_keeps_a_figure_with_its_heading(open_page):
    page = open_page()
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 1032, "height": 700})
    until(page, "document.querySelectorAll('details[open]').length === 2")
    assert page.eval_on_selector_all("#results .method", BROKEN_WORDS) == []
    # what is wider than the paper Chromium makes smaller, here to no less than 90 %
    assert page.evaluate("document.getElementById('results').offsetWidth") <= 1032 / 0.9
    paper = (210 - 2 * 11) / 25.4 * 96  # pixels between the margins of a landscape page
    assert page.locator(".single").count() > 0
    heights = page.eval_on_selector_all(
        "section[id^='section-']:has(.single)", "(all) => all.map((section) => section.offsetHeight)"
    )
    assert max(heights) <= paper


def test_title_and_facts_count_the_same_methods(open_page, comparison):
    page = open_page()
    methods = sum(row.method != "single_task" for row in comparison.rows)
    assert page.locator(".facts").inner_text().startswith(f"{methods} methods and single-task networks \u00b7")


def test_print_hides_controls_opens_details_and_makes_a_pdf(open_page, tmp_path):
    page = open_page()
    assert page.locator("details[open]").count() == 0
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 1032, "height": 700})
    until(page, "document.querySelectorAll('details[open]').length === 2")
    assert all(not control.is_visible() for control in page.locator(".controls").all())
    assert page.locator(".modebar").first.is_hidden()
    assert all(page.locator(f'tbody[data-reading="{reading}"]').is_visible() for reading in ("final", "equal_time"))
    # buttons and positioned boxes are left out where the head of the table is repeated on the next page
    heads = page.locator("#results thead :is(td, th)")
    assert set(heads.evaluate_all("(all) => all.map((box) => getComputedStyle(box).position)")) == {"static"}
    assert not any(button.is_visible() for button in page.locator("#results thead button").all())
    assert page.locator("#results thead .print-head").all_inner_texts()[:2] == ["Method", "\u0394m (tasks) \u2191\n%"]
    assert page.get_by_text("python: 3.12.3").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    right = page.eval_on_selector_all(
        ".plot svg.main-svg", "(all) => all.map((svg) => svg.getBoundingClientRect().right)"
    )
    assert max(right) <= 1032
    page.emulate_media(media="screen")
    until(page, "document.querySelectorAll('details[open]').length === 0")
    pdf = page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF-")
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 4 <= pages <= 14
