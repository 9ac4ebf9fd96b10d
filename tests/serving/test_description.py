"""The description of the API (OpenAPI): complete, and true of real answers, also of those to bodies made from it."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from pydantic import TypeAdapter

from bert_jax.serving import responses
from bert_jax.serving.server import Limits

TEXT = "the old river and a quiet ship"
ASKED = {"question": "ship", "context": "the old river was quiet and a ship was on the river"}
# Requests that are answered: run, operation, body.
ANSWERED: list[tuple[str, str, dict[str, Any]]] = [
    ("texts", "predict", {"inputs": TEXT}),
    ("texts", "predict", {"inputs": []}),
    ("several", "predict", {"inputs": [TEXT, "a"]}),
    ("words", "predict", {"inputs": TEXT}),
    ("words", "predict", {"inputs": [TEXT, ""]}),
    ("words", "predict", {"inputs": TEXT, "parameters": {"aggregation_strategy": "none", "ignore_labels": []}}),
    ("questions", "predict", {"inputs": ASKED}),
    ("questions", "predict", {"inputs": ASKED, "parameters": {"top_k": 3}}),
    ("questions", "predict", {"inputs": [ASKED, ASKED], "parameters": {"top_k": 3}}),
    ("masks", "predict", {"inputs": "a [MASK]"}),
    ("masks", "predict", {"inputs": "a [MASK] [MASK]"}),
    ("masks", "predict", {"inputs": ["a [MASK]", "[MASK] [MASK]"]}),
    ("masks", "embed", {"inputs": [TEXT, "a"]}),
    ("masks", "similarity", {"inputs": [TEXT, "a"]}),
    ("masks", "similarity", {"inputs": {"source_sentence": TEXT, "sentences": ["a"]}}),
    ("several", "explain", {"inputs": TEXT}),
    ("questions", "tokens", {"inputs": ASKED}),
]


@pytest.fixture(scope="module")
def description(served) -> dict[str, Any]:
    return served[0].get("/openapi.json").json()


@pytest.fixture(scope="module")
def schema(description):
    return schemathesis.openapi.from_dict(description)


def operations(description: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def undescribed(place: str, node: Any) -> Iterator[str]:
    """Yields the places of fields without a description below a part of the description."""
    if isinstance(node, list):
        for number, part in enumerate(node):
            yield from undescribed(f"{place}[{number}]", part)
    if isinstance(node, dict):
        properties = node.get("properties", {})
        for name, field in properties.items() if isinstance(properties, dict) else ():
            if not field.get("description"):
                yield f"{place}.{name}"
        for name, part in node.items():
            yield from undescribed(f"{place}.{name}", part)


def test_everything_is_described(description):
    assert [*undescribed("", description)] == []
    named = {tag["name"] for tag in description["tags"] if tag["description"]}
    for name, operation in operations(description):
        assert operation["summary"] and operation["description"] and set(operation["tags"]) <= named, name
        parts = [*operation.get("parameters", []), *operation["responses"].values()]
        parts += [operation["requestBody"]] if "requestBody" in operation else []
        assert all(part["description"] for part in parts), name
    shapes = description["components"]["schemas"]
    assert shapes and all(shape["description"] for shape in shapes.values())


def test_every_response_has_a_shape(description):
    for name, operation in operations(description):
        wanted = {"200", "400"}
        if name.startswith("post"):
            wanted |= {"401", "404", "413", "422", "429", "503", "504"}
        assert wanted <= operation["responses"].keys(), name
        for status, response in operation["responses"].items():
            (content,) = response["content"].values()
            assert content["schema"], (name, status)
        assert all("retry-after" in operation["responses"][code]["headers"] for code in wanted & {"429", "503"})


def test_no_references_in_bodies_and_nothing_of_other_hosts(description, served):
    """The references of a part would not hold in the whole."""
    assert "$ref" not in str([operation.get("requestBody") for _, operation in operations(description)])
    page = served[0].get("/docs").text
    assert "swagger" in page and "https://" not in page


@pytest.mark.parametrize(("run", "name", "body"), ANSWERED)
def test_answers_have_the_declared_shape(served, schema, run, name, body):
    response = served[0].post(f"/v1/{run}/{name}", json=body)
    assert response.status_code == 200, response.text
    schema[f"/v1/{{run}}/{name}"]["POST"].validate_response(response)
    if name == "predict":  # the declared shape is that of any kind of run
        shape = responses.PREDICTIONS[served[1].runs[run].kind]
        TypeAdapter(shape).validate_json(response.content, strict=True)


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/runs"])
def test_answers_about_the_server_have_the_declared_shape(served, schema, path):
    schema[path]["GET"].validate_response(served[0].get(path))


def test_errors_have_the_declared_shape(serve, schema):
    predict = schema["/v1/{run}/predict"]["POST"]
    with serve(Limits(body_bytes=100), token="a-secret-of-some-length") as (client, server):
        key = {"authorization": "Bearer a-secret-of-some-length"}

        def status(path: str, content: str, **headers: str) -> int:
            kind = {"content-type": "application/json"}
            response = client.post(path, content=content, headers=kind | key | headers)
            predict.validate_response(response)
            return response.status_code

        assert status("/v1/texts/predict", '{"inputs": "a"}', host="other.example") == 400
        assert status("/v1/texts/predict", '{"inputs": "a"}', authorization="") == 401
        assert status("/v1/none/predict", '{"inputs": "a"}') == 404
        assert status("/v1/texts/predict", " " * 200) == 413
        assert status("/v1/texts/predict", "[]") == 422
        server.is_compiled = False
        assert status("/v1/texts/predict", '{"inputs": "a"}') == 503
        schema["/ready"]["GET"].validate_response(client.get("/ready"))


def test_the_token_is_a_security_scheme(description, serve):
    assert "securitySchemes" not in description["components"]
    with serve(token="a-secret-of-some-length") as (client, _):
        secured = client.get("/openapi.json").json()
        (scheme,) = secured["components"]["securitySchemes"].items()
        assert scheme[1]["type"] == "http" and scheme[1]["scheme"] == "bearer" and scheme[1]["description"]
        for name, operation in operations(secured):
            path = name.split()[1]
            needs_token = client.request(name.split()[0], path).status_code == 401
            assert operation.get("security", []) == ([{scheme[0]: []}] if needs_token else []), name


@pytest.mark.parametrize("name", ["predict", "embed", "similarity", "explain", "tokens"])
def test_bodies_made_from_the_description(served, schema, name):
    """Bodies of the declared form get an answer or an error of the declared form, whatever the run."""

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=schema[f"/v1/{{run}}/{name}"]["POST"].as_strategy())
    def check(case):
        for run in ("texts", "masks"):
            response = served[0].post(f"/v1/{run}/{name}", json=case.body)
            assert response.status_code in (200, 404, 422), response.text
            case.operation.validate_response(response)

    check()
