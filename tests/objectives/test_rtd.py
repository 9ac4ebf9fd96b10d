"""Replaced-token detection: losses and gradients against ELECTRA in torch, sampling, metrics, and the generator's sizes."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.formats import huggingface, huggingface_config
from bert_jax.model import heads
from bert_jax.model.config import EncoderConfig
from bert_jax.model.layers import split
from bert_jax.objectives import rtd
from bert_jax.objectives.losses import Losses, build_model
from tests.objectives.test_base import Vocabulary

ROWS, LENGTH, PREDICTIONS = 6, 12, 3
CONFIG = EncoderConfig(
    vocab_size=64,  # 4 rows more than the vocabulary has tokens
    hidden_size=16,
    embedding_size=12,
    num_layers=2,
    num_heads=2,
    intermediate_size=24,
    max_positions=LENGTH,
    pooler=False,
    head_activation="gelu",
    classifier="gelu",
)
OPTIONS = rtd.Options(generator_size=0.5, generator_layers=0.5)


@pytest.fixture(scope="module")
def batch():
    """Masked rows, one of which only fills the batch, with words, [CLS] (2) and [SEP] (3) of their own."""
    rng = np.random.default_rng(0)
    lengths = np.array([12, 7, 9, 12, 10, 8])
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    original = rng.integers(5, 60, (ROWS, LENGTH)).astype(np.int32) * mask
    positions = np.sort(rng.permuted(np.tile(np.arange(1, 7), (ROWS, 1)), axis=1)[:, :PREDICTIONS], axis=1)
    labels = np.take_along_axis(original, positions, axis=1)
    weights = np.ones((ROWS, PREDICTIONS), np.float32)
    weights[1, 2] = weights[5] = 0
    ids = original.copy()
    for row, column in zip(*np.nonzero(weights), strict=True):
        ids[row, positions[row, column]] = Vocabulary.mask_id
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": (np.arange(LENGTH) >= lengths[:, None] // 2).astype(np.int32) * mask,
        "example_weights": np.array([1, 1, 1, 1, 1, 0], np.float32),
        "mlm_positions": positions.astype(np.int32),
        "mlm_labels": labels,
        "mlm_weights": weights,
    }


@pytest.fixture(scope="module")
def make(random_params):
    """`make(**options)`: the losses of the objective, and parameters."""

    def of(config=CONFIG, **options):
        objectives = {"rtd": rtd.Objective(dataclasses.replace(OPTIONS, **options), Vocabulary())}
        model = build_model(config, objectives)
        return Losses(model, objectives), random_params(model)

    return of


def prepared(losses, params, batch, dropout_keys=None):
    """The batch with samples, as the encoder gets it in evaluation."""
    objective = losses.objectives["rtd"]
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(ROWS))  # as `Losses.compute` makes them
    keys, *_ = split(keys, 3)
    (keys,) = split(keys, 1)
    keys, _ = split(keys, 2)
    result = jax.jit(lambda params: objective.prepare(losses.model.bind(params), {}, batch, keys, dropout_keys))(params)
    return jax.tree.map(np.asarray, result)


def computed(losses, params, batch):
    """Loss and metrics without dropout, and the gradient."""

    def total(params):
        value, metrics, _ = losses.compute(params, {}, batch, losses.normalizers(batch))
        return value, metrics

    (value, metrics), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    means = {name: float(x) for name, x in metrics.items()}
    return float(value), means | losses.derived(means), gradient


@pytest.fixture(scope="module")
def whole(make, batch):
    """The losses, parameters, samples and results that others are compared with."""
    losses, params = make()
    return losses, params, prepared(losses, params, batch), computed(losses, params, batch)


def torch_model(torch, transformers, architecture, model, params, head):
    family, config = huggingface_config.family_of(model.config)
    config = transformers.ElectraConfig(**config, attn_implementation="eager")
    with_head = getattr(transformers, architecture)(config)
    tensors = {
        name: torch.tensor(np.array(array))
        for name, array in huggingface.exported_tensors(model, params, family, (head,))
    }
    missing, unexpected = with_head.load_state_dict(tensors, strict=False)
    assert not unexpected and all(
        name.endswith(("position_ids", "token_type_ids", "lm_head.weight")) for name in missing
    )
    with_head.tie_weights()
    return with_head.eval()


def test_losses_and_gradients_are_those_of_electra_in_torch(whole, batch, torch, transformers):
    losses, params, samples, (value, metrics, gradient) = whole
    generator = rtd.generator_model(OPTIONS, losses.model), rtd.generator_params(OPTIONS, params)
    discriminator = torch_model(torch, transformers, "ElectraForPreTraining", losses.model, params, "rtd")
    masked_lm = torch_model(torch, transformers, "ElectraForMaskedLM", *generator, "mlm")
    masked_lm.electra.embeddings = discriminator.electra.embeddings  # tables and norm, as in the original
    masked_lm.tie_weights()
    tensor = {name: torch.tensor(array) for name, array in batch.items()}
    inputs = {"attention_mask": tensor["attention_mask"], "token_type_ids": tensor["token_type_ids"].long()}

    logits = masked_lm(input_ids=tensor["input_ids"].long(), **inputs).logits
    at_masks = torch.take_along_dim(logits, tensor["mlm_positions"].long()[:, :, None], dim=1)
    losses_of_generator = torch.nn.functional.cross_entropy(
        at_masks.transpose(1, 2), tensor["mlm_labels"].long(), reduction="none"
    )
    weights = tensor["mlm_weights"]
    generator_loss = (losses_of_generator * weights).sum() / weights.sum()
    logits = discriminator(input_ids=torch.tensor(samples["input_ids"]).long(), **inputs).logits
    per_token = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.tensor(samples["is_replaced"]).float(), reduction="none"
    )
    tokens = tensor["attention_mask"] * tensor["example_weights"][:, None]
    discriminator_loss = (per_token * tokens).sum() / tokens.sum()
    total = 1.0 * generator_loss + 50.0 * discriminator_loss
    total.backward()
    # torch keeps the row of padding as it is, also where a sample is that token; the original does not.
    discriminator.electra.embeddings.word_embeddings.weight.grad[0] = torch.tensor(
        np.array(gradient["encoder"]["embeddings"]["tokens"]["embedding"][0])
    )

    np.testing.assert_allclose(metrics["generator/loss"], generator_loss.item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["rtd/loss"], discriminator_loss.item(), rtol=1e-5)
    np.testing.assert_allclose(value, total.item(), rtol=1e-5)
    for path, parameter in {
        "encoder/embeddings/tokens/embedding": discriminator.electra.embeddings.word_embeddings.weight,
        "encoder/embeddings/positions/embedding": discriminator.electra.embeddings.position_embeddings.weight,
        "encoder/embeddings/norm/scale": discriminator.electra.embeddings.LayerNorm.weight,
        "encoder/embeddings/projection/bias": discriminator.electra.embeddings_project.bias,
        "heads/rtd/hidden/bias": discriminator.discriminator_predictions.dense.bias,
        "heads/generator/encoder/embeddings/projection/bias": masked_lm.electra.embeddings_project.bias,
        "heads/generator/mlm/bias": masked_lm.generator_lm_head.bias,
    }.items():
        ours = gradient
        for name in path.split("/"):
            ours = ours[name]
        np.testing.assert_allclose(ours, parameter.grad.numpy(), rtol=1e-3, atol=2e-5, err_msg=path)

    logits, is_replaced = logits.detach().numpy(), samples["is_replaced"]
    counted = tokens.numpy() > 0
    flagged, is_replaced = (logits > 0)[counted], is_replaced[counted]
    assert flagged.any() and is_replaced.any() and not is_replaced.all()
    expected = {
        "rtd/accuracy": (flagged == is_replaced).mean(),
        "rtd/precision": is_replaced[flagged].mean(),
        "rtd/recall": flagged[is_replaced].mean(),
        "rtd/majority": 1 - is_replaced.mean(),
        "generator/accuracy": (at_masks.argmax(-1) == tensor["mlm_labels"])[weights > 0].float().mean(),
    }
    for name, number in expected.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-5, err_msg=name)


def test_samples_are_put_in_place_of_masks_alone(whole, batch):
    _, _, samples, _ = whole
    original = batch["input_ids"].copy()
    predicted = np.zeros_like(original, bool)
    for row, column in zip(*np.nonzero(batch["mlm_weights"]), strict=True):
        place = row, batch["mlm_positions"][row, column]
        original[place], predicted[place] = batch["mlm_labels"][row, column], True
    np.testing.assert_array_equal(samples["input_ids"][~predicted], original[~predicted])
    np.testing.assert_array_equal(samples["is_replaced"], samples["input_ids"] != original)
    assert samples["is_replaced"].any() and samples["input_ids"].max() < Vocabulary.vocab_size


def test_a_sample_that_equals_the_original_counts_as_original(make, batch):
    """A generator whose bias makes one token certain, for rows whose masked tokens are that one."""
    losses, params = make(tied_embeddings=False)
    certain = batch | {"mlm_labels": np.full_like(batch["mlm_labels"], 7)}
    params["heads"]["generator"]["mlm"]["bias"] = jnp.zeros(CONFIG.vocab_size).at[7].set(1e4)
    samples = prepared(losses, params, certain)
    assert not samples["is_replaced"].any() and samples["sampled_correct"].all()
    losses, _ = make(tied_embeddings=False, disallow_correct=True)
    params["heads"]["generator"]["mlm"]["bias"] = jnp.zeros(CONFIG.vocab_size).at[7].set(100.0)
    assert not prepared(losses, params, certain)["sampled_correct"].any()


def test_samples_have_the_generators_probabilities():
    """At two temperatures; 40,000 samples of 60 tokens, of which no count is more than 5 deviations off."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=62).astype(np.float32)
    for temperature in (1.0, 2.0):
        objective = rtd.Objective(dataclasses.replace(OPTIONS, temperature=temperature), Vocabulary())
        rows, columns = 400, 100
        positions = np.tile(np.arange(columns), (rows, 1))
        keys = jax.random.split(jax.random.key(1), rows)
        samples = jax.jit(objective._samples)(jnp.tile(logits, (rows, columns, 1)), positions, positions, keys)
        counts = np.bincount(np.asarray(samples).ravel(), minlength=62)
        expected = np.exp(logits[:60] / temperature)
        expected *= rows * columns / expected.sum()
        assert not counts[60:].any(), "rows of the table that stand for no token are sampled"
        deviations = (counts[:60] - expected) / np.sqrt(expected)
        assert np.abs(deviations).max() < 5


