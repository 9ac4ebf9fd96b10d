"""Checks of a conversion: logits of random inputs, computed by the original and by the converted model.

Shapes: B batch, L length.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.errors import UserError
from bert_jax.formats.families import FAMILIES
from bert_jax.formats.tensors import INDEX, WEIGHTS
from bert_jax.library import LoadedEncoder

logger = logging.getLogger(__name__)
Logits = dict[str, np.ndarray]  # by head, and 'hidden' for the last hidden states
# Options of config.json that describe the model and are not in the families' tables by name.
_OTHER_OPTIONS = {
    *("model_type", "architectures", "problem_type", "id2label", "label2id", "pad_token_id"),
    *("num_hidden_layers", "max_position_embeddings", "embedding_size", "rope_parameters", "layer_types"),
}
TOLERANCE = 1e-4  # of logits in float32, absolute


def probe_inputs(encoder: LoadedEncoder) -> dict[str, np.ndarray]:
    """Returns random token ids and token types with padding, each [4, L]."""
    config = encoder.model.config
    rng = np.random.default_rng(0)
    length = min(24, config.max_positions)
    lengths = np.array([length, length, max(1, length // 2), max(1, length // 3)])
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    types = (np.arange(length) >= lengths[:, None] // 2) * mask * (config.num_token_types > 1)
    ids = rng.integers(config.vocab_size, size=(4, length), dtype=np.int32)
    # Also a padding id within a text, because RoBERTa derives positions from ids.
    ids[1, length // 2] = np.clip(config.position_offset - 1, 0, config.vocab_size - 1)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types.astype(np.int32)}


def probe(encoder: LoadedEncoder, inputs: dict[str, np.ndarray]) -> Logits:
    """Returns logits and last hidden states for the inputs, in float32; zero at padded positions."""
    with jax.default_matmul_precision("highest"):
        output = encoder(**inputs)
    arrays = {name: np.asarray(logits, np.float32) for name, logits in output.logits.items()}
    arrays["hidden"] = np.asarray(output.hidden_states[-1], np.float32)
    return {name: without_padding(array, inputs["attention_mask"]) for name, array in arrays.items()}


def without_padding(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns an array [B, L, ...] with zeros at padded positions; arrays of other shapes unchanged."""
    if array.shape[:2] != mask.shape:
        return array
    return array * mask.reshape(*mask.shape, *[1] * (array.ndim - 2))


def compare(expected: Mapping[str, np.ndarray], computed: Mapping[str, np.ndarray], what: str) -> float:
    """Returns the largest difference. Raises UserError if it exceeds `TOLERANCE`."""
    differences = {name: float(np.abs(expected[name] - computed[name]).max()) for name in expected if name in computed}
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise UserError(
                f"{what} gives other results: {name} differs by {difference:.2g}, more than {TOLERANCE:.2g}; "
                "the folder is incomplete, without config.json: remove it"
            )
    return max(differences.values())


def known_options(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of a config.json that describe a model of its family.

    Others, which transformers reads too, make it run or load more: kernels, quantization, remote code.
    """
    family = FAMILIES[config["model_type"]]
    known = {*family.options.values(), *family.defaults, *family.required, *_OTHER_OPTIONS}
    return {name: value for name, value in config.items() if name in known}


def compare_with_transformers(
    folder: Path, config: dict[str, Any], inputs: Logits, expected: Logits, stored_heads: set[str]
) -> float:
    """Returns the largest difference to the results of transformers; 0 if it is not installed or the class is unknown.

    Raises:
      UserError: transformers cannot load the folder, or the difference exceeds `TOLERANCE`.
    """
    try:
        import torch
        import transformers
    except ImportError:
        logger.info("transformers and torch are not installed: not compared with their results")
        return 0.0
    transformers.utils.logging.disable_progress_bar()
    architecture = (config.get("architectures") or [""])[0]
    heads = FAMILIES[config["model_type"]].architectures.get(architecture)
    if heads is None or not stored_heads.issuperset(heads):
        logger.info("not compared with transformers: %s names no class whose heads are stored", folder)
        return 0.0
    try:
        model = getattr(transformers, architecture).from_pretrained(
            folder,
            config=transformers.AutoConfig.for_model(**known_options(config)),
            dtype=torch.float32,
            attn_implementation="eager",
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=any((folder / name).exists() for name in (WEIGHTS, INDEX)),
        )
    except Exception as error:  # of many types
        first_line = str(error).partition("\n")[0]
        raise UserError(f"{folder}: transformers cannot load it ({first_line}); get it again") from None
    model = model.eval()
    if config.get("type_vocab_size", 0) < 2:
        inputs = {name: array for name, array in inputs.items() if name != "token_type_ids"}
    with torch.no_grad():
        output = model(**{name: torch.from_numpy(array).long() for name, array in inputs.items()})
    output_names = {"mlm": "prediction_logits", "nsp": "seq_relationship_logits", "sop": "sop_logits"}
    computed = {}
    for head in heads:
        if head == "qa":
            array = torch.stack([output.start_logits, output.end_logits], -1).numpy()
        else:
            array = (output[output_names[head]] if output_names.get(head) in output else output.logits).numpy()
        computed[head] = without_padding(array, inputs["attention_mask"])
    if not heads:
        computed["hidden"] = without_padding(output.last_hidden_state.numpy(), inputs["attention_mask"])
    return compare(expected, computed, f"{folder}: transformers")
