"""Which tensors of Hugging Face's format hold which parameters of a model."""

from flax import traverse_util

from bert_jax.errors import UserError
from bert_jax.formats.rows import Family, Row
from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig


def rows_of(family: Family, model: Model, without_heads: tuple[str, ...] = ()) -> list[Row]:
    """Returns the rows of the family whose parameters the model has, with full names and paths."""
    paths = set(traverse_util.flatten_dict(model.abstract, sep="/"))
    rows = [
        Row(tuple(f"encoder/{path}" for path in row.paths), tuple(family.prefix + name for name in row.names), *row[2:])
        for row in family.encoder
    ]
    for name in model.heads:
        if name not in without_heads:
            if name not in family.heads:
                raise UserError(
                    f"head '{name}': not supported for {family.model_type} in Hugging Face's format; leave it out"
                )
            rows += [
                row._replace(paths=tuple(f"heads/{path}" for path in row.paths)) for row in family.heads[name].rows
            ]
    return [row for row in rows if paths.issuperset(row.paths)]


def layer_names(family: Family, config: EncoderConfig, row: Row, number: int) -> tuple[str, ...]:
    """Returns the names of a row's tensors in layer `number`."""
    return tuple(name.format(layer=family.layer(config, number)) for name in row.names)


def is_unused(config: EncoderConfig, row: Row, number: int) -> bool:
    """Checks whether a parameter, stacked for all layers, is unused in this one (see EncoderConfig.first_attention_norm)."""
    return number == 0 and not config.first_attention_norm and row.paths[0].startswith("encoder/layers/attention_norm/")


def expected_names(family: Family, model: Model, without_heads: tuple[str, ...]) -> list[str]:
    """Returns the names of all tensors that a model needs."""
    names = list[str]()
    axes = traverse_util.flatten_dict(model.axes, sep="/")
    for row in rows_of(family, model, without_heads):
        if "layers" not in axes[row.paths[0]]:
            names += row.names
            continue
        for number in range(model.config.groups * model.config.layers_per_group):
            if not is_unused(model.config, row, number):
                names += layer_names(family, model.config, row, number)
    return names