def test_samples_do_not_depend_on_the_chunks_of_logits(whole, batch, monkeypatch):
    losses, params, samples, (value, metrics, gradient) = whole
    monkeypatch.setattr(heads, "LOGITS_BYTES", 4 * ROWS * CONFIG.vocab_size)  # one prediction of each row at a time
    np.testing.assert_array_equal(prepared(losses, params, batch)["input_ids"], samples["input_ids"])
    in_chunks, metrics_in_chunks, gradient_in_chunks = computed(losses, params, batch)
    np.testing.assert_allclose(in_chunks, value, rtol=1e-6)
    assert metrics_in_chunks.keys() == metrics.keys()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), gradient, gradient_in_chunks)


def test_no_gradient_flows_through_samples(make, batch):
    """The discriminator's loss alone moves the tables that both use, and nothing else of the generator."""
    losses, params = make(generator_weight=0.0)
    _, _, gradient = computed(losses, params, batch)
    assert not any(np.any(x) for x in jax.tree.leaves(gradient["heads"]["generator"]))
    assert np.any(gradient["encoder"]["embeddings"]["tokens"]["embedding"])
    losses, params = make(discriminator_weight=0.0)
    _, _, gradient = computed(losses, params, batch)
    moved = {name for name, part in gradient["encoder"].items() if any(np.any(x) for x in jax.tree.leaves(part))}
    assert moved == {"embeddings"} and not np.any(gradient["encoder"]["embeddings"]["projection"]["kernel"])


