"""The shapes of what clients get, for the description of the API; answers.py makes them."""

from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Score = Annotated[float, Field(description="Probability, from 0 to 1.")]
Start = Annotated[int, Field(description="First character, as a number of code points from the start of the text.")]
End = Annotated[int, Field(description="The character after the last one.")]


class Shape(BaseModel):
    """A part of an answer, which has no other fields."""

    model_config = ConfigDict(extra="forbid")


class Error(Shape):
    """Why a request has no answer."""

    error: str = Field(description="The reason, in one line.")
    field: str | None = Field(
        default=None, description="The part of an invalid body (422), such as inputs.3.context; body for all of it."
    )


class Health(Shape):
    """The process lives."""

    status: str = Field(description="Always alive.")
    version: str = Field(description="That of bert_jax.")


class Ready(Shape):
    """Whether requests are answered."""

    ready: bool = Field(description="Whether all programs are compiled.")


class Run(Shape):
    """A served run."""

    name: str = Field(description="Its name in paths, /v1/NAME/predict.")
    kind: str = Field(description="What it is for: a task of Hugging Face's, or the name of a task of your own.")
    problem: str = Field(
        description="What a run on texts predicts: classification, multi_label or regression; empty for others."
    )
    fields: list[str] = Field(description="Names of the texts of an input.")
    labels: list[str] = Field(description="The labels of texts or words; empty if there are none.")
    mask: str = Field(description="The token that marks what to fill in; empty for runs that fill no masks.")
    max_tokens: int = Field(description="Tokens that the model reads at a time.")
    operations: list[str] = Field(description="Its operations besides tokens: predict, embed, explain.")
    examples: list[dict[str, str]] = Field(description="Inputs to try, from its predictions on held-out data, if any.")


class Label(Shape):
    """A label of a text."""

    label: str = Field(description="Its name; score if the run predicts a number.")
    score: float = Field(description="Its probability, or the number.")


class Entity(Shape):
    """An entity of a text."""

    entity_group: str = Field(description="Its type.")
    word: str = Field(description="Its text.")
    score: Score
    start: Start
    end: End


class Tag(Shape):
    """The tag of a word."""

    entity: str = Field(description="The tag.")
    index: int = Field(description="Number of the word, from 1.")
    word: str = Field(description="The word.")
    score: Score
    start: Start
    end: End


class ExtractedAnswer(Shape):
    """An answer from a context."""

    answer: str = Field(description="Its text; empty if the context has none.")
    start: int = Field(description="Its first character in the context; -1 if there is none.")
    end: int = Field(description="The character after the last one; -1 if there is none.")
    score: Score
    none_score: float = Field(description="Probability that the context has no answer.")


class MaskToken(Shape):
    """A token in the place of a mask."""

    score: Score
    token: int = Field(description="Its id.")
    token_str: str = Field(description="Its text.")
    sequence: str = Field(description="The text with the token in the place of the mask; other masks stay.")


class WordScore(Shape):
    """A word of an explained text."""

    text: str = Field(description="The word.")
    start: Start
    end: End
    score: float = Field(description="What it adds to the logit of the label; negative if it speaks against it.")


class Explanation(Shape):
    """The words that decided about a label."""

    label: str | None = Field(description="The label; null if the run predicts a number.")
    words: list[list[WordScore]] = Field(description="The words of each text of the input.")


class SeenToken(Shape):
    """A token as the model gets it."""

    token: str = Field(description="Its text in the vocabulary.")
    id: int = Field(description="Its number in the vocabulary.")
    segment: int = Field(description="0 in the first text of a pair, 1 in the second.")
    position: int = Field(description="Its position, from 0.")
    special: bool = Field(description="Whether it is one of the tokenizer's special tokens, such as [CLS].")


class Tokens(Shape):
    """What the model sees of an input."""

    windows: list[list[SeenToken]] = Field(description="Its tokens; of a long context in several windows that overlap.")
    tokens: int = Field(description="Number of tokens of all texts, without special tokens.")
    cut: int = Field(description="How many of them the model does not see.")
    max_tokens: int = Field(description="Tokens that the model reads at a time.")


OwnAnswer = Annotated[dict[str, Any], Field(description="The answer of a task of your own.")]
MaskTokens = list[MaskToken] | list[list[MaskToken]]  # of a single mask, or of each of several
# By kind of run: an answer to `inputs` that is no list, and one to a list. Labels are a list for a single text, too.
PREDICTIONS: dict[str, Any] = {
    "text-classification": list[list[Label]],
    "token-classification": list[Entity | Tag] | list[list[Entity | Tag]],
    "question-answering": ExtractedAnswer | list[ExtractedAnswer] | list[ExtractedAnswer | list[ExtractedAnswer]],
    "fill-mask": MaskTokens | list[MaskTokens],
}
Prediction: Any = reduce(or_, PREDICTIONS.values()) | OwnAnswer | list[OwnAnswer]
Similarities = list[float] | list[list[float]]
