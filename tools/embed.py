"""Writes one vector for each text, computed by a pretrained encoder.

    python tools/embed.py --model=RUN|DIR --input=texts.jsonl --output=vectors.npy [--pool=mean|first] [--layer=-1]

The model is a run folder or a folder in Hugging Face's format. Each line of the input is a JSON object with a field `text`, or
plain text; '-' is standard input. The output is an array [texts, hidden_size] in a .npy file or, with any other name or '-',
lines of JSON: {"vector": [...]}.
"""

import contextlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

import bert_jax
from bert_jax.cli.main import run_command
from bert_jax.cli.progress import Progress
from bert_jax.data.inputs import json_line, output_file, read_inputs
from bert_jax.library import LoadedEncoder

CHUNK_SIZE = 1024  # texts that are sorted by length and encoded together


def define_flags() -> None:
    flags.DEFINE_string("model", None, "run folder, or folder in Hugging Face's format", required=True)
    flags.DEFINE_string("input", None, "texts, one per line; '-' for standard input", required=True)
    flags.DEFINE_string("output", "-", "NAME.npy, a file for JSON lines, or '-'")
    flags.DEFINE_enum("pool", "mean", ["mean", "first"], "mean over the tokens, or the first token ([CLS])")
    flags.DEFINE_integer("layer", -1, "layer of the hidden states: 0 for the embeddings, -1 for the last layer")
    flags.DEFINE_integer("batch_size", 32, "texts at a time", lower_bound=1)
    help_of_length = "most tokens of a text, the rest is cut off; 0 for as many as the model supports"
    flags.DEFINE_integer("max_length", 0, help_of_length, lower_bound=0)


def main() -> None:
    values = flags.FLAGS
    encoder = bert_jax.load(Path(values.model).expanduser())
    with read_inputs(values.input, ("text",)) as inputs, Progress("embedding") as progress:
        texts = (fields["text"] for fields in inputs)
        chunks = vectors(encoder, texts, progress)
        if not values.output.endswith(".npy"):
            is_stdout = values.output == "-"
            with contextlib.nullcontext(sys.stdout) if is_stdout else output_file(Path(values.output)) as file:
                for chunk in chunks:
                    file.writelines(json_line({"vector": vector.tolist()}) for vector in chunk)
            return
        array = np.concatenate(list(chunks))  # a .npy file starts with its size
    with output_file(Path(values.output), binary=True) as file:
        # Like np.save, which needs a seekable file; this works for pipes, too.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data)
    print(f"{values.output}: {len(array):,} vectors of {array.shape[1]}")


def vectors(encoder: LoadedEncoder, texts: Iterator[str], progress: Progress) -> Iterator[np.ndarray]:
    """Yields vectors [n, D] of the texts, `CHUNK_SIZE` at a time."""
    values = flags.FLAGS
    while chunk := list(itertools.islice(texts, CHUNK_SIZE)):
        yield encoder.encode(chunk, values.layer, values.pool, values.batch_size, values.max_length)
        for text in chunk:
            progress.count(len(text.encode()))


if __name__ == "__main__":
    define_flags()
    run_command(main)
