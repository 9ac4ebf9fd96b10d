"""The heads that Hugging Face's format has, and so all that an imported model can have; others are made by their tasks."""

from collections.abc import Callable

from flax import nnx

from bert_jax.model.build import HeadFactory
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import (
    MaskedLMHead,
    PooledClassifier,
    ReplacedTokenHead,
    SequenceClassifier,
    TokenClassifier,
)

COUNTED = frozenset(["classification", "token"])  # heads with as many classes as a task has
HEADS: dict[str, Callable[[EncoderConfig, int, nnx.Rngs], nnx.Module]] = {  # by name; from the number of classes
    "mlm": lambda config, classes, rngs: MaskedLMHead(config, rngs),
    "nsp": lambda config, classes, rngs: PooledClassifier(config, 2, rngs),
    "sop": lambda config, classes, rngs: PooledClassifier(config, 2, rngs),
    "classification": lambda config, classes, rngs: SequenceClassifier(config, classes, config.dropout, rngs),
    "token": lambda config, classes, rngs: TokenClassifier(config, classes, config.dropout, rngs),
    "qa": lambda config, classes, rngs: TokenClassifier(config, 2, config.dropout, rngs),
    "rtd": lambda config, classes, rngs: ReplacedTokenHead(config, rngs),
}


def head_factory(name: str, num_classes: int) -> HeadFactory:
    """Returns what makes the head of a name; the number of classes is that of the `COUNTED` ones."""
    return lambda config, rngs: HEADS[name](config, num_classes, rngs)
