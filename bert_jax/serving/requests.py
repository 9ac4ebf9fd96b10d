"""What clients send: `inputs` and `parameters` as in Hugging Face's task specifications, and the inputs of a run in them."""

from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
)

from bert_jax.errors import listed
from bert_jax.serving.failures import Place, invalid
from bert_jax.serving.runs import ServedRun
from bert_jax.tasks.common.mask_filling import MOST_TOKENS
from bert_jax.tasks.common.prediction import InputError

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
INPUT = "A text, or an object with the texts of the run's fields (`GET /v1/runs`)"
UNSUPPORTED = "Of Hugging Face's specification, and not supported: leave it out, or send null."


def option(description: str) -> Any:
    """Describes a field that may be left out, or null, which is the same."""
    return Field(default=None, description=description)


class Strict(BaseModel):
    """A part of a body, in which unknown names are an error. Fields of type None are known but not supported."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _is_supported(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and cls.model_fields[str(info.field_name)].annotation is NoneType:
            raise ValueError(f"is not supported; {cls.remedy()}")
        return value

    @classmethod
    def remedy(cls) -> str:
        """Says which names are supported."""
        names = [name for name, field in cls.model_fields.items() if field.annotation is not NoneType]
        return f"supported: {listed(names)}" if names else "there are no parameters"


Body = TypeVar("Body", bound=Strict)


class TextParameters(Strict):
    """Parameters of runs that label texts."""

    top_k: Count | None = option("Number of labels returned; all by default.")
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = option(
        "What makes scores of logits. That of the run alone is supported: softmax for one label, sigmoid for several labels, "
        "none for a number."
    )


class TokenParameters(Strict):
    """Parameters of runs that label words."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = option(
        "none: the tag of each word. Any other: entities, which are the same for all of these, because a word has the tag "
        "of its first token."
    )
    ignore_labels: Annotated[list[str], Field(max_length=MOST_INPUTS)] | None = option(
        "Labels of words, or types of entities, that are not returned; O by default."
    )
    stride: None = option(UNSUPPORTED)


class QuestionParameters(Strict):
    """Parameters of runs that answer questions."""

    top_k: Count | None = option("Number of answers returned; with more than 1 they are a list. 1 by default.")
    handle_impossible_answer: bool | None = option("Whether the answer may be empty; true by default.")
    align_to_words: None = option(UNSUPPORTED)
    doc_stride: None = option(UNSUPPORTED)
    max_answer_len: None = option(UNSUPPORTED)
    max_question_len: None = option(UNSUPPORTED)
    max_seq_len: None = option(UNSUPPORTED)


class MaskParameters(Strict):
    """Parameters of runs that fill masks."""

    top_k: Count | None = option("Number of tokens returned for each mask; 5, or all targets, by default.")
    targets: OneOrMoreTexts | None = option("The only tokens considered; each must be one of the vocabulary.")


class NoParameters(Strict):
    """No parameters."""


PARAMETERS: dict[str, type[Strict]] = {  # by kind of run; those of tasks of your own have none
    "text-classification": TextParameters,
    "token-classification": TokenParameters,
    "question-answering": QuestionParameters,
    "fill-mask": MaskParameters,
}


class Predict(Strict):
    """A body for `predict`; each kind of run has a subclass with its parameters."""

    inputs: Inputs = Field(description=f"{INPUT}, or a list of up to {MOST_INPUTS} of these.")
    parameters: Any = None


class Embed(Strict):
    """A body for `embed`."""

    inputs: OneOrMoreTexts = Field(description=f"A text, or a list of up to {MOST_INPUTS} of them.")
    normalize: bool | None = option("Whether vectors are divided by their length; false by default.")
    truncate: bool | None = option("Whether long texts are cut, which is the default; otherwise they are an error.")
    truncation_direction: Literal["left", "right"] | None = option("The end that is cut; right by default.")
    encoding_format: Literal["float"] | None = option("float, the default, alone is supported.")
    prompt_name: None = option(UNSUPPORTED)
    dimensions: None = option(UNSUPPORTED)
    parameters: NoParameters | None = option("None: the names above stand in the body itself.")


