"""Distillation (DistilBERT, Sanh et al. 2019, section 3): the encoder learns what a frozen teacher predicts and computes.

It masks tokens as `mlm` does, and also learns to predict them: the logits of both losses are computed once. "Research code"
stands for examples/research_projects/distillation of huggingface/transformers.

Shapes: B batch, L length, P positions (C of a chunk), D hidden_size, E table_width, V vocabulary, N layers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.errors import UserError
from bert_jax.model.build import EncoderWithHeads, Model
from bert_jax.model.heads import MaskedLMHead, cross_entropy, token_logits
from bert_jax.model.layers import take_positions
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

EPSILON = 1e-12  # of a squared length, as in torch's CosineEmbeddingLoss


@dataclasses.dataclass(frozen=True)
class Options(mlm.Options):
    """Options of the losses, and those of `mlm` for the masks."""

    folder: str = ""  # of the teacher: a run or a model in Hugging Face's format, with an MLM head
    temperature: float = 2.0  # of both distributions (research code, train.py)
    # Of the losses, times `weight`; 2, 5 and 1 in the research code's README.
    mlm_weight: float = 2.0  # cross-entropy of the masked tokens
    kl_weight: float = 5.0  # Kullback-Leibler divergence of predicted tokens, times temperature^2
    cosine_weight: float = 1.0  # 1 - cosine of the last hidden states
    hidden_mse_weight: float = 0.0  # mean squared error between hidden states of `hidden_layers`
    # Compare predicted tokens at the masked positions alone, not at all (research code, restrict_ce_to_mask).
    restrict_ce_to_mask: bool = False
    hidden_layers: tuple[str, ...] = ()  # 'STUDENT:TEACHER', numbers of layers; 0 stands for the embeddings

    def __post_init__(self):
        super().__post_init__()
        names = ("kl_weight", "cosine_weight", "hidden_mse_weight", "mlm_weight")
        for name in names:
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not any(getattr(self, name) for name in names[:3]):
            raise ValueError("kl_weight, cosine_weight and hidden_mse_weight are all 0: nothing of the teacher is read")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be above 0")
        if bool(self.hidden_mse_weight) != bool(self.hidden_layers):
            raise ValueError("hidden_mse_weight and hidden_layers need each other, e.g. hidden_layers=3:6,6:12")
        _ = self.pairs

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Layers of student and teacher whose hidden states are compared."""
        parts = [pair.partition(":")[::2] for pair in self.hidden_layers]
        if not all(part.isdecimal() for pair in parts for part in pair):
            raise ValueError(f"hidden_layers={self.hidden_layers}: write STUDENT:TEACHER, e.g. 3:6,6:12")
        return tuple((int(student), int(teacher)) for student, teacher in parts)


