"""Runs of each kind, made of the golden models, and a server of them in a thread of this process, on a port of its own."""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from playwright import sync_api as playwright

from bert_jax.conversion import convert as conversion
from bert_jax.parallel.mesh import make_mesh
from bert_jax.serving.app import LOCAL_HOSTS, make_app
from bert_jax.serving.runs import load_runs
from bert_jax.serving.server import Limits, Server
from tests.serving.browsing import CHROMIUM, DESKTOP


def named(*labels: str) -> dict[str, dict]:
    """The entries of config.json that name the classes of a head."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}}


LABELS, TAGS = named("calm", "old", "wet"), named("B-SHIP", "I-SHIP", "O", "B-RIVER")
SENTENCES = "old O O\nships B-SHIP O\n\nthe O O\nriver B-RIVER O\n"
CASES = {
    "texts": ("bert/sequence_classification", LABELS),
    "several": ("roberta/sequence_classification", LABELS | {"problem_type": "multi_label_classification"}),
    "words": ("bert/token_classification", TAGS),
    "questions": ("bert/question_answering", {}),
    "masks": ("bert/masked_lm", {}),
}


@pytest.fixture(scope="session")
def run_folders(model_folder, tmp_path_factory) -> dict[str, str]:
    """Folders of a run of each kind, by name."""
    folders, parent = {}, tmp_path_factory.mktemp("served")
    for name, (case, changes) in CASES.items():
        folder = model_folder(case)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        conversion.import_run(folder, parent / name)
        if name == "words":  # as if it had been evaluated
            (parent / name / "predictions").mkdir()
            (parent / name / "predictions" / "validation.conll").write_text(SENTENCES)
        folders[name] = str(parent / name)
    return folders


@pytest.fixture(scope="session")
def runs(run_folders):
    """The runs, compiled, with their parameters on a single device, as on most machines that serve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bert_jax.trained.make_mesh", lambda config, devices: make_mesh(config, devices[:1]))
        loaded = load_runs(list(run_folders.values()), batch_tokens=64)
    for run in loaded.values():
        run.compile()
    return loaded


@pytest.fixture(scope="session")
def serve(runs) -> Callable:
    """`with serve(Limits(...), token="...") as (client, server)`: a running server and a client of it."""

    @contextmanager
    def serving(limits: Limits | None = None, token: str = "", hosts=LOCAL_HOSTS):
        server = Server(runs, limits or Limits())
        server.compile = lambda: setattr(server, "is_compiled", True)
        listening = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(make_app(server, token, hosts), access_log=False, log_config=None)
        process = uvicorn.Server(config)
        thread = threading.Thread(target=process.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with httpx.Client(base_url=address, timeout=60.0) as client:
            while not (process.started and server.is_ready):
                time.sleep(0.01)
            yield client, server
        process.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive() and not server.scheduler.is_alive

    return serving


@pytest.fixture(scope="session")
def served(serve):
    """A client and the server of all runs, with default limits."""
    with serve() as both:
        yield both


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
