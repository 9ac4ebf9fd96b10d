"""The heads of Hugging Face's format, and so all that an imported model can have; tasks make any other heads themselves."""

from collections.abc import Callable

from flax import nnx

from bert_jax.model.build import ModuleFactory
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import (
    MaskedLMHead,
    PooledClassifier,
    ReplacedTokenHead,
    SequenceClassifier,
    TokenClassifier,
)

COUNTED = frozenset(["classification", "token"])  # heads whose number of classes depends on the task
HEADS: dict[str, Callable[[EncoderConfig, int, nnx.Rngs], nnx.Module]] = {  # name -> factory; the int is num_classes
    "mlm": lambda config, classes, rngs: MaskedLMHead(config, rngs),
    "nsp": lambda config, classes, rngs: PooledClassifier(config, 2, rngs),
    "sop": lambda config, classes, rngs: PooledClassifier(config, 2, rngs),
    "classification": lambda config, classes, rngs: SequenceClassifier(config, classes, config.dropout, rngs),
    "token": lambda config, classes, rngs: TokenClassifier(config, classes, config.dropout, rngs),
    "qa": lambda config, classes, rngs: TokenClassifier(config, 2, config.dropout, rngs),
    "rtd": lambda config, classes, rngs: ReplacedTokenHead(config, rngs),
}


def head_factory(name: str, num_classes: int) -> ModuleFactory:
    """Returns a factory for the named head; only the heads in `COUNTED` use `num_classes`."""
    return lambda config, rngs: HEADS[name](config, num_classes, rngs)
