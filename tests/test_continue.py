"""configs/continue.py: continued pretraining of a run, or of a model in Hugging Face's format, on other text."""

import contextlib
import importlib.util
import json
import logging

import jax
import numpy as np
import pytest

from bert_jax import run
from bert_jax.data.corpus.prepare import prepare
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.library import load
from bert_jax.run import run_training
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks import base as tasks
from tests.conftest import ROOT
from tests.running import rows

SMALL_RUN = {
    "train.num_steps": 1,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.eval_batch_size": 8,
    "train.eval_examples": 16,
    "train.compilation_cache": False,
    "optimizer.warmup_steps": 0,
}


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)


@pytest.fixture(scope="module")
def get_config():
    spec = importlib.util.spec_from_file_location("continue_config", ROOT / "configs" / "continue.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def make(**options):
        config = module.get_config()
        config.update_from_flattened_dict(SMALL_RUN | options)
        return config

    return make


@pytest.fixture(scope="module")
def pretrained(tiny_config, tmp_path_factory):
    """A run with an objective and options of its own, not the defaults."""
    folder = tmp_path_factory.mktemp("origin") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)
        run_training(
            tiny_config(objectives=("mlm", "sop"), **{"train.num_steps": 1, "options.mlm.weight": 0.5}), folder
        )
    return folder


