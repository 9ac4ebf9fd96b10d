"""Starting from another run's model: one line names what differs, both values and what to set."""

import json
import logging
import re
import shutil
from pathlib import Path

import pytest

from bert_jax import run
from bert_jax.config import to_config_dict, to_dict
from bert_jax.data.corpus.prepare import prepare
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.init_from import check_origin, differing_options, open_initial_model
from bert_jax.model.config import EncoderConfig
from bert_jax.run import run_training
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks import base as tasks
from bert_jax.tasks.text import Config


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)


@pytest.fixture(scope="module")
def pretrained(tiny_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)
        run_training(tiny_config(**{"train.num_steps": 1}), folder)
    return folder


def refusal(values, folder) -> str:
    with pytest.raises(UserError) as raised:
        run_training(values, folder)
    assert not run_folder.exists(folder), "a run that cannot begin must not claim the folder"
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_model_of_other_sizes(tiny_config, pretrained, tmp_path):
    other = {"model.hidden_size": 16, "model.num_layers": 3, "model.intermediate_size": 48, "model.use_bias": False}
    message = refusal(tiny_config(init_from=str(pretrained), **other), tmp_path / "run")
    assert message == (
        f"init_from={pretrained}: holds another model: model.hidden_size is 32 there, 16 here, "
        "model.num_layers is 2 there, 3 here, model.intermediate_size is 64 there, 48 here, "
        "model.use_bias is True there, False here; set --config.model.hidden_size=32 --config.model.num_layers=2 "
        "--config.model.intermediate_size=64 --config.model.use_bias=True, or name a run like this one"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"model.num_layers": 3},  # more than there are
        {"model.num_heads": 2},
        {"model.max_positions": 64},
        {"model.num_layer_groups": 1},  # two layers are there, one is shared here
        {"model.embedding_size": 16},
        {"model.param_dtype": "bfloat16"},
        {"model.activation": "relu"},  # the arrays are the same, but another function
        {"model.norm_epsilon": 1e-5},
    ],
)
def test_each_size(tiny_config, pretrained, tmp_path, options):
    message = refusal(tiny_config(init_from=str(pretrained), **options), tmp_path / "run")
    (name,) = options
    there = run_folder.flattened(run_folder.read_config(pretrained))[name]
    assert f"another model: {name} is {there} there, {options[name]} here; set --config.{name}={there}, or" in message


def test_the_log_says_of_a_run_that_it_was_not_complete(pretrained, tmp_path):
    assert open_initial_model(pretrained).name == f"{pretrained}, step 1"
    run = Path(shutil.copytree(pretrained, tmp_path / "run"))
    config = run_folder.read_config(run)
    config["train"]["num_steps"] = 5
    run_folder.write_config(run, config)
    assert open_initial_model(run).name == f"{run}, step 1 of 5"


def test_a_larger_model(tiny_config, pretrained, tmp_path, caplog):
    sizes = {"model.num_layers": 3}
    message = refusal(tiny_config(init_from=str(pretrained), **sizes), tmp_path / "run")
    assert (
        "; set --config.model.num_layers=2, or set --config.init_growth=stack (deeper) or tile (wider), or" in message
    )
    values = tiny_config(init_from=str(pretrained), init_growth="stack", **sizes, **{"train.num_steps": 1})
    with caplog.at_level(logging.INFO):
        run_training(values, tmp_path / "run")
    assert f"are those of {pretrained}, step 1, init_growth='stack'" in caplog.text


