"""Replaced-token detection (ELECTRA, Clark et al. 2020): a generator fills masks, and the encoder tells where it erred.

The encoder of the run is the discriminator. The generator is a smaller encoder with an MLM head among the run's heads; it is
trained to predict the masked tokens, and no gradient flows through its samples. Defaults that name a file are those of
google-research/electra.

Shapes: B batch, L length, P predictions (C of a chunk), D hidden_size of the generator, V vocabulary.
"""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bert_jax.errors import UserError
from bert_jax.model.build import EncoderWithHeads, Model, ModuleFactory, Params
from bert_jax.model.config import EncoderConfig
from bert_jax.model.encoder import Encoder
from bert_jax.model.heads import MaskedLMHead, ReplacedTokenHead, cross_entropy
from bert_jax.objectives import base, mlm
from bert_jax.objectives.base import (
    Batch,
    HostBatch,
    Loss,
    Vocabulary,
    encoder_inputs,
    put_at_predictions,
    token_weights,
)

# Added to the logit of a token that is not to be sampled (pretrain_helpers.py, sample_from_softmax).
DISALLOWED = -1000.0


@dataclasses.dataclass(frozen=True)
class Options(mlm.Options):
    """Options of both losses, and those of `mlm` for the masks."""

    # Of the losses, times `weight` (configure_pretraining.py, disc_weight, gen_weight).
    discriminator_weight: float = 50.0
    generator_weight: float = 1.0  # of the generator's loss
    mask_replace_prob: float = 0.85  # the rest of the predicted tokens stay (pretrain_helpers.py, mask)
    random_replace_prob: float = 0.0  # of the predicted tokens, the share replaced by a random token
    # Width, width of the feed-forward layers and heads of the generator, as a share of the encoder's (table 6: 1/4 to 1/3).
    generator_size: float = 0.0
    generator_layers: float = 1.0  # its layers, as a share of the encoder's
    tied_embeddings: bool = True  # the generator uses the encoder's tables and the norm after them (section 3.2)
    temperature: float = 1.0  # of sampling
    disallow_correct: bool = False  # never sample the original token

    def __post_init__(self):
        super().__post_init__()
        if min(self.generator_weight, self.discriminator_weight, self.generator_size) < 0:
            raise ValueError("generator_weight, discriminator_weight and generator_size must not be negative")
        if self.generator_layers <= 0 or self.temperature <= 0:
            raise ValueError("generator_layers and temperature must be above 0")


def generator_config(options: Options, config: EncoderConfig) -> EncoderConfig:
    """Returns the options of the generator of an encoder. Raises UserError if its sizes do not fit together."""
    hidden_size, intermediate_size, num_heads = (
        max(1, round(size * options.generator_size))
        for size in (config.hidden_size, config.intermediate_size, config.num_heads)
    )
    needs_projection = options.tied_embeddings and config.table_width != hidden_size
    try:
        return dataclasses.replace(
            config,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_heads=num_heads,
            num_layers=max(1, round(config.num_layers * options.generator_layers)),
            embedding_size=config.table_width if needs_projection else 0,
            pooler=False,
            scalar_mix=False,
        )
    except ValueError as error:
        sizes = f"generator_size={options.generator_size} and generator_layers={options.generator_layers}"
        raise UserError(f"options.rtd: {sizes} give no generator: its {error}; choose other shares") from None


def options_of_generator(generator: EncoderConfig, config: EncoderConfig) -> dict[str, Any]:
    """Returns the options that make a generator of an encoder, if `check_generator` accepts it."""
    return {
        "generator_size": generator.hidden_size / config.hidden_size,
        "generator_layers": generator.num_layers / config.num_layers,
    }


def check_generator(options: Options, config: EncoderConfig, generator: EncoderConfig, folder: Path) -> None:
    """Raises UserError if the generator in a folder has other sizes than the options make of the encoder's."""
    made = generator_config(options, config)
    for name in ("hidden_size", "intermediate_size", "num_heads", "num_layers"):
        if (size := getattr(generator, name)) != (expected := getattr(made, name)):
            remedy = "for a new generator rename the folder, and set --config.options.rtd.generator_size"
            raise UserError(
                f"{folder}: the generator's {name} is {size}, by generator_size={options.generator_size:g} and "
                f"generator_layers={options.generator_layers:g} of options.rtd it would be {expected}; {remedy}"
            )


