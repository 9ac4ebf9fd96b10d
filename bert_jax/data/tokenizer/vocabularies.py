"""Reads vocabularies: vocab.txt, and vocab.json with merges.txt."""

from pathlib import Path

from bert_jax.data.tokenizer.limits import MOST_TOKENS, REMEDY, Id, vocabulary_size
from bert_jax.errors import UserError
from bert_jax.files import read_json, read_text

MOST_LINES = MOST_TOKENS  # of a vocabulary, and of its merges


def read_vocabulary_lines(path: Path) -> list[str]:
    """Reads the lines of a file without line ends (LF or CRLF), as transformers does.

    (str.splitlines would split at characters that are tokens.)

    Raises:
      UserError: the file is not UTF-8, or has too many lines.
    """
    text = read_text(path, REMEDY).replace("\r\n", "\n").removesuffix("\n")
    if (number := text.count("\n")) > MOST_LINES:
        raise UserError(f"{path}: has {number:,} lines, more than {MOST_LINES:,}; {REMEDY}")
    return text.split("\n")


def read_bpe(vocabulary_file: Path, merges_file: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Reads the ids of the tokens, and the pairs to merge. Raises UserError if a file is invalid."""
    vocabulary = read_json(vocabulary_file, dict[str, Id], REMEDY)
    vocabulary_size(vocabulary)  # engines take time for every gap
    merges = list[tuple[str, str]]()
    for number, line in enumerate(read_vocabulary_lines(merges_file), 1):
        if line.startswith("#version"):
            continue
        first, _, second = line.partition(" ")
        if not first or not second or " " in second:
            raise UserError(f"{merges_file}: line {number} is not a pair of tokens: {line[:100]!r}; {REMEDY}")
        merges.append((first, second))
    return vocabulary, merges