def test_the_generator_has_dropout_in_training(whole, batch):
    losses, params, samples, _ = whole
    dropped = prepared(losses, params, batch, jax.random.split(jax.random.key(0), ROWS))
    assert not np.allclose(dropped["generator_losses"], samples["generator_losses"])


def test_tied_embeddings_are_stored_once(make):
    tied, untied = (make(tied_embeddings=value)[0].model for value in (True, False))
    assert set(tied.abstract["heads"]["generator"]["encoder"]["embeddings"]) == {"projection"}
    tables = untied.abstract["heads"]["generator"]["encoder"]["embeddings"]
    assert set(tables) == {"tokens", "positions", "token_types", "norm"}
    assert tables["tokens"]["embedding"].shape == (64, 8)  # of the generator's width (run_pretraining.py)


@pytest.mark.parametrize(
    "size, encoder, expected",
    [  # configure_pretraining.py and table 6: small, base, large
        (1 / 4, (256, 1024, 4, 128), (64, 256, 1, 128)),
        (1 / 3, (768, 3072, 12, 0), (256, 1024, 4, 768)),
        (1 / 4, (1024, 4096, 16, 0), (256, 1024, 4, 1024)),
        (1.0, (256, 1024, 4, 128), (256, 1024, 4, 128)),
    ],
)
def test_sizes_of_the_generator_are_the_published_ones(size, encoder, expected):
    names = ("hidden_size", "intermediate_size", "num_heads", "embedding_size")
    config = EncoderConfig(**dict(zip(names, encoder, strict=True)))
    generator = rtd.generator_config(rtd.Options(generator_size=size), config)
    assert tuple(getattr(generator, name) for name in names) == expected and generator.num_layers == 12


def test_sizes_that_fit_no_generator():
    with pytest.raises(
        UserError, match=r"options.rtd: generator_size=0.3 .* give no generator: its model.hidden_size=230"
    ):
        rtd.generator_config(dataclasses.replace(OPTIONS, generator_size=0.3), EncoderConfig())
    for wrong in ({"temperature": 0.0}, {"generator_layers": 0.0}, {"generator_size": -1.0}, {"weight": -1.0}):
        with pytest.raises(ValueError, match="must"):
            dataclasses.replace(OPTIONS, **wrong)