class Generator(nnx.Module):
    """An encoder with an MLM head; with tied embeddings it has no tables of its own."""

    def __init__(self, options: Options, config: EncoderConfig, rngs: nnx.Rngs):
        small = generator_config(options, config)
        self.encoder = Encoder(small, rngs, has_tables=not options.tied_embeddings)
        self.mlm = MaskedLMHead(small, rngs)


def generator_model(options: Options, model: Model) -> Model:
    """Returns the generator of a run's model as one of its own, with the head `mlm`."""
    return Model.build(generator_config(options, model.config), {"mlm": MaskedLMHead})


def generator_params(options: Options, params: Params) -> Params:
    """Returns the parameters of `generator_model`, which may be shared with the discriminator, from those of a run."""
    generator = params["heads"]["generator"]
    tables = params["encoder"]["embeddings"] if options.tied_embeddings else {}
    embeddings = {name: table for name, table in tables.items() if name != "projection"}
    embeddings |= generator["encoder"].get("embeddings", {})
    return {"encoder": generator["encoder"] | {"embeddings": embeddings}, "heads": {"mlm": generator["mlm"]}}


class Objective(base.Objective):
    masks_tokens: ClassVar = True

    def __init__(self, options: Options, vocabulary: Vocabulary):
        if not options.generator_size:
            raise UserError(
                "rtd without a generator's sizes; set --config.options.rtd.generator_size, e.g. to 0.25 (to go on from a "
                "discriminator in Hugging Face's format, put its generator in the folder generator/ of it)"
            )
        self.options, self._vocab_size = options, vocabulary.vocab_size
        self._masking = mlm.Objective(options, vocabulary)

    @property
    def modules(self) -> dict[str, ModuleFactory]:
        return {"rtd": ReplacedTokenHead, "generator": partial(Generator, self.options)}

    def weight_of(self, term: str) -> float:
        options = self.options
        return options.weight * (options.generator_weight if term == "generator" else options.discriminator_weight)

    def corrupt(self, batch: HostBatch, keys: np.ndarray) -> HostBatch:
        """Masks tokens and adds labels as `mlm` does."""
        return self._masking.corrupt(batch, keys)

    def for_evaluation(self) -> base.Objective:
        return self._masking.for_evaluation()

    def shares(self, progress: float) -> tuple[float, float]:
        return 1.0, 0.0

    def prepare(self, models: EncoderWithHeads, frozen, batch: Batch, keys_B, dropout_keys_B) -> Batch:
        """Puts samples of the generator in place of the masks.

        Adds is_replaced (bool [B, L]); and generator_losses, generator_correct and sampled_correct [B, P].
        """
        generator: Any = models.heads["generator"]
        embeddings = models.encoder.embeddings if self.options.tied_embeddings else generator.encoder.embeddings
        hidden_BxPxD = generator.encoder(
            batch["input_ids"],
            **encoder_inputs(batch),
            keys_B=dropout_keys_B,
            positions_BxP=batch["mlm_positions"],
            embeddings=embeddings,
        ).last_hidden_state

        def predict(logits_BxCxV: jax.Array, labels_BxC: jax.Array, positions_BxC: jax.Array):
            samples_BxC = self._samples(logits_BxCxV, labels_BxC, positions_BxC, keys_B)
            return *cross_entropy(logits_BxCxV, labels_BxC), samples_BxC

        labels, positions = batch["mlm_labels"], batch["mlm_positions"]
        losses, correct, samples = generator.mlm.over_logits(
            predict, hidden_BxPxD, embeddings.tokens.embedding[...], labels, positions
        )
        original, sampled = (put_at_predictions(batch["input_ids"], tokens, batch) for tokens in (labels, samples))
        return batch | {
            "input_ids": sampled,
            "is_replaced": sampled != original,
            "generator_losses": losses,
            "generator_correct": correct,
            "sampled_correct": samples == labels,
        }

    def _samples(
        self, logits_BxCxV: jax.Array, labels_BxC: jax.Array, positions_BxC: jax.Array, keys_B: jax.Array
    ) -> jax.Array:
        """Returns a token [B, C] for each prediction, drawn with the generator's probabilities."""
        tokens_V = jnp.arange(logits_BxCxV.shape[-1])[None, None]
        scores = jax.lax.stop_gradient(logits_BxCxV) / self.options.temperature
        if self.options.disallow_correct:
            scores += jnp.where(tokens_V == labels_BxC[:, :, None], DISALLOWED, 0.0)
        if self._vocab_size < tokens_V.size:  # the other rows of the table only pad it
            scores = jnp.where(tokens_V < self._vocab_size, scores, -jnp.inf)
        return _drawn(scores, positions_BxC, keys_B)

    def normalizer(self, batch: Batch) -> dict[str, jax.Array]:
        return {"rtd": token_weights(batch).sum(), "generator": batch["mlm_weights"].sum()}

    def positions(self, batch: Batch) -> Literal["all"]:
        """Returns 'all': each token is original or replaced, special tokens too (run_pretraining.py, input_mask)."""
        return "all"

    def loss(self, models: EncoderWithHeads, output, batch: Batch, keys_B) -> dict[str, Loss]:
        weights, is_replaced = token_weights(batch), batch["is_replaced"]
        logits_BxL = models.heads["rtd"](output.last_hidden_state)
        losses_BxL = optax.sigmoid_binary_cross_entropy(logits_BxL, is_replaced.astype(jnp.float32))
        flagged = logits_BxL > 0
        shares = {
            "accuracy": flagged == is_replaced,
            "replaced": is_replaced,
            "flagged": flagged,
            "flagged_and_replaced": flagged & is_replaced,
        }
        of_generator = {"accuracy": batch["generator_correct"], "sampled_accuracy": batch["sampled_correct"]}
        predicted = batch["mlm_weights"]
        return {
            "rtd": Loss((losses_BxL * weights).sum(), {name: (x * weights).sum() for name, x in shares.items()}),
            "generator": Loss(
                (batch["generator_losses"] * predicted).sum(),
                {name: (x * predicted).sum() for name, x in of_generator.items()},
            ),
        }

    def derived(self, means) -> dict[str, Any]:
        """Returns precision and recall of replaced tokens, 0 where there are none, and the accuracy of 'all are original'."""
        replaced, flagged, both = (means[f"rtd/{name}"] for name in ("replaced", "flagged", "flagged_and_replaced"))
        return {
            "rtd/precision": both / (flagged + (flagged == 0)),
            "rtd/recall": both / (replaced + (replaced == 0)),
            "rtd/majority": 1.0 - replaced,
        }


