"""Computes the mean of the parameters of checkpoints, and checks that they are of the same model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bert_jax.config import from_dict, to_dict
from bert_jax.errors import UserError, listed
from bert_jax.model.build import Params
from bert_jax.model.config import EncoderConfig
from bert_jax.run_folder.checkpoints import CheckpointStore, flat_shapes
from bert_jax.run_folder.default_checkpoint import chosen_params
from bert_jax.run_folder.folder import differing_model_options, model_after, read_config, read_labels
from bert_jax.tasks.base import load_tokenizer
from tools.lib.new_run import chosen_step


class Checkpoint(NamedTuple):
    """A checkpoint of a run, and its weight in the mean."""

    folder: Path
    step: int
    weight: float
    entry: str  # of the state: 'ema' or 'params'
    config: dict[str, Any]  # of the run
    store: CheckpointStore
    structure: Params  # of jax.ShapeDtypeStruct

    @classmethod
    def open(cls, folder: Path, step: int | None, weight: float) -> "Checkpoint":
        """Reads the names and shapes of its arrays. Raises UserError if it does not exist or is damaged.

        Args:
          folder: a run folder.
          step: None for the default checkpoint.
          weight: in the mean.
        """
        config = read_config(folder)
        step = chosen_step(folder, config, step)
        store, entry = CheckpointStore(folder), chosen_params(config)
        return cls(folder, step, weight, entry, config, store, store.structure(entry, step))

    def read(self) -> Params:
        """Reads the parameters as numpy arrays. Raises UserError if the checkpoint is damaged."""
        return self.store.restore({self.entry: self.structure}, self.step)[1].pop(self.entry)


def check_alike(checkpoints: Sequence[Checkpoint]) -> None:
    """Raises UserError unless task, model, heads, labels and tokenizer of all are those of the first one."""
    first = checkpoints[0]
    of_first = description(first)
    for other in checkpoints[1:]:
        of_other = description(other)
        names = [name for name in of_first if name != "model" and of_first[name] != of_other[name]]
        differences = [f"{name} is {of_other[name]} there, {of_first[name]} in {first.folder}" for name in names]
        model, expected = of_other["model"], of_first["model"]
        differences += [
            f"model.{name} is {model[name]} there, {expected[name]} in {first.folder}"
            for name in differing_model_options(expected, model)
        ]
        shapes, expected_shapes = flat_shapes(other.structure), flat_shapes(first.structure)
        if not differences:  # of heads with options of their own
            unequal = [
                path for path in sorted(shapes | expected_shapes) if shapes.get(path) != expected_shapes.get(path)
            ]
            differences = [f"{path} is {shapes.get(path)} there, {expected_shapes.get(path)} here" for path in unequal]
        if differences:
            raise UserError(f"{other.folder}: another model: {listed(differences)}; merge checkpoints of one model")


def description(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns what must be the same in checkpoints that are merged."""
    folder, config = checkpoint.folder, checkpoint.config
    return {
        "task": config["task"],
        "heads": ", ".join(sorted(checkpoint.structure["heads"])) or "empty",
        "labels": ", ".join(read_labels(folder)) or "empty",
        "the tokenizer": load_tokenizer(folder).fingerprint,
        "model": to_dict(from_dict(EncoderConfig(), model_after(config, checkpoint.step), "config.model")),
    }


def weighted_mean(checkpoints: Sequence[Checkpoint]) -> Params:
    """Returns the mean of their parameters in numpy, computed in float32; equal arrays give the same array.

    In memory are the mean and the parameters of one checkpoint.

    Args:
      checkpoints: of the same structure, with weights whose sum is positive.

    Raises:
      UserError: a checkpoint is damaged.
    """
    first, *others = sorted(checkpoints, key=lambda one: -one.weight)  # so that all sums of weights are positive
    means, tree = jax.tree.flatten(first.read())
    dtypes, total = [array.dtype for array in means], first.weight
    for number in range(len(means)):  # one by one, to avoid a second copy of them all
        means[number] = means[number].astype(np.float32)
    for checkpoint in others:
        total += checkpoint.weight
        for mean, array in zip(means, jax.tree.leaves(checkpoint.read()), strict=True):
            mean += (array.astype(np.float32) - mean) * np.float32(checkpoint.weight / total)
    return jax.tree.unflatten(tree, [mean.astype(dtype, copy=False) for mean, dtype in zip(means, dtypes, strict=True)])
