"""The page in a real browser: points, chooses, reads, and compares with the network's weights."""

import re
import shutil
import time

import numpy as np
import pytest
import scipy.special

from sasa_jax.explorer.network import stages
from tests.explorer.reference import reach

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None
)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium or google-chrome with chromedriver on the PATH"
)


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1400,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """A page in the browser, its canvas and what it says."""

    def __init__(self, browser, path, explanation):
        self.browser, self.explanation = browser, explanation
        browser.get_log("browser"), browser.get_log("performance")  # of earlier pages
        begin = time.perf_counter()
        browser.get(path.as_uri())
        self.wait("return 'unpacked' in document.documentElement.dataset")
        self.seconds = time.perf_counter() - begin

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition):
        for _ in range(400):
            if self.run(condition):
                return
            time.sleep(0.05)
        raise AssertionError(f"the page never came to: {condition}")

    def settle(self):
        """Two frames, and what is drawn a little after the pointer."""
        self.browser.execute_async_script(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 150)))"
        )

    def pointer(self, kind, row, column, pointer="mouse"):
        """An event at the middle of a pixel of the image."""
        self.run(
            "const box = document.getElementById('image').getBoundingClientRect();"
            "const [kind, row, column, side, pointerType] = arguments;"
            "const at = (k) => (k + 0.5) / side;"
            "document.getElementById('overlay').dispatchEvent(new PointerEvent(kind, {"
            "pointerType, clientX: box.left + at(column) * box.width,"
            "clientY: box.top + at(row) * box.height, bubbles: true}))",
            kind,
            row,
            column,
            self.explanation.image.shape[0],
            pointer,
        )
        self.settle()

    def click(self, selector):
        self.run("document.querySelector(arguments[0]).click()", selector)
        self.settle()

    def key(self, key, **options):
        self.run(
            "document.getElementById('overlay').focus(); document.activeElement.dispatchEvent("
            "new KeyboardEvent('keydown', {key: arguments[0], bubbles: true, ...arguments[1]}))",
            key,
            options,
        )
        self.settle()

    def text(self, element):
        return self.run("return document.getElementById(arguments[0]).textContent", element)

    def facts(self, element):
        """A list of terms as a dict."""
        return dict(
            self.run(
                "return [...document.querySelectorAll(`#${arguments[0]} dt`)]"
                ".map((term) => [term.textContent, term.nextSibling.textContent])",
                element,
            )
        )

    def weights(self):
        """The window's cells in percent, [K, K]."""
        cells = self.run(
            "return [...document.querySelectorAll('#window tr + tr')].map((row) =>"
            "[...row.querySelectorAll('td')].map((cell) => Number(cell.textContent)))"
        )
        return np.array(cells)

    def check(self, layer, place, head):
        """The cells are the network's weights, within what quantisation and two digits cost."""
        true = self.explanation.attention[layer][place]
        true = true.mean(axis=0) if head is None else true[head]
        own = self.explanation.attention[layer][place]
        largest = own.max(axis=(1, 2)).mean() if head is None else true.max()
        tolerance = 100 * (largest + 1 / 65535) / 256 + 0.0051
        np.testing.assert_allclose(self.weights(), 100 * true, rtol=0, atol=tolerance)


@pytest.fixture
def page(browser, seen_page, seen):
    return Page(browser, seen_page, seen)


@pytest.fixture
def detections(browser, found_page, found):
    return Page(browser, found_page, found)


