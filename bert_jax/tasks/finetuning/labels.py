"""Names of labels: their order, and weights given by them."""

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def in_order(labels: Iterable[str]) -> list[str]:
    """Returns the labels that differ, numbers in numeric order before other texts in that of their characters."""
    return sorted(set(labels), key=lambda label: (0, float(label), label) if is_number(label) else (1, 0.0, label))


def is_number(label: str) -> bool:
    """Whether a label is written as a number: `3`, `-1`, `2.5`."""
    return bool(_NUMBER.fullmatch(label))
