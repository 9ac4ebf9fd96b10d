"""Long jobs that write a file in parts: several processes share them, and an interrupted job continues after its last part.

Part n has the inputs n * size to (n + 1) * size - 1, and process n % count writes it to OUTPUT.parts/. Its name holds a hash of
its inputs, so that after a change in the input only the parts with other inputs are made again. When all are there, the first
process joins them in the order of the inputs.
"""

import hashlib
import itertools
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from bert_jax.data.inputs import check_output, json_line, output_file
from bert_jax.errors import UserError
from bert_jax.files import decode_json, is_replaceable, read_json, read_lines, write_json, write_text
from bert_jax.parallel import hosts

logger = logging.getLogger(__name__)
ORIGIN = "origin.json"  # what the parts were made of
Values = dict[str, Any]


def can_be_parted(source: Path, output: Path) -> bool:
    """Checks whether an interrupted job can continue: from file to file. Raises UserError if only one process can do it."""
    is_parted = source.is_file() and is_replaceable(output)
    if not is_parted and jax.process_count() > 1:
        raise UserError("--distributed: several processes need an --input and an --output that are files")
    return is_parted


def written(path: Path) -> str:
    """Returns the absolute path in ASCII, as JSON cannot hold every path."""
    return ascii(str(path.absolute()))


def parts_folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


def write_in_parts(
    output: Path,
    origin: Values,
    inputs: Iterable[Values],
    answers: Callable[[Iterable[Values]], Iterator[Values]],
    size: int,
    lines: Callable[[Path, Iterator[Values]], Iterable[str]],
) -> None:
    """Writes the answers to all inputs to a file, one after the other; every process of the job calls it.

    Args:
      output: the file.
      origin: what determines the answers to given inputs, as JSON values; parts of something else are not used.
      inputs: all inputs, the same in every process.
      answers: yields the answers to some inputs.
      size: number of inputs of a part.
      lines: the lines of a file from all answers, in their order.

    Raises:
      UserError: parts of another job are there, one is damaged, another job writes them, or an input is invalid.
    """
    check_output(output)
    folder = parts_folder(output)
    with hosts.locked_by_job(folder, "use another --output"):
        if hosts.is_first():
            begin(folder, origin)
        hosts.meet("the parts' folder")
        batches, paths = iter(inputs), list[Path]()
        try:
            while part := list(itertools.islice(batches, size)):
                number = len(paths)
                paths.append(part_path(folder, number, part))
                if number % jax.process_count() == jax.process_index() and not paths[-1].exists():
                    write_text(paths[-1], "".join(map(json_line, answers(part))))
        except UserError:
            if any(folder.glob("part-*")):
                logger.info("%s: keeps the answers up to here; the same command continues after them", folder)
            elif jax.process_count() == 1:
                shutil.rmtree(folder)
            raise
        hosts.meet("all parts")
        if hosts.is_first():
            with output_file(output) as file:
                file.writelines(lines(output, joined(paths)))
            shutil.rmtree(folder)


def part_path(folder: Path, number: int, inputs: list[Values]) -> Path:
    """Returns the path of the answers to these inputs."""
    inputs_hash = hashlib.blake2b("".join(map(json_line, inputs)).encode(errors="surrogatepass"), digest_size=8)
    return folder / f"part-{number:06}-{inputs_hash.hexdigest()}.jsonl"


def begin(folder: Path, origin: Values) -> None:
    """Makes the folder of a new job, or checks that of an interrupted one. Raises UserError if it is of another job."""
    if not any(folder.glob("part-*")):
        folder.mkdir(exist_ok=True)
        write_json(folder / ORIGIN, origin)
    before = read_json(folder / ORIGIN, remedy="remove the folder, and start again")
    if before != origin:
        changed = sorted(name for name in before.keys() | origin.keys() if before.get(name) != origin.get(name))
        raise UserError(
            f"{folder}: has parts with another {', '.join(changed)}; remove the folder, or use another --output"
        )


def joined(paths: Iterable[Path]) -> Iterator[Values]:
    """Yields the answers of all parts. Raises UserError if one is missing or damaged."""
    for path in paths:
        for line in read_lines(path, "remove it, and start again"):
            try:
                yield decode_json(line, Values)
            except ValueError:
                raise UserError(f"{path}: damaged; remove it, and start again") from None
