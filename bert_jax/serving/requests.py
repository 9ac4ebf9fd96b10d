"""What clients send: `inputs` and `parameters` as in Hugging Face's task specifications, and the inputs of a run in them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, create_model

from bert_jax.errors import listed
from bert_jax.serving.runs import ServedRun
from bert_jax.tasks.common.mask_filling import MOST_TOKENS

MOST_INPUTS = 256  # of a request
MOST_CHARACTERS = 100_000  # of a text

Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]
Texts = dict[str, Text]  # by the names of the run's fields
_ListOfTexts = Annotated[list[Text], Field(max_length=MOST_INPUTS)]


def json_type(value: Any) -> str | None:
    """Returns the tag of the form that a value of JSON must have where several are allowed; None if it has none."""
    tags: dict[type, str] = {str: "<text>", dict: "<object>", list: "<list>"}
    return tags.get(type(value))


def _one_of(message: str) -> Discriminator:
    """Chooses among forms by the type of the value, so that an error is about the form that was meant."""
    return Discriminator(json_type, custom_error_type="form", custom_error_message=message)


AsText, AsObject, AsList = Tag("<text>"), Tag("<object>"), Tag("<list>")
Input = Annotated[
    Annotated[Text, AsText] | Annotated[Texts, AsObject], _one_of("must be a text, or an object of texts")
]
Inputs = Annotated[
    Annotated[Text, AsText]
    | Annotated[Texts, AsObject]
    | Annotated[list[Input], Field(max_length=MOST_INPUTS), AsList],
    _one_of("must be a text, an object of texts, or a list of these"),
]
OneOrMoreTexts = Annotated[
    Annotated[Text, AsText] | Annotated[_ListOfTexts, AsList], _one_of("must be a text or a list of texts")
]
Count = Annotated[int, Field(ge=1, le=MOST_TOKENS)]


class InputError(ValueError):
    """An invalid value at a place of the body, such as ('inputs', 3, 'context')."""

    def __init__(self, place: tuple[str | int, ...], message: str):
        super().__init__(message)
        self.place = place


class Strict(BaseModel):
    """A part of a body, in which unknown names are an error."""

    model_config = ConfigDict(extra="forbid")


class TextParameters(Strict):
    top_k: Count | None = None  # labels returned; all by default


class TokenParameters(Strict):
    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = None  # 'none': each word's tag
    ignore_labels: Annotated[list[str], Field(max_length=MOST_INPUTS)] | None = None  # of words; ['O'] by default


class QuestionParameters(Strict):
    top_k: Count | None = None  # answers returned; 1 by default
    handle_impossible_answer: bool | None = None  # whether the answer may be ''; true by default


class MaskParameters(Strict):
    top_k: Count | None = None  # tokens returned for each mask; 5 by default
    targets: OneOrMoreTexts | None = None  # the only tokens considered


class NoParameters(Strict):
    """Of tasks of your own."""


class Predict(Strict):
    """A body for `predict`; each kind of run has a subclass with its parameters."""

    inputs: Inputs
    parameters: Any = None


class Embed(Strict):
    inputs: OneOrMoreTexts
    normalize: bool | None = None  # to length 1
    truncate: Literal[True] | None = None  # long texts always are


class Sentences(Strict):
    source_sentence: Text
    sentences: Annotated[list[Text], Field(max_length=MOST_INPUTS)]


class CompareTexts(Strict):
    """Either one sentence and others, as in Hugging Face's specification, or texts that are all compared with each other."""

    inputs: Annotated[
        Annotated[Sentences, AsObject] | Annotated[_ListOfTexts, AsList],
        _one_of("must be an object with source_sentence and sentences, or a list of texts"),
    ]
    parameters: NoParameters = NoParameters()


class Explain(Strict):
    inputs: Input
    label: Text | None = None  # to be explained; the likeliest by default


class Tokenize(Strict):
    inputs: Input


def predict_body(parameters: type[Strict]) -> type[Predict]:
    """Returns the form of a body with these parameters, all of which may be left out."""
    return create_model(f"Predict{parameters.__name__}", __base__=Predict, parameters=(parameters, parameters()))


PREDICT_BODIES = {
    "text-classification": predict_body(TextParameters),
    "token-classification": predict_body(TokenParameters),
    "question-answering": predict_body(QuestionParameters),
    "fill-mask": predict_body(MaskParameters),
}
PREDICT_OTHER = predict_body(NoParameters)


def inputs_of(run: ServedRun, value: Any) -> list[dict[str, Any]]:
    """Returns the inputs of a run that a body's `inputs` holds: a text, texts by field, or a list of these.

    Raises:
      InputError: a field is missing or unknown.
    """
    if isinstance(value, list):
        return [_by_field(run, one, ("inputs", number)) for number, one in enumerate(value)]
    return [_by_field(run, value, ("inputs",))]


def _by_field(run: ServedRun, value: str | dict[str, str], place: tuple[str | int, ...]) -> dict[str, Any]:
    fields = run.predictor.input_fields
    if isinstance(value, str):
        if len(fields) > 1:
            raise InputError(place, f"is a single text; give {listed(fields)}")
        return {fields[0]: value}
    if len(fields) == 2 and value.keys() == {"text", "text_pair"}:  # Hugging Face's names
        value = {fields[0]: value["text"], fields[1]: value["text_pair"]}
    if missing := [field for field in fields if field not in value]:
        raise InputError((*place, missing[0]), f"is missing; give {listed(fields)}")
    if unknown := [name for name in value if name not in fields]:
        raise InputError((*place, unknown[0]), f"is not a field of this run; give {listed(fields)}")
    return dict(value)
