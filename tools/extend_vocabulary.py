"""Adds words of your text to the vocabulary of a trained model, which becomes a new run folder.

    python tools/extend_vocabulary.py --init_from=RUN_OR_HF_FOLDER --source='text:texts/*.txt' --num_tokens=1000 --output=RUN

The words that save the most tokens are chosen: frequency times (pieces - 1). With --tokens=FILE instead of --num_tokens they
are those of a file, one a line. The row of a new token is the mean of the rows of its pieces, in the table of embeddings as
in the bias of the output. All ids stay the same; rows of padding at the end of the table are used first, then it grows to a
multiple of 128. Tokens per word are shown for the part of the text that is held out, whose words are not counted.

The result is trained on with --config.init_from=RUN, on a corpus prepared with --tokenizer=RUN; it is exported,
evaluated and predicted with like an imported model.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bert_jax.cli.main import run_command
from bert_jax.cli.progress import Progress
from bert_jax.conversion.convert import check_new, import_run
from bert_jax.conversion.parity import compare, probe, probe_inputs
from bert_jax.data.sources.documents import FORMS, held_out, read_documents
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError, plain
from bert_jax.formats import huggingface
from bert_jax.library import load_run
from bert_jax.run_folder.folder import FROZEN, exists, is_run, read_config
from bert_jax.run_folder.provenance import Origin, Source
from bert_jax.tasks.base import origin_tokenizer
from tools.lib.new_rows import with_rows, without_new_tokens
from tools.lib.new_run import ALL_FILES, chosen_step, config_of_params, copy_files, new_run, write_model
from tools.lib.new_words import Lengths, Word, best_words, count_words, listed_words, measure

logger = logging.getLogger("bert_jax.tools")
SHOWN = 20  # words of the table
KEPT_CHARACTERS = 1 << 25  # of held-out text, in memory


def define_flags() -> None:
    flags.DEFINE_string("init_from", None, "run folder, or folder of a model in Hugging Face's format", required=True)
    flags.DEFINE_integer("step", None, "checkpoint of the run; by default the default checkpoint")
    flags.DEFINE_string("source", None, FORMS, required=True)
    flags.DEFINE_enum("document", "blank-line", ["blank-line", "file"], "what ends a document of a text source")
    flags.DEFINE_integer("num_tokens", None, "number of new tokens, chosen by what they save", lower_bound=1)
    flags.DEFINE_string("tokens", None, "instead of --num_tokens: a file with the new tokens, one word a line")
    flags.DEFINE_integer("min_frequency", 10, "occurrences of a word that is chosen, at least", lower_bound=1)
    flags.DEFINE_float("held_out", 0.02, "fraction of the documents to measure by", 1e-9, 0.99)
    flags.DEFINE_string("output", None, "the new run folder", required=True)


class Options(NamedTuple):
    """Flags that determine the new tokens."""

    source: str
    document: str
    num_tokens: int | None
    tokens: str | None
    min_frequency: int
    held_out: float

    def texts(self, kept: list[str]) -> Iterator[str]:
        """Yields the texts of the source; those that are held out go to `kept`, up to KEPT_CHARACTERS in all.

        Raises:
          UserError: the source has no documents.
        """
        is_empty, num_kept = True, 0
        with Progress("counting words") as progress:
            for document in read_documents(self.source, self.document, progress.reach):
                is_empty = False
                progress.count(len(document.text.encode()))
                if not held_out(document.id, self.held_out):
                    yield document.text
                elif num_kept < KEPT_CHARACTERS:
                    kept.append(document.text)
                    num_kept += len(document.text)
        if is_empty:
            raise UserError(f"--source={self.source}: has no text")


def main() -> None:
    values = flags.FLAGS
    options = Options(
        values.source, values.document, values.num_tokens, values.tokens, values.min_frequency, values.held_out
    )
    output = Path(values.output).expanduser()
    result = extend(Path(values.init_from).expanduser(), values.step, options, output)
    show(*result)
    print(f"{output}: {len(result.words):,} new tokens")
    print(f"to train on: prepare a corpus with --tokenizer={output}, and set --config.init_from={output}")


class Result(NamedTuple):
    """A tokenizer, the words that became tokens, and the lengths of held-out texts before and after."""

    tokenizer: Tokenizer
    words: list[Word]
    lengths: Lengths


def extend(init_from: Path, step: int | None, options: Options, output: Path) -> Result:
    """Chooses new tokens, and writes the model with them as a new run.

    Args:
      init_from: a run folder, or a model in Hugging Face's format.
      step: of the run's checkpoint; None for the default one.
      options: of the choice.
      output: the new run folder.

    Raises:
      UserError: as `source_of`, `new_tokens` and `write`, or the output exists; nothing is written then.
    """
    check_new(output)
    source = source_of(init_from, step)
    tokenizer = origin_tokenizer(init_from)
    words, longer, lengths = new_tokens(tokenizer, options)
    with run_of(init_from, output) as run:
        write(run, source, longer, words, output)
    return Result(tokenizer, words, lengths)


def source_of(init_from: Path, step: int | None) -> Source:
    """Returns how a run, or a model in Hugging Face's format, is named in the new run.

    Raises:
      UserError: `init_from` is neither, the model is not supported, or there is no such checkpoint.
    """
    if not exists(init_from):
        raise UserError(
            f"--init_from={init_from}: has no config.json; use a run folder or a model in Hugging Face's format"
        )
    source = Source(run=str(init_from.absolute()))
    if is_run(init_from):
        source["step"] = chosen_step(init_from, read_config(init_from), step)
        return source
    if step is not None:
        raise UserError(f"--step={step}: is for runs; a model in Hugging Face's format has no steps")
    huggingface.inspect(init_from)  # fails before the text is read, which takes time
    return source


@contextlib.contextmanager
def run_of(init_from: Path, output: Path) -> Iterator[Path]:
    """Yields a run folder: for a model in Hugging Face's format a temporary one next to `output`."""
    if is_run(init_from):
        yield init_from
        return
    place = output.absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{place.name}.import", dir=place.parent) as folder:
        import_run(init_from, Path(folder, "run"))
        yield Path(folder, "run")


