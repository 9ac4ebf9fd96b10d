"""Eight virtual CPU devices for every test, and what tests share: a tiny corpus, its tokenizer, a config that trains on it in
seconds, the folder of real texts.
"""

import os
import subprocess
import sys

from tests.running import XLA_FLAGS, shared_folder

if accelerator := os.environ.get("BERT_JAX_TESTS_PLATFORM"):  # cuda or tpu: for tests/model/test_attention*.py
    os.environ["JAX_PLATFORMS"] = f"{accelerator},cpu"
    os.environ.setdefault("XLA_FLAGS", "")
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # float32, not TF32 or bfloat16
else:
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *XLA_FLAGS])
    os.environ["JAX_PLATFORMS"] = "cpu"
# Many tests compile the same small programs.
os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{shared_folder()}/compiled_by_tests"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

ROOT = Path(__file__).parent.parent
REAL_DATA = Path(os.environ.get("BERT_JAX_DATA", ROOT.parent / "shared" / "data"))

jax.config.update("jax_numpy_rank_promotion", "raise")

# Their tests start one program after the other: begun first, they leave no worker to wait for at the end.
LONGEST_FILES = (
    "test_quickstart.py",
    "test_doc_blocks.py",
    "test_processes.py",  # both of them
    "test_experiment_sheet.py",
    "test_glue_submission.py",
    "test_resume.py",
)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Ends the session with XLA's message if jax does not start: xdist would only report that its workers are down."""
    is_in_time = jax.config.jax_compilation_cache_dir == os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert is_in_time, "jax reads its variables when it is imported: tests/running.py must not import it"
    flags = os.environ["XLA_FLAGS"]
    is_worker, starts_workers = hasattr(session.config, "workerinput"), session.config.getoption("numprocesses", None)
    if is_worker or (not starts_workers and flags.split() == XLA_FLAGS):
        return
    start = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(start, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        reason = f"jax does not start with XLA_FLAGS='{flags}' (exit code {done.returncode}):\n{done.stderr[-4000:]}"
        pytest.exit(reason, returncode=3)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers (-m)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if REFERENCES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("parity")
    order = {name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # bert_jax.cli, where it is imported, ends its process


DOCUMENTS = 240
VOCABULARY_SIZE = 128  # of the tiny tokenizer: the alphabet twice over (words' beginnings and middles), and some pieces
NOUNS = ["farmer", "river", "painting", "soldier", "garden", "teacher", "mountain", "ship", "letter", "winter"]
VERBS = ["watched", "followed", "remembered", "found", "described", "painted", "answered", "crossed"]
ADJECTIVES = ["old", "quiet", "golden", "distant", "careful", "broken", "northern", "young"]


def english_like_text(rng: np.random.Generator) -> str:
    """A document of 3 to 20 sentences about few nouns, in paragraphs of up to 5: there is something to learn in it."""
    topic = rng.choice(NOUNS, 3, replace=False)
    sentences = []
    for _ in range(int(rng.integers(3, 21))):
        subject, thing = rng.choice(topic, 2)
        words = ["the", rng.choice(ADJECTIVES), subject, rng.choice(VERBS), "the", thing]
        if rng.random() < 0.3:
            words += ["and", "the", rng.choice(ADJECTIVES), rng.choice(topic)]
        sentences.append(" ".join(words).capitalize() + ".")
    return "\n".join(" ".join(sentences[start : start + 5]) for start in range(0, len(sentences), 5))


@pytest.fixture(scope="session")
def documents():
    """Generated documents, always the same ones."""
    from bert_jax.data.sources.documents import Document

    rng = np.random.default_rng(0)
    return [Document(f"document-{number}", english_like_text(rng)) for number in range(DOCUMENTS)]


@pytest.fixture(scope="session")
def tokenizer(documents):
    """A WordPiece tokenizer of at most VOCABULARY_SIZE tokens, trained on the documents."""
    from bert_jax.data.tokenizer.tokenizer import Tokenizer

    return Tokenizer.train((document.text for document in documents), VOCABULARY_SIZE)


@pytest.fixture(scope="session")
def corpus_dir(documents, tokenizer, tmp_path_factory) -> Path:
    """The documents as a prepared corpus with the splits train (several shards) and validation. To be read only."""
    from bert_jax.data.corpus.prepare import prepare

    folder = tmp_path_factory.mktemp("tiny") / "corpus"
    prepare(documents, tokenizer, folder, source="tests", held_out_fraction=0.15, shard_megabytes=0.03)
    return folder


@pytest.fixture(scope="session")
def tiny_config(corpus_dir) -> Callable[..., ConfigDict]:
    """`tiny_config(**{'train.num_steps': 2})`: a pretraining config over the tiny corpus, with changes by dotted name."""
    from bert_jax.config import to_config_dict
    from bert_jax.tasks.pretraining import Config

    def make(**overrides) -> ConfigDict:
        config = to_config_dict(Config())
        config.update_from_flattened_dict(TINY_MODEL | TINY_RUN | {"data.corpus": str(corpus_dir)} | overrides)
        return config.lock()

    return make


TINY_MODEL = {
    "model.vocab_size": VOCABULARY_SIZE,
    "model.hidden_size": 32,
    "model.num_layers": 2,
    "model.num_heads": 4,
    "model.intermediate_size": 64,
    "model.max_positions": 32,
    "model.dropout": 0.0,
    "model.attention_dropout": 0.0,
}
TINY_RUN = {
    "data.sequence_length": 32,
    "train.num_steps": 4,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.eval_every": 0,
    "train.eval_batch_size": 8,
    "train.eval_examples": 16,
    "train.compilation_cache": False,  # tests must not write to the user's cache
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 2,
    "checkpoint.every": 2,
}


@pytest.fixture(scope="session")
def random_params():
    """`random_params(model, seed=0, scale=0.25)`: parameters of a Model, large enough to matter, without compiling its init."""

    def make(model, seed: int = 0, scale: float = 0.25):
        rng = np.random.default_rng(seed)

        def values(path, array):
            is_scale = str(path[-1].key) == "scale"
            return jax.numpy.asarray(is_scale + scale * rng.standard_normal(array.shape), array.dtype)

        return jax.tree.map_with_path(values, model.abstract)

    return make


class TinyRun(NamedTuple):
    """What bert_jax/run.py puts together, without a run folder."""

    task: Any
    mesh: Any
    state: Any
    step: Any  # compiled; the state is not donated

    def batches(self, first_step: int = 0):
        from bert_jax.tasks.common.training import training_batches

        return training_batches(self.task.training, self.mesh, first_step)


@pytest.fixture(scope="session")
def start_run(random_params) -> Callable[..., TinyRun]:
    """`start_run(config, num_devices=8, fresh=False)`: a run with random parameters or, if `fresh`, those of its seed."""
    from bert_jax.parallel.mesh import make_mesh
    from bert_jax.tasks import base as tasks
    from bert_jax.train.optimizers import make_optimizer
    from bert_jax.train.step import Training, partition

    def start(values: ConfigDict, num_devices: int = 8, fresh: bool = False) -> TinyRun:
        task = tasks.create(values, Path("no-folder"))
        model, train, trainable = task.losses.model, task.config.train, task.config.optimizer.trainable
        mesh = make_mesh(task.config.parallel, jax.devices()[:num_devices])
        with jax.set_mesh(mesh):
            training = Training.of(task.losses, task.config, mesh)
            if fresh:
                state = training.make_state()
            else:
                params = random_params(model, scale=0.05)
                optimizer = make_optimizer(task.config.optimizer, train.num_steps, model.axes)
                opt_state = optimizer.init(partition(params, trainable)[0])
                state = {"step": np.int32(0), "params": params, "opt_state": opt_state}
                state |= {"ema": params} if train.ema_decay else {}
                state = jax.device_put(state, training.placed)
            step = jax.jit(lambda state, batch: training.step(state, {}, batch), out_shardings=(training.placed, None))
        return TinyRun(task, mesh, state, step)

    return start


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A run folder with the golden BERT of 53 tokens and 17 positions, and a tokenizer of letters and a few words."""
    from bert_jax.conversion import convert as conversion
    from bert_jax.data.tokenizer.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("tiny_bert")
    (folder / "hf").mkdir()
    golden = Path(__file__).parent / "golden" / "bert" / "base"
    for name in ("config.json", "model.safetensors"):
        (folder / "hf" / name).write_bytes((golden / name).read_bytes())
    Tokenizer.train(["the old river and a quiet ship", "a ship on the river was old"] * 3, 53).save(folder / "hf")
    conversion.import_run(folder / "hf", folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def small_tokenizer():
    """A WordPiece tokenizer of 53 tokens at most, as many as the golden models have."""
    from bert_jax.data.tokenizer.tokenizer import Tokenizer

    return Tokenizer.train(["the old river and a quiet ship"] * 3, 48)


@pytest.fixture(scope="session")
def model_folder(small_tokenizer, tmp_path_factory) -> Callable[[str], Path]:
    """`model_folder('bert/masked_lm')`: a new folder of Hugging Face's, with that golden model and a tokenizer."""

    def make(case: str) -> Path:
        folder = tmp_path_factory.mktemp("hf") / case.replace("/", "_")
        shutil.copytree(ROOT / "tests" / "golden" / case, folder)
        (folder / "io.npz").unlink()
        small_tokenizer.save(folder)
        return folder

    return make


# What is compared with, the compiler for TPUs, and Beam with Dask (requirements-parity.txt): a test that asks for one of these
# fixtures is marked `parity`, and skipped where the package is not installed.
REFERENCES = {"torch", "transformers", "tensorflow", "libtpu", "apache_beam", "distributed"}


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    return pytest.importorskip("torch")


@pytest.fixture(scope="session")
def transformers(torch) -> ModuleType:
    return pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def tensorflow() -> ModuleType:
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="session")
def libtpu() -> ModuleType:
    """The compiler for TPUs, which works without one."""
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # it would ask the network whether this is a machine with TPUs
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # other processes may compile at the same time
    return pytest.importorskip("libtpu")


@pytest.fixture(scope="session")
def apache_beam() -> ModuleType:
    return pytest.importorskip("apache_beam")


@pytest.fixture(scope="session")
def distributed(apache_beam) -> ModuleType:
    """The package of Dask's clusters."""
    return pytest.importorskip("distributed")


@pytest.fixture(scope="session")
def rensa() -> ModuleType:
    """The package of --drop_near_duplicates (requirements-clean.txt)."""
    return pytest.importorskip("rensa")


@pytest.fixture(scope="session")
def py3langid() -> ModuleType:
    """The package of --languages (requirements-clean.txt)."""
    return pytest.importorskip("py3langid")


@pytest.fixture(scope="session")
def fsspec() -> ModuleType:
    """The package that opens URLs (requirements-cloud.txt)."""
    return pytest.importorskip("fsspec")


@pytest.fixture(scope="session")
def s3(fsspec) -> Iterator[str]:
    """The URL of an empty folder on an S3 server on this machine, which runs as long as the tests."""
    for package in ("s3fs", "moto.server"):
        pytest.importorskip(package)
    from tools.lib.s3_server import s3_server

    with s3_server("bucket"):
        yield "s3://bucket/tests"


@pytest.fixture
def memory(fsspec) -> Iterator[str]:
    """The URL of an empty folder in the memory of this process."""
    yield "memory:///tests"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A new home directory, for the files that are kept in ~/.cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real texts and tasks; a test that asks for it is skipped where there is none."""
    if not REAL_DATA.is_dir():
        pytest.skip("no real data beside the checkout, and BERT_JAX_DATA names none")
    return REAL_DATA


@pytest.fixture
def oracle() -> Path:
    """The folder of golden cases of reference models; a test that asks for it is skipped where there is none."""
    if not (folder := REAL_DATA.parent / "oracle").is_dir():
        pytest.skip("no golden cases (oracle/) beside the real data")
    return folder
