"""Preparation on Apache Beam: processes of Direct runners, and Dask's workers, of which one is killed in the middle."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from bert_jax import errors
from bert_jax.data.corpus import beam, inspection
from bert_jax.data.corpus.beam import pipeline_options, run_on_beam
from bert_jax.data.corpus.cleaning import Cleaning
from bert_jax.data.corpus.prepare import prepare_distributed
from bert_jax.data.sources.documents import Source
from bert_jax.errors import UserError
from tests.data.corpus.test_cleaning import ALL, repeated_documents
from tests.data.corpus.test_corpus import FRACTION, TOKENIZER, contents, fails, some_documents
from tests.data.corpus.test_distributed import in_one_process, write_source
from tests.running import ROOT, assert_one_line, environment, finish, run, start, wait_until

PROCESSES = "--direct_running_mode=multi_processing --direct_num_workers=2"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """A part for each file."""
    monkeypatch.setattr(inspection, "_PART_BYTES", 1)


@pytest.mark.parametrize("options", ["", PROCESSES, "--runner=BundleBasedDirectRunner"])
def test_direct_runners(options, apache_beam, rensa, tmp_path):
    cleaning = Cleaning(**ALL, drop_near_duplicates=0.9)
    source = write_source("jsonl", tmp_path / "source", repeated_documents())
    one = in_one_process(source, tmp_path / "one", cleaning)
    settings = {"held_out_fraction": FRACTION, "shard_megabytes": 0.02, "cleaning": cleaning}
    assert prepare_distributed(source, TOKENIZER, tmp_path / "beam", partial(run_on_beam, options), **settings) == one
    assert contents(tmp_path / "beam") == contents(tmp_path / "one")


# ----------------------------------------------------------------------------------------------------------------------
# The command
# ----------------------------------------------------------------------------------------------------------------------


def command(source: Source, output: Path, *flags: str) -> list[str]:
    tokenizer = f"--tokenizer={output.parent}/tokenizer"
    tool = [sys.executable, str(ROOT / "tools" / "prepare_corpus.py"), f"--source={source.spec}", tokenizer]
    return [*tool, f"--output={output}", f"--held_out={FRACTION}", "--shard_megabytes=0.02", *flags]


@pytest.fixture
def source(tmp_path) -> Source:
    TOKENIZER.save(tmp_path / "tokenizer")
    return write_source("jsonl", tmp_path / "source", some_documents(120), files=6)


def test_the_command(apache_beam, source, tmp_path):
    """Errors of a worker come out as locally, on one line; the same command then continues."""
    path = tmp_path / "source" / "3.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    flags = ["--runner=beam", f"--beam_options={PROCESSES}"]
    local, failed = (run(command(source, tmp_path / name, *more), code=2) for name, more in (("l", []), ("b", flags)))
    assert failed.stderr.splitlines()[-1] == local.stderr.splitlines()[-1]
    assert f"{path}:" in failed.stderr and "Traceback" not in failed.stderr
    path.write_bytes(whole)
    done = run(command(source, tmp_path / "b", *flags))
    assert "shards are written" in done.stderr and "Traceback" not in done.stderr
    in_one_process(source, tmp_path / "one")
    assert contents(tmp_path / "b") == contents(tmp_path / "one")


def test_a_full_disk_of_a_worker(apache_beam, source, tmp_path):
    words = command(source, tmp_path / "c", "--runner=beam", f"--beam_options='{PROCESSES}'")
    done = finish(start(["bash", "-c", f"ulimit -f 40 && exec {' '.join(words)}"]))  # KiB: less than a shard
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and line.startswith("error: ") and "File too large" in line and "start again" in line
    run(command(source, tmp_path / "c", "--runner=beam"))
    in_one_process(source, tmp_path / "one")
    assert contents(tmp_path / "c") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--beam_options=--runner=DaskRunner"], "--beam_options: are for --runner=beam; set that as well"),
        (["--runner=beam", "--workers=2"], "--workers: is for --runner=local; set the workers of Beam in"),
    ],
)
def test_flags_that_do_not_belong_together(flags, message, source, tmp_path):
    assert_one_line(run(command(source, tmp_path / "c", *flags), code=2).stderr, message)


def test_a_package_that_is_missing(monkeypatch):
    def missing(name):
        raise ImportError(name, name=name.partition(".")[0])

    monkeypatch.setattr(errors.importlib, "import_module", missing)
    problem = "runner=beam: needs the package apache_beam, which is .*; pip install -r requirements-beam"
    fails(problem, lambda: pipeline_options(""))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--runner=Nope", "Unexpected pipeline runner: Nope"),
        ("--runner=no_such_module.Runner", "No module named 'no_such_module'"),
        ("--direct_num_workers=x", "invalid int value: 'x'"),
        ("'", "No closing quotation"),
    ],
)
def test_invalid_options(options, problem, apache_beam):
    with pytest.raises(UserError, match=problem) as error:
        pipeline_options(options)
    assert str(error.value).startswith(f"beam_options={options!r}: ")


def test_an_unknown_option(apache_beam, caplog):
    with caplog.at_level(logging.WARNING, logger=beam.__name__):
        pipeline_options("--direct_num_worker=2")
    assert any(
        "--direct_num_worker=2" in record.getMessage() for record in caplog.records if record.name == beam.__name__
    )


# ----------------------------------------------------------------------------------------------------------------------
# Dask
# ----------------------------------------------------------------------------------------------------------------------


class Cluster:
    """A scheduler and workers, each a process on the loopback interface, which see the files that the tests see."""

    def __init__(self, distributed: ModuleType, folder: Path):
        folder.mkdir()
        self._folder, self.workers = folder, list[subprocess.Popen]()
        self._file = folder / "scheduler.json"
        self._scheduler = self._start("scheduler", "--port=0", f"--scheduler-file={self._file}", "--no-dashboard")
        wait_until(self._file.exists, self._scheduler)
        self.client = distributed.Client(scheduler_file=str(self._file))

    @property
    def options(self) -> str:
        return f"--runner=DaskRunner --dask_scheduler_file={self._file}"

    def start_workers(self, count: int) -> None:
        flags = [f"--scheduler-file={self._file}", "--nthreads=1", "--no-nanny", "--no-dashboard"]
        self.workers += [self._start("worker", *flags) for _ in range(count)]
        self.client.wait_for_workers(count, timeout=120)

    def _start(self, kind: str, *flags: str) -> subprocess.Popen:
        arguments = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--host=127.0.0.1", *flags]
        with (self._folder / f"{kind}.log").open("a") as log:
            return subprocess.Popen(arguments, env=environment(1), cwd=self._folder, stdout=log, stderr=log)

    def stop(self) -> None:
        self.client.close()
        for process in (*self.workers, self._scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(distributed, tmp_path) -> Iterator[Cluster]:
    cluster = Cluster(distributed, tmp_path / "cluster")
    yield cluster
    cluster.stop()


def slowly(function: Callable[[int], None], number: int) -> None:
    """Does a piece of work so slowly that there is time to kill the process, before and after."""
    time.sleep(0.2)
    function(number)
    time.sleep(0.2)


def kill_a_busy_worker(cluster: Cluster, stage: Callable[[], object]) -> None:
    """Kills a worker that has work to do, when a stage has begun."""
    pids = cluster.client.run(os.getpid)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        busy = [address for address, keys in cluster.client.processing().items() if keys]
        if stage() and busy:
            os.kill(pids[busy[0]], signal.SIGKILL)
            return
        time.sleep(0.01)


@pytest.mark.parametrize("stage", ["inspected/*.rows", "0*.array_record"])
def test_a_worker_that_is_killed(stage, cluster, tmp_path):
    """The other one does its work, and the driver goes on."""
    source = write_source("jsonl", tmp_path / "source", some_documents(60), files=6)
    cluster.start_workers(2)
    work = tmp_path / "corpus" / "unfinished"
    killer = threading.Thread(target=kill_a_busy_worker, args=(cluster, lambda: list(work.glob(stage))))
    killer.start()

    def for_each(function: Callable[[int], None], numbers: Sequence[int]) -> None:
        run_on_beam(cluster.options, partial(slowly, function), numbers)

    settings = {"held_out_fraction": FRACTION, "shard_megabytes": 0.02}
    summary = prepare_distributed(source, TOKENIZER, tmp_path / "corpus", for_each, **settings)
    killer.join()
    assert sorted(worker.poll() is None for worker in cluster.workers) == [False, True]
    assert summary == in_one_process(source, tmp_path / "one")
    assert contents(tmp_path / "corpus") == contents(tmp_path / "one")


def test_the_command_on_a_cluster_that_is_lost(cluster, source, tmp_path):
    """It waits for another worker; when it is killed, too, the same command continues with another runner."""
    output, work = tmp_path / "corpus", tmp_path / "corpus" / "unfinished"
    cluster.start_workers(1)
    driver = start(command(source, output, "--runner=beam", f"--beam_options={cluster.options}"))
    wait_until(lambda: list(work.glob("0*.json")), driver)
    cluster.workers[0].kill()
    time.sleep(0.5)
    assert driver.poll() is None
    driver.kill()
    finish(driver)
    written = {path.stat().st_mtime_ns for path in work.glob("*.array_record")}
    run(command(source, output))
    assert written & {path.stat().st_mtime_ns for path in output.glob("*array_record*")}
    in_one_process(source, tmp_path / "one")
    assert contents(output) == contents(tmp_path / "one")
