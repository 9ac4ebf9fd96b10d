"""A toy of distillation: the logits of a frozen model, at the positions that mlm predicts, are what the encoder learns."""

import dataclasses

import jax
import optax

from bert_jax.objectives import base
from bert_jax.objectives.base import BaseOptions, Loss


@dataclasses.dataclass(frozen=True)
class Options(BaseOptions):
    folder: str = ""  # of the teacher's run or model


class Objective(base.Objective):
    def __init__(self, options, vocabulary):
        self.options = options
        self.frozen = {"teacher": options.folder}

    def prepare(self, models, frozen, batch, keys_B):
        teacher = frozen["teacher"]
        inputs = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        states = teacher.encoder(*inputs, positions_BxP=batch["mlm_positions"]).last_hidden_state
        logits = teacher.heads["mlm"](states, teacher.encoder.embeddings.tokens.embedding[...])
        return batch | {"teacher_probabilities": jax.nn.softmax(logits)}

    def normalizer(self, batch):
        return batch["mlm_weights"].sum()

    def positions(self, batch):
        return batch["mlm_positions"]

    def loss(self, models, output, batch, keys_B):
        logits = models.heads["mlm"](output.last_hidden_state, models.encoder.embeddings.tokens.embedding[...])
        losses = optax.softmax_cross_entropy(logits, batch["teacher_probabilities"])
        return Loss((losses * batch["mlm_weights"]).sum(), {})
