"""Predicts with the model in this folder, which tools/package_run.py of bert_jax made.

    pip install -r requirements.txt
    python predict.py --text='a great film'
    python predict.py --input=texts.jsonl --output=answers.jsonl      # or .tsv, .csv, plain lines; - for standard input

In Python, with this folder on the path:

    from predict import load
    answers = load().predict(["a great film"])

The files are first compared with SHA256SUMS, so that damage is an error (`sha256sum -c SHA256SUMS` does the same).
"""

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SUMS, RUN = "SHA256SUMS", "run"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_LARGEST_LIST = 1 << 24  # bytes


def check(folder: Path = HERE) -> None:
    """Compares all files with the checksums. Raises ValueError if one is missing or another one, or the list is damaged."""
    remedy = "get the package again"
    try:
        with (folder / SUMS).open("rb") as file:
            lines = file.read(_LARGEST_LIST).decode().splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{SUMS}: cannot be read ({str(error)[:200]}); {remedy}") from None
    if not lines:
        raise ValueError(f"{SUMS}: empty; {remedy}")
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if not match or ".." in Path(match[2]).parts or Path(match[2]).is_absolute():
            raise ValueError(f"{SUMS}: line {number} is damaged; {remedy}")
        path = folder / match[2]
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{match[2]}: missing; {remedy}")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != match[1]:
                raise ValueError(f"{match[2]}: not the file that was packaged; {remedy}")


def load() -> Any:
    """Returns a bert_jax.Predictor, whose `predict` takes a list of inputs. Raises ValueError as `check`."""
    check()
    _use_modules()
    from bert_jax.predictor import Predictor

    return Predictor.load(HERE / RUN)


def _use_modules() -> None:
    """Puts this folder first on the path: an installed bert_jax may be another version."""
    sys.path.insert(0, str(HERE))


def main() -> None:
    try:
        check()
    except ValueError as error:
        print(f"error: {ascii(str(error))[1:-1]}", file=sys.stderr)
        sys.exit(2)
    _use_modules()
    sys.argv.insert(1, f"--workdir={HERE / RUN}")
    from absl import flags

    from bert_jax import predict
    from bert_jax.cli.main import run_command

    flags.adopt_module_key_flags(predict)  # for --help
    run_command(predict.main)


if __name__ == "__main__":
    main()