class Sentences(Strict):
    """A sentence, and others to compare it with."""

    source_sentence: Text = Field(description="The sentence that is compared.")
    sentences: Annotated[list[Text], Field(max_length=MOST_INPUTS)] = Field(
        description="The sentences it is compared with."
    )


class CompareTexts(Strict):
    """A body for `similarity`."""

    inputs: Annotated[
        Annotated[Sentences, AsObject] | Annotated[_ListOfTexts, AsList],
        _one_of("must be an object with source_sentence and sentences, or a list of texts"),
    ] = Field(
        description="One sentence and others, as in Hugging Face's specification, or texts to compare with each other."
    )
    parameters: NoParameters | None = option("There are none.")


class Explain(Strict):
    """A body for `explain`."""

    inputs: Input = Field(description=f"{INPUT}.")
    label: Text | None = option("The label to be explained; the likeliest by default.")


class Tokenize(Strict):
    """A body for `tokens`."""

    inputs: Input = Field(description=f"{INPUT}.")


def _predict_body(parameters: type[Strict]) -> type[Predict]:
    fields: dict[str, Any] = {"parameters": (parameters | None, option("Parameters of the run's task."))}
    return create_model(f"Predict{parameters.__name__}", __base__=Predict, __doc__=Predict.__doc__, **fields)


PREDICT_BODIES = {kind: _predict_body(form) for kind, form in PARAMETERS.items()} | {"": _predict_body(NoParameters)}


def read_body(form: type[Body], content: bytes) -> Body:
    """Reads a body. Raises Failure if it is no JSON of this form."""
    try:
        return form.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = tuple(part for part in first["loc"] if not str(part).startswith("<"))  # see `json_type`
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden" and (owner := _form_at(form, place[:-1])):
            reason = f"is unknown; {owner.remedy()}"
        raise invalid(place, reason) from None


def _form_at(form: type[Strict], place: Place) -> type[Strict] | None:
    """Returns the form of a part of a body; None for one that has several."""
    for name in place:
        annotation = form.model_fields[str(name)].annotation
        forms = [part for part in get_args(annotation) if isinstance(part, type) and issubclass(part, Strict)]
        if len(forms) != 1:
            return None
        (form,) = forms
    return form


def inputs_of(run: ServedRun, value: Any) -> list[dict[str, Any]]:
    """Returns the inputs of a run that a body's `inputs` holds: a text, texts by field, or a list of these.

    Raises:
      Failure: a field is missing or unknown.
    """
    if isinstance(value, list):
        return [_by_field(run, one, ("inputs", number)) for number, one in enumerate(value)]
    return [_by_field(run, value, ("inputs",))]


def _by_field(run: ServedRun, value: str | dict[str, str], place: Place) -> dict[str, Any]:
    fields = run.predictor.input_fields
    if isinstance(value, str):
        if len(fields) > 1:
            raise invalid(place, f"is a single text; give {listed(fields)}")
        return {fields[0]: value}
    if len(fields) == 2 and value.keys() == {"text", "text_pair"}:  # Hugging Face's names
        value = {fields[0]: value["text"], fields[1]: value["text_pair"]}
    if missing := [field for field in fields if field not in value]:
        raise invalid((*place, missing[0]), f"is missing; give {listed(fields)}")
    if unknown := [name for name in value if name not in fields]:
        raise invalid((*place, unknown[0]), f"is not a field of this run; give {listed(fields)}")
    return dict(value)


def place_of(error: InputError, inputs: Any) -> Place:
    """Returns the place of a task's error in a body with these `inputs`."""
    if error.field in MaskParameters.model_fields:
        return ("parameters", error.field)
    value, place = (
        (inputs[error.number], ("inputs", error.number)) if isinstance(inputs, list) else (inputs, ("inputs",))
    )
    return (*place, error.field) if isinstance(value, dict) else place