class Objective(base.Objective):
    masks_tokens: ClassVar = True
    modules: ClassVar = {"mlm": MaskedLMHead}

    def __init__(self, options: Options, vocabulary: Vocabulary):
        if not options.folder:
            raise UserError(
                "distillation without a teacher; set --config.options.distillation.folder to a run or a model"
            )
        self.options, self._vocab_size = options, vocabulary.vocab_size
        self.frozen = {"teacher": options.folder}
        self.reads_all_layers = bool(options.hidden_layers)
        self._masking = mlm.Objective(options, vocabulary)
        weights = {term: getattr(options, f"{term}_weight") for term in ("mlm", "kl", "cosine", "hidden_mse")}
        self._weights = {term: weight for term, weight in weights.items() if weight}
        self._at_masks = options.restrict_ce_to_mask or "kl" not in self._weights
        self._reads_all = "cosine" in self._weights or not self._at_masks

    def weight_of(self, term: str) -> float:
        return self.options.weight * self._weights[term]

    # ------------------------------------------------------------------------------------------------- before training

    def check(self, model: Model, frozen: Mapping[str, Model], length: int) -> None:
        teacher, options = frozen["teacher"], self.options
        student_config, config = model.config, teacher.config
        if "mlm" not in teacher.heads and options.kl_weight:
            raise UserError(f"{options.folder}: has no head mlm, which a teacher needs; name another model")
        if length > config.max_positions:
            raise UserError(
                f"{options.folder}: a teacher of {config.max_positions} positions, for sequences of {length} tokens; "
                "use shorter ones, or another teacher"
            )
        if student_config.hidden_size != config.hidden_size and {"cosine", "hidden_mse"} & self._weights.keys():
            raise UserError(
                f"model.hidden_size is {student_config.hidden_size}, the teacher's {config.hidden_size}: cosine_weight and "
                "hidden_mse_weight compare hidden states of the same size; set both to 0, and hidden_layers to ()"
            )
        for student_layer, teacher_layer in options.pairs:
            if student_layer > student_config.num_layers or teacher_layer > config.num_layers:
                raise UserError(
                    f"hidden_layers={student_layer}:{teacher_layer}: the student has {student_config.num_layers} layers, "
                    f"the teacher {config.num_layers}; name layers up to these"
                )

    # ----------------------------------------------------------------------------------------------------- the losses

    def corrupt(self, batch: HostBatch, keys: np.ndarray) -> HostBatch:
        """Masks tokens and adds labels as `mlm` does."""
        return self._masking.corrupt(batch, keys)

    def for_evaluation(self) -> base.Objective:
        return self._masking.for_evaluation()

    def shares(self, progress: float) -> tuple[float, float]:
        rate = float(self.options.rate(progress))
        return 1.0 if self._reads_all else rate, rate if self._at_masks else 1.0

    def prepare(self, models: EncoderWithHeads, frozen, batch: Batch, keys_B, dropout_keys_B) -> Batch:
        """Adds what the teacher computes: its last hidden states, those of all layers, and what its logits are made of."""
        teacher = frozen["teacher"]
        output = teacher.encoder(
            batch["input_ids"],
            **encoder_inputs(batch),
            positions_BxP=None if self._reads_all else batch["mlm_positions"],
            all_hidden_states=self.reads_all_layers,
        )
        computed = {"teacher_hidden": output.last_hidden_state}
        if self.reads_all_layers:
            computed["teacher_layers"] = output.hidden_states
        if "kl" in self._weights:
            head, table_VxE = teacher.heads["mlm"], teacher.encoder.embeddings.tokens.embedding[...]
            states_BxPxE = head.transform(self._at_predictions(output.last_hidden_state, batch))
            computed |= {"teacher_states": states_BxPxE, "teacher_table": table_VxE, "teacher_bias": head.bias[...]}
        return batch | computed

    def normalizer(self, batch: Batch) -> dict[str, jax.Array]:
        tokens, predictions = token_weights(batch).sum(), batch["mlm_weights"].sum()
        of = {"mlm": predictions, "kl": predictions if self._at_masks else tokens}
        return {term: of.get(term, tokens) for term in self._weights}

    def positions(self, batch: Batch) -> jax.Array | Literal["all"]:
        return "all" if self._reads_all else batch["mlm_positions"]

    def loss(self, models: EncoderWithHeads, output, batch: Batch, keys_B) -> dict[str, Loss]:
        weights_BxL = token_weights(batch)
        losses = {}
        if {"mlm", "kl"} & self._weights.keys():
            losses = self._losses_of_tokens(models, output.last_hidden_state, batch)
        if "cosine" in self._weights:
            distances_BxL = 1 - _cosine(output.last_hidden_state, batch["teacher_hidden"])
            losses["cosine"] = Loss((distances_BxL * weights_BxL).sum(), {})
        if "hidden_mse" in self._weights:
            layers = [
                (output.hidden_states[student], batch["teacher_layers"][teacher])
                for student, teacher in self.options.pairs
            ]
            errors_BxL = sum(
                jnp.square(student.astype(jnp.float32) - teacher.astype(jnp.float32)).mean(-1)
                for student, teacher in layers
            )
            losses["hidden_mse"] = Loss((errors_BxL * weights_BxL).sum(), {})
        return {term: losses[term] for term in self._weights}

    def _at_predictions(self, hidden: jax.Array, batch: Batch) -> jax.Array:
        """Returns the states, of those that are read, whose tokens are predicted."""
        return take_positions(hidden, batch["mlm_positions"]) if self._at_masks and self._reads_all else hidden

    def _losses_of_tokens(self, models: EncoderWithHeads, hidden: jax.Array, batch: Batch) -> dict[str, Loss]:
        """Returns the losses `mlm` and `kl`, from the logits at the masked positions or, where `kl` reads them, at all."""
        labels, predicted, compared = batch["mlm_labels"], batch["mlm_weights"], batch["mlm_weights"]
        if not self._at_masks:
            labels = put_at_predictions(batch["input_ids"], labels, batch)
            predicted = put_at_predictions(jnp.zeros_like(labels, jnp.float32), batch["mlm_weights"], batch)
            compared = token_weights(batch)
        has_kl, temperature = "kl" in self._weights, self.options.temperature

        def of_chunk(logits_BxCxV: jax.Array, labels_BxC: jax.Array, *teacher_BxCxE: jax.Array):
            kl = [self._divergence(logits_BxCxV, states, batch) for states in teacher_BxCxE]
            return *cross_entropy(logits_BxCxV, labels_BxC), kl

        head: Any = models.heads["mlm"]
        table_VxE = models.encoder.embeddings.tokens.embedding[...]
        teacher = [batch["teacher_states"]] if has_kl else []
        states = self._at_predictions(hidden, batch)
        losses_BxP, correct_BxP, kl = head.over_logits(of_chunk, states, table_VxE, labels, *teacher)
        losses = {"mlm": Loss((losses_BxP * predicted).sum(), {"accuracy": (correct_BxP * predicted).sum()})}
        if has_kl:
            losses["kl"] = Loss((kl[0] * compared).sum() * temperature**2, {})
        return losses

    def _divergence(self, logits_BxCxV: jax.Array, teacher_BxCxE: jax.Array, batch: Batch) -> jax.Array:
        """Returns the Kullback-Leibler divergence [B, C] of the student's tokens from the teacher's.

        Over the tokens of the tokenizer: tables may have more rows, and those of teacher and student different numbers.
        """
        rows, temperature = slice(self._vocab_size), self.options.temperature
        student = logits_BxCxV[..., rows] / temperature
        teacher = token_logits(teacher_BxCxE, batch["teacher_table"][rows], batch["teacher_bias"][rows]) / temperature
        differences = (jax.nn.softmax(teacher) * (teacher - student)).sum(-1)
        return differences - jax.nn.logsumexp(teacher, axis=-1) + jax.nn.logsumexp(student, axis=-1)


def _cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the cosine [B, L] of two arrays of vectors [B, L, D], float32."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    squares = (jnp.square(x).sum(-1) + EPSILON) * (jnp.square(y).sum(-1) + EPSILON)
    return (x * y).sum(-1) * jax.lax.rsqrt(squares)
