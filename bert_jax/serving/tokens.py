"""What the model sees of an input: its tokens with their segments and positions, and what was cut off."""

from typing import Any

from bert_jax.serving.runs import EMBED, PREDICT, ServedRun


def tokens_of(run: ServedRun, values: dict[str, Any]) -> dict[str, Any]:
    """Returns {'windows': [[{'token', 'id', 'segment', 'position', 'special'}]], 'tokens', 'cut', 'max_tokens'}.

    A long context is read in several windows, of a long text some tokens are cut: 'tokens' and 'cut' are numbers of tokens of
    all fields, without those that are added at their ends. Raises UserError as the run's task does.
    """
    task = run.predictor.task
    tokenizer = task.tokenizer
    # Only a text with masks is one for the prediction of a run that fills them.
    is_predicted = PREDICT in run.programs and (not run.mask or any(run.mask in text for text in values.values()))
    items = run.programs[PREDICT if is_predicted else EMBED].prediction.prepare([values]).items
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
    encode = tokenizer.encode_with_masks if run.mask else lambda text: tokenizer.encode([text])[0]
    fields = run.predictor.input_fields
    count = sum(len(encode(values[field])) for field in fields)
    kept = len(windows[0]) - tokenizer.num_special_tokens(len(fields))
    cut = max(0, count - kept) if len(windows) == 1 else 0  # an empty text is read as a token
    return {"windows": windows, "tokens": count, "cut": cut, "max_tokens": task.row_length}