def origin_check(values, folder, pretrained):
    """Checks what is in `init_from` without training."""
    check_origin(tasks.create(values, folder), open_initial_model(pretrained))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # Other layers and no pooler are no contradiction, next to one that is.
        (
            {"model.num_layers": 1, "objectives": ("mlm",), "model.pooler": False, "model.activation": "relu"},
            "another model: model.activation is gelu there, relu here; set --config.model.activation=gelu, or",
        ),
        (
            {"model.head_activation": "relu"},
            "model.head_activation is '' there, relu here; set --config.model.head_activation='', or",
        ),
    ],
)
def test_what_is_a_contradiction_is_named_alone(tiny_config, pretrained, tmp_path, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        origin_check(tiny_config(init_from=str(pretrained), **options), tmp_path / "run", pretrained)


def test_options_without_effect_may_differ(tiny_config, pretrained, tmp_path):
    unused = {"local_window": 4, "local_rope_theta": 5.0, "rope_theta": 7.0, "first_attention_norm": False}
    options = {f"model.{name}": value for name, value in unused.items()} | {"model.head_activation": "gelu"}
    origin_check(tiny_config(init_from=str(pretrained), **options), tmp_path / "run", pretrained)
    then = to_dict(EncoderConfig(positions="rope", global_attention_every=2, local_window=4, norm_position="pre"))
    assert differing_options(then, then | unused) == ["rope_theta", "local_rope_theta", "first_attention_norm"]
    assert differing_options(then, then | {"position_offset": 2}) == []


def test_fewer_layers_and_other_dropout_are_no_other_model(tiny_config, pretrained, tmp_path):
    options = {"model.num_layers": 1, "model.pooler": True, "model.dropout": 0.1, "train.num_steps": 1}
    run_training(tiny_config(init_from=str(pretrained), **options), tmp_path / "run")


def test_another_tokenizer(tiny_config, pretrained, documents, tmp_path):
    """The sizes are the same: without the check the rows of the table would mean other tokens."""
    other = Tokenizer.train((document.text.replace("e", "i") for document in documents), 120)
    prepare(documents, other, tmp_path / "corpus", source="tests", held_out_fraction=0.15, shard_megabytes=0.03)
    values = tiny_config(init_from=str(pretrained), **{"data.corpus": str(tmp_path / "corpus")})
    message = refusal(values, tmp_path / "run")
    sizes = f"{Tokenizer.load(pretrained / 'tokenizer').vocab_size} tokens there, {other.vocab_size} here"
    assert f"its tokenizer differs ({sizes}); prepare the corpus with --tokenizer={pretrained}/" in message


def test_a_corpus_prepared_with_the_runs_tokenizer(tiny_config, pretrained, documents, tmp_path):
    same = Tokenizer.load(pretrained / "tokenizer")
    prepare(documents, same, tmp_path / "corpus", source="tests", held_out_fraction=0.15, shard_megabytes=0.03)
    values = tiny_config(init_from=str(pretrained), **{"data.corpus": str(tmp_path / "corpus"), "train.num_steps": 1})
    run_training(values, tmp_path / "run")


def test_what_another_batch_size_means_for_fine_tuning(pretrained, tmp_path):
    """24 examples are 3 batches of 8, and 2 of 16."""
    rows = [{"text": f"the river {number}", "label": number % 2} for number in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = to_config_dict(Config())
    files = {f"data.{split}": str(tmp_path / "rows.jsonl") for split in ("train", "validation")}
    options = {"init_from": str(pretrained), "train.batch_size": 16, "data.sequence_length": 16}
    values.update_from_flattened_dict(files | options)
    meaning = tasks.create(values, tmp_path / "run").training.effect_of_batch_size(before=8, step=10)
    assert meaning.startswith(
        "step 10 begins after 5.00 epochs of 24 examples instead of 3.33, and epochs are split into"
    )


def test_fine_tuning_names_all_options_that_differ(pretrained, tmp_path):
    values = to_config_dict(Config())
    options = {"model.hidden_size": 64, "model.num_heads": 8, "model.dropout": 0.2}
    values.update_from_flattened_dict({"init_from": str(pretrained), "data.train": "x.jsonl", **options})
    message = refusal(values, tmp_path / "run")
    assert re.match(
        f"model.hidden_size=64, model.num_heads=8: the model is that of {pretrained}, "
        "where hidden_size is 32, num_heads is 4; leave the options out",
        message,
    )