def new_tokens(tokenizer: Tokenizer, options: Options) -> tuple[list[Word], Tokenizer, Lengths]:
    """Returns the new tokens, the tokenizer with them, and the lengths of the held-out texts.

    Raises:
      UserError: the tokenizer cannot be extended, there is nothing to choose from, or no text is held out.
    """
    if (options.num_tokens is None) == (options.tokens is None):
        raise UserError("set --num_tokens=N or --tokens=FILE, and not both")
    tokenizer.extended([])  # this and the next line fail before the text is read, which takes time
    listed = listed_words(tokenizer, Path(options.tokens).expanduser()) if options.tokens is not None else []
    kept = list[str]()
    counts = count_words(tokenizer, options.texts(kept))
    if not any(text.split() for text in kept):
        problem = f"no document of {options.source} is held out"
        raise UserError(f"--held_out={options.held_out}: {problem}; set a larger fraction")
    if options.num_tokens is None:
        words = [word._replace(frequency=counts[word.text]) for word in listed]
    else:
        words = best_words(tokenizer, counts, options.num_tokens, options.min_frequency)
        if not words:
            problem = f"no word of several known pieces occurs {options.min_frequency} times: all are there already"
            raise UserError(f"--source={options.source}: {problem}; use more text, or a lower --min_frequency")
        if len(words) < options.num_tokens:
            print(f"only {len(words):,} words of several known pieces occur {options.min_frequency} times or more")
    longer = tokenizer.extended([word.pieces for word in words])
    return words, longer, measure(tokenizer, longer, kept)


def write(run: Path, source: Source, longer: Tokenizer, words: list[Word], output: Path) -> None:
    """Writes a run folder with the tokenizer and rows for the new tokens.

    It is read again, and checked: old tokens give the same outputs as before.

    Raises:
      UserError: the checkpoint is missing or damaged, or the outputs are not the same.
    """
    config, step = read_config(run), source.get("step", 0)
    before = load_run(run, config, step)
    config = config_of_params(config, step)
    first_id = longer.vocab_size - len(words)
    model, params = with_rows(before.model, before.params, [word.pieces for word in words], first_id)
    config["model"] = config["model"] | {"vocab_size": model.config.vocab_size}
    if config["task"] == "pretraining":  # its corpora have the ids of the old tokenizer, and so does a teacher
        nothing = {"corpus": "", "mixture": [], "eval_corpora": [], "eval_origin": False}
        config["data"] = config["data"] | nothing
        config |= {"init_from": "", "init_layers": [], "init_growth": ""}
        if (run / FROZEN).exists():
            config["objectives"] = ["mlm"]
    inputs = probe_inputs(before)
    inputs["input_ids"] %= first_id
    expected = without_new_tokens(before, probe(before, inputs), first_id)
    with new_run(output) as folder:
        copy_files(run, folder, ALL_FILES)
        write_model(folder, config, params, longer, Origin(tool="extend_vocabulary", sources=[source]))
        after = load_run(folder, read_config(folder))
        compare(expected, without_new_tokens(after, probe(after, inputs), first_id), f"{output}: the written run")
    if (num_rows := model.config.vocab_size) > before.model.config.vocab_size:
        logger.info("the table of embeddings grew from %d to %d rows", before.model.config.vocab_size, num_rows)


def show(tokenizer: Tokenizer, words: list[Word], lengths: Lengths) -> None:
    """Prints the best words, and tokens per word."""
    best = sorted(words, key=lambda word: -word.saved)[:SHOWN]
    table = Table(
        "new token", "pieces", title=f"{len(best)} of {len(words):,} new tokens, by the tokens that they save"
    )
    for title in ("count", "tokens saved"):
        table.add_column(title, justify="right")
    for word in best:
        pieces = " ".join(tokenizer.tokens(word.pieces))
        cells = (word.text.strip(), pieces)
        table.add_row(*(Text(plain(cell)) for cell in cells), f"{word.frequency:,}", f"{word.saved:,}")
    Console().print(table)
    before, after = lengths.before / lengths.words, lengths.after / lengths.words
    change = lengths.after / max(1, lengths.before) - 1.0
    print(
        f"held-out text, {lengths.words:,} words: {before:.3f} tokens per word before, {after:.3f} now ({change:+.1%})"
    )


if __name__ == "__main__":
    define_flags()
    run_command(main)
