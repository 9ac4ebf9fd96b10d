"""Files of inputs on the page: answers and errors are downloaded, line by line."""

import json

from tests.serving.browsing import needs_browser

pytestmark = needs_browser


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
