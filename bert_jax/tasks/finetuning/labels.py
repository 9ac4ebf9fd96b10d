"""Label names: their order, values that are not names, and class weights by name."""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bert_jax.errors import UserError, listed
from bert_jax.files import decode_json

logger = logging.getLogger(__name__)
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
Weights = Mapping[str, float] | Sequence[float]  # by name, or in the order of the labels


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


def parse_weights(text: str) -> Weights:
    """Parses class weights.

    Args:
      text: '1,2.5', in the order of the labels; 'name=2.5,other=1'; or '{"name": 2.5}', JSON, for names with commas.

    Raises:
      UserError: another form, or a weight is not a finite number above 0.
    """
    try:
        if text.startswith("{"):
            return {name: _positive(weight) for name, weight in decode_json(text, dict[str, Any]).items()}
        if "=" not in text:
            return [_positive(float(weight)) for weight in text.split(",")]
        pairs = [part.rpartition("=") for part in text.split(",")]
        weights = {name.strip(): _positive(float(weight)) for name, _, weight in pairs}
        if "" in weights or len(weights) < len(pairs):
            raise ValueError("missing or repeated name")
        return weights
    except ValueError:
        raise UserError(
            f"class_weights={text!r} is neither 'balanced' nor numbers above 0: give them by name ('name=2.5,other=1'), or "
            "one for each label in their order"
        ) from None


def _positive(weight: float) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(weight)
    return float(weight)


def weights_in_order(text: str, labels: Sequence[str]) -> tuple[float, ...]:
    """Returns the weight of each label; 1 for labels that are not named.

    Raises:
      UserError: as `parse_weights`, or a name is not a label, or the number of weights is not that of the labels.
    """
    weights = parse_weights(text)
    if isinstance(weights, Mapping):
        if unknown := [name for name in weights if name not in labels]:
            raise UserError(f"class_weights: {unknown[0]!r} is not among the labels {listed(labels)}; name one of them")
        return tuple(weights.get(label, 1.0) for label in labels)
    if len(weights) != len(labels):
        raise UserError(f"class_weights={text}: the labels are {', '.join(labels)}; give one weight for each")
    return tuple(weights)
