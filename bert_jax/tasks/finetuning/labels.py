"""Label names: their order, values that are not names, and class weights."""

import logging
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from bert_jax.errors import UserError, listed
from bert_jax.files import decode_json

logger = logging.getLogger(__name__)
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def in_order(labels: Iterable[str]) -> list[str]:
    """Returns the distinct labels: numbers in numeric order, then other texts in lexicographic order."""
    return sorted(set(labels), key=lambda label: (0, float(label), label) if is_number(label) else (1, 0.0, label))


def is_number(label: str) -> bool:
    """Returns whether a label is written as a number: `3`, `-1`, `2.5`."""
    return bool(_NUMBER.fullmatch(label))


def check_classes(path: str, labels: Sequence[str]) -> None:
    """Warns of classes that look like regression targets. Raises UserError if a number is written in two ways."""
    if twice := [label for label in labels if f"{label}.0" in labels]:
        raise UserError(f"{path}: has the labels {twice[0]} and {twice[0]}.0; write the number in one way")
    decimals = [label for label in labels if is_number(label) and not float(label).is_integer()]
    if decimals and all(map(is_number, labels)):
        message = "%s: labels are numbers such as %s, used as %d classes; to predict numbers, set problem=regression"
        logger.warning(message, path, decimals[0], len(labels))


def is_multi_hot(labels: Sequence[Sequence[str]]) -> bool:
    """Returns whether labels are lists of 0 or 1 for several classes, instead of lists of names."""
    sizes = set(map(len, labels))
    return len(sizes) == 1 and sizes.pop() > 1 and {part for label in labels for part in label} <= {"0", "1"}


def balanced_weights(labels: np.ndarray, num_classes: int) -> tuple[float, ...]:
    """Returns N / (C * number of examples) for each class, as scikit-learn's class_weight='balanced'."""
    counts = np.bincount(labels, minlength=num_classes)
    return tuple((len(labels) / (num_classes * np.maximum(counts, 1))).tolist())


def weights_in_order(text: str, labels: Sequence[str]) -> tuple[float, ...]:
    """Returns the class weight of each label, 1 for labels that are not named; none for an empty text.

    The text is '1,2.5', in the order of the labels; 'name=2.5,other=1'; or '{"name": 2.5}', JSON, for names with commas.

    Raises:
      UserError: another form, a weight that is not a finite number above 0, an unknown name, or too few or many weights.
    """
    if not text:
        return ()
    weights = _parsed_weights(text)
    if isinstance(weights, dict):
        if unknown := [name for name in weights if name not in labels]:
            raise UserError(f"class_weights: {unknown[0]!r} is not among the labels {listed(labels)}; name one of them")
        return tuple(weights.get(label, 1.0) for label in labels)
    if len(weights) != len(labels):
        raise UserError(f"class_weights={text}: the labels are {', '.join(labels)}; give one weight for each")
    return tuple(weights)


def _parsed_weights(text: str) -> dict[str, float] | list[float]:
    try:
        weights: dict[str, float] | list[float]
        if text.startswith("{"):
            weights = decode_json(text, dict[str, float])
        elif "=" in text:
            pairs = [part.rpartition("=") for part in text.split(",")]
            weights = {name.strip(): float(weight) for name, _, weight in pairs}
            if "" in weights or len(weights) < len(pairs):
                raise ValueError("missing or repeated name")
        else:
            weights = list(map(float, text.split(",")))
        numbers = weights.values() if isinstance(weights, dict) else weights
        if not all(0 < weight < math.inf for weight in numbers):
            raise ValueError("not a finite number above 0")
        return weights
    except ValueError:
        raise UserError(
            f"class_weights={text!r} is neither 'balanced' nor numbers above 0: give them by name ('name=2.5,other=1'), or "
            "one for each label in their order"
        ) from None
