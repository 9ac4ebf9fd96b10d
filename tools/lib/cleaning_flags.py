"""The flags of tools/prepare_corpus.py for cleaning."""

from absl import flags

from bert_jax.data.corpus.cleaning import NORMAL_FORMS, Cleaning

_UNICODE = flags.DEFINE_enum("unicode", "none", NORMAL_FORMS, "Unicode normal form of the text")
_MIN_CHARACTERS = flags.DEFINE_integer("min_characters", 0, "drop documents with fewer characters", lower_bound=0)
_DROP_REGEX = flags.DEFINE_multi_string("drop_regex", [], "drop documents in which this regex matches; may be repeated")
_LANGUAGES = flags.DEFINE_list(
    "languages", [], "drop documents in other languages than these, such as en,de (needs py3langid)"
)
_DROP_DUPLICATES = flags.DEFINE_bool("drop_duplicates", False, "drop documents with the text of an earlier one")
_DROP_NEAR_DUPLICATES = flags.DEFINE_float(
    "drop_near_duplicates",
    0.0,
    "drop documents as similar as this to an earlier one, such as 0.8: the share of common sequences of five words "
    "(needs rensa); 0 keeps them",
)


def cleaning_from_flags() -> Cleaning:
    """Returns the options of cleaning. Raises UserError as `Cleaning`."""
    return Cleaning(
        unicode=_UNICODE.value,
        min_characters=_MIN_CHARACTERS.value,
        drop_regex=tuple(_DROP_REGEX.value),
        languages=tuple(sorted(set(_LANGUAGES.value))),
        drop_duplicates=_DROP_DUPLICATES.value,
        drop_near_duplicates=_DROP_NEAR_DUPLICATES.value,
    )
