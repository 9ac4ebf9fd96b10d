"""Damaged, abandoned and random requests of many clients at once, and bodies made from the API's own description."""

import asyncio
import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tools.lib.load import measure_load
from tools.soak_server import ALLOWED, soak

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TEXTS = st.text(max_size=60)
BODIES = st.fixed_dictionaries(
    {
        "inputs": TEXTS
        | st.lists(TEXTS, max_size=5)
        | st.dictionaries(st.sampled_from(["text", "question", "context"]), TEXTS)
        | JSON
    },
    optional={"parameters": st.dictionaries(st.sampled_from(["top_k", "targets", "ignore_labels"]), JSON, max_size=2)},
)


def test_many_clients_with_damaged_and_abandoned_requests(served, capsys):
    """Each request that a client waits for is answered, none with 500, and what is abandoned leaves the queue."""
    client, server = served
    with capsys.disabled():
        counts, _ = asyncio.run(soak(client.base_url.port, os.getpid(), "texts", 4.0, 16, 0, quiet=True))
    assert counts.keys() <= ALLOWED and counts[200] > 20 and counts[422] > 5 and counts[413] + counts[404] > 0, counts
    load = measure_load(client.base_url.port, "/v1/texts/predict", [{"inputs": "the river"}], 8, 0.3)
    assert load.failures == 0 and load.statuses and server.scheduler.waiting_tokens == 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run=st.sampled_from(["texts", "words", "questions", "masks"]), body=BODIES | JSON, data=st.data())
def test_any_body_has_an_answer(served, run, body, data):
    operation = data.draw(st.sampled_from(["predict", "embed", "similarity", "explain", "tokens"]))
    response = served[0].post(f"/v1/{run}/{operation}", json=body)
    assert response.status_code in ALLOWED - {503, 504}, response.text
    assert response.status_code == 200 or response.json()["error"].isprintable()
