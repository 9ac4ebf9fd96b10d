"""The page in a real browser (Chromium, as Debian has it): every kind of run, errors, a phone, the dark, the keyboard."""

import json
import re
import shutil

import pytest
from playwright import sync_api as playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
DESKTOP, PHONE = {"width": 1100, "height": 800}, {"width": 360, "height": 740}
# Of each visible text: its colour, and that of the nearest opaque background.
COLOURS = """
() => {
  const behind = (node) => {
    const colour = node ? getComputedStyle(node).backgroundColor : "rgb(255, 255, 255)";
    return colour.startsWith("rgba(") ? behind(node.parentElement) : colour;
  };
  const texts = [...document.querySelectorAll("p, label, h2, dt, button, .quiet")].filter((node) => node.offsetParent);
  return texts.map((node) => [getComputedStyle(node).color, behind(node)]);
}
"""
CONTEXT = "the old river was quiet and a ship was on the river"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, served):
    """`open_page("texts/predict")`: a page, which must load nothing of other hosts and have no errors until the test ends."""
    client, _ = served
    contexts, problems = [], []

    def opened(place: str, base: str = "", **options):
        context = browser.new_context(**{"viewport": DESKTOP} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        address = str(base or client.base_url).rstrip("/")
        page.on("request", lambda request: request.url.startswith((address, "blob:")) or problems.append(request.url))
        page.goto(f"{address}/#{place}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


def fill(page, label: str, text: str) -> None:
    page.get_by_label(label, exact=True).fill(text)


def answer(page):
    """The part of the page with the answer, once it is there."""
    page.wait_for_selector("section details, section .error")
    return page.locator("section")


def seen_text(element) -> str:
    """The text of an element without what screen readers alone say."""
    return element.evaluate(
        "node => { const seen = node.cloneNode(true); seen.querySelectorAll('.spoken').forEach(part => part.remove()); "
        "return seen.textContent; }"
    )


def fits(page) -> bool:
    """Whether nothing is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("run", ["texts", "several"])
def test_labels_and_the_words_that_decided(open_page, runs, run):
    page = open_page(f"{run}/predict")
    text = "\U0001f600 the old river <b>and</b> a quiet ship"
    fill(page, "Text", text)
    page.get_by_role("button", name="Predict").click()
    shown = answer(page)
    expected = runs[run].predictor.predict([text])[0]["probabilities"]
    names = shown.locator(".bars dt").all_inner_texts()
    assert names == sorted(expected, key=expected.get, reverse=True)
    first = f"{100 * max(expected.values()):.1f}%"
    assert shown.locator(".bars .value").first.inner_text() == first
    playwright.expect(shown.locator(".word")).to_have_count(10)
    assert seen_text(shown.locator(".text")) == text, "no text becomes HTML, and marks are where words are"
    assert "Words that decided" in shown.inner_text()
    assert shown.get_by_text("Answered in").inner_text().endswith("ms.")


def test_masks_with_targets(open_page):
    page = open_page("masks/predict")
    page.locator(".examples button").nth(1).click()
    shown = answer(page)
    assert (
        shown.locator("h2", has_text=re.compile(r"^Mask \d")).count() == 2 and shown.locator(".text mark").count() == 2
    )
    fill(page, "Text", "a [MASK] ship")
    fill(page, "Only these words (optional, separated by commas)", "s, o")
    page.get_by_label("Text", exact=True).press("Control+Enter")
    playwright.expect(shown.locator(".bars dt")).to_have_count(2)
    assert set(shown.locator(".bars dt").all_inner_texts()) == {"s", "o"}


def test_entities_are_marked_in_the_text(open_page, runs):
    text = "the old \U0001f600 river\nand a quiet \U0001f6f3 ship"  # two units of UTF-16 each
    page = open_page("words/predict")
    fill(page, "Text", text)
    page.get_by_role("button", name="Predict").click()
    shown = answer(page)
    entities = runs["words"].predictor.predict([text])[0]["entities"]
    spans = shown.locator(".text .entity")
    assert spans.count() == len(entities) > 0
    assert [span.replace("\n", "") for span in spans.all_inner_texts()] == [
        f"{entity['text']}{entity['type']}".replace("\n", "") for entity in entities
    ]


def test_an_answer_in_its_context(open_page, runs):
    page = open_page("questions/predict")
    fill(page, "Question", "ship")
    fill(page, "Text with the answer", CONTEXT)
    page.get_by_role("button", name="Predict").click()
    shown = answer(page)
    expected = runs["questions"].predictor.predict([{"question": "ship", "context": CONTEXT}])[0]
    assert shown.locator(".text mark").inner_text() == expected["answer"]
    assert "(no answer in this text)" in shown.locator(".bars dt").all_inner_texts()


def test_similarities(open_page):
    page = open_page("masks/similarity")
    page.get_by_label("Texts, one per line").fill("the river\n\na ship\nold")
    page.get_by_role("button", name="Compare").click()
    page.wait_for_selector("table")
    assert page.locator("tbody tr").count() == 3 and page.locator("tbody td").first.inner_text() == "1.00"
    page.get_by_label("Texts, one per line").fill("one")
    page.get_by_role("button", name="Compare").click()
    assert "give 2 to 64" in page.get_by_role("alert").locator("visible=true").inner_text()


def test_a_file_of_inputs(open_page, runs, tmp_path):
    page = open_page("texts/file")
    texts = [f"the old river {'and a ship ' * (number % 5)}" for number in range(150)]
    lines = [json.dumps({"text": text}) if number % 2 else text for number, text in enumerate(texts)]
    (tmp_path / "many.txt").write_text("\n".join(lines) + "\n\n")
    page.get_by_label("File", exact=True).set_input_files(tmp_path / "many.txt")
    page.get_by_role("button", name="Predict all lines").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "many.texts.jsonl"
    answers = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert [answer["text"].strip() for answer in answers] == [text.strip() for text in texts]
    expected = [one["label"] for one in runs["texts"].predictor.predict(texts)]
    assert [answer["answer"][0]["label"] for answer in answers] == expected


def answers_to_file(page, path, text: str) -> list[dict]:
    """Sends a file, and reads the answers that are downloaded."""
    path.write_text(text)
    page.get_by_label("File", exact=True).set_input_files(path)
    page.get_by_role("button", name="Predict all lines").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    return [json.loads(line) for line in download.value.path().read_text().splitlines()]


def test_bad_lines_of_a_file_do_not_fail_the_others(open_page, tmp_path):
    """Lines that are no inputs, and some that the server refuses: alone (no mask, too long), or together (too large)."""
    page = open_page("masks/file")
    lines = [f"a [MASK] {number}" for number in range(130)]
    bad = {3: '{"text": 3}', 5: "{", 70: "no mask", 90: "[MASK] " + "a" * 100_000, 129: "none here"}
    long = dict.fromkeys(range(100, 116), "[MASK] " + "a " * 40000)  # 1.3 MB, and more than the queue holds
    rows = [(bad | long).get(number, line) for number, line in enumerate(lines)]
    answers = answers_to_file(page, tmp_path / "some.txt", "\n".join(rows))
    assert len(answers) == 130
    assert {number for number, answer in enumerate(answers) if "error" in answer} == bad.keys()
    for number, answer in enumerate(answers):
        assert ("answer" in answer) != ("error" in answer) and answer["text"] == rows[number]
        assert number not in bad or answer["line"] == number + 1
    assert "contains no [MASK]" in answers[70]["error"] and "missing or not a text" in answers[3]["error"]
    shown = page.locator("section")
    assert "125 answers and 5 errors" in shown.inner_text() and shown.locator(".error li").count() == 5
    assert shown.locator(".error li").first.inner_text() == "Line 4: “text” is missing or not a text"


def test_a_server_that_goes_away_leaves_the_answers_before(open_page, tmp_path):
    page = open_page("texts/file")
    requests = []

    def handle(route) -> None:
        requests.append(route)
        if len(requests) == 1:
            route.continue_()
        else:
            route.fulfill(status=500, body='{"error": "internal error"}')

    page.route("**/v1/texts/predict", handle)
    answers = answers_to_file(page, tmp_path / "some.txt", "the river\n" * 200)
    assert [answer.get("error") for answer in answers] == [None] * 64 + ["internal error"] * 136


def test_what_the_model_sees(open_page):
    page = open_page("texts/tokens")
    fill(page, "Text", "ship " * 60)
    page.get_by_role("button", name="Show the tokens").click()
    page.wait_for_selector(".tokens li")
    assert seen_text(page.locator(".tokens li").first) == "[CLS]0"
    assert "cut off" in page.locator("section .error").inner_text()


def test_errors_are_said_to_the_person(open_page):
    page = open_page("masks/predict")
    fill(page, "Text", "no mask here")
    page.get_by_role("button", name="Fill in").click()
    assert "contains no [MASK]" in answer(page).get_by_role("alert").inner_text()
    page.route("**/v1/masks/predict", lambda route: route.fulfill(status=429, body='{"error": "the queue is full"}'))
    page.get_by_role("button", name="Fill in").click()
    playwright.expect(page.locator("section .error")).to_have_text("the queue is full")


def test_a_server_with_a_token(open_page, serve):
    with serve(token="a-secret-of-some-length") as (client, _):
        page = open_page("texts/predict", base=str(client.base_url))
        token = page.get_by_label("Token of this server")
        token.fill("wrong")
        token.press("Enter")
        page.wait_for_selector("#notice:visible")
        assert not page.locator("[role=tab]").count()
        token.fill("a-secret-of-some-length")
        token.press("Enter")
        page.locator(".examples button").first.click()
        assert answer(page).locator(".bars dt").count() == 3
        page.locator("summary").click()
        requests = page.locator("details pre").all_inner_texts()
        assert len(requests) == 2 and not any("a-secret" in text for text in requests), "the token is not shown"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phones_and_the_dark(open_page, scheme):
    """Nothing is wider than a phone, and texts keep a contrast of at least 4.5 (WCAG 2.2, 1.4.3)."""
    for place in ("texts/predict", "questions/predict", "masks/similarity", "words/tokens", "several/file"):
        page = open_page(place, viewport=PHONE, color_scheme=scheme)
        page.wait_for_selector("main button")
        if place.endswith("predict"):
            page.locator(".examples button").first.click()
            answer(page)
        elif not place.endswith("file"):
            page.locator("button.main").click()
            page.wait_for_selector("table, .tokens")
        assert fits(page), place
        colours = page.evaluate(COLOURS)
        assert colours and min(contrast(*pair) for pair in colours) >= 4.5, (
            place,
            min(contrast(*pair) for pair in colours),
        )


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 'rgb(R, G, B)', by the formula of WCAG 2."""

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_keyboard_is_enough(open_page):
    page = open_page("texts/predict")
    page.wait_for_selector("[role=tab]")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.get_by_role("tab", name="Predict").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", selected=True).inner_text() == "Similarity"
    assert page.evaluate("document.activeElement.id") == "tab-similarity"
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, textarea, select')].filter(e => e.offsetParent && !e.labels.length).length"
    )
    assert unnamed == 0, "each field has a label"
    page.get_by_label("Run").select_option("masks")
    assert page.get_by_role("tab", selected=True).inner_text() == "Fill masks" and page.title().startswith("masks")


def test_typed_text_is_kept(open_page):
    """In other tabs and runs with such a field, on the way back and forward, and after another page."""
    page = open_page("texts/predict")
    text = page.get_by_label("Text", exact=True)
    fill(page, "Text", "the river")
    page.get_by_role("button", name="Predict").click()
    answer(page)
    page.get_by_role("tab", name="What the model sees").click()
    playwright.expect(text).to_have_value("the river")
    page.get_by_label("Run").select_option("words")
    playwright.expect(text).to_have_value("the river")
    page.go_back()
    playwright.expect(page.get_by_role("tab", selected=True)).to_have_text("What the model sees")
    playwright.expect(page.get_by_label("Run")).to_have_value("texts")
    page.go_back()
    playwright.expect(page.get_by_role("tab", selected=True)).to_have_text("Predict")
    playwright.expect(text).to_have_value("the river")
    assert page.locator(".bars dt").count() == 3, "the answer is still there"
    page.go_forward()
    fill(page, "Text", "a ship")
    page.go_back()
    playwright.expect(text).to_have_value("a ship")
    assert page.locator("section .bars").count() == 0, "an answer to another text is not shown"
    page.get_by_role("link", name="API").click()
    page.wait_for_url("**/docs")
    page.wait_for_load_state("networkidle")
    page.go_back()
    playwright.expect(text).to_have_value("a ship")
    page.get_by_role("tab", name="Predict").wait_for()


def test_waiting_for_the_server(open_page, serve):
    """While programs are compiled, the page says so, not as an error, and a request is answered afterwards."""
    with serve() as (client, server):
        server.is_compiled = False
        page = open_page("texts/predict", base=str(client.base_url))
        waiting = page.get_by_role("status")
        playwright.expect(waiting).to_contain_text("compiling its programs")
        fill(page, "Text", "the river")
        page.get_by_role("button", name="Predict").click()
        page.wait_for_timeout(1200)
        assert page.locator(".error:visible").count() == 0 and page.locator(".bars").count() == 0
        colours = page.evaluate(COLOURS)
        assert min(contrast(*pair) for pair in colours) >= 4.5
        server.is_compiled = True
        answer(page)
        assert page.locator(".bars dt").count() == 3 and waiting.inner_text() == ""


def test_an_answer_stays_without_the_words_that_decided(open_page):
    page = open_page("texts/predict")
    page.route("**/v1/texts/explain", lambda route: route.fulfill(status=504, body='{"error": "no answer in time"}'))
    page.locator(".examples button").first.click()
    playwright.expect(page.get_by_text("The words that decided cannot be shown: no answer in time")).to_be_visible()
    assert page.locator(".bars dt").count() == 3 and page.locator("section .error").count() == 0


def test_for_and_against_are_not_only_colours(open_page):
    page = open_page("texts/predict")
    fill(page, "Text", "the old river and a quiet ship")
    page.get_by_role("button", name="Predict").click()
    page.wait_for_selector(".word")
    for side, line in (("for", "solid"), ("against", "dotted")):
        words = page.locator(f".word.{side}")
        assert words.count(), "the golden model has both"
        assert words.first.evaluate("node => getComputedStyle(node).borderBottomStyle") == line
        assert words.first.locator(".spoken").text_content().strip() == f"({side})"
    assert "solid line" in page.locator("section").inner_text()


def test_segments_are_not_only_colours(open_page):
    page = open_page("questions/tokens")
    fill(page, "Question", "ship")
    fill(page, "Text with the answer", "a ship")
    page.get_by_role("button", name="Show the tokens").click()
    page.wait_for_selector(".tokens li")
    letters = page.locator(".tokens li b").all_inner_texts()
    assert [letter.strip() for letter in letters] == sorted(letter.strip() for letter in letters)
    assert {letter.strip() for letter in letters} == {"A", "B"}
    widths = {
        kind: page.locator(f".tokens li{kind}").last.evaluate("node => getComputedStyle(node).borderBottomWidth")
        for kind in (".second", ":not(.second)")
    }
    assert widths[".second"] != widths[":not(.second)"]
    assert page.locator(".tokens li.special .spoken").first.text_content().strip() == "(special token)"


def test_examples_are_those_of_the_run(open_page, runs):
    page = open_page("words/predict")
    chips = page.locator(".examples button")
    playwright.expect(chips).to_have_text(["old ships", "the river"])
    chips.last.click()
    answer(page)
    assert page.get_by_label("Text", exact=True).input_value() == "the river"
    page.get_by_label("Run").select_option("texts")
    assert chips.count() == 2 and "film" in chips.first.inner_text(), "the folder of this one has none"
