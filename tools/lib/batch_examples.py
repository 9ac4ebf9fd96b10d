"""Shows examples of a batch as the model sees them, token by token, and the same example in two epochs."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bert_jax.data.joining import Example
from bert_jax.data.pretraining.mixture import Mixture
from bert_jax.data.pretraining.stream import CorpusStream
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.objectives.masking import MaskingOptions
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks import base as tasks
from bert_jax.tasks.common.training import phase_at
from bert_jax.tasks.pretraining import PretrainingData
from tools.lib.predictions import predictions, printable

WIDTH = 100
STYLES = {
    "special": "bold cyan",
    "first": "default",
    "second": "bright_blue",
    "mask": "black on yellow",
    "random": "white on red",
    "kept": "black on green",
    "number": "bright_black",
}
LABELS = {
    "nsp_labels": ("the second segment follows the first", "the second segment is from another document"),
    "sop_labels": ("the segments are in their order", "the segments are swapped"),
}


class Seen(NamedTuple):
    """A position of an example, as the model sees it."""

    token: str
    segment: int
    kind: str  # a key of STYLES
    label: str  # the token to predict; '' where there is no prediction


def parts_of_run(workdir: Path, step: int, num_rows: int) -> Iterator[RenderableType]:
    """Yields what the command shows of a run folder. Raises UserError if its corpus or a model is not there."""
    values = run_folder.get_config(str(workdir))
    yield from report(tasks.create(values, workdir), step, num_rows)
    yield from predictions(values, workdir, step, num_rows)


def report(task: Any, step: int, num_rows: int) -> Iterator[RenderableType]:
    """Yields the first `num_rows` examples of a batch, then one of them in two epochs under both kinds of masking."""
    num_steps = task.config.train.num_steps
    if not 0 <= step < num_steps:
        raise UserError(f"--step={step}: the run has steps 0 to {num_steps - 1}; use one of them")
    phase = phase_at(task.training.phases(1), step)
    size = phase.shape.rows
    rows = np.arange(min(num_rows, size))
    batch = task.training.batch(phase, rows, step)
    yield legend()
    stream = task.training.stream_of(phase) if isinstance(task.training, PretrainingData) else None
    if stream:
        yield Text(task.training.summary)
    numbers = phase.numbers(step)[:1]
    if isinstance(stream, Mixture):
        ((_, stream, numbers),) = stream.parts(numbers)
    if isinstance(stream, CorpusStream):
        for objective in stream.objectives.values():
            if objective.masks_tokens:
                yield strategy(objective.options, float(stream.progress(numbers)[0]))
    for row in rows:
        example = {name: values[row] for name, values in batch.items()}
        title = f"[bold]step {step}, example {row} of {size}"
        yield Panel(Group(*example_parts(task.tokenizer, example)), title=title, title_align="left")
    if isinstance(stream, CorpusStream):
        yield two_epochs(task.tokenizer, stream, numbers)


def positions(tokenizer: Tokenizer, example: Example) -> list[Seen]:
    """Returns every position of an example but the padding at its end."""
    ids = example["input_ids"][: int(example["attention_mask"].sum())]
    # Of documents in a row, or of the two texts of a pair.
    segments = example["segment_ids"] - 1 if "segment_ids" in example else example["token_type_ids"]
    seen = []
    for position, token in enumerate(printable(tokenizer.tokens(ids))):
        segment = int(segments[position])
        kind = "special" if ids[position] in tokenizer.special_ids else ("first", "second")[segment % 2]
        seen.append(Seen(token, segment, kind, ""))
    if "mlm_positions" in example:
        predicted = example["mlm_weights"] > 0
        places, labels = example["mlm_positions"][predicted], example["mlm_labels"][predicted]
        for place, label, token in zip(places, labels, printable(tokenizer.tokens(labels)), strict=True):
            shown = ids[place]
            kind = "mask" if shown == tokenizer.mask_id else "kept" if shown == label else "random"
            seen[place] = seen[place]._replace(kind=kind, label=token)
    return seen


def example_parts(tokenizer: Tokenizer, example: Example) -> Iterator[RenderableType]:
    """Yields bands of positions, as many side by side as fit, and what is counted of the example."""
    seen = positions(tokenizer, example)
    yield from bands(seen, WIDTH - 4)
    kinds = [position.kind for position in seen]
    counts = {kind: kinds.count(kind) for kind in ("mask", "random", "kept")}
    padding = len(example["input_ids"]) - len(seen)
    number = seen[-1].segment + 1
    documents = f" in {number} document{'s' * (number > 1)}" if "segment_ids" in example else ""
    line = Text(f"\n{len(seen)} tokens{documents}, {padding} of padding · {sum(counts.values())} to predict: ")
    for kind, count in counts.items():
        line.append(f" {count} {kind} ", STYLES[kind]).append(" ")
    if num_words := sum(lengths := span_lengths(tokenizer, example)):
        line.append(f"· in {len(lengths)} spans of {num_words / len(lengths):.1f} words")
    yield line
    for name, value in example.items():
        if name.endswith("labels") and np.ndim(value) == 0:
            meaning = LABELS[name][int(value)] if name in LABELS else ""
            yield Text(f"{name} = {int(value)}", "bold").append(f"  {meaning}", "default")


def span_lengths(tokenizer: Tokenizer, example: Example) -> list[int]:
    """Returns the number of words of each span of predicted tokens; units that are next to one another are one span."""
    if "mlm_positions" not in example:
        return []
    predicted = example["mlm_weights"] > 0
    places, labels = example["mlm_positions"][predicted], example["mlm_labels"][predicted]
    begins = np.diff(places, prepend=-2) != 1
    words = np.cumsum(begins | tokenizer.word_starts[labels])
    return np.diff(words[begins] - 1, append=words.max(initial=0)).tolist()


def bands(seen: list[Seen], width: int) -> Iterator[Table]:
    """Yields tables of four lines: position, segment, what the model reads, what it is to predict."""
    available = width - len("position")
    start = 0
    while start < len(seen):
        end, used = start, 0
        while end < len(seen) and used + (cell := column_width(seen[end], end)) <= available:
            used, end = used + cell, end + 1
        end = max(end, start + 1)
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(style=STYLES["number"], min_width=len("position"))
        part = list(enumerate(seen[start:end], start))
        for _ in part:
            table.add_column(no_wrap=True)
        table.add_row("position", *(Text(str(number), STYLES["number"]) for number, _ in part))
        table.add_row(
            "segment",
            *(letter(position.segment) for _, position in part),
        )
        table.add_row("reads", *(Text(position.token, STYLES[position.kind]) for _, position in part))
        table.add_row("predicts", *(Text(position.label, "bold") for _, position in part))
        yield table if start == 0 else Group(Text(""), table)  # type: ignore[misc]
        start = end


def letter(segment: int) -> Text:
    """Returns A, B and so on, in two colours."""
    return Text(ascii_uppercase[segment % 26], STYLES[("first", "second")[segment % 2]])


def column_width(position: Seen, number: int) -> int:
    """Characters that a position takes, the gap before it counted in."""
    return 1 + max(len(position.token), len(position.label), len(str(number)))


def legend() -> Text:
    """Returns what the colours mean."""
    line = Text()
    for kind, meaning in (("special", "special token"), ("first", "segment A"), ("second", "segment B")):
        line.append(f"{meaning}   ", STYLES[kind])
    line.append("to predict: ", STYLES["number"])
    for kind, meaning in (("mask", "masked"), ("random", "replaced at random"), ("kept", "kept")):
        line.append(f" {meaning} ", STYLES[kind]).append(" ")
    return line


def strategy(options: MaskingOptions, progress: float) -> Text:
    """Returns which tokens are predicted and how many, at some progress of the phase."""
    units = {
        "token": "single tokens",
        "word": "whole words",
        "ngram": f"n-grams of 1 to {options.max_ngram} whole words, n with a probability proportional to 1/n",
        "span": f"spans of 1 to {options.max_span} whole words, geometric lengths with p = {options.span_p:g}",
    }
    mean = options.unit_lengths @ np.arange(1, len(options.unit_lengths) + 1)
    share = f"{options.rate(progress):.1%} of the tokens"
    if options.mlm_probability_end:
        share += f" ({options.mlm_probability:.1%} to {options.mlm_probability_end:.1%} in the phase)"
    line = Text("masking: ", STYLES["number"]).append(options.masking, "bold")
    line.append(f", {units[options.masking]}" + (f", {mean:.2f} on average" if mean > 1 else ""))
    return line.append(f"; count: {options.count}, {share}")


def two_epochs(tokenizer: Tokenizer, stream: CorpusStream, numbers: np.ndarray) -> Table:
    """Returns the same text in epochs 0 and 1, with dynamic and static masking; in a run the windows move as well."""
    first, second, progress = np.array([0]), np.array([1]), stream.progress(numbers)
    _, indices = stream.epochs_and_indices(numbers)
    rows = stream.reader.rows(first, indices)

    def masked(epochs: np.ndarray) -> Example:
        return {name: array[0] for name, array in stream.corrupt(rows, epochs, indices, progress).items()}

    title = f"The text of example {indices[0]} in two epochs"
    table = Table(title=title, width=WIDTH, show_lines=True, title_style="bold")
    table.add_column("masking", width=8)
    for epoch in ("epoch 0", "epoch 1"):
        table.add_column(epoch, ratio=1)
    for masking in ("dynamic", "static"):
        examples = masked(first), masked(second if masking == "dynamic" else first)
        same = all(np.array_equal(examples[0][name], examples[1][name]) for name in examples[0])
        verdict = Text(masking, "bold").append("\n\nthe same" if same else "\n\nnew", "green" if same else "yellow")
        table.add_row(verdict, *(running_text(positions(tokenizer, example)) for example in examples))
    return table


def running_text(seen: Iterable[Seen]) -> Text:
    """Returns the tokens one after the other; pieces of a word are joined unless they are to be predicted."""
    text = Text()
    for position in seen:
        predicted = position.kind in ("mask", "random", "kept")
        token = position.token if predicted else position.token.removeprefix("##")
        if len(text) and token == position.token:
            text.append(" ")
        text.append(token, STYLES[position.kind])
    return text
