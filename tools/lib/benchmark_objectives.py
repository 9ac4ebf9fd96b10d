"""What objectives with two models cost: replaced-token detection and distillation, next to the steps that they are made of.

Shapes: B batch, L length, P predictions.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.model.build import Model
from bert_jax.model.heads import MaskedLMHead, ReplacedTokenHead
from bert_jax.objectives import base, distillation, mlm, rtd
from bert_jax.objectives.losses import FrozenParams, Losses, build_model
from bert_jax.parallel.mesh import make_mesh, shardings
from bert_jax.tasks.pretraining import Config
from bert_jax.train.step import Training
from tools.lib.benchmark_rows import Row, rate
from tools.lib.benchmark_settings import Settings
from tools.lib.benchmark_sides import Side, repeated, take_turns
from tools.lib.step_of_config import random_batch, vocabulary_of

GENERATOR_SIZE = 0.25  # ELECTRA-small (Clark et al. 2020, table 6)


class Discriminator(rtd.Objective):
    """The discriminator of `rtd` alone: which tokens were replaced comes with the batch."""

    @property
    def modules(self) -> dict[str, Any]:
        return {"rtd": ReplacedTokenHead}

    def prepare(self, models, frozen, batch, keys_B, dropout_keys_B) -> base.Batch:
        zeros = jnp.zeros_like(batch["mlm_weights"])
        replaced = base.put_at_predictions(jnp.zeros(batch["input_ids"].shape), batch["mlm_weights"], batch)
        of_generator = dict.fromkeys(("generator_losses", "generator_correct", "sampled_correct"), zeros)
        return batch | of_generator | {"is_replaced": replaced > 0}


class Student(mlm.Objective):
    """The student of `distillation` alone: the cross-entropy of all tokens, which it computes the logits of."""

    def positions(self, batch: base.Batch) -> Any:
        return "all"

    def normalizer(self, batch: base.Batch) -> jax.Array:
        return base.token_weights(batch).sum()

    def loss(self, models, output, batch: base.Batch, keys_B) -> base.Loss:
        table_VxE = models.encoder.embeddings.tokens.embedding[...]
        losses, _ = models.heads["mlm"].cross_entropy(output.last_hidden_state, table_VxE, batch["input_ids"])
        return base.Loss((losses * base.token_weights(batch)).sum(), {})


def objectives(settings: Settings) -> tuple[dict[str, Any], Iterator[Row]]:
    """Measures steps of `rtd` and `distillation`, and those that their models would take alone."""
    config = settings.pretraining
    model = config.model
    about: dict[str, Any] = {"layers": model.num_layers, "width": model.hidden_size, "vocabulary": model.vocab_size}
    about |= {"dtype": model.dtype, "batch_size": config.train.batch_size, "jax": jax.__version__}
    about |= {
        "sequence_length": config.data.sequence_length,
        "generator_size": GENERATOR_SIZE,
        "student": "half the layers",
    }
    return about | {"turns": settings.turns}, _rows(settings, config)


def _rows(settings: Settings, config: Config) -> Iterator[Row]:
    mesh, vocabulary = make_mesh(config.parallel), vocabulary_of(config.model.vocab_size)
    masks = mlm.Options()
    options = rtd.Options(generator_size=GENERATOR_SIZE)
    student = dataclasses.replace(
        config, model=dataclasses.replace(config.model, num_layers=-(-config.model.num_layers // 2))
    )
    generator = dataclasses.replace(config, model=rtd.generator_config(options, config.model))
    with jax.set_mesh(mesh):
        teacher = Model.build(config.model, {"mlm": MaskedLMHead})
        placed = shardings(teacher.abstract, teacher.axes, mesh)
        params = jax.jit(teacher.init, out_shardings=placed)(jax.random.key(1))
        of_teacher: tuple[dict[str, Any], FrozenParams] = (
            {"distillation": {"teacher": teacher}},
            {"distillation": {"teacher": params}},
        )
        distilled = distillation.Objective(distillation.Options(folder="teacher"), vocabulary)
        sides = {
            "rtd": _step(config, {"rtd": rtd.Objective(options, vocabulary)}, mesh),
            "generator": _step(generator, {"mlm": mlm.Objective(masks, vocabulary)}, mesh),
            "discriminator": _step(config, {"rtd": Discriminator(options, vocabulary)}, mesh),
            "distillation": _step(student, {"distillation": distilled}, mesh, *of_teacher),
            "teacher": _forward(config, teacher, params, vocabulary, mesh),
            "student": _step(student, {"mlm": Student(masks, vocabulary)}, mesh),
        }
        turns = take_turns(sides, settings.turns)
    tokens = float(config.train.batch_size * config.data.sequence_length)
    notes = {"teacher": "forward, with logits of all tokens", "student": "a step with logits of all tokens"}
    for name, seconds in turns.items():
        yield rate(name, "tokens/s", tokens, seconds, note=notes.get(name, "a step"))
    for whole, *parts in (("rtd", "generator", "discriminator"), ("distillation", "teacher", "student")):
        sums = np.sum([turns[part] for part in parts], axis=0)
        yield Row(f"{whole} / ({' + '.join(parts)})", "x", list(np.array(turns[whole]) / sums))


def _step(
    config: Config,
    objectives: Mapping[str, base.Objective],
    mesh: Any,
    frozen_models: Mapping[str, Mapping[str, Model]] | None = None,
    frozen: FrozenParams | None = None,
) -> Side:
    """Returns a turn of training steps, which measures the seconds of one of them."""
    losses = Losses(build_model(config.model, objectives), objectives, frozen_models or {})
    training = Training.of(losses, config, mesh)
    batch, step, state = random_batch(config, losses, mesh), training.jitted_step, training.make_state()

    def one_step() -> Any:
        nonlocal state
        state, metrics = step(state, frozen or {}, batch)
        return metrics

    one_step()
    return repeated(one_step)


def _forward(config: Config, teacher: Model, params: Any, vocabulary: SimpleNamespace, mesh: Any) -> Side:
    """Returns a turn of the teacher's forward pass with its logits, in which nothing is left out."""
    masking = {"mlm": mlm.Objective(mlm.Options(), vocabulary)}
    batch = random_batch(config, Losses(teacher, masking), mesh)

    def forward(params: Any, batch: base.Batch) -> Any:
        models = teacher.bind(params)
        inputs = {name: batch[name][0] for name in ("input_ids", "token_type_ids", "attention_mask")}
        lengths_B = inputs["attention_mask"].sum(axis=1)
        hidden = models.encoder(
            inputs["input_ids"], token_type_ids_BxL=inputs["token_type_ids"], lengths_B=lengths_B
        ).last_hidden_state
        head: Any = models.heads["mlm"]
        best: Callable[..., Any] = lambda logits: logits.max(-1)  # noqa: E731
        return head.over_logits(best, hidden, models.encoder.embeddings.tokens.embedding[...])

    return repeated(jax.jit(forward), params, batch)
