"""Floating-point operations by formula."""

import dataclasses

import jax
import numpy as np
import pytest

from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import MaskedLMHead
from bert_jax.parallel.chips import CHIPS, chip_of
from bert_jax.train.flops import flops_per_token, local_keys, peak_flops


@pytest.mark.parametrize("length, share", [(128, 0.15), (512, 0.15), (128, 0.0)])
def test_bert_base(length, share):
    n, d, f, v = 12, 768, 3072, 30522
    everywhere = 6 * n * (4 * d**2 + 2 * d * f) + 12 * n * d * length + share * 6 * (d * v + d**2)
    not_in_last_layer = (1 - share) * (6 * (2 * d**2 + 2 * d * f) + 12 * d * length)
    np.testing.assert_allclose(flops_per_token(EncoderConfig(), length, share), everywhere - not_in_last_layer)


@pytest.mark.parametrize("share", [0.125, 1.0])
def test_bert_against_what_xla_counts(share):
    """XLA counts the products of the forward pass: a third of all, and little more for what is not a product."""
    config = EncoderConfig(vocab_size=4096, hidden_size=256, num_layers=3, num_heads=4, intermediate_size=1024)
    config = dataclasses.replace(config, scan_unroll=3, pooler=False)
    model = Model.build(config, {"mlm": MaskedLMHead})
    length, predicted = 64, round(64 * share)

    def forward(params, ids, positions):
        bound = model.bind(params)
        states = bound.encoder(ids, positions_BxP=positions).last_hidden_state
        return bound.heads["mlm"](states, bound.encoder.embeddings.tokens.embedding[...])

    shapes = [jax.ShapeDtypeStruct((2, n), np.int32) for n in (length, predicted)]
    counted = jax.jit(forward).lower(model.abstract, *shapes).compile().cost_analysis()["flops"]
    formula = 2 * length * flops_per_token(config, length, share) / 3
    assert formula < counted < 1.06 * formula


def test_variants():
    base = EncoderConfig()
    gate = flops_per_token(dataclasses.replace(base, gated_mlp=True), 128, 0.15) - flops_per_token(base, 128, 0.15)
    np.testing.assert_allclose(gate, 6 * 11.15 * 768 * 3072)
    albert = dataclasses.replace(base, num_layer_groups=1, embedding_size=128)
    np.testing.assert_allclose(
        flops_per_token(albert, 128, 1.0) - flops_per_token(base, 128, 1.0),
        6 * (768 * 128 - (768 - 128) * 30522 - 768 * (768 - 128)),
        err_msg="sharing saves none",
    )
    local = dataclasses.replace(base, global_attention_every=3, local_window=8)
    saved = flops_per_token(base, 128, 1.0) - flops_per_token(local, 128, 1.0)
    np.testing.assert_allclose(saved, 12 * 768 * 8 * (128 - local_keys(128, 8)))


def device_of(kind: str):
    return type("Device", (), {"device_kind": kind})()


@pytest.mark.parametrize("length, window", [(10, 2), (10, 0), (10, 9), (10, 50), (1, 3)])
def test_local_keys_by_counting(length, window):
    position = np.arange(length)
    counted = (np.abs(position[:, None] - position) <= window).sum(1).mean()
    np.testing.assert_allclose(local_keys(length, window), counted)


def test_peaks():
    assert peak_flops(jax.devices()[0]) is None, "a CPU has no stated peak"
    for kind, expected in {"NVIDIA H100 PCIe": 756e12, "NVIDIA H100 80GB HBM3": 989e12, "TPU v5 lite": 197e12}.items():
        assert peak_flops(device_of(kind)) == expected, kind


def test_chips():
    for name, chip in CHIPS.items():
        assert chip_of(device_of(chip.device_kind)) is chip, f"{name}: another entry begins alike and comes first"
        assert 1e14 < chip.flops < 1e16
        assert 100 < chip.flops / chip.memory_rate < 1000, "operations for each byte of the memory"
        assert chip.network_rate < chip.memory_rate
        assert 1e10 < chip.memory < 1e12
        assert (chip.connected > 8) == (not chip.between_servers), "pods of TPUs are one network"
