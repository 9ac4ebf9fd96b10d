"""Encoders to use without training: `load` takes a run folder, or a model folder in Hugging Face's format.

Shapes: B batch, L length, D hidden_size, N texts.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bert_jax.config import from_dict
from bert_jax.data import joining
from bert_jax.data.tokenizer.files import holds_tokenizer
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.formats import huggingface
from bert_jax.formats.families import HEADS
from bert_jax.formats.huggingface_config import read_huggingface_config
from bert_jax.model.build import Model, ModuleFactory, Params
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import mean_over_tokens
from bert_jax.parallel.mesh import shardings, with_shardings
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointStore
from bert_jax.run_folder.default_checkpoint import chosen_params, default_step
from bert_jax.tasks import base as tasks

Pool = Literal["mean", "first"]


class Output(NamedTuple):
    hidden_states: tuple[jax.Array, ...]  # num_layers + 1 arrays [B, L, D], embeddings first
    pooled: jax.Array | None  # [B, D]
    logits: dict[str, jax.Array]  # by head: mlm [B, L, V], nsp, sop [B, 2], classification [B, C], token [B, L, C],
    # qa [B, L, 2] (start, end), rtd [B, L]; others: what their method `logits` returns, if any


@dataclasses.dataclass(frozen=True)
class LoadedEncoder:
    """An encoder with its heads, parameters and, where the folder has one, tokenizer."""

    model: Model
    params: Params
    labels: list[str]  # of the classification or token head; empty where they have no names
    tokenizer: Tokenizer | None

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None) -> Output:
        """Runs the encoder and all heads, without dropout.

        Args:
          input_ids: int [B, L].
          attention_mask: [B, L], 0 for padding, on either side; all ones when absent. Positions are counted as in
            the original: RoBERTa counts the tokens whose id is not that of padding, other families all places of the row.
          token_type_ids: int [B, L], the segment of each token; zeros when absent.

        Raises:
          ValueError: sequences longer than the model's positions, or ids beyond its tables.
        """
        if not isinstance(input_ids, jax.core.Tracer):  # of whose numbers nothing is known yet
            check_ids("input_ids", input_ids, self.model.config.vocab_size)
            if token_type_ids is not None and self.model.config.num_token_types:
                check_ids("token_type_ids", token_type_ids, self.model.config.num_token_types)
        input_ids = jnp.asarray(input_ids)
        mask = jnp.ones_like(input_ids) if attention_mask is None else jnp.asarray(attention_mask)
        types = jnp.zeros_like(input_ids) if token_type_ids is None else jnp.asarray(token_type_ids)
        hidden_states, pooled, logits = _all_outputs(self.model, self.params, input_ids, mask, types)
        return Output(tuple(hidden_states), pooled, logits)

    def encode(
        self, texts: Sequence[str], layer: int = -1, pool: Pool = "mean", batch_size: int = 32, max_length: int = 0
    ) -> np.ndarray:
        """One vector [N, D], float32, for each text: frozen features.

        Args:
          texts: cut at their ends to `max_length` tokens.
          layer: whose hidden states, as an index into `Output.hidden_states`.
          pool: 'mean' over the tokens of a text, special tokens counted in, or 'first': the state of [CLS].
          batch_size: texts at a time; those of like length go together.
          max_length: special tokens counted in; 0 for all that the model can.

        Raises:
          UserError: the folder held no tokenizer, an unknown `pool`, a layer that is not there, a batch of none, or one text
            instead of several.
        """
        if isinstance(texts, str):
            raise UserError("encode takes several texts; write [text] for one")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        if self.tokenizer is None:
            raise UserError("this encoder was loaded from a folder without a tokenizer; add its files to the folder")
        if pool not in ("mean", "first"):
            raise UserError(f"pool={pool!r} is not one of 'mean', 'first'")
        config = self.model.config
        if not -config.num_layers - 1 <= layer <= config.num_layers:
            raise UserError(
                f"layer={layer}: the encoder has {config.num_layers} layers; 0 are the embeddings, -1 the last"
            )
        longest = min(max_length or config.max_positions, config.max_positions)
        special = self.tokenizer.num_special_tokens(1)
        if longest <= special:
            raise UserError(f"max_length={max_length}: leaves no room next to the {special} special tokens; give more")
        token_ids = [ids[: longest - special] for ids in self.tokenizer.encode(list(texts))]
        vectors = np.zeros((len(token_ids), config.hidden_size), np.float32)
        for rows, length in batches_by_length([len(ids) + special for ids in token_ids], batch_size, longest):
            joined = [joining.join(self.tokenizer, length, token_ids[row]) for row in rows]
            joined += joined[:1] * (batch_size - len(rows))  # one shape, one compilation for each length
            batch = {name: np.stack([example[name] for example in joined]) for name in joined[0]}
            vectors[rows] = np.asarray(_vectors(self.model, layer, pool, self.params, batch))[: len(rows)]
        return vectors


def load(folder: str | Path, step: int | None = None, mesh: Mesh | None = None) -> LoadedEncoder:
    """Returns an encoder from a run folder, or from one in Hugging Face's format.

    Args:
      folder: of the run or model.
      step: of a run's checkpoint; None for the default one.
      mesh: devices over which the parameters are split; None for the first device.

    Raises:
      UserError: it is neither, or damaged.
    """
    folder = Path(folder)
    if not run_folder.exists(folder):
        raise UserError(f"{folder}: holds no {run_folder.CONFIG}; name a run folder or one in Hugging Face's format")
    config = read_huggingface_config(folder)
    if "task" in config:
        return load_run(folder, run_folder.read_config(folder), step, mesh)
    inspected = huggingface.inspect(folder, config=config)
    tokenizer = Tokenizer.load(folder) if holds_tokenizer(folder) else None
    if tokenizer:
        check_vocabulary(tokenizer, inspected.model.config, folder)
    placed = shardings(inspected.model.abstract, inspected.model.axes, mesh) if mesh else None
    return LoadedEncoder(inspected.model, huggingface.load_params(inspected, placed), inspected.labels, tokenizer)


def check_vocabulary(tokenizer: Tokenizer, config: EncoderConfig, folder: Path) -> None:
    """Raises UserError for a tokenizer with more tokens than the embedding has rows; fewer are common, for padded tables."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding {config.vocab_size} "
            "rows; bring the tokenizer that the model was trained with"
        )


