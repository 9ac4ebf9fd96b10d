"""A toy of replaced-token detection: a second trained model samples replacements on the devices, and the encoder spots them.

Its masked tokens are those of `mlm`'s `corrupt`, which it calls.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax

from bert_jax.model.build import EncoderWithHeads
from bert_jax.model.heads import MaskedLMHead, ReplacedTokenHead
from bert_jax.objectives import base, mlm
from bert_jax.objectives.base import BaseOptions, Loss, all_positions


@dataclasses.dataclass(frozen=True)
class Options(BaseOptions):
    generator_size: float = 0.5  # width of the generator / of the encoder


def generator(size, config, rngs):
    small = dataclasses.replace(
        config,
        hidden_size=int(config.hidden_size * size),
        intermediate_size=int(config.intermediate_size * size),
        pooler=False,
    )
    return EncoderWithHeads(small, {"mlm": MaskedLMHead}, rngs)


class Objective(base.Objective):
    def __init__(self, options, vocabulary):
        self.options = options
        self.modules = {"replaced": ReplacedTokenHead, "generator": partial(generator, options.generator_size)}
        self._masking = mlm.Objective(mlm.Options(), vocabulary)

    def corrupt(self, batch, keys):
        return self._masking.corrupt(batch, keys)

    def prepare(self, models, frozen, batch, keys_B):
        generator = models.heads["generator"]
        inputs = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        states = generator.encoder(*inputs, positions_BxP=batch["mlm_positions"]).last_hidden_state
        logits_BxPxV = generator.heads["mlm"](states, generator.encoder.embeddings.tokens.embedding[...])
        sampled_BxP = jax.vmap(jax.random.categorical)(keys_B, jax.lax.stop_gradient(logits_BxPxV))
        is_predicted = batch["mlm_weights"] > 0
        rows = jnp.arange(len(sampled_BxP))[:, None]
        length = batch["input_ids"].shape[1]
        places = jnp.where(is_predicted, batch["mlm_positions"], length)  # beyond the row: dropped
        original = batch["input_ids"].at[rows, places].set(batch["mlm_labels"], mode="drop")
        replaced = original.at[rows, places].set(sampled_BxP, mode="drop")
        losses = optax.softmax_cross_entropy_with_integer_labels(logits_BxPxV, batch["mlm_labels"])
        return batch | {
            "input_ids": replaced,
            "is_replaced": (replaced != original).astype(jnp.float32),
            "generator_loss": losses * batch["mlm_weights"],
        }

    def normalizer(self, batch):
        return {"replaced": batch["attention_mask"].sum(), "generator": batch["mlm_weights"].sum()}

    def positions(self, batch):
        return all_positions(batch)

    def loss(self, models, output, batch, keys_B):
        logits_BxL = models.heads["replaced"](output.last_hidden_state)
        losses = optax.sigmoid_binary_cross_entropy(logits_BxL, batch["is_replaced"]) * batch["attention_mask"]
        return {
            "replaced": Loss(losses.sum(), {"share": batch["is_replaced"].sum()}),
            "generator": Loss(batch["generator_loss"].sum(), {}),
        }
