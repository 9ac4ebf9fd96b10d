"""What the model sees of an input: its tokens with their segments and positions, and what was cut off."""

from typing import Any

from bert_jax.serving.runs import PREDICT, ServedRun


def tokens_of(run: ServedRun, values: dict[str, Any]) -> dict[str, Any]:
    """Returns {'windows': [[{'token', 'id', 'segment', 'position', 'special'}]], 'tokens', 'max_tokens'}.

    A long context is read in several windows, a long text is cut: then 'tokens', the number of tokens of all fields without
    special ones, exceeds what is in the window. Raises UserError as the run's task does.
    """
    task = run.predictor.task
    tokenizer = task.tokenizer
    items = (run.programs[PREDICT].prediction if PREDICT in run.programs else task).prepare([values]).items
    windows = []
    for item in items:
        ids, segments = item.tokens["input_ids"], item.tokens["token_type_ids"]
        rows = zip(tokenizer.tokens(ids), ids.tolist(), segments.tolist(), strict=True)
        windows.append(
            [
                {"token": token, "id": number, "segment": segment, "position": position}
                | {"special": number in tokenizer.special_ids}
                for position, (token, number, segment) in enumerate(rows)
            ]
        )
    count = sum(len(ids) for ids in tokenizer.encode([values[field] for field in run.predictor.input_fields]))
    return {"windows": windows, "tokens": count, "max_tokens": task.row_length}
