"""Processes that meet, are interrupted, lose their folder, or write where nobody reads: with real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bert_jax.conversion.convert import check_new, claimed
from bert_jax.data.corpus.prepare import prepare
from bert_jax.lock import LOCK, locked
from bert_jax.train.loop import EXIT_STOPPED
from tests.hostile.limits import python, refused
from tests.running import (
    ROOT,
    assert_one_line,
    checkpoints,
    command,
    config_flag,
    environment,
    finish,
    losses,
    rows,
    run,
    start,
    wait_until,
)
from tests.test_processes import free_port

SECONDS_TO_END = 30.0  # of a process that failed or was interrupted; Orbax's threads would wait 600
ENDLESS = {"train.num_steps": 1_000_000, "train.log_every": 1, "checkpoint.keep_last": 3}


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """Also where these tests run in the background of a script: there SIGINT is ignored, and processes inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def flag(tiny_config, tmp_path_factory) -> str:
    """The config of a run that does not end by itself, and saves only at its end."""
    settings = ENDLESS | {"checkpoint.every": 1_000_000}
    return config_flag(tiny_config(**settings), tmp_path_factory.mktemp("config"))


def pretrain(flag: str, workdir: Path, *flags: str) -> subprocess.Popen[str]:
    return start(command("pretrain", flag, f"--workdir={workdir}", *flags))


def trains(workdir: Path, process: subprocess.Popen[str], step: int = 3) -> None:
    """Returns when a process has written the row of a step."""
    wait_until(lambda: max(losses(workdir), default=0) >= step, process)


