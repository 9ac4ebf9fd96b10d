"""What clients get: the answers of tasks (see `Prediction.prepare` of each) in the shapes of Hugging Face's specifications."""

from collections.abc import Sequence
from typing import Any

from bert_jax.data.words import words_of
from bert_jax.serving.requests import MaskParameters, QuestionParameters, TextParameters, TokenParameters
from bert_jax.serving.runs import ServedRun
from bert_jax.tasks.common.prediction import Answer


def to_huggingface(
    run: ServedRun, parameters: Any, inputs: Sequence[dict[str, Any]], answers: Sequence[Answer], is_list: bool
) -> Any:
    """Returns the body of a response to `inputs`, of which there may be one that was not in a list.

    Labels are a list for each input, even for a single one, as the clients of text-classification expect; everything else is
    the element itself for a single input.
    """
    elements: list[Any]
    match run.kind:
        case "text-classification":
            return [label_scores(answer, parameters) for answer in answers]
        case "token-classification":
            elements = [
                word_spans(values["text"], answer, parameters) for values, answer in zip(inputs, answers, strict=True)
            ]
        case "question-answering":
            elements = [best_answers(answer, parameters) for answer in answers]
        case "fill-mask":
            elements = [
                mask_tokens(run, values["text"], answer) for values, answer in zip(inputs, answers, strict=True)
            ]
        case _:
            elements = list(answers)
    return elements if is_list else elements[0]


def label_scores(answer: Answer, parameters: TextParameters) -> list[dict[str, Any]]:
    """Returns [{'label', 'score'}], the likeliest label first; the label of a number is 'score'."""
    if "score" in answer:
        return [{"label": "score", "score": answer["score"]}]
    ordered = sorted(answer["probabilities"].items(), key=lambda pair: -pair[1])
    return [{"label": label, "score": score} for label, score in ordered[: parameters.top_k]]


def word_spans(text: str, answer: Answer, parameters: TokenParameters) -> list[dict[str, Any]]:
    """Returns the entities, [{'entity_group', 'word', 'score', 'start', 'end'}], or the tag of each word, 'entity'.

    Runs with plain tags have no entities, so tags are all that they return.
    """
    ignored = ["O"] if parameters.ignore_labels is None else parameters.ignore_labels
    if parameters.aggregation_strategy != "none" and "entities" in answer:
        return [
            {"entity_group": entity["type"], "word": entity["text"]}
            | {name: entity[name] for name in ("score", "start", "end")}
            for entity in answer["entities"]
            if entity["type"] not in ignored
        ]
    rows = zip(words_of(text), answer["tags"], answer["scores"], strict=True)
    return [
        {"entity": tag, "index": number, "word": word.text, "score": score, "start": word.start, "end": word.end}
        for number, (word, tag, score) in enumerate(rows, 1)
        if tag not in ignored
    ]


def best_answers(answer: Answer, parameters: QuestionParameters) -> dict[str, Any] | list[dict[str, Any]]:
    """Returns {'answer', 'start', 'end', 'score', 'none_score'}, or a list of them where several are asked for.

    'none_score' is the probability that the context has no answer.
    """
    candidates = [
        {"answer": one["text"], "start": one["start"], "end": one["end"], "score": one["probability"]}
        for one in answer["candidates"]
    ]
    none_score = max(0.0, 1.0 - sum(candidate["score"] for candidate in candidates))
    none = {"answer": "", "start": -1, "end": -1, "score": none_score}
    may_be_none = parameters.handle_impossible_answer is not False
    if not candidates or (may_be_none and not answer["answer"]):
        candidates.insert(0, none)
    ranked = [candidate | {"none_score": none_score} for candidate in candidates[: parameters.top_k or 1]]
    return ranked if (parameters.top_k or 1) > 1 else ranked[0]


def mask_tokens(run: ServedRun, text: str, answer: Answer) -> list[Any]:
    """Returns [{'score', 'token', 'token_str', 'sequence'}] for a single mask, a list of such lists for several."""
    tokenizer, parts = run.predictor.task.tokenizer, text.split(run.mask)
    by_mask = []
    for number, fillings in enumerate(answer["masks"]):
        before, after = (run.mask.join(some) for some in (parts[: number + 1], parts[number + 1 :]))
        elements = []
        for filling in fillings:
            token_str = tokenizer.decode([filling["id"]])
            is_piece = filling["token"].startswith("##")
            word = token_str.removeprefix("##") if is_piece else token_str.lstrip()
            sequence = (before.rstrip() if is_piece else before) + word + after
            elements.append(
                {"score": filling["probability"], "token": filling["id"], "token_str": token_str, "sequence": sequence}
            )
        by_mask.append(elements)
    return by_mask[0] if len(by_mask) == 1 else by_mask


def with_mask_parameters(inputs: Sequence[dict[str, Any]], parameters: MaskParameters) -> list[dict[str, Any]]:
    """Returns the inputs with what they must hold for the answers that are asked for."""
    targets = [parameters.targets] if isinstance(parameters.targets, str) else parameters.targets
    return [values | {"targets": targets, "top_k": parameters.top_k} for values in inputs]
