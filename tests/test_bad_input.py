"""Mistakes and accidents: one line that names the thing and the remedy, an exit code, no traceback, nothing lost.

What can go wrong before the flags are read runs as a real process; the rest calls what the commands call.
"""

import json
import logging
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax import predict, run
from bert_jax.config import to_dict
from bert_jax.data.corpus.prepare import prepare
from bert_jax.data.inputs import parse_lines
from bert_jax.data.pretraining.stream import CorpusStream
from bert_jax.data.sources.documents import Document
from bert_jax.errors import EXIT_USER_ERROR, UserError
from bert_jax.run import run_training
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointStore
from bert_jax.run_folder.resuming import warn_of_changes
from bert_jax.tasks import base as tasks
from bert_jax.trained import run_evaluation
from tests.running import assert_one_line, checkpoints, command, config_flag, losses, rows
from tests.running import run as run_command


@pytest.fixture(autouse=True)
def short_and_clean(monkeypatch):
    """No measuring of the machine, and the signal handler of a run does not outlive it."""
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def trained(tiny_config, tmp_path_factory) -> Path:
    """A run of 4 steps with checkpoints of steps 2 and 4, to be read or copied only."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    run_training(tiny_config(), workdir)
    assert checkpoints(workdir) == [2, 4]
    return workdir


# ----------------------------------------------------------------------------------------------------------------------
# The command line, in real processes
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flag(tiny_config, tmp_path_factory) -> str:
    return config_flag(tiny_config(), tmp_path_factory.mktemp("config"))


@pytest.mark.parametrize(
    ("mistake", "parts"),
    [
        ("--config.train.num_stesp=3", ["--config.train.num_stesp: no such option; did you mean num_steps?"]),
        ("--config.train.batchsize=8", ["--config.train.batchsize: no such option; did you mean batch_size?"]),
        ("--config.data.workers=-1", ["prefetch=16 must be at least 1, and workers=-1 at least 0"]),
        ("--config.data.short_seq_prob=7", ["short_seq_prob=7.0 must be from 0 to 1"]),
        ("--config.train.ema_decay=2", ["train.ema_decay=2.0 must be from 0 to below 1"]),
        ("--config.train.profile_steps=5,2", ["the trace must not end before it begins"]),
        ("--config.options.mlm.rate=0.2", ["--config.options.mlm.rate: the option is called mlm_probability now"]),
        ("--config.options.mlm.exact_count=False", ["the option is called count now, with 'round' for True"]),
        ("--config.train.xyzzy=3", ["--config.train.xyzzy: no such option; see the config file"]),
        ("--config.train.num_steps=many", ["train.num_steps", "many"]),
        ("--config.objectives=mlm,npp", ["unknown objective 'npp'; there are distillation, mlm, nsp, rtd, sop"]),
        (
            "--config.task=pretraning",
            ["config.task='pretraning': no such task; choose one of glue, imported, pretraining, qa"],
        ),
        ("--wrokdir=x", ["Unknown command line flag 'wrokdir'", "workdir"]),
        ("--wizard=x", ["Unknown command line flag 'wizard'; --help shows all flags"]),
        ("stray", ["unexpected argument 'stray'; flags are written --name=value"]),
        ("--distributed=here", ["--distributed=here", "use 'auto' or 'HOST:PORT,COUNT,NUMBER'"]),
        ("--distributed=auto", ["--distributed=auto", "use 'auto' or 'HOST:PORT,COUNT,NUMBER'"]),
    ],
)
def test_wrong_flag(flag, tmp_path, mistake, parts):
    done = run_command(command("pretrain", flag, f"--workdir={tmp_path}/run", mistake), code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, *parts)
    assert not (tmp_path / "run").exists()


def test_lack_of_memory_is_one_line():
    """As raised by jax, without using up the memory of this machine."""
    raising = (
        "import jax; from bert_jax.cli.main import guarded\n"
        "with guarded(): raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.')"
    )
    done = run_command([sys.executable, "-c", raising], code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, "out of memory: Out of memory allocating 9 bytes", "train.accumulation_steps")


CONFIG_FILES = {
    "missing.py": (None, "no such config file"),
    "empty.py": ("", "not a bert_jax config"),
    "broken.py": ("def get_config(:\n", "not a bert_jax config"),
    "failing.py": ("def get_config():\n    return 1 / 0\n", "not a bert_jax config"),
    "foreign.py": ("def get_config():\n    from ml_collections import ConfigDict\n    return ConfigDict()\n", "not a"),
    "text.md": ("# A recipe\n", "not a bert_jax config"),
}


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_wrong_config_file(tmp_path, name):
    content, part = CONFIG_FILES[name]
    if content is not None:
        (tmp_path / name).write_text(content)
    done = run_command(
        command("pretrain", f"--config={tmp_path / name}", f"--workdir={tmp_path}/run"), code=EXIT_USER_ERROR
    )
    assert_one_line(done.stderr, str(tmp_path / name), part, "use a file of configs/")
    assert not (tmp_path / "run").exists()


def test_options_may_come_before_their_config(tmp_path):
    flags = ["--config.train.num_steps=3", f"--workdir={tmp_path}/run", "--config=configs/bert_base.py"]
    done = run_command(command("pretrain", *flags), code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, "data.corpus is empty")


def test_no_run_and_no_config(tmp_path):
    done = run_command(command("evaluate", f"--workdir={tmp_path}"), code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, "holds no run; use a run folder", "--config=FILE")


# ----------------------------------------------------------------------------------------------------------------------
# Settings that do not fit
# ----------------------------------------------------------------------------------------------------------------------

SETTINGS = [
    ({"data.sequence_length": 64}, ["data.sequence_length=64 exceeds the position table", "max_positions=32"]),
    ({"data.sequence_length": 4}, ["data.sequence_length=4 leaves no space for text; use at least 8"]),
    ({"data.masking": "dynamical"}, ["data.masking='dynamical' is not one of dynamic, static"]),
    ({"options.mlm.masking": "words"}, ["options.mlm: masking='words' is not one of token, word, ngram, span"]),
    ({"options.mlm.mlm_probability": 1.5}, ["options.mlm: mlm_probability=1.5 must be above 0 and below 1"]),
    ({"train.batch_size": 12}, ["train.batch_size=12 does not divide", "make it a multiple of 8"]),
    ({"train.batch_size": 0}, ["train.batch_size=0 must be at least 1"]),
    ({"parallel.data": 16}, ["parallel.data=16", "needs 16 devices but there are 8; use smaller sizes or -1"]),
    ({"parallel.data": 3}, ["parallel.data=3", "3 does not divide the 8 devices"]),
    ({"parallel.data": 0}, ["parallel.data=0", "each size must be at least 1"]),
    ({"model.hidden_size": 30}, ["model.hidden_size=30 does not divide into model.num_heads=4"]),
    ({"model.vocab_size": 64}, ["model.vocab_size=64 is less than the tokenizer's", "set it to 128"]),
    ({"model.activation": "gelu2"}, ["model.activation='gelu2' is not one of gelu"]),
    ({"model.pooler": False}, ["need model.pooler=True"]),
    ({"model.attention": "flash"}, ["model.attention='flash' is not one of auto, plain, chunked, cudnn, splash"]),
    (
        {"model.attention": "cudnn"},
        ["cudnn needs a GPU, not a CPU; set --config.model.attention to auto, plain or chunked"],
    ),
    ({"objectives": ("nsp", "sop")}, ["objectives nsp and sop both decide the second segment; keep one of them"]),
    ({"objectives": ()}, ["name at least one of distillation, mlm, nsp, rtd, sop"]),
    ({"optimizer.name": "adam"}, ["optimizer.name='adam' is not one of adamw, bert_adam"]),
    ({"optimizer.schedule": "step"}, ["optimizer.schedule='step' is not one of"]),
    (
        {"optimizer.schedule": "wsd", "optimizer.decay_steps": 1000},
        ["optimizer.schedule='wsd' has optimizer.decay_steps=1000 of", "set --config.optimizer.decay_steps to 1 up to"],
    ),
    ({"optimizer.multipliers": "2:haeds/"}, ["optimizer.multipliers: '2:haeds/' fits no parameter; paths look like"]),
    ({"optimizer.trainable": "haeds/"}, ["optimizer.trainable='haeds/' matches no parameter"]),
    ({"optimizer.trainable": "heads/("}, ["optimizer.trainable='heads/('", "regular expression"]),
    ({"data.corpus": ""}, ["data.corpus is empty; set it to a folder made by tools/prepare_corpus.py"]),
    ({"init_from": "no/such/run"}, ["no/such/run: not a run folder"]),
    ({"model.dtype": "float16"}, ["model.dtype=float16: ", "set --config.model.dtype=bfloat16"]),
    ({"model.param_dtype": "bfloat16", "train.ema_decay": 0.99}, ["train.ema_decay=0.99", "param_dtype=float32"]),
    ({"model.param_dtype": "float16"}, ["model.param_dtype='float16' is not one of float32, bfloat16"]),
    ({"checkpoint.every": 0}, ["checkpoint.every=0", "at least 1"]),
    ({"train.log_every": 0}, ["train.log_every=0", "at least 1"]),
    ({"train.num_steps": 0}, ["train.num_steps=0", "at least 1"]),
    ({"train.eval_every": -1}, ["train.eval_every=-1", "not be negative"]),
    ({"init_layers": ("0,a",)}, ["config.init_layers='0': must be of type int, like 0"]),
    ({"init_layers": (0.5,)}, ["config.init_layers=0.5: must be of type int, like 0"]),
    ({"data.mixture": (3,)}, ["config.data.mixture=3: must be of type str"]),
    (
        {"options.distillation.hidden_layers": (3, 6)},
        ["config.options.distillation.hidden_layers=3: must be of type str"],
    ),
    ({"options.nsp.nsp_probability": 1.5}, ["options.nsp: nsp_probability=1.5 must be from 0 to 1"]),
    ({"options.sop.swapped_share": -0.1}, ["options.sop: swapped_share=-0.1 must be from 0 to 1"]),
    ({"train.profile_steps": (3,)}, ["train.profile_steps=(3,)", "two numbers"]),
]


@pytest.mark.parametrize(("settings", "parts"), SETTINGS, ids=[str(settings) for settings, _ in SETTINGS])
def test_settings_that_do_not_fit(tiny_config, tmp_path, settings, parts):
    with pytest.raises(UserError) as raised:
        run_training(tiny_config(**settings), tmp_path / "run")
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert not (tmp_path / "run" / "config.json").exists(), "a run that cannot begin must not claim the folder"


# ----------------------------------------------------------------------------------------------------------------------
# The corpus
# ----------------------------------------------------------------------------------------------------------------------


def a_shard(corpus: Path) -> Path:
    return next(corpus.glob("**/*train*.array_record*"))


def remove(corpus: Path) -> None:
    shutil.rmtree(corpus)


def empty(corpus: Path) -> None:
    remove(corpus)
    corpus.mkdir()


def truncate(corpus: Path) -> None:
    shard = a_shard(corpus)
    shard.write_bytes(shard.read_bytes()[:-100])


def lose_a_shard(corpus: Path) -> None:
    a_shard(corpus).unlink()


def age(corpus: Path) -> None:
    index = json.loads((corpus / "corpus.json").read_text())
    (corpus / "corpus.json").write_text(json.dumps(index | {"format": 0}))


def cut_the_index(corpus: Path) -> None:
    text = (corpus / "corpus.json").read_text()
    (corpus / "corpus.json").write_text(text[: len(text) // 2])


CORPORA: list[tuple[Callable[[Path], None], str]] = [
    (remove, "no such corpus folder; make it with tools/prepare_corpus.py"),
    (empty, "not a finished corpus (corpus.json is missing); run tools/prepare_corpus.py"),
    (truncate, "copy the corpus again, or remove it and prepare it again"),
    (lose_a_shard, "missing; copy the corpus again, or remove it and prepare it again"),
    (age, "corpus format 0 is not supported, only 1; prepare it again"),
    (
        cut_the_index,
        "damaged, or not what is expected (Input data was truncated); copy the corpus again, or remove it and prepare it again",
    ),
]


@pytest.mark.parametrize(("damage", "part"), CORPORA, ids=[damage.__name__ for damage, _ in CORPORA])
@pytest.mark.parametrize("begun", [False, True], ids=["new run", "resumed run"])
def test_wrong_corpus(tiny_config, corpus_dir, trained, tmp_path, damage, part, begun):
    corpus = shutil.copytree(corpus_dir, tmp_path / "corpus")
    damage(corpus)
    workdir = tmp_path / "run"
    if begun:
        shutil.copytree(trained, workdir)
    with pytest.raises(UserError) as raised:
        run_training(tiny_config(**{"data.corpus": str(corpus), "train.num_steps": 6}), workdir)
    message = str(raised.value)
    assert str(corpus) in message and part in message and "\n" not in message
    assert begun == (workdir / "config.json").exists(), "a run that cannot begin must not claim the folder"
    if begun:
        assert checkpoints(workdir) == [2, 4] and rows(workdir) == rows(trained)


def test_corpus_of_another_tokenizer(tiny_config, corpus_dir, documents, trained, tmp_path):
    from bert_jax.data.corpus.prepare import prepare
    from bert_jax.data.tokenizer.tokenizer import Tokenizer

    other = Tokenizer.train((document.text.replace("e", "i") for document in documents), 120)
    prepare(documents, other, tmp_path / "corpus", source="tests", held_out_fraction=0.15, shard_megabytes=0.03)
    workdir = shutil.copytree(trained, tmp_path / "run")
    with pytest.raises(UserError, match=r"made with another tokenizer.*prepare the corpus with the run's tokenizer"):
        run_training(tiny_config(**{"data.corpus": str(tmp_path / "corpus"), "train.num_steps": 6}), workdir)
    assert checkpoints(workdir) == [2, 4] and rows(workdir) == rows(trained)


# ----------------------------------------------------------------------------------------------------------------------
# The run folder
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (
            {"model.num_layers": 3, "model.hidden_size": 16},
            "(model.hidden_size is 32 there, 16 here, model.num_layers is 2 there, 3 here)",
        ),
        ({"objectives": ("mlm",)}, "objectives is ['mlm', 'nsp'] there, ['mlm'] here"),
        ({"optimizer.name": "adamw"}, "optimizer.name is bert_adam there, adamw here"),
        ({"train.ema_decay": 0.9}, "train.ema_decay is 0.0 there, 0.9 here"),
    ],
)
def test_folder_of_another_run(tiny_config, trained, tmp_path, settings, part):
    workdir = shutil.copytree(trained, tmp_path / "run")
    with pytest.raises(UserError) as raised:
        run_training(tiny_config(**settings, **{"train.num_steps": 6}), workdir)
    assert part in str(raised.value) and "use another --workdir" in str(raised.value)
    assert checkpoints(workdir) == [2, 4] and rows(workdir) == rows(trained)
    assert run_folder.read_config(workdir) == run_folder.read_config(trained)


@pytest.mark.parametrize("version", [None, 1, 3])
def test_a_run_of_another_stream_can_be_used_but_not_continued(tiny_config, trained, tmp_path, version):
    workdir = shutil.copytree(trained, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    assert config["data"].pop("stream_version") == 2
    # Runs before version 2 do not mention it, and have an option that is gone.
    config["data"] |= {"num_threads": 2} if version is None else {"stream_version": version}
    (workdir / "config.json").write_text(json.dumps(config))
    for values in (tiny_config(**{"train.num_steps": 6}), run_folder.get_config(str(workdir))):
        with pytest.raises(
            UserError, match=rf"{workdir}: begun with version {version or 1} of the stream .* version 2; begin"
        ):
            run_training(values, workdir)
    assert checkpoints(workdir) == [2, 4] and rows(workdir) == rows(trained)
    both = [
        run_evaluation(run_folder.get_config(str(folder)), folder, [], tmp_path / folder.parent.name)
        for folder in (workdir, trained)
    ]
    assert both[0] == both[1]
    run_training(tiny_config(**{"train.num_steps": 1, "init_from": str(workdir)}), tmp_path / "next")


def test_a_stream_version_cannot_be_chosen(tiny_config, tmp_path):
    with pytest.raises(UserError, match=r"data\.stream_version=1: this version is 2; leave it out"):
        run_training(tiny_config(**{"data.stream_version": 1}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_workers_of_a_run_change_nothing_and_their_errors_are_one_line(tiny_config, corpus_dir, trained, tmp_path):
    run_training(tiny_config(**{"data.workers": 2}), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(trained)
    corpus = shutil.copytree(corpus_dir, tmp_path / "corpus")
    for path in corpus.glob("*train.array_record*"):
        data = bytearray(path.read_bytes())
        data[data.index(b"sentence_starts") + 3000] ^= 255
        path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"^\S+: damaged \(.*\); copy the corpus again, or remove it and prepare it again$"
    ):
        run_training(tiny_config(**{"data.workers": 2, "data.corpus": str(corpus)}), tmp_path / "damaged")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"train.batch_size": 16},
            "train.batch_size changes from 8 to 16: "
            "step 4 begins with example 64 instead of 32, so examples 32 to 63 are skipped",
        ),
        (
            {"train.batch_size": 4, "parallel.data": 2, "parallel.tensor": 4},
            "train.batch_size changes from 8 to 4: "
            "step 4 begins with example 16 instead of 32, so examples 16 to 31 are seen again",
        ),
        (
            {"train.seed": 3},
            "train.seed changes from 0 to 3: the order of the examples changes: "
            "in the epoch of step 4 some examples are repeated and some skipped",
        ),
        (
            {"data.sequence_length": 16},
            "data.sequence_length changes from 32 to 16: texts are cut into different examples: "
            "in the epoch of step 4 some examples are repeated and some skipped",
        ),
        (
            {"train.accumulation_steps": 2, "parallel.data": 4, "parallel.tensor": 2},
            "train.accumulation_steps changes from 1 to 2: "
            "the examples and their dropout masks stay the same, rounding differs",
        ),
        ({"model.attention": "chunked"}, "model.attention changes from auto to chunked"),
        (
            {"optimizer.learning_rate": 0.5},
            "optimizer.learning_rate changes from 0.001 to 0.5",
        ),
    ],
)
def test_what_other_settings_mean_for_the_examples_of_a_resumed_run(
    tiny_config, trained, tmp_path, caplog, settings, line
):
    workdir = shutil.copytree(trained, tmp_path / "run")
    asked = []
    batch = CorpusStream.batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CorpusStream, "batch", lambda self, numbers: asked.extend(numbers) or batch(self, numbers))
        run_training(tiny_config(**settings, **{"train.num_steps": 5}), workdir)
    assert line in [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    if "train.batch_size" in settings and "seed" not in line:  # the examples are those that the line tells of
        size = settings["train.batch_size"]
        assert set(range(4 * size, 5 * size)) <= set(asked)


def test_what_another_mixture_means(tiny_config, trained, tmp_path, caplog):
    config = tasks.create(tiny_config(**{"data.mixture": (f"0.25:{tmp_path}",)}), trained).config
    warn_of_changes(trained, to_dict(config), lambda *_: "", step=4)
    assert f"data.mixture changes from [] to ['0.25:{tmp_path}']: each corpus goes on where it would be" in caplog.text


def test_another_path_to_the_same_corpus_is_no_change(tiny_config, trained, corpus_dir, tmp_path, caplog):
    workdir = shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "link").symlink_to(corpus_dir)
    run_training(tiny_config(**{"data.corpus": f"{tmp_path}/run/../link"}), workdir)
    assert not [record for record in caplog.records if "was" in record.getMessage()]


@pytest.mark.parametrize("damage", ["corrupt", "half-written"])
def test_newest_checkpoint_unusable(tiny_config, trained, tmp_path, damage, caplog):
    workdir = shutil.copytree(trained, tmp_path / "run")
    newest = workdir / "checkpoints" / "4"
    if damage == "corrupt":
        data = max((newest / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    else:
        newest.rename(newest.with_name("4.orbax-checkpoint-tmp"))
    caplog.set_level(logging.INFO, "bert_jax")
    for steps in ([], None):  # the newest, and all of them
        assert list(run_evaluation(run_folder.get_config(str(workdir)), workdir, steps, workdir)) == [2]
    run_training(tiny_config(), workdir)
    messages = [record.getMessage() for record in caplog.records]
    assert any("from step 2" in message for message in messages)
    assert (damage == "corrupt") == any("checkpoint of step 4 is damaged" in message for message in messages)
    assert (damage == "corrupt") == (workdir / "checkpoints_damaged" / "4_0").is_dir()
    assert rows(workdir) == rows(trained) and checkpoints(workdir) == [2, 4]


def test_damaged_config_json(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    (workdir / "config.json").write_text('{"task": ')
    done = run_command(command("predict", f"--workdir={workdir}", "--text=a [MASK]"), code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, "config.json", "damaged", "restore it")


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("train.accumulation_steps", 0, "must be at least 1"),
        ("train.seed", -1, "must not be negative"),
        ("checkpoint.keep_best", 0, "must be at least 1"),
        ("optimizer.clip_norm", -1.0, "must be at least 0"),
        ("optimizer.warmup_steps", -1, "must be at least 0"),
        ("optimizer.decay_steps", -1, "must be at least 0"),
        ("optimizer.layer_decay", 0.0, "must be above 0"),
    ],
)
def test_numbers_out_of_range(option, value, message, tiny_config, tmp_path):
    with pytest.raises(UserError, match=f"{option}={value} {message}"):
        run_training(tiny_config(**{option: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_best_metric_that_is_not_measured(tiny_config, tmp_path):
    with pytest.raises(UserError, match="best_metric='eval/los' is not measured; choose one of eval/loss, "):
        run_training(tiny_config(**{"checkpoint.best_metric": "eval/los", "train.num_steps": 1}), tmp_path)
    assert checkpoints(tmp_path) == [1], "what was trained is not lost"
    with pytest.raises(UserError, match="best_metric='loss' must be a held-out score"):
        run_training(tiny_config(**{"checkpoint.best_metric": "loss"}), tmp_path / "other")


# ----------------------------------------------------------------------------------------------------------------------
# Numbers that are none, and a full disk
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", ["token", "word", "span"])
def test_a_corpus_that_the_tokenizer_does_not_know(masking, tiny_config, tokenizer, tmp_path):
    """Every token is [UNK], so nothing can be predicted: the loss would always be 0."""
    documents = [Document(str(number), "漢字 仮名。" * 40) for number in range(20)]
    prepare(documents, tokenizer, tmp_path / "corpus", source="tests", held_out_fraction=0.2)
    config = tiny_config(**{"data.corpus": str(tmp_path / "corpus"), "options.mlm.masking": masking})
    with pytest.raises(
        UserError, match=r"^nothing to predict for mlm in step 1, examples .*inspect_batch.* unknown"
    ) as error:
        run_training(config, tmp_path / "run")
    assert "\n" not in str(error.value) and checkpoints(tmp_path / "run") == []


@pytest.mark.parametrize("learning_rate", [1e30, 1e300])
def test_loss_that_is_not_a_number(tiny_config, tmp_path, learning_rate):
    settings = {"optimizer.learning_rate": learning_rate, "optimizer.warmup_steps": 0, "checkpoint.every": 1}
    with pytest.raises(UserError) as raised:
        run_training(tiny_config(**settings, **{"train.num_steps": 20}), tmp_path)
    message = str(raised.value)
    assert re.match("(loss|gradient_norm) is (nan|inf) in step |the state is not finite in step 1, ", message)
    assert "examples epoch 0: " in message and "lower optimizer.learning_rate" in message and "\n" not in message
    saved = checkpoints(tmp_path)
    last = f"the last good checkpoint is of step {saved[-1]}" if saved else "no checkpoint is saved yet"
    assert last in message
    for step in saved:
        _, state = CheckpointStore(tmp_path).restore(abstract_state(tmp_path), step)
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state))


def test_a_large_batch_is_named_by_a_few_of_its_examples(tiny_config, tmp_path):
    settings = {"optimizer.learning_rate": 1e30, "optimizer.warmup_steps": 0, "train.batch_size": 256}
    with pytest.raises(UserError) as raised:
        run_training(tiny_config(**settings, **{"train.num_steps": 20}), tmp_path)
    message = str(raised.value)
    assert re.search(r"in step \d+, examples epoch \d+: \d+, .* and 244 more; ", message) and len(message) < 350


def abstract_state(workdir: Path):
    """What is needed to read the parameters of a run."""
    from bert_jax.parallel.mesh import ParallelConfig, make_mesh, shardings, with_shardings

    model = tasks.create(run_folder.get_config(str(workdir)), workdir).losses.model
    placed = shardings(model.abstract, model.axes, make_mesh(ParallelConfig()))
    return {"params": with_shardings(model.abstract, placed)}


def with_files_up_to(kilobytes: int, arguments: list[str]) -> list[str]:
    """A command for which no file may grow beyond a limit: writes fail as they do on a full disk.

    It leaves out the caches, which all processes share: what it wrote there in part would make others fail.
    """
    alone = "export PYTHONDONTWRITEBYTECODE=1 JAX_ENABLE_COMPILATION_CACHE=0"
    return ["bash", "-c", f'ulimit -f {kilobytes} && {alone} && exec "$@"', "limited", *arguments]


@pytest.mark.parametrize("victim", ["checkpoint", "metrics.jsonl"])
def test_full_disk(tiny_config, trained, tmp_path, victim):
    workdir = shutil.copytree(trained, tmp_path / "run")
    if victim == "checkpoint":
        settings, size = {"train.num_steps": 8}, 30
    else:
        settings = {"train.num_steps": 100, "checkpoint.every": 1000, "train.writers": ("jsonl",)}
        size = max(path.stat().st_size for path in workdir.glob("*") if path.is_file()) // 1024 + 3
    flag = config_flag(tiny_config(**settings), tmp_path / "config")
    limited = with_files_up_to(size, command("pretrain", flag, f"--workdir={workdir}"))
    done = run_command(limited, devices=8, code=EXIT_USER_ERROR)
    assert "Traceback" not in done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert victim in error and "start again" in error
    if victim == "checkpoint":
        assert "(File too large); the last complete checkpoint is of step 4; free some space and start again" in error
    assert checkpoints(workdir) == [2, 4]
    assert set(losses(workdir)) >= set(losses(trained)), "no row is lost"

    run_training(tiny_config(**{"train.num_steps": 6}), workdir)  # there is room again
    assert checkpoints(workdir)[-1] == 6 and sorted(losses(workdir)) == [1, 2, 3, 4, 5, 6]


# ----------------------------------------------------------------------------------------------------------------------
# Prediction
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predictor(trained):
    return predict.Predictor.load(trained)


@pytest.mark.parametrize(
    ("task", "input_path", "output_path", "message"),
    [
        ("text", "a.conll", "-", "--input=a.conll: columns are for runs that label words, .* is text"),
        ("tokens", "a.jsonl", "b.conll", "--output=b.conll: columns need an --input that is .conll"),
        ("tokens", None, "b.conll", "--output=b.conll: columns need an --input"),
    ],
)
def test_columns_come_of_columns_and_of_labels(task, input_path, output_path, message):
    with pytest.raises(UserError, match=message):
        predict.check_columns(task, input_path, output_path)


def fill(predictor, text: str):
    return list(predict.answers(predictor, parse_lines([text], predictor.input_fields, "--text"), batch_size=1))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("no place to fill", "'no place to fill': contains no [MASK]; put one where a word is missing"),
        ("", "no text"),
        ("   ", "no text"),
        ("\x01\x02\x7f", "no [MASK]"),
        ("[MASK] " + "the " * 100 + "[MASK]", "a [MASK] is beyond the first 30 tokens; shorten the text"),
        ("a \udcff [MASK]", "not UTF-8"),
        (r'{"text": "a \ud800 [MASK]"}', "line 1: neither a JSON object (contains the escape of an unpaired surrogate"),
        (
            r'{"text": "a [MASK]", "id": ["\ud800"]}',
            "line 1: neither a JSON object (contains the escape of an unpaired surrogate",
        ),
        ('{"text": 3}', "'text'"),
        ('{"txet": "a [MASK]"}', "no field 'text', only txet"),
        ('{"text": "a [MASK]"', "neither a JSON object (Input data was truncated) nor"),
        ("a\tb [MASK]", "neither a JSON object nor 1 tab-separated text(s)"),
    ],
)
def test_texts_that_cannot_be_filled(predictor, text, part):
    with pytest.raises(UserError) as raised:
        fill(predictor, text)
    assert part in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "\x01[MASK]\x02",
        "שלום [MASK] עולם",
        "\u202eright to left\u202c [MASK]",
        "🙂 [MASK] 👩‍👩‍👧‍👦",
        "[MASK] " + "river " * 200_000,
        "[MASK]" * 30,
        '{"text": "a [MASK]", "id": 7}',
        '{"text": "a [MASK]", "masks": "replaced"}',
    ],
    ids=["control", "hebrew", "override", "emoji", "long", "masks", "json", "same name"],
)
def test_texts_that_can(predictor, text):
    (answer,) = fill(predictor, text)
    assert answer["masks"]
    for mask in answer["masks"]:
        assert len(mask) == 5 and all(0 <= filling["probability"] <= 1 for filling in mask)


def test_prediction_in_float16(predictor, trained):
    """It has no loss to scale. float16 has 11 bits of precision; probabilities here are about 0.01."""
    flags = [f"--workdir={trained}", "--config.model.dtype=float16", "--text=the [MASK] river [MASK]"]
    found = json.loads(run_command(command("predict", *flags)).stdout)
    (expected,) = fill(predictor, "the [MASK] river [MASK]")
    assert [len(mask) for mask in found["masks"]] == [5, 5]
    for ours, theirs in zip(found["masks"], expected["masks"], strict=True):
        np.testing.assert_allclose([x["probability"] for x in ours], [x["probability"] for x in theirs], rtol=5e-3)


def test_input_file_that_is_not_utf_8_leaves_no_output(trained, tmp_path):
    (tmp_path / "input").write_bytes(b"a [MASK]\n" * 40 + "naïve [MASK]\n".encode("latin-1"))
    flags = [f"--workdir={trained}", f"--input={tmp_path}/input", f"--output={tmp_path}/output"]
    done = run_command(command("predict", *flags), code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, "not UTF-8", "convert it")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input"], "nothing half-written"