def test_weights_under_the_pointer(page):
    page.click('[data-layer="group1/block1"]')
    for row, column in [(0, 0), (9, 30), (17, 13), (31, 31)]:  # corners have padding
        page.pointer("pointermove", row, column)
        for head in (None, 0, 3):
            page.click(f'[data-head="{-1 if head is None else head}"]')
            page.check("group1/block1", (row // 4, column // 4), head)
    assert "Pixel (31, 31), place (7, 7) of 8×8 in group1/block1" in page.text("where")
    page.click('[data-layer="group2/block2"]')
    page.pointer("pointermove", 20, 3)
    page.check("group2/block2", (2, 0), 3)


def test_padding_and_largest_weight(page):
    page.click('[data-layer="group2/block2"]')
    page.pointer("pointermove", 16, 3)
    page.click('[data-head="1"]')
    page.pointer("pointermove", 1, 30)  # place (0, 3) of 4x4: two rows and columns outside
    weights = page.explanation.attention["group2/block2"][0, 3, 1]
    outside = np.ones((5, 5), bool)
    outside[2:, :3] = False
    facts = page.facts("numbers")
    padding = float(facts["On padding"].removesuffix(" %"))
    tolerance = float(100 * weights.max() * outside.sum() / 256)
    assert padding == pytest.approx(100 * weights[outside].sum(), abs=tolerance)
    assert page.run("return document.querySelectorAll('#window .out').length") == outside.sum()
    r, c = np.unravel_index(weights.argmax(), weights.shape)
    sign = {-2: "−2", -1: "−1", 0: "0", 1: "+1", 2: "+2"}
    assert facts["Largest weight"].endswith(f"at ({sign[r - 2]}, {sign[c - 2]})")
    first = "document.querySelector('#window tr + tr td')"
    page.run(f"{first}.dispatchEvent(new Event('pointerenter'))")
    page.settle()
    weight = f"Key offset (−2, −2): weight {page.weights()[0, 0]:.2f} %"
    assert re.fullmatch(
        rf"{re.escape(weight)}, content <?[+−][\d.]+, position [+−][\d.]+, on padding",
        page.text("slot"),
    )
    page.click('[data-head="-1"]')
    weight = f"Key offset (−2, −2): weight {page.weights()[0, 0]:.2f} %"
    assert page.text("slot") == f"{weight}, on padding"


def part_of_logits(page, part):
    """The cells while a part of the logits is chosen, [K, K]; and which of them are bounds."""
    page.click(f'#part [value="{part}"]')
    cells = page.run(
        "return [...document.querySelectorAll('#window tr + tr')].map((row) =>"
        "[...row.querySelectorAll('td')].map((cell) => cell.textContent))"
    )
    page.click('#part [value="weights"]')
    text = np.array(cells)
    bound = np.char.startswith(text, "<")
    return np.char.replace(np.char.lstrip(text, "<"), "−", "-").astype(float), bound


@pytest.mark.parametrize("layer", ["group1/block1", "group2/block2", "stem"])
@pytest.mark.parametrize("pixel", [(0, 31), (13, 18)])  # with padding and without
def test_content_and_position_are_the_operator_s(page, true_logits, layer, pixel):
    """More than at the key of the largest weight; within what the stored numbers' steps cost."""
    page.click(f'[data-layer="{layer}"]')
    page.pointer("pointermove", *pixel)
    content, position, error = true_logits(layer, pixel)
    for head in (1, 3):
        page.click(f'[data-head="{head}"]')
        weights = scipy.special.softmax((content + position)[head])
        best = np.unravel_index(weights.argmax(), weights.shape)
        tolerance = error[head] + error[head][best] + 0.0051
        true = (position - position[:, *best][:, None, None])[head]
        shown, _ = part_of_logits(page, "position")
        assert np.ptp(true) > 0.3 and (np.abs(shown - true) <= tolerance).all()
        # A stored weight is off by half a step: 1/256 of the largest.
        stored = np.maximum(weights / weights.max(), 1 / 256)
        tolerance += 0 if layer == "stem" else -np.log1p(-np.minimum(0.51 / 128 / stored, 0.999))
        true = (content - content[:, *best][:, None, None])[head]
        shown, bound = part_of_logits(page, "content")
        assert (np.abs(shown - true) <= tolerance)[~bound].all()
        assert (shown >= true - tolerance)[bound].all() and not bound[best]


def test_stem_is_computed_in_the_page(page):
    page.click('[data-layer="stem"]')
    for row, column in [(0, 0), (13, 22)]:
        page.pointer("pointermove", row, column)
        for head in range(4):
            page.click(f'[data-head="{head}"]')
            true = page.explanation.attention["stem"][row // 4, column // 4, head]
            true = true[4 * (row % 4) + column % 4].reshape(4, 4)
            np.testing.assert_allclose(page.weights(), 100 * true, rtol=0, atol=0.0051)
    mixture = np.array(
        page.run(
            "return [...document.querySelectorAll('.mixture')].map((table) =>"
            "[...table.rows].map((row) => [...row.cells].map((cell) => Number(cell.textContent))))"
        )
    )
    true = np.asarray(page.explanation.model.stem.mixture_weights())
    np.testing.assert_allclose(mixture, true.transpose(2, 0, 1), atol=0.0051)
    assert "block (3, 5), head 4" in page.text("block-title")


@pytest.mark.parametrize(("layer", "place"), [("group2/block1", (3, 6)), ("group2/block2", (1, 2))])
def test_reach_is_the_product_of_the_layers(page, layer, place):
    attention = page.explanation.attention
    flow = {stage.name: stage for stage in stages(page.explanation.model, 32)}
    names = [name for name in attention if name != "stem"]
    names = names[: names.index(layer) + 1]
    matrix = reach([(attention[name], flow[name].stride) for name in names])
    width, pixels = attention[layer].shape[1], 32 // attention[layer].shape[1]
    row, column = place[0] * pixels + 1, place[1] * pixels + 2
    mass = matrix[place[0] * width + place[1]]
    y, x = np.divmod(np.arange(64), 8)
    squares = ((y + 0.5) * 4 - row - 0.5) ** 2 + ((x + 0.5) * 4 - column - 0.5) ** 2
    largest = np.sort(mass)[::-1].cumsum()
    page.click(f'[data-layer="{layer}"]')
    page.pointer("pointermove", row, column)
    facts = page.facts("reach-numbers")
    numbers = {name: float(re.match(r"[\d.]+", text)[0]) for name, text in facts.items()}
    assert numbers["Distance (RMS)"] == pytest.approx((mass @ squares / mass.sum()) ** 0.5, abs=0.1)
    assert numbers["Lost to padding"] == pytest.approx(100 * (1 - mass.sum()), abs=0.6)
    share = 100 * (np.searchsorted(largest, 0.9 * mass.sum()) + 1) / 64
    assert numbers["90 % of it within"] == pytest.approx(share, abs=100 / 64 + 0.1)
    page.click('#mode [value="reach"]')  # draws it over the image, too
    assert page.run("return document.querySelectorAll('#depth button').length") == len(names) + 1


def test_keyboard(page):
    page.click('[data-layer="group1/block1"]')
    page.pointer("pointerdown", 16, 16)
    assert page.text("where").endswith("held")
    page.pointer("pointermove", 2, 2)  # held: it stays
    assert page.text("where").startswith("Pixel (16, 16)")
    for key, where in [
        ("ArrowUp", "Pixel (12, 16)"),
        ("ArrowRight", "Pixel (12, 20)"),
        ("ArrowDown", "Pixel (16, 20)"),
        ("ArrowLeft", "Pixel (16, 16)"),
    ]:
        page.key(key)
        assert page.text("where").startswith(where)
    page.key("ArrowUp", shiftKey=True)
    assert page.text("where").startswith("Pixel (15, 16)")
    page.key("]")
    assert "in group2/block1" in page.text("where")
    page.key("[")
    page.key("2")
    assert "head 2 of 4" in page.text("window-title")
    page.check("group1/block1", (3, 4), 1)
    page.key("0")
    assert "mean of 4 heads" in page.text("window-title")
    page.wait("return document.getElementById('spoken').textContent.includes('Pixel (15, 16)')")
    page.key("Escape")
    page.pointer("pointermove", 2, 2)
    assert page.text("where").startswith("Pixel (2, 2)")
    page.pointer("pointerdown", 5, 5, "touch")
    assert page.text("where").startswith("Pixel (5, 5)")


def test_a_box_leads_to_the_place_that_gave_it(detections):
    guesses = detections.explanation.guesses
    for index in (1, len(guesses) - 1):
        guess = guesses[index]
        detections.click(f'[data-guess="{index}"]')
        place = "({}, {})".format(*guess.place)
        layer = f"class_head/last/p{guess.level}"
        assert f"place {place}" in detections.text("where")
        assert f"in {layer}" in detections.text("where")
        detections.check(layer, guess.place, None)
        chosen = f"return document.querySelector('[data-guess=\"{index}\"]').ariaPressed"
        assert detections.run(chosen) == "true"
    # Every box holds its own centre, so one of those there is chosen.
    top, left, bottom, right = next(guess.box for guess in guesses if guess.score > 0.3)
    detections.key("Escape")
    detections.pointer("pointerdown", int(top + bottom) // 2, int(left + right) // 2)
    assert detections.run("return document.querySelectorAll('#guesses [aria-pressed=true]').length")
    assert detections.text("where").endswith("held")
    for layer in ("fpn/p2", "fpn/p6", "box_head/layer1/p3"):
        detections.click(f'[data-layer="{layer}"]')
        detections.wait("return document.querySelectorAll('#reach-numbers dd').length === 3")


def test_narrow_and_dark(page):
    size = dict(width=400, height=800, deviceScaleFactor=2, mobile=True)
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.settle()
        assert page.run("return document.documentElement.scrollWidth") == 400
        page.click("#theme")
        before = page.run("return getComputedStyle(document.body).backgroundColor")
        page.click("#theme")
        assert page.run("return getComputedStyle(document.body).backgroundColor") != before
        page.pointer("pointermove", 12, 8)
        page.check("group1/block1", (3, 2), None)
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("which", ["page", "detections"])
def test_no_error_no_request_and_how_fast(which, request):
    """Timings are printed (pytest -s) and not asserted: the machine may be busy."""
    page = request.getfixturevalue(which)
    names = list(page.explanation.attention)
    for name in (names[0], names[-1]):
        page.click(f'[data-layer="{name}"]')
    frames = page.browser.execute_async_script(
        """
        const done = arguments[0], frames = [];
        const box = document.getElementById("image").getBoundingClientRect();
        let step = 0, last = performance.now();
        function move() {
          const now = performance.now();
          frames.push(now - last);
          last = now;
          if (++step > 60) return done(frames);
          document.getElementById("overlay").dispatchEvent(new PointerEvent("pointermove", {
            pointerType: "mouse", bubbles: true,
            clientX: box.left + box.width * (0.5 + 0.4 * Math.cos(step / 9)),
            clientY: box.top + box.height * (0.5 + 0.4 * Math.sin(step / 7))}));
          requestAnimationFrame(move);
        }
        requestAnimationFrame(move);
        """
    )
    paint = page.run("return performance.getEntriesByType('paint').map((entry) => entry.startTime)")
    print(
        f"\n{which}: first paint {max(paint):.0f} ms, all unpacked {page.seconds:.2f} s; frame "
        f"median {np.median(frames):.1f} ms, longest {max(frames):.1f} ms"
    )
    assert [line for line in page.browser.get_log("browser")] == []
    log = "".join(line["message"] for line in page.browser.get_log("performance"))
    urls = set(re.findall(r'"requestWillBeSent".*?"url":"([^"]*)"', log))
    urls |= set(re.findall(r'"documentURL":"([^"]*)"', log))
    assert urls and all(url.startswith(("file:", "data:", "blob:")) for url in urls)
