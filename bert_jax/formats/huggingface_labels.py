"""Class names and problem type of a head in Hugging Face's config.json."""

from typing import Any

from bert_jax.errors import UserError, listed
from bert_jax.formats.huggingface_config import CONFIG

# Problem types of a classification head: name here -> name in config.json.
PROBLEM_TYPES = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


def problem_of(config: dict[str, Any], num_outputs: int) -> str:
    """Returns the problem type of a classification head; if unset, a single output means regression, as in transformers.

    Raises:
      UserError: problem_type is unknown, or does not fit the number of outputs.
    """
    problem_type = config.get("problem_type")
    if problem_type is None:
        return "regression" if num_outputs == 1 else "classification"
    problems = {hf_name: name for name, hf_name in PROBLEM_TYPES.items()}
    if problem_type not in problems:
        raise UserError(f"{CONFIG}: {problem_type=} is not one of {', '.join(problems)}")
    where = f"{CONFIG}: {problem_type=} with a head of {num_outputs} outputs"
    if problems[problem_type] == "regression" and num_outputs > 1:
        raise UserError(f"{where}: only a single number can be predicted; use it as a library, with bert_jax.load")
    if problems[problem_type] == "classification" and num_outputs == 1:
        raise UserError(
            f"{where}: a single class always has probability 1; set {PROBLEM_TYPES['multi_label']} or regression"
        )
    return problems[problem_type]


def label_names(config: dict[str, Any], num_classes: int) -> list[str]:
    """Returns the class names of a head in the order of its logits; without id2label LABEL_0 and so on, as in transformers.

    A name that is a number in the file is converted to text.

    Raises:
      UserError: a class has no name, shares its name with another, or has two numbers.
    """
    named = config.get("id2label") or {str(number): f"LABEL_{number}" for number in range(num_classes)}
    if not all(str(number).isdecimal() and len(str(number)) < 10 for number in named):
        raise UserError(
            f"{CONFIG}: id2label does not map numbers to names: {listed(list(map(str, named)))}; number the labels from 0"
        )
    by_number = {int(number): name for number, name in named.items()}
    if sorted(by_number) != list(range(num_classes)):
        numbers = listed(list(map(str, sorted(by_number))))
        raise UserError(
            f"{CONFIG}: the head has {num_classes} classes, but id2label names the numbers {numbers}; "
            f"name 0 to {num_classes - 1}"
        )
    numbers_of: dict[str, int] = {}
    for number, name in sorted(by_number.items()):
        if not isinstance(name, str | int | float):
            raise UserError(f"{CONFIG}: id2label gives class {number} the name {name!r}; use a string")
        first = numbers_of.setdefault(str(name), number)
        if first != number:
            raise UserError(
                f"{CONFIG}: id2label gives the classes {first} and {number} the same name, {str(name)!r}; rename one"
            )
    for name, number in (config.get("label2id") or {}).items():
        if name in numbers_of and str(number) != str(numbers_of[name]):
            raise UserError(
                f"{CONFIG}: class {name!r} is number {numbers_of[name]} in id2label and {number} in label2id; correct one"
            )
    return list(numbers_of)
