"""Pretrained and fine-tuned encoders in Python: `load` reads run folders and models in Hugging Face's format.

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
from bert_jax.model.classifiers import mean_over_tokens
from bert_jax.model.config import EncoderConfig
from bert_jax.parallel.mesh import shardings, with_shardings
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointStore
from bert_jax.run_folder.default_checkpoint import chosen_params, default_step
from bert_jax.tasks import base as tasks

Pool = Literal["mean", "first"]


class Output(NamedTuple):
    """Outputs of an encoder and its heads.

    Attributes:
      hidden_states: num_layers + 1 arrays [B, L, D], the embeddings first.
      pooled: [B, D], None without a pooler.
      logits: logits by head: mlm [B, L, V], nsp and sop [B, 2], classification [B, C], token [B, L, C], qa [B, L, 2] (start and
        end), rtd [B, L]; heads of your own objectives if they have a method `logits`.
    """

    hidden_states: tuple[jax.Array, ...]
    pooled: jax.Array | None
    logits: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LoadedEncoder:
    """An encoder with its heads, parameters and tokenizer."""

    model: Model = dataclasses.field(repr=False)  # modules of encoder and heads, and their config
    params: Params = dataclasses.field(repr=False)
    labels: list[str]  # names of the classes of the classification or token head; empty if they have no names
    tokenizer: Tokenizer | None  # None if the folder has none

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None) -> Output:
        """Runs the encoder and all heads, without dropout; may be called within `jax.jit`.

        Args:
          input_ids: token ids, int [B, L].
          attention_mask: 1 for tokens, 0 for padding on either side, [B, L]; ones by default. Positions are as in the original
            models: in RoBERTa padding (by its token id) has none, in other families every element of a row has one.
          token_type_ids: segments of the tokens, int [B, L]; zeros by default.

        Raises:
          ValueError: sequences are longer than the position table, or ids are not in their tables.
        """
        if not isinstance(input_ids, jax.core.Tracer):  # whose values are unknown
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
        """Computes a vector for each text, e.g. as features for another model.

        Args:
          texts: N texts; the ends of long ones are cut off.
          layer: layer of the hidden states: 0 for the embeddings, -1 for the last.
          pool: 'mean' over all tokens, including special tokens, or 'first' for the state of [CLS].
          batch_size: number of texts per batch; texts of similar length are batched together.
          max_length: maximum number of tokens, including special tokens; 0 for the maximum of the model.

        Returns:
          float32 [N, D], in the order of the texts.

        Raises:
          UserError: an argument is invalid, or the encoder has no tokenizer.
        """
        if isinstance(texts, str):
            raise UserError("encode takes a list of texts; write [text] for a single one")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        if self.tokenizer is None:
            raise UserError("this encoder was loaded from a folder without a tokenizer; add its files to the folder")
        if pool not in ("mean", "first"):
            raise UserError(f"pool={pool!r} is not one of 'mean', 'first'")
        config = self.model.config
        if not -config.num_layers - 1 <= layer <= config.num_layers:
            layers = f"the encoder has {config.num_layers} layers; 0 are the embeddings, -1 the last"
            raise UserError(f"layer={layer}: {layers}")
        longest = min(max_length or config.max_positions, config.max_positions)
        special = self.tokenizer.num_special_tokens(1)
        if longest <= special:
            raise UserError(f"max_length={max_length}: {special} special tokens leave no space for text; use more")
        token_ids = [ids[: longest - special] for ids in self.tokenizer.encode(list(texts))]
        vectors = np.zeros((len(token_ids), config.hidden_size), np.float32)
        for rows, length in batches_by_length([len(ids) + special for ids in token_ids], batch_size, longest):
            joined = [joining.join(self.tokenizer, length, token_ids[row]) for row in rows]
            joined += joined[:1] * (batch_size - len(rows))  # one shape, one compilation for each length
            batch = {name: np.stack([example[name] for example in joined]) for name in joined[0]}
            vectors[rows] = np.asarray(_vectors(self.model, layer, pool, self.params, batch))[: len(rows)]
        return vectors


def load(folder: str | Path, step: int | None = None, mesh: Mesh | None = None) -> LoadedEncoder:
    """Loads an encoder with its heads from a run folder or a model folder in Hugging Face's format.

        encoder = bert_jax.load("runs/bert")
        vectors = encoder.encode(["A text.", "Another one."])  # float32 [2, D]
        output = encoder(input_ids, attention_mask)  # hidden states, pooled state, logits

    Args:
      folder: path of a local folder; a model needs config.json and weights, and for `encode` the files of its tokenizer.
      step: step of a run's checkpoint; None for the default one: the best of a fine-tuned run, the latest of others.
      mesh: mesh over which the parameters are sharded; None for the first device.

    Raises:
      UserError: the folder has neither format, is damaged, or has no such checkpoint.
    """
    folder = Path(folder)
    if not run_folder.exists(folder):
        raise UserError(f"{folder}: has no {run_folder.CONFIG}; use a run folder, or a model in Hugging Face's format")
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
    """Raises UserError if the tokenizer has more tokens than the embedding has rows; tables are often padded."""
    if tokenizer.vocab_size > config.vocab_size:
        problem = f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding {config.vocab_size} rows"
        raise UserError(f"{folder}: {problem}; use the tokenizer that the model was trained with")


def check_ids(name: str, ids: Any, size: int) -> None:
    """Raises ValueError if ids are not rows of a table of this size, for which JAX would silently use another row or NaN."""
    array = np.asarray(ids)
    if array.size and not 0 <= array.min() <= array.max() < size:
        raise ValueError(f"{name}: values are {array.min()} to {array.max()}, the model has 0 to {size - 1}")


def load_run(folder: Path, config: dict[str, Any], step: int | None = None, mesh: Mesh | None = None) -> LoadedEncoder:
    """Loads an encoder, as `load`, from a run folder whose config has been read."""
    store = CheckpointStore(folder)
    steps = store.steps()
    if not steps:
        raise UserError(f"{folder}: has no checkpoint; train first")
    step = default_step(folder, config, steps) if step is None else step
    if step is not None and step not in steps:
        raise UserError(f"{folder}: no checkpoint of step {step}; choose from {', '.join(map(str, steps))}")
    name = chosen_params(config)
    stored = store.structure(name, step)
    # Of another machine, and of batches with masks, which the implementation of the training may not support.
    encoder = dataclasses.replace(from_dict(EncoderConfig(), config["model"], "config.model"), attention="auto")
    model = Model.build(encoder, heads_of_run(folder, config, stored))
    if mesh:
        abstract = with_shardings(model.abstract, shardings(model.abstract, model.axes, mesh))
        step, restored = store.restore({name: abstract}, step)
        params = restored[name]
    else:
        step, restored = store.restore({name: model.abstract}, step)
        arrays, tree = jax.tree.flatten(restored.pop(name))
        for number in range(len(arrays)):  # one by one, to avoid a second copy of them all
            arrays[number] = jax.device_put(arrays[number]).block_until_ready()
        params = jax.tree.unflatten(tree, arrays)
    options = run_folder.model_after(config, step)
    if options != config["model"]:  # of a phase before the last one
        encoder = dataclasses.replace(encoder, rope_theta=options["rope_theta"])
        model = Model.build(encoder, model.heads)
    tokenizer = tasks.load_tokenizer(folder)
    check_vocabulary(tokenizer, encoder, folder)
    return LoadedEncoder(model, params, run_folder.read_labels(folder), tokenizer)


def heads_of_run(folder: Path, config: dict[str, Any], stored: Params) -> dict[str, ModuleFactory]:
    """Returns factories for the heads of a run's checkpoint; its task provides those that Hugging Face's format lacks.

    Raises:
      UserError: the checkpoint's description of a head is damaged.
    """
    try:
        known = {
            name: HEADS[name].factory(head["dense"]["bias"].shape[0] if HEADS[name].has_classes else 0)
            for name, head in stored["heads"].items()
            if name in HEADS
        }
    except (AttributeError, IndexError, KeyError, TypeError):
        raise UserError(f"{folder}: the description of its checkpoint is damaged; restore the folder") from None
    if known.keys() == stored["heads"].keys():
        return known
    return known | dict(tasks.create(config, folder).losses.model.heads)


def batches_by_length(lengths: Sequence[int], batch_size: int, longest: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields rows of similar length, and the length to pad them to: a power of two, so that few programs are compiled."""
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
    hidden_states = bound.encoder(
        batch["input_ids"],
        token_type_ids_BxL=batch["token_type_ids"],
        lengths_B=batch["attention_mask"].sum(axis=1),
        all_hidden_states=True,
    ).hidden_states
    assert hidden_states is not None
    hidden_BxLxD = hidden_states[layer]
    if pool == "first":
        return hidden_BxLxD[:, 0].astype(jnp.float32)
    return mean_over_tokens(hidden_BxLxD.astype(jnp.float32), batch["attention_mask"])