@pytest.fixture(scope="module")
def mine(documents, pretrained, tmp_path_factory):
    """Another text with the run's tokenizer."""
    folder = tmp_path_factory.mktemp("corpora") / "mine"
    texts = documents[len(documents) // 2 :]
    tokenizer = Tokenizer.load(pretrained / "tokenizer")
    prepare(texts, tokenizer, folder, source="tests", held_out_fraction=0.15, shard_megabytes=0.03)
    return folder


def test_model_recipe_and_both_held_out_sets_of_a_run(get_config, pretrained, mine, corpus_dir, tmp_path):
    values = get_config(
        **{"init_from": str(pretrained), "data.corpus": str(mine), "data.sequence_length": 32, "train.num_steps": 2},
        **{"data.mixture": (f"0.25:{corpus_dir}",)},
    )
    run_training(values, tmp_path / "run")
    stored = run_folder.read_config(tmp_path / "run")
    assert stored["objectives"] == ["mlm", "sop"] and stored["options"]["mlm"]["weight"] == 0.5
    assert stored["model"] == run_folder.read_config(pretrained)["model"]
    assert stored["data"]["eval_corpora"] == [str(corpus_dir)]
    last = rows(tmp_path / "run")[-1]
    forgotten = {name for name in last if name.startswith(f"eval/{corpus_dir.name}/")}
    assert {f"eval/{corpus_dir.name}/mlm/loss", f"eval/{corpus_dir.name}/sop/accuracy"} <= forgotten
    assert last["eval/mlm/loss"] != last[f"eval/{corpus_dir.name}/mlm/loss"]
    run_training(values, tmp_path / "run")  # complete
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == json.loads(json.dumps(stored["data"]))
    with values.unlocked():
        values.init_from = str(tmp_path / "gone")  # as if it were deleted
    assert list(tasks.create(values, tmp_path / "run").config.data.eval_corpora) == [str(corpus_dir)]
    values.data.eval_corpora = (str(corpus_dir.parent / "none"),)
    with pytest.raises(UserError, match=r"none: no such corpus folder; make it with tools/prepare_corpus\.py"):
        tasks.create(values, tmp_path / "run").evaluator.validate()


def test_evaluations_that_would_replace_metrics(tiny_config, tmp_path):
    """The names of terms, not of objectives, begin the names of metrics."""
    options = {"objectives": ("rtd",), "options.rtd.generator_size": 0.5, "options.rtd.generator_layers": 0.5}
    for name, is_metric in (("generator", True), ("loss", True), ("sop", False)):
        (tmp_path / name).symlink_to(tiny_config().data.corpus)
        values = tiny_config(**options, **{"data.eval_corpora": (str(tmp_path / name),)})
        evaluator = tasks.create(values, tmp_path / "run").evaluator
        with pytest.raises(UserError, match="name of a metric") if is_metric else contextlib.nullcontext():
            evaluator.validate()


def test_both_held_out_sets_are_what_an_evaluation_of_each_measures(get_config, pretrained, mine, corpus_dir, tmp_path):
    options = {"init_from": str(pretrained), "data.corpus": str(mine), "data.sequence_length": 32, "train.num_steps": 2}
    run_training(get_config(**options), tmp_path / "run")
    values = run_folder.get_config(str(tmp_path / "run"))
    with values.unlocked():
        values.data.corpus, values.data.eval_corpora, values.data.eval_origin = str(corpus_dir), (), False
    from bert_jax.trained import run_evaluation

    (row,) = run_evaluation(values, tmp_path / "run", [2], tmp_path / "other").values()
    last = rows(tmp_path / "run")[-1]
    assert row["mlm/loss"] == pytest.approx(last[f"eval/{corpus_dir.name}/mlm/loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("case", "objectives", "fresh"),
    [
        ("bert/pretraining", ("mlm", "nsp"), ()),
        ("roberta/masked_lm", ("mlm",), ()),
        ("modernbert/base", ("mlm",), ("mlm",)),
    ],
)
def test_a_model_in_hugging_face_format(get_config, model_folder, documents, tmp_path, caplog, case, objectives, fresh):
    folder = model_folder(case)
    tokenizer = Tokenizer.load(folder)
    prepare(documents[:40], tokenizer, tmp_path / "corpus", source="tests", held_out_fraction=0.2, shard_megabytes=0.03)
    length = tasks.model_of_checkpoint(folder).max_positions
    values = get_config(
        **{"init_from": str(folder), "data.corpus": str(tmp_path / "corpus"), "data.sequence_length": min(length, 16)},
        **{"optimizer.learning_rate": 0.0, "train.num_steps": 1},
    )
    with caplog.at_level(logging.WARNING):
        run_training(values, tmp_path / "run")
    assert f"{folder} has no corpus, so what is forgotten is not measured" in caplog.text
    assert [f"head {name} is not in" in caplog.text for name in ("mlm",)] == [bool(fresh)]
    assert tuple(run_folder.read_config(tmp_path / "run")["objectives"]) == objectives
    ours, theirs = load(tmp_path / "run"), load(folder)  # with a learning rate of 0 nothing changes
    jax.tree.map(np.testing.assert_array_equal, ours.params["encoder"], theirs.params["encoder"])
    assert ours.tokenizer.fingerprint == tokenizer.fingerprint


@pytest.mark.slow
def test_both_models_of_electra_in_hugging_face_format(get_config, model_folder, documents, tmp_path):
    folder = model_folder("electra/pretraining")
    model_folder("electra/masked_lm").rename(folder / "generator")
    prepare(documents[:40], Tokenizer.load(folder), tmp_path / "corpus", source="tests", held_out_fraction=0.2)
    values = get_config(
        **{"init_from": str(folder), "data.corpus": str(tmp_path / "corpus"), "data.sequence_length": 16},
        **{"optimizer.learning_rate": 0.0},
    )
    run_training(values, tmp_path / "run")
    stored = run_folder.read_config(tmp_path / "run")
    assert stored["objectives"] == ["rtd"] and stored["options"]["rtd"]["generator_size"] == 1.0
    ours, discriminator, generator = (load(of).params for of in (tmp_path / "run", folder, folder / "generator"))
    jax.tree.map(np.testing.assert_array_equal, ours["encoder"], discriminator["encoder"])
    jax.tree.map(np.testing.assert_array_equal, ours["heads"]["rtd"], discriminator["heads"]["rtd"])
    made = ours["heads"]["generator"]
    jax.tree.map(np.testing.assert_array_equal, made["mlm"], generator["heads"]["mlm"])
    jax.tree.map(np.testing.assert_array_equal, made["encoder"]["layers"], generator["encoder"]["layers"])


def test_a_generator_of_other_proportions(get_config, model_folder, documents, tmp_path):
    """It is no error for objectives that have no generator."""
    folder = model_folder("electra/pretraining")
    generator = model_folder("electra/masked_lm").rename(folder / "generator")
    config = json.loads((generator / "config.json").read_text())
    (generator / "config.json").write_text(json.dumps(config | {"num_attention_heads": 1}))
    prepare(documents[:40], Tokenizer.load(folder), tmp_path / "corpus", source="tests", held_out_fraction=0.2)
    options = {"init_from": str(folder), "data.corpus": str(tmp_path / "corpus"), "data.sequence_length": 16}
    with pytest.raises(UserError, match=r"generator: the generator's num_heads is 1, .*; for a new generator rename"):
        tasks.create(get_config(**options), tmp_path / "run")
    tasks.create(get_config(**options, objectives=("mlm",)), tmp_path / "run")


def test_a_discriminator_without_its_generator(get_config, model_folder, documents, tmp_path):
    folder = model_folder("electra/pretraining")
    prepare(documents[:40], Tokenizer.load(folder), tmp_path / "corpus", source="tests", held_out_fraction=0.2)
    values = get_config(
        **{"init_from": str(folder), "data.corpus": str(tmp_path / "corpus"), "data.sequence_length": 16}
    )
    with pytest.raises(UserError, match="put its generator in the folder generator/ of it"):
        run_training(values, tmp_path / "run")


def test_fine_tuning_a_model_in_hugging_face_format(model_folder, tmp_path):
    from bert_jax.config import to_config_dict
    from bert_jax.tasks import text

    lines = [json.dumps({"text": f"the river {number}", "label": number % 2}) for number in range(16)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    values = to_config_dict(text.Config())
    files = {f"data.{split}": str(tmp_path / "rows.jsonl") for split in ("train", "validation")}
    options = {"init_from": str(model_folder("bert/base")), "data.sequence_length": 16, "num_epochs": 1.0}
    values.update_from_flattened_dict(files | SMALL_RUN | options)
    run_training(values, tmp_path / "run")
    assert "eval/accuracy" in rows(tmp_path / "run")[-1]


def test_options_that_contradict_the_start(get_config, pretrained, mine, tmp_path):
    options = {"init_from": str(pretrained), "data.corpus": str(mine), "data.sequence_length": 32}
    for change, message in (
        ({"model.hidden_size": 64}, "model.hidden_size is 32 there, 64 here; set --config.model.hidden_size=32"),
        ({"data.corpus": ""}, "data.corpus is empty"),
        ({"init_from": ""}, "init_from, which is not set; set --config.init_from=RUN_OR_MODEL"),
        ({"init_from": str(tmp_path / "none")}, "none: not a run folder, because config.json is missing"),
        ({"data.mixture": ("1.5:x",)}, r"data.mixture: '1.5:.*x': the share is not from 0.001 to below 1"),
        ({"data.mixture": ("0.5:x", "0.6:y")}, r"the shares 0.5 \+ 0.6 leave nothing to data.corpus"),
        ({"data.eval_corpora": (str(tmp_path / "a/x"), str(tmp_path / "b/x"))}, "two folders have the same name"),
    ):
        with pytest.raises(UserError, match=message):
            run_training(get_config(**options | change), tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing is written before"