def check_ids(name: str, ids: Any, size: int) -> None:
    """Raises ValueError for ids that are no rows of a table: JAX would take another row, or none, without a word."""
    array = np.asarray(ids)
    if array.size and not 0 <= array.min() <= array.max() < size:
        raise ValueError(f"{name} hold {array.min()} to {array.max()}; the model knows 0 to {size - 1}")


def load_run(folder: Path, config: dict[str, Any], step: int | None = None, mesh: Mesh | None = None) -> LoadedEncoder:
    """As `load`, for a run folder whose config is at hand."""
    store = CheckpointStore(folder)
    steps = store.steps()
    if not steps:
        raise UserError(f"{folder}: holds no checkpoint; train first")
    step = default_step(folder, config, steps) if step is None else step
    if step is not None and step not in steps:
        raise UserError(f"{folder}: no checkpoint of step {step}; there are {steps}")
    name = chosen_params(config)
    stored = store.structure(name, step)
    encoder = from_dict(EncoderConfig(), config["model"], "config.model")
    model = Model.build(encoder, heads_of_run(folder, config, stored))
    if mesh:
        abstract = with_shardings(model.abstract, shardings(model.abstract, model.axes, mesh))
        params = store.restore({name: abstract}, step)[1][name]
    else:
        arrays, tree = jax.tree.flatten(store.restore({name: model.abstract}, step)[1].pop(name))
        for number in range(len(arrays)):  # one after the other, so that there is no second copy of them all
            arrays[number] = jax.device_put(arrays[number]).block_until_ready()
        params = jax.tree.unflatten(tree, arrays)
    tokenizer = tasks.load_tokenizer(folder)
    check_vocabulary(tokenizer, encoder, folder)
    return LoadedEncoder(model, params, run_folder.read_labels(folder), tokenizer)


def heads_of_run(folder: Path, config: dict[str, Any], stored: Params) -> dict[str, ModuleFactory]:
    """Returns factories for the heads of a run's checkpoint; its task provides those that Hugging Face's format lacks.

    Raises:
      UserError: the checkpoint's description of a head is damaged.
    """
    try:
        classes = {name: num_classes(name, head) for name, head in stored["heads"].items() if name in HEADS}
    except (AttributeError, IndexError, KeyError, TypeError):
        raise UserError(f"{folder}: the description of its checkpoint is damaged; restore the folder") from None
    known = {name: HEADS[name].factory(number) for name, number in classes.items()}
    if known.keys() == stored["heads"].keys():
        return known
    return known | dict(tasks.create(config, folder).losses.model.heads)


def num_classes(name: str, head: Params) -> int:
    """Returns the number of classes of a stored head, 0 if it does not depend on the task."""
    return head["dense"]["bias"].shape[0] if HEADS[name].has_classes else 0


def batches_by_length(lengths: Sequence[int], batch_size: int, longest: int) -> Iterator[tuple[np.ndarray, int]]:
    """Rows of like length, and the length to pad them to: a power of two, so that there are few programs to compile."""
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, min(longest, max(8, 1 << (int(lengths[rows[-1]]) - 1).bit_length()))


@partial(jax.jit, static_argnums=0)
def _all_outputs(model: Model, params: Params, input_ids, mask, types):
    bound = model.bind(params)
    output = bound.encoder(input_ids, mask, types, all_hidden_states=True)
    assert output.hidden_states is not None
    return list(output.hidden_states), output.pooled, bound.all_logits(output, mask)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _vectors(model: Model, layer: int, pool: Pool, params: Params, batch) -> jax.Array:
    bound = model.bind(params)
    inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    hidden_states = bound.encoder(*inputs, all_hidden_states=True).hidden_states
    assert hidden_states is not None
    hidden_BxLxD = hidden_states[layer]
    if pool == "first":
        return hidden_BxLxD[:, 0].astype(jnp.float32)
    return mean_over_tokens(hidden_BxLxD.astype(jnp.float32), batch["attention_mask"])
