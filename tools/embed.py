"""One vector for each text, from a pretrained encoder: frozen features.

    python tools/embed.py --model=RUN|DIR --input=texts.jsonl --output=vectors.npy [--pool=mean|first] [--layer=-1]

The model is a run folder or one in Hugging Face's format. The input has a JSON object with a field `text`, or a plain text, on
each line; '-' is standard input. The output is an array [texts, width] in a .npy file, or with any other name (or '-') lines of
JSON: {"vector": [...]}. Texts of like length go through the encoder together.
"""

import contextlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

import bert_jax
from bert_jax.cli import main as cli
from bert_jax.cli.progress import Progress
from bert_jax.data.inputs import json_line, output_file, read_inputs
from bert_jax.library import LoadedEncoder

CHUNK = 1024  # texts that are sorted by length together


def define_flags() -> None:
    flags.DEFINE_string("model", None, "run folder, or folder in Hugging Face's format", required=True)
    flags.DEFINE_string("input", None, "texts, one a line; '-' for standard input", required=True)
    flags.DEFINE_string("output", "-", "where the vectors go: NAME.npy, a file of JSON lines, or '-'")
    flags.DEFINE_enum("pool", "mean", ["mean", "first"], "mean over the tokens, or the state of the first one ([CLS])")
    flags.DEFINE_integer("layer", -1, "whose hidden states: 0 the embeddings, -1 the last layer")
    flags.DEFINE_integer("batch_size", 32, "texts at a time", lower_bound=1)
    flags.DEFINE_integer(
        "max_length", 0, "tokens of a text, the rest is cut; 0 for all that the model can", lower_bound=0
    )


def main() -> None:
    values = flags.FLAGS
    encoder = bert_jax.load(Path(values.model).expanduser())
    with read_inputs(values.input, ("text",)) as inputs, Progress("embedding") as progress:
        texts = (given["text"] for given in inputs)
        chunks = vectors(encoder, texts, progress)
        if not values.output.endswith(".npy"):
            with (
                contextlib.nullcontext(sys.stdout) if values.output == "-" else output_file(Path(values.output)) as file
            ):
                for chunk in chunks:
                    file.writelines(json_line({"vector": vector.tolist()}) for vector in chunk)
            return
        array = np.concatenate(list(chunks))  # a .npy file says its size at the beginning
    with output_file(Path(values.output), binary=True) as file:
        # What np.save does, which needs a file that can be sought in: a pipe is good as well.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data)
    print(f"{values.output}: {len(array):,} vectors of {array.shape[1]}")


def vectors(encoder: LoadedEncoder, texts: Iterator[str], progress: Progress) -> Iterator[np.ndarray]:
    """Vectors [n, D] of the texts, `CHUNK` at a time."""
    values = flags.FLAGS
    while chunk := list(itertools.islice(texts, CHUNK)):
        yield encoder.encode(chunk, values.layer, values.pool, values.batch_size, values.max_length)
        for text in chunk:
            progress.count(len(text.encode()))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
