"""The command: a process that serves, is measured by its answers, and ends as it is told to."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.running import assert_one_line, command, finish, run, start


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def test_serves_until_it_is_told_to_stop(run_folders, tmp_path):
    """Ready once compiled; SIGTERM during a request: it is answered, new ones are not, and the exit code is 0."""
    port = free_port()
    process = start(command("serve", f"--workdir={run_folders['masks']}", f"--port={port}"))
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            deadline = time.monotonic() + 120
            while True:
                assert time.monotonic() < deadline and process.poll() is None, finish(process)
                try:
                    if client.get("/ready").status_code == 200:
                        break
                except httpx.ConnectError:
                    pass
                time.sleep(0.05)
            assert client.get("/v1/runs").json()[0]["name"] == "masks"
            texts, answers = ["the [MASK] river"] * 256, []
            asked = threading.Thread(
                target=lambda: answers.append(client.post("/v1/masks/predict", json={"inputs": texts}))
            )
            asked.start()
            while "bert_jax_batch_tokens_count 0" in client.get("/metrics").text and not answers:
                time.sleep(0.002)
            os.kill(process.pid, signal.SIGTERM)
            asked.join(timeout=60)
        assert len(answers[0].json()) == 256
        done = finish(process)
        assert done.returncode == 0, done
        assert "Traceback" not in done.stderr and '"event": "ready"' in done.stderr
        assert all(text not in done.stderr for text in ("[MASK]", "river")), "texts of clients are not in the log"
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([], ["--workdir is missing"]),
        (["--workdir=/nowhere"], ["/nowhere"]),
    ],
)
def test_mistakes_are_one_line(flags, parts):
    assert_one_line(run(command("serve", *flags), code=2).stderr, *parts)


def test_names_of_runs(tmp_path, monkeypatch):
    """A name before '='; folders whose names hold one stay folders."""
    from bert_jax.errors import UserError
    from bert_jax.serving.runs import named_folder

    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").mkdir()
    assert named_folder("films=runs/a=b") == ("films", Path("runs/a=b"))
    assert named_folder("runs/lr=3") == ("lr=3", Path("runs/lr=3"))
    assert named_folder("lr=3") == ("lr=3", Path("lr=3")) and named_folder("wd=3") == ("wd", Path("3"))
    assert named_folder(".") == (tmp_path.name, Path())
    for workdir in ("=runs/a", "films=", " =a"):
        with pytest.raises(UserError, match="give --workdir=NAME=FOLDER"):
            named_folder(workdir)


def test_an_address_in_use_and_a_free_one():
    from bert_jax.errors import UserError
    from bert_jax.serve import listen

    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(UserError, match=f"--port={port}: Address already in use"):
            listen("127.0.0.1", port)


def test_two_runs_of_one_name_and_short_tokens(run_folders, tmp_path):
    (tmp_path / "masks").symlink_to(run_folders["masks"])
    from bert_jax.errors import UserError
    from bert_jax.serve import read_token
    from bert_jax.serving.runs import load_runs

    with pytest.raises(
        UserError, match=r"several runs are named masks.*; give one another name, --workdir=NAME=FOLDER"
    ):
        load_runs([run_folders["masks"], str(tmp_path / "masks")], 64)
    loaded = load_runs([run_folders["masks"], f"other={tmp_path / 'masks'}"], 64)
    assert {name: run.describe()["name"] for name, run in loaded.items()} == {"masks": "masks", "other": "other"}
    with pytest.raises(UserError, match="several runs are named other"):
        load_runs([f"other={run_folders['masks']}", f"other={tmp_path / 'masks'}"], 64)
    with pytest.raises(UserError, match="/no/token"):
        read_token("/no/token")
    (tmp_path / "token").write_text("short\n")
    with pytest.raises(UserError, match="at least 16 characters"):
        read_token(str(tmp_path / "token"))
    (tmp_path / "token").write_text("long-enough-to-keep\n")
    assert read_token(str(tmp_path / "token")) == "long-enough-to-keep" and read_token("") == ""
