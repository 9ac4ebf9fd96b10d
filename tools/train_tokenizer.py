"""Trains a tokenizer on the documents of a source: WordPiece (BERT), byte-level BPE (RoBERTa) or unigram (ALBERT).

python tools/train_tokenizer.py --source=python-docs --vocab_size=8000 --output=runs/tokenizer
"""

from collections.abc import Iterator
from pathlib import Path

from absl import flags

from bert_jax.cli.main import run_command
from bert_jax.cli.progress import Progress
from bert_jax.data.sources.base import BadRecords
from bert_jax.data.sources.documents import FORMS, read_documents
from bert_jax.data.tokenizer.files import holds_tokenizer
from bert_jax.data.tokenizer.tokenizer import KINDS, Tokenizer
from bert_jax.errors import UserError

_SOURCE = flags.DEFINE_string("source", None, FORMS, required=True)
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", None, "number of tokens, special tokens included", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "folder for the tokenizer", required=True)
_KIND = flags.DEFINE_enum("kind", "wordpiece", KINDS, "WordPiece (BERT), byte-level BPE (RoBERTa) or unigram (ALBERT)")
_CASED = flags.DEFINE_bool("cased", False, "keep capital letters and accents; bpe always does")
_DOCUMENT = flags.DEFINE_enum("document", "blank-line", ["blank-line", "file"], "what ends a document of a text source")
_WORKERS = flags.DEFINE_integer("workers", 1, "number of processes that convert wikipedia-xml", lower_bound=1)
_SKIP_BAD_RECORDS = flags.DEFINE_integer(
    "skip_bad_records",
    0,
    "skip and count up to so many records that cannot be read; one more is an error",
    lower_bound=0,
)


def main() -> None:
    output = Path(_OUTPUT.value)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output}: is a file; use a folder")
    if output.is_dir() and any(output.iterdir()) and not holds_tokenizer(output):
        raise UserError(f"--output={output}: holds other files; use a new folder, or one of a tokenizer to replace")
    bad = BadRecords(_SKIP_BAD_RECORDS.value)
    with Progress("reading") as progress:

        def texts() -> Iterator[str]:
            for document in read_documents(_SOURCE.value, _DOCUMENT.value, progress.reach, _WORKERS.value, bad):
                progress.count(len(document.text.encode()))
                yield document.text

        tokenizer = Tokenizer.train(texts(), _VOCAB_SIZE.value, _CASED.value, _KIND.value)
    tokenizer.save(_OUTPUT.value)
    print(f"{_OUTPUT.value}: {tokenizer.vocab_size:,} tokens, fingerprint {tokenizer.fingerprint}")
    if bad.counts:
        print("records that could not be read: " + bad.summary())


if __name__ == "__main__":
    run_command(main)
