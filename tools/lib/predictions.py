"""What the models of a pretraining run predict for a batch.

That is fillings of masks, a teacher's next to its student's, or samples of a generator and what the discriminator notices.
Shapes: B rows, P predictions, K tokens of each, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.frozen_models import with_frozen_models
from bert_jax.model.build import EncoderWithHeads
from bert_jax.parallel.mesh import mesh_of
from bert_jax.run_folder.checkpoints import CheckpointStore
from bert_jax.tasks.common.training import phase_at
from bert_jax.trained import load_predictor

TOP = 3  # tokens shown for each mask


class Fillings(NamedTuple):
    """The likeliest tokens at the masked positions."""

    ids: np.ndarray  # [B, P, K]
    probabilities: np.ndarray  # [B, P, K]


def predictions(values: Any, workdir: Path, step: int, num_rows: int) -> Iterator[RenderableType]:
    """Yields a table for each of the first rows of a batch, by the run's default checkpoint; none if it has no checkpoint."""
    if not (workdir / "checkpoints").is_dir() or not CheckpointStore(workdir).steps():
        return
    task, params = load_predictor(values, workdir, None)
    objectives: Any = task.losses.objectives
    masking = next((name for name, objective in objectives.items() if objective.masks_tokens), None)
    if masking is None:
        return
    phase = phase_at(task.training.phases(1), step)
    batch: dict[str, Any] = task.training.batch(phase, np.arange(min(num_rows, phase.shape.rows)), step)
    with jax.set_mesh(mesh_of(params)):
        losses, frozen = with_frozen_models(task, mesh_of(params), workdir)
        models = losses.model.bind(params)
        bound = {name: model.bind(frozen[masking][name]) for name, model in losses.frozen.get(masking, {}).items()}
        keys = jax.random.split(jax.random.key(0), len(batch["input_ids"]))
        prepared = objectives[masking].prepare(models, bound, jax.tree.map(jnp.asarray, batch), keys, None)
        if masking == "rtd":
            columns = discriminator_columns(models, prepared, task.tokenizer)
        else:
            with_head = {name: model for name, model in ({"model": models} | bound).items() if "mlm" in model.heads}
            fillings = {name: likeliest_tokens(model, batch, task.tokenizer) for name, model in with_head.items()}
            columns = {name: as_text(filling, task.tokenizer) for name, filling in fillings.items()}
    labels = tokens(batch["mlm_labels"], task.tokenizer)
    for row, weights in enumerate(batch["mlm_weights"]):
        of_row = {name: cells[row] for name, cells in columns.items()}
        yield table(f"row {row}", batch["mlm_positions"][row][weights > 0], labels[row], of_row)


def likeliest_tokens(models: EncoderWithHeads, batch: Mapping[str, Any], tokenizer: Tokenizer) -> Fillings:
    """Returns the likeliest tokens of a model with the head `mlm` at the masked positions."""
    heads: Any = models.heads
    hidden = models.encoder(
        jnp.asarray(batch["input_ids"]),
        token_type_ids_BxL=jnp.asarray(batch["token_type_ids"]),
        lengths_B=jnp.asarray(batch["attention_mask"]).sum(axis=1),
        positions_BxP=jnp.asarray(batch["mlm_positions"]),
    ).last_hidden_state
    logits = heads["mlm"](hidden, models.encoder.embeddings.tokens.embedding[...])[..., : tokenizer.vocab_size]
    probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits), TOP)
    return Fillings(np.asarray(ids), np.asarray(probabilities))


def discriminator_columns(
    models: EncoderWithHeads, batch: Mapping[str, Any], tokenizer: Tokenizer
) -> dict[str, list[list[Text]]]:
    """Returns the generator's samples, and with which probability the discriminator takes each for replaced."""
    heads: Any = models.heads
    hidden = models.encoder(
        batch["input_ids"],
        token_type_ids_BxL=batch["token_type_ids"],
        lengths_B=batch["attention_mask"].sum(axis=1),
        positions_BxP=batch["mlm_positions"],
    ).last_hidden_state
    probabilities = np.asarray(jax.nn.sigmoid(heads["rtd"](hidden)))
    samples, replaced = (
        np.take_along_axis(np.asarray(array), np.asarray(batch["mlm_positions"]), axis=1)
        for array in (batch["input_ids"], batch["is_replaced"])
    )
    return {
        "generator's sample": [[Text(token) for token in row] for row in tokens(samples, tokenizer)],
        "P(replaced)": [
            [
                Text(f"{p:.2f}", "green" if (p > 0.5) == is_replaced else "red")
                for p, is_replaced in zip(*row, strict=True)
            ]
            for row in zip(probabilities, replaced, strict=True)
        ],
    }


def as_text(fillings: Fillings, tokenizer: Tokenizer) -> list[list[Text]]:
    """Returns the tokens and probabilities of each mask as text."""
    return [
        [
            Text("  ".join(f"{token} {p:.2f}" for token, p in zip(of_mask, probabilities, strict=True)))
            for of_mask, probabilities in zip(tokens(ids, tokenizer), row, strict=True)
        ]
        for ids, row in zip(fillings.ids, fillings.probabilities, strict=True)
    ]


def tokens(ids_PxK: np.ndarray, tokenizer: Tokenizer) -> list[list[str]]:
    """Returns the tokens of ids, as a terminal can show them."""
    return [printable(tokenizer.tokens(row)) for row in ids_PxK]


def printable(tokens: Iterable[str]) -> list[str]:
    """Returns tokens as a terminal can show them: no escape sequences, line breaks spelt out."""
    return [token if token.isprintable() else repr(token)[1:-1] for token in tokens]


def table(title: str, positions: np.ndarray, labels: list[str], columns: Mapping[str, list[Text]]) -> Table:
    """Returns what is predicted for one row of a batch."""
    result = Table(title=f"Predictions of {title}", title_style="bold")
    for name in ("position", "text", *columns):
        result.add_column(name, no_wrap=True)
    for number, position in enumerate(positions):
        result.add_row(str(position), Text(labels[number], "bold"), *(cells[number] for cells in columns.values()))
    return result
