"""Sizes that a mesh does not divide are errors or warnings, and a run logs how its largest arrays are split."""

import dataclasses
import logging
import re

import jax
import pytest

from bert_jax import run
from bert_jax.errors import UserError
from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import MaskedLMHead
from bert_jax.parallel.mesh import ParallelConfig, make_mesh
from bert_jax.run import run_training
from bert_jax.train.placement import check_placement, largest_arrays
from bert_jax.trained import load_predictor, run_evaluation

BASE = EncoderConfig()


def built(**changes) -> Model:
    return Model.build(dataclasses.replace(BASE, **changes), {"mlm": MaskedLMHead})


@pytest.mark.parametrize(
    "changes, mesh, message",
    [
        ({}, (1, 1, 8), r"num_heads=12 .* parallel.tensor=8, .*; set parallel.tensor=4, or model.num_heads=8 or 16$"),
        (
            {"num_heads": 16, "intermediate_size": 3076},
            (1, 1, 8),
            r"=3076 .*; set parallel.tensor=4, or .*=3072 or 3080$",
        ),
        ({"num_heads": 6, "hidden_size": 780}, (1, 8, 1), r"hidden_size=780 .* parallel.fsdp=8.* .*=768 or 792$"),
        # 780 has no multiple of 8 as a divisor.
        ({"hidden_size": 780}, (1, 1, 8), r"model.num_heads=12 .*; set parallel.tensor=4$"),
    ],
)
def test_sizes_of_layers_that_do_not_divide_are_refused(changes, mesh, message):
    model = built(**changes)
    with pytest.raises(UserError, match=message):
        check_placement(model, make_mesh(ParallelConfig(*mesh)))


def test_what_the_refusal_names_is_accepted():
    for tensor, heads in ((4, 12), (8, 8), (8, 16)):
        check_placement(built(num_heads=heads), make_mesh(ParallelConfig(-1, 1, tensor)))


@pytest.mark.parametrize(
    "changes, mesh, message",
    [
        (
            {},
            (1, 1, 4),
            "model.vocab_size=30522 does not divide over parallel.tensor=4: .*pretrain with --config.model.vocab_size=30592",
        ),
        (
            {"embedding_size": 100},
            (1, 8, 1),
            "model.embedding_size=100 .* parallel.fsdp=8: .*pretrain with --config.model.embedding_size=104",
        ),
    ],
)
def test_tables_that_stay_whole_are_told_of_once(changes, mesh, message, caplog):
    devices = jax.devices()[: mesh[0] * mesh[1] * mesh[2]]
    check_placement(built(**changes), make_mesh(ParallelConfig(*mesh), devices))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.search(message, record.getMessage())


def test_how_the_largest_arrays_are_split():
    lines = largest_arrays(built(num_layers=2, vocab_size=30592), make_mesh(ParallelConfig(2, 2, 2)))
    assert lines[0] == "the 10 largest of 24 arrays of parameters, and what they are split over:"
    assert lines[1] == "  encoder/embeddings/tokens/embedding     (30592, 768)         (tensor, fsdp)"
    rows = [re.split(r" {2,}", line.strip()) for line in lines[1:]]
    assert len(rows) == 10
    assert ["encoder/layers/mlp/up/kernel", "(2, 768, 3072)", "(-, fsdp, tensor)"] in rows
    assert ["encoder/layers/attention/qkv/kernel", "(2, 768, 3, 12, 64)", "(-, fsdp, -, tensor, -)"] in rows
    assert len({line.index("(") for line in lines[1:]}) == 1, "no columns"
    assert max(map(len, lines)) < 100
    assert largest_arrays(built(), make_mesh(ParallelConfig(8))) == ["every array is replicated on 8 devices"]
    assert largest_arrays(built(), make_mesh(ParallelConfig(), jax.devices()[:1])) == []


def test_a_run_refuses_or_logs(tiny_config, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)
    caplog.set_level(logging.INFO, "bert_jax")
    with pytest.raises(
        UserError, match=r"model.num_heads=4 does not divide over parallel.tensor=8.*set parallel.tensor=4"
    ):
        run_training(tiny_config(**{"parallel.tensor": 8}), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    run_training(tiny_config(**{"parallel.tensor": 4, "parallel.data": 2, "train.num_steps": 1}), tmp_path / "run")
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert re.search(r"encoder/embeddings/tokens/embedding +\(128, 32\) +\(tensor, -\)", text)

    other = tiny_config(**{"parallel.tensor": 8})
    for steps in ([], None):
        with pytest.raises(UserError, match=r"model.num_heads=4 does not divide over parallel.tensor=8"):
            run_evaluation(other, tmp_path / "run", steps, tmp_path / "results")
    with pytest.raises(UserError, match=r"model.num_heads=4 does not divide over parallel.tensor=8"):
        load_predictor(other, tmp_path / "run", None)