def ends(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Asserts that a process ends in seconds, without a traceback."""
    begin = time.monotonic()
    done = finish(process)
    assert time.monotonic() - begin < SECONDS_TO_END
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done


def assert_error(stderr: str, *parts: str) -> None:
    """Asserts that the last line is the only error."""
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert stderr.splitlines()[-1] == line
    for part in parts:
        assert part in line, line


# ----------------------------------------------------------------------------------------------------------------------
# One folder
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_training_is_refused_and_a_killed_one_leaves_no_lock(flag, tmp_path):
    workdir = tmp_path / "run"
    first = pretrain(flag, workdir)
    trains(workdir, first)
    second = ends(pretrain(flag, workdir))
    assert second.returncode == 2
    assert_one_line(second.stderr, f"{workdir}: in use by process {first.pid} on ", "(pretrain, since ", "--workdir")

    reached = max(losses(workdir))
    trains(workdir, first, reached + 3)  # as if nothing had been
    first.kill()
    finish(first)
    third = pretrain(flag, workdir)
    wait_until(lambda: f"process {third.pid} " in (workdir / LOCK).read_text(), third)
    time.sleep(0.5)
    third.send_signal(signal.SIGKILL)
    assert "error" not in finish(third).stderr


@pytest.mark.parametrize("what", ["removed", "replaced", "moved"])
def test_a_run_folder_that_goes_is_noticed(flag, tmp_path, what):
    workdir = tmp_path / "run"
    process = pretrain(flag, workdir)
    trains(workdir, process)
    workdir.rename(tmp_path / "elsewhere")
    if what == "replaced":
        shutil.copytree(tmp_path / "elsewhere", workdir)
    if what == "removed":
        shutil.rmtree(tmp_path / "elsewhere")
    done = ends(process)
    assert done.returncode == 2
    assert_error(done.stderr, f"{workdir}: removed or replaced", "start again")
    assert what == "replaced" or not workdir.exists(), "made again"


@pytest.mark.slow
def test_a_failed_save_ends_in_seconds(flag, tmp_path):
    """Orbax's threads then wait for a folder that is never made."""
    workdir = tmp_path / "run"
    process = pretrain(flag, workdir, "--config.checkpoint.every=40")
    trains(workdir, process)
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints").write_text("in the way")
    done = ends(process)
    assert done.returncode == 2
    assert_error(done.stderr, f"{workdir}/checkpoints: checkpoint could not be written", "no checkpoint is complete")


JOB = """
import sys
from pathlib import Path
from bert_jax.parallel import hosts
hosts.start(sys.argv[2])
from bert_jax.errors import UserError
try:
    with hosts.locked_by_job(Path(sys.argv[1]), "use another"):
        print("held")
except UserError as error:
    print(error)
"""


def test_all_processes_of_a_job_learn_who_holds_the_lock(tmp_path):
    def job() -> list[str]:
        address = f"localhost:{free_port()}"
        processes = [start(python(JOB, tmp_path, f"{address},2,{number}")) for number in range(2)]
        return [finish(process).stdout.splitlines()[-1] for process in processes]

    assert job() == ["held", "held"]
    with locked(tmp_path, "wait"):
        first, second = job()
    assert first == second and f"{tmp_path}: in use by process {os.getpid()} on " in first


def test_lock_that_is_not_a_file(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / LOCK).symlink_to(tmp_path / "victim")
    with refused("not a regular file; remove it"), locked(tmp_path, "wait"):
        pass
    (tmp_path / LOCK).unlink()
    os.mkfifo(tmp_path / LOCK)
    with refused("not a regular file; remove it"), locked(tmp_path, "wait"):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_two_preparations_of_one_corpus(documents, tokenizer, tmp_path):
    output = tmp_path / "corpus"
    with locked(output / "unfinished", "wait"):
        with refused(f"in use by process {os.getpid()} on ", "wait for it, stop it, or choose another folder"):
            prepare(documents, tokenizer, output, source="tests")
        assert [path.name for path in output.rglob("*")] == ["unfinished", LOCK]
    prepare(documents, tokenizer, output, source="tests")
    assert (output / "corpus.json").exists() and not list(output.rglob(LOCK))


def test_two_imports_into_one_folder(tmp_path):
    """The second finds the folder empty, then locked, and at last written."""
    output = tmp_path / "new"
    with claimed(output):
        check_new(output)
        with refused(f"{output}: in use by process {os.getpid()} on ", "another folder"), claimed(output):
            pass
        (output / "config.json").write_text("{}")
    assert [path.name for path in output.iterdir()] == ["config.json"]
    with refused(f"{output}: exists and is not empty; choose a new folder"), claimed(output):
        pass


# ----------------------------------------------------------------------------------------------------------------------
# Interrupts
# ----------------------------------------------------------------------------------------------------------------------


def test_an_interrupted_training_saves(flag, tmp_path):
    process = pretrain(flag, tmp_path)
    trains(tmp_path, process)
    process.send_signal(signal.SIGINT)
    done = ends(process)
    assert done.returncode == EXIT_STOPPED
    last = max(losses(tmp_path))
    assert checkpoints(tmp_path) == [last]
    *_, told, saved = done.stderr.splitlines()
    assert told.startswith("stopping after this step") and saved == f"told to stop: saved at step {last}"


STUCK = """
import signal, time
from bert_jax.parallel import hosts
stop = hosts.stop_signal()
with hosts.interrupts_stop():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        if stop.requested():
            print("told", flush=True)
"""


def test_a_second_interrupt_ends_at_once_and_a_second_sigterm_does_not():
    with start(python(STUCK)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
            assert process.stdout.readline() == "told\n"
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=SECONDS_TO_END) == -signal.SIGINT


@pytest.mark.parametrize("seconds", [0.5, 4.0])
def test_interrupted_where_there_is_nothing_to_save(tiny_bert, seconds):
    """While modules are imported, and while a command waits for input."""
    process = subprocess.Popen(
        command("predict", f"--workdir={tiny_bert}", "--input=-"),
        env=environment(1),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    assert process.stdin is not None and process.stderr is not None
    assert process.wait(timeout=SECONDS_TO_END) == 130
    assert process.stderr.read() == "interrupted\n"
    process.stdin.close()


def test_an_interrupted_preparation(tokenizer, documents, tmp_path):
    """Ctrl-C reaches the worker processes, too."""
    tokenizer.save(tmp_path / "tokenizer")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n\n".join(document.text.replace("\n", " ") for document in documents) * 400)
    output = tmp_path / "corpus"
    flags = [f"--source=text:{texts}", f"--tokenizer={tmp_path}/tokenizer", f"--output={output}"]
    process = subprocess.Popen(
        [sys.executable, "tools/prepare_corpus.py", *flags, "--shard_megabytes=0.02", "--workers=2"],
        env=environment(1),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    unfinished = output / "unfinished"
    wait_until(lambda: len(list(unfinished.glob("0*.json"))) > 2, process)
    assert f"process {process.pid} on " in (unfinished / LOCK).read_text()
    os.killpg(process.pid, signal.SIGINT)
    done = ends(process)
    assert done.returncode == 130 and done.stderr.splitlines()[-1] == "interrupted"
    assert not (output / "corpus.json").exists() and (unfinished / LOCK).read_text() == ""


# ----------------------------------------------------------------------------------------------------------------------
# Output
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("the old [MASK] river\n" * 3000)
    return path


@pytest.fixture(scope="module")
def predict(tiny_bert) -> str:
    """The start of a shell's command line that predicts."""
    return f"'{sys.executable}' -m bert_jax.predict --workdir='{tiny_bert}'"


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of bash, with pipefail."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env=environment(1) | variables,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr, done.stderr
    return done


def test_nobody_reads_the_answers(predict, texts):
    done = shell(f"{predict} --input={texts} | head -1")
    assert done.returncode == 141 and done.stdout.count(b"\n") == 1 and done.stderr == b""


def test_nobody_reads_the_help(predict):
    assert shell(f"{predict} --helpfull | head -1").returncode in (0, 1, 141)
    assert shell(f"'{sys.executable}' -m bert_jax --help | true").returncode in (0, 141)
    done = shell(f"'{sys.executable}' -m bert_jax.predict --help | true")
    assert done.returncode in (0, 141) and not done.stderr


@pytest.mark.parametrize(
    ("redirection", "part"), [(">/dev/full", b"No space left"), (">&-", b"Bad file"), (">&- <&- 2>&-", b"")]
)
def test_standard_output_that_takes_nothing(predict, redirection, part):
    done = shell(f"{predict} --text='a [MASK] ship' {redirection}")
    assert done.returncode == 2 and part in done.stderr and done.stderr.count(b"\n") == (1 if part else 0)


def test_answers_are_utf_8_in_any_locale(predict):
    done = shell(f"{predict} --text='ä [MASK]'", PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    assert json.loads(done.stdout.decode())["text"] == "ä [MASK]"


def test_names_that_are_not_utf_8(predict, tiny_bert, texts, tmp_path):
    folder = os.fsencode(tmp_path)
    (tmp_path / "one").write_text("a [MASK] ship\n")
    shutil.copy(tmp_path / "one", folder + b"/\xff")
    done = shell(f"{predict} --input='{tmp_path}/'$'\\xff' --output='{tmp_path}/'$'\\xfe'")
    assert done.returncode == 0, done.stderr
    assert json.loads(Path(os.fsdecode(folder + b"/\xfe")).read_text())["text"] == "a [MASK] ship"
    for option in ("workdir", "config.data.train"):
        done = shell(f"{predict} --text=x --{option}='{tmp_path}/'$'\\xff'")
        assert done.returncode == 2
        assert_one_line(done.stderr.decode(), f"--{option}=", "\\udcff: has bytes that are not UTF-8; rename")


ANSWERS = 3000


def test_answers_go_through_pipes_and_links(predict, texts, tmp_path):
    """A pipe, a link to a device, a link to a file, and standard output by its name."""
    pipe, null, link, file = (tmp_path / name for name in ("pipe", "null", "link", "file"))
    os.mkfifo(pipe)
    null.symlink_to("/dev/null")
    link.symlink_to("file")
    file.write_text("before")
    file.chmod(0o600)
    done = shell(f"cat {pipe} | wc -l & {predict} --input={texts} --output={pipe} 2>&-; wait; test -p {pipe}")
    assert done.returncode == 0 and int(done.stdout) == ANSWERS
    few = tmp_path / "few.txt"
    few.write_text("a [MASK] ship\n")
    for output in (null, link, "/dev/stdout"):
        done = shell(f"{predict} --input={few} --output={output}")
        assert done.returncode == 0 and done.stdout.count(b"\n") == (output == "/dev/stdout")
    assert null.is_symlink() and null.is_char_device() and link.is_symlink()
    assert json.loads(file.read_text())["text"] == "a [MASK] ship" and file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.txt", "file", "link", "null", "pipe"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make devices")
def test_a_device_stays_one(predict, tmp_path):
    null = tmp_path / "null"
    try:
        os.mknod(null, 0o666 | 0o020000, os.makedev(1, 3))
        null.write_text("")
    except OSError:
        pytest.skip("devices cannot be made here")
    assert shell(f"{predict} --text='a [MASK]' --output={null}").returncode == 0
    assert null.is_char_device()


def test_vectors_go_through_a_pipe(tiny_bert, tmp_path):
    pipe = tmp_path / "vectors.npy"
    os.mkfifo(pipe)
    (tmp_path / "texts.txt").write_text("the old river\na ship\n")
    found = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    flags = [f"--model={tiny_bert}", f"--input={tmp_path}/texts.txt"]
    run([sys.executable, "tools/embed.py", *flags, f"--output={pipe}"])
    reader.join()
    run([sys.executable, "tools/embed.py", *flags, f"--output={tmp_path}/file.npy"])
    assert pipe.is_fifo() and found == [(tmp_path / "file.npy").read_bytes()]
    assert np.load(tmp_path / "file.npy").shape[0] == 2


def test_rows_are_whole(flag, tmp_path):
    """A training told twice to stop, by both signals."""
    process = pretrain(flag, tmp_path)
    trains(tmp_path, process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    done = ends(process)
    assert done.returncode == EXIT_STOPPED, done.stderr
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, checkpoints(tmp_path)[-1] + 1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow
def test_workers_of_a_run_end_with_it(tiny_config, tmp_path, number):
    """Those that make its batches."""
    config = tiny_config(**ENDLESS, **{"data.workers": 2, "checkpoint.every": 10**6})
    process = start(command("pretrain", config_flag(config, tmp_path / "config"), f"--workdir={tmp_path}/run"))
    wait_until(lambda: any(row["step"] >= 3 for row in rows(tmp_path / "run")), process)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(workers) >= 2
    process.send_signal(number)
    process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == (EXIT_STOPPED if number == signal.SIGTERM else -number)
    deadline = time.monotonic() + SECONDS_TO_END
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlives its run"
        time.sleep(0.1)
