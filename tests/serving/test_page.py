"""The page in a real browser: every kind of run, a phone, the dark, the keyboard."""

import re

import pytest
from playwright import sync_api as playwright

from tests.serving.browsing import COLOURS, PHONE, answer, contrast, fill, fits, needs_browser, seen_text

pytestmark = needs_browser
CONTEXT = "the old river was quiet and a ship was on the river"


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


def test_what_the_model_sees(open_page):
    page = open_page("texts/tokens")
    fill(page, "Text", "ship " * 60)
    page.get_by_role("button", name="Show the tokens").click()
    page.wait_for_selector(".tokens li")
    assert seen_text(page.locator(".tokens li").first) == "[CLS]0"
    assert "cut off" in page.locator("section .error").inner_text()


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