def _drawn(logits_BxCxV: jax.Array, positions_BxC: jax.Array, keys_B: jax.Array) -> jax.Array:
    """Returns tokens [B, C] with probabilities softmax(logits), drawn by Gumbel noise.

    The largest of a block's logits with noise has the distribution of one number with noise: the log-sum-exp of the block.
    So a block is drawn first, then a token of it: V random numbers become one for each block and each token of a block.
    """
    num_blocks, size = _blocks(logits_BxCxV.shape[-1])
    noise = jax.vmap(jax.vmap(partial(_noise, num_blocks + size), (None, 0)))(keys_B, positions_BxC)
    of_blocks, of_tokens = jnp.split(noise, [num_blocks], axis=-1)
    blocks = logits_BxCxV.reshape(*positions_BxC.shape, num_blocks, size)
    largest = logits_BxCxV.max(-1)[..., None, None]
    sums = jnp.log(jnp.exp(blocks - largest).sum(-1))  # -inf of improbable blocks
    block_BxC = jnp.argmax(sums + of_blocks, axis=-1)
    logits_of_block = jnp.take_along_axis(blocks, block_BxC[..., None, None], axis=2)[:, :, 0]
    return block_BxC * size + jnp.argmax(logits_of_block + of_tokens, axis=-1)


def _blocks(num_tokens: int) -> tuple[int, int]:
    """Returns a number of blocks and their size: a product of two numbers with the smallest sum."""
    larger = next(n for n in range(math.isqrt(num_tokens - 1) + 1, num_tokens + 1) if num_tokens % n == 0)
    pair = larger, num_tokens // larger
    # Blocks in a number with more factors of 2 are more likely to be parts of the shards of a vocabulary.
    num_blocks = max(pair, key=lambda number: number & -number)
    return num_blocks, num_tokens // num_blocks


def _noise(size: int, key: jax.Array, position: jax.Array) -> jax.Array:
    """Returns Gumbel noise [size] for a position of a row, which depends on nothing but them."""
    return jax.random.gumbel(jax.random.fold_in(key, position), (size,))
