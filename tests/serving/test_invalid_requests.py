"""Invalid requests get an error that names the field."""

import pytest

ASKED = {"question": "ship", "context": "the old river was quiet and a ship was on the river"}


@pytest.mark.parametrize(
    ("path", "body", "code", "field"),
    [
        ("nothing/predict", {"inputs": "a"}, 404, ""),
        ("masks/explain", {"inputs": "a"}, 404, ""),
        ("texts/predict", {}, 422, "inputs"),
        ("texts/predict", [], 422, "body"),
        ("texts/predict", {"inputs": 3}, 422, "inputs"),
        ("texts/predict", {"inputs": None}, 422, "inputs"),
        ("texts/predict", {"inputs": ["a", 5]}, 422, "inputs.1"),
        ("texts/predict", {"inputs": ["a", {"text": 5}]}, 422, "inputs.1.text"),
        ("texts/predict", {"inputs": ["a", "b" * 100_001]}, 422, "inputs.1"),
        ("masks/similarity", {"inputs": "a b"}, 422, "inputs"),
        ("texts/predict", {"inputs": "a", "parameters": {"temperature": 1}}, 422, "parameters.temperature"),
        ("texts/predict", {"inputs": "a", "parameters": {"top_k": 0}}, 422, "parameters.top_k"),
        ("texts/predict", {"inputs": "a", "input": "b"}, 422, "input"),
        ("texts/predict", {"inputs": {"txt": "a"}}, 422, "inputs.text"),
        ("texts/predict", {"inputs": ["a", {"text": "a", "more": "b"}]}, 422, "inputs.1.more"),
        ("texts/predict", {"inputs": ["a"] * 257}, 422, "inputs"),
        ("texts/predict", {"inputs": "a" * 100_001}, 422, "inputs"),
        ("texts/explain", {"inputs": "a", "label": "dry"}, 422, "label"),
        ("questions/predict", {"inputs": "a"}, 422, "inputs"),
        ("questions/predict", {"inputs": {"question": "a", "context": " "}}, 422, "inputs.context"),
        ("questions/predict", {"inputs": [ASKED, ASKED | {"context": ""}]}, 422, "inputs.1.context"),
        ("masks/predict", {"inputs": "no mask"}, 422, "inputs"),
        ("masks/predict", {"inputs": {"text": "no mask"}}, 422, "inputs.text"),
        ("masks/predict", {"inputs": ["a [MASK]", "no mask"]}, 422, "inputs.1"),
        ("masks/predict", {"inputs": ["a [MASK]", "a " * 300 + "[MASK]"]}, 422, "inputs.1"),
        ("masks/predict", {"inputs": "a [MASK]", "parameters": {"targets": ["qqq"]}}, 422, "parameters.targets"),
        ("masks/predict", {"inputs": "a [MASK]", "parameters": {"targets": ["a"] * 51}}, 422, "parameters.targets"),
        ("masks/embed", {"inputs": "a " * 300, "truncate": False}, 422, "inputs"),
        ("texts/predict", {"inputs": "a", "parameters": 3}, 422, "parameters"),
        ("masks/similarity", {"inputs": {"source_sentence": "a"}}, 422, "inputs.sentences"),
    ],
)
def test_invalid_requests_name_the_field(served, path, body, code, field):
    response = served[0].post(f"/v1/{path}", json=body)
    assert response.status_code == code, response.text
    answer = response.json()
    assert answer["error"] and "\n" not in answer["error"]
    assert answer.get("field", "") == field and ("field" in answer) == (code == 422)


@pytest.mark.parametrize("method, path, code", [("GET", "/nothing", 404), ("GET", "/v1/texts/predict", 405)])
def test_paths_that_are_not_there(served, method, path, code):
    response = served[0].request(method, path)
    assert response.status_code == code and response.json()["error"].startswith(f"GET '{path}': ")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"inputs": "\\ud800"}', b"[" * 100_000, b'{"inputs": NaN}']
)
def test_bodies_that_are_not_json(served, content):
    response = served[0].post("/v1/texts/predict", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 422 and response.json()["error"] and response.json()["field"]


def test_other_types_are_refused(served):
    """A page of another site may send plain text to any server without asking."""
    response = served[0].post("/v1/texts/predict", content='{"inputs": "a"}', headers={"content-type": "text/plain"})
    assert response.status_code == 415
