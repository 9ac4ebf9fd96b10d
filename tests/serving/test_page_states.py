"""What the page keeps, says and waits for: typed text, errors, a token, a server that is not ready; signs besides colours."""

import re

from playwright import sync_api as playwright

from tests.serving.browsing import COLOURS, answer, contrast, fill, needs_browser

pytestmark = needs_browser


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
        page.wait_for_timeout(1500)
        assert page.locator(".error:visible").count() == 0 and page.locator(".bars").count() == 0
        colours = page.evaluate(COLOURS)
        assert min(contrast(*pair) for pair in colours) >= 4.5
        server.is_compiled = True
        answer(page)
        assert page.locator(".bars dt").count() == 3 and waiting.inner_text() == ""
        latency = page.get_by_text("Answered in").inner_text()
        assert int(re.search(r"\d+", latency)[0]) < 1500, "without the wait"


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
