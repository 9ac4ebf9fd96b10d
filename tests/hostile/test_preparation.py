"""Preparations that are killed at any moment, meet each other, or fill the disk: nothing is lost, and nothing doubled."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bert_jax.data.corpus import prepare
from tests.data.corpus.test_corpus import contents, make, some_documents
from tests.hostile.limits import python
from tests.running import ROOT, assert_one_line, environment, finish, run, start, wait_until

DOCUMENTS, MEGABYTES = 24, 0.006
SHARDS = {"shard_megabytes": MEGABYTES}

# Prepares a corpus in forks of this process, since importing takes seconds. For each line of its input, `FOLDER MOMENT`, a fork
# begins or resumes, and kills itself with SIGKILL before the MOMENT-th call (from 1) that changes a file or folder; 0: not at
# all. Prints the number of these calls so far and whether it was killed.
FORKS = f"""
import os, signal, sys
from pathlib import Path
from tests.data.corpus.test_corpus import make, some_documents

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.symlink", "os.link")
documents = some_documents({DOCUMENTS})

def prepare(folder, moment, pipe):
    moments = 0
    def count(event, arguments):
        nonlocal moments
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in CHANGES:
            moments += 1
            if moments == moment:
                os.write(pipe, b"%d killed" % moments)
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    make(Path(folder), documents, shard_megabytes={MEGABYTES})
    os.write(pipe, b"%d finished" % moments)

for line in sys.stdin:
    folder, moment = line.split()
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            prepare(folder, int(moment), writing)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    print(os.read(reading, 100).decode() or "0 failed", flush=True)
    os.close(reading)
"""


class Forks:
    """The process of FORKS."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            python(FORKS), env=environment(1), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def prepare(self, folder: Path, moment: int = 0) -> tuple[int, str]:
        """Returns how many moments a preparation has come to, and 'killed' or 'finished'."""
        assert self.process.stdin and self.process.stdout
        print(folder, moment, file=self.process.stdin, flush=True)
        moments, end = self.process.stdout.readline().split()
        return int(moments), end


@pytest.fixture(scope="module")
def forks():
    forks = Forks()
    yield forks
    with forks.process:
        forks.process.stdin.close()
    assert forks.process.returncode == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """The files of a preparation that was not disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "corpus"
    make(folder, some_documents(DOCUMENTS), **SHARDS)
    splits = json.loads((folder / "corpus.json").read_text())["splits"].values()
    assert sum(len(split["shards"]) for split in splits) >= 6
    return contents(folder)


def test_killed_twenty_times(forks, whole, tmp_path):
    """Each time a little further; when it is finished all the same, another one begins."""
    rng, kills, folder = np.random.default_rng(0), 0, tmp_path / "first"
    while kills < 20:
        _, end = forks.prepare(folder, moment=int(rng.integers(2, 16)))
        if end == "killed":
            kills += 1
            continue
        assert end == "finished" and contents(folder) == whole
        folder = tmp_path / f"after {kills}".replace(" ", "_")
    assert forks.prepare(folder)[1] == "finished"
    assert contents(folder) == whole


@pytest.mark.slow
def test_killed_at_any_moment(forks, whole, tmp_path):
    """Before each change of the file system, from the first to the last; then resumed."""
    last, end = forks.prepare(tmp_path / "undisturbed")
    assert end == "finished" and last > 60
    for moment in range(1, last + 1):
        folder = tmp_path / str(moment)
        assert forks.prepare(folder, moment) == (moment, "killed")
        assert forks.prepare(folder)[1] == "finished"
        assert contents(folder) == whole, moment


def flags(folder: Path, output: Path, *more: str) -> list[str]:
    tool = [sys.executable, "tools/prepare_corpus.py", f"--source=text:{folder}/texts.txt", f"--output={output}"]
    return [*tool, f"--tokenizer={folder}/tokenizer", "--shard_megabytes=0.05", *more]


@pytest.fixture(scope="module")
def source(documents, tokenizer, tmp_path_factory) -> Path:
    """Texts for some dozen shards, and a tokenizer."""
    folder = tmp_path_factory.mktemp("source")
    tokenizer.save(folder / "tokenizer")
    texts = "\n\n".join(document.text.replace("\n", " ") for document in documents)
    (folder / "texts.txt").write_text("\n\n".join([texts] * 20))
    return folder


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory) -> dict[str, bytes]:
    """The files of a corpus that one process has prepared from them."""
    output = tmp_path_factory.mktemp("undisturbed") / "corpus"
    run(flags(source, output))
    return contents(output)


def test_two_at_once(source, undisturbed, tmp_path):
    """The second one is refused, and the first one does not notice."""
    output = tmp_path / "corpus"
    first = start(flags(source, output, "--workers=2"))
    wait_until(lambda: list(output.glob("unfinished/0*.json")), first)
    first.send_signal(signal.SIGSTOP)  # so that it does not finish meanwhile
    second = run(flags(source, output), code=2)
    first.send_signal(signal.SIGCONT)
    assert_one_line(
        second.stderr, f"{output}/unfinished: in use by process {first.pid} on ", "wait for it, stop it, or choose"
    )
    assert finish(first).returncode == 0
    assert contents(output) == undisturbed


def test_started_at_the_same_moment(source, undisturbed, tmp_path):
    """One prepares the corpus; the others are refused, or come when it is finished."""
    output = tmp_path / "corpus"
    processes = [start(flags(source, output)) for _ in range(3)]
    done = [finish(process) for process in processes]
    assert sum("already" not in one.stdout and one.returncode == 0 for one in done) == 1
    for one in done:
        if one.returncode:
            assert one.returncode == 2 and ("in use by" in one.stderr or "has just finished it" in one.stderr), (
                one.stderr
            )
    assert contents(output) == undisturbed


@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk(source, undisturbed, tmp_path, workers):
    """The system refuses to let any file grow beyond a limit; with enough space the same command continues."""
    output, command = tmp_path / "corpus", flags(source, tmp_path / "corpus", f"--workers={workers}")
    limited = f"ulimit -f 50 && exec {' '.join(command)}"  # KiB: less than a shard
    done = finish(start(["bash", "-c", limited]))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"error: {output}/unfinished: cannot be written (") and "File too large" in line
    assert line.endswith("free some space or write elsewhere, and start again")
    assert {path.suffix for path in (output / "unfinished").iterdir()} <= {".json", ""}, "a fragment takes space"
    run(command)
    assert contents(output) == undisturbed


def test_full_disk_at_the_end(whole, tmp_path, monkeypatch):
    """Also where the last and smallest files are written."""
    limits, written = resource.getrlimit(resource.RLIMIT_FSIZE), prepare.corpus_card

    def full(index):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        return written(index)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="File too large") as error:
        patch.setattr(prepare, "corpus_card", full)
        try:
            make(tmp_path / "c", some_documents(DOCUMENTS), **SHARDS)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.filename.endswith("README.md") and not (tmp_path / "c" / "corpus.json").exists()
    make(tmp_path / "c", [], **SHARDS)  # needs no document any more
    assert contents(tmp_path / "c") == whole
