"""Makes a package of a run: a folder or zip file that predicts on any machine, without bert_jax.

    python tools/package_run.py --workdir=runs/films --output=films.zip --data_license='CC BY 4.0'

Works with any run that `bert_jax.predict` works with: labels, several labels, numbers, pairs, words, questions, filling masks.
The package has

    predict.py         has the flags of bert_jax.predict, and `load()` for Python; first compares all files with SHA256SUMS
    requirements.txt   jax, flax, tokenizers and what little else is imported, with the installed versions
    run/               the run: config, tokenizer, labels, and a checkpoint of the parameters alone; itself a run folder
    bert_jax/          the modules that prediction imports, copied
    metrics.json       held-out scores with the seed and, of a run of several seeds, those of all
    examples.jsonl     inputs with the answers of the run; the package has been compared with them
    README.md          the model card, with the license of the data
    LICENSE            of the modules

The modules are copied, by their imports, instead of written a second time for prediction: so the package computes what the run
was evaluated with, tokenization, packing, windows of long contexts and decoding of entities included. The checkpoint has the
format of runs (Orbax, which flax requires anyway; nothing is pickled), so the package can be evaluated, served and fine-tuned
like a run, as `PACKAGE/run`.
"""

import hashlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from bert_jax import __version__
from bert_jax.cli.main import run_command
from bert_jax.conversion.model_card import sizes, training_and_results
from bert_jax.data.inputs import json_line
from bert_jax.errors import UserError, listed, plain
from bert_jax.files import decode_json, read_json, whole_file, write_json, write_text
from bert_jax.markdown import escaped
from bert_jax.predictor import Predictor
from bert_jax.run_folder.default_checkpoint import default_evaluation
from bert_jax.run_folder.folder import CONFIG, EVALUATION, STARTS, exists, with_changed_paths
from bert_jax.run_folder.provenance import Origin, Source, commit
from tools.lib import packaged_predict
from tools.lib.import_closure import PACKAGE, import_closure, requirements
from tools.lib.merging import Checkpoint
from tools.lib.new_run import ALL_FILES, config_of_params, copy_files, new_run, write_model
from tools.lib.run_files import Row, read_result

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES, METRICS_FILE, SCORES = "examples.jsonl", "metrics.json", "scores.json"
TEXTS = ("One of the cups is broken.", "I like the blue one.")
MASKED = ("[MASK] is broken.", "the [MASK] one")  # at the beginning, for runs on short sequences
QUESTION = {"question": "What is broken?", "context": TEXTS[0]}
_TOLERANCE = 1e-3  # of probabilities and scores, relative and absolute
_LICENSE_UNKNOWN = "not given"


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "the run folder", required=True)
    flags.DEFINE_string("output", None, "the package: a new folder, or a new file that ends with .zip", required=True)
    flags.DEFINE_integer("step", None, "the checkpoint; by default the best of a fine-tuned run, the latest of others")
    flags.DEFINE_string("data_license", _LICENSE_UNKNOWN, "license of the data, for the model card")


def main() -> None:
    values = flags.FLAGS
    output = Path(values.output).expanduser()
    digest = package_run(Path(values.workdir), output, values.step, values.data_license)
    print(plain(f"{output}: predicts what {values.workdir} does; SHA-256 of {packaged_predict.SUMS}: {digest}"))


def package_run(workdir: Path, output: Path, step: int | None = None, data_license: str = _LICENSE_UNKNOWN) -> str:
    """Writes the package and returns the SHA-256 of its checksums.

    Raises:
      UserError: `workdir` is no run that predicts, it is damaged, `output` exists, or the package predicts something else.
    """
    check_run(workdir)
    if output.suffix != ".zip":
        with new_run(output) as folder:
            return write_package(workdir, folder, output.name, step, data_license)
    if output.exists():
        raise UserError(f"{output}: exists; choose a new file")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f"{output.stem}.") as draft:
        folder = Path(draft, output.stem)
        folder.mkdir()
        digest = write_package(workdir, folder, output.stem, step, data_license)
        with whole_file(output, binary=True) as file, zipfile.ZipFile(file, "w") as archive:
            for path in all_files(folder):
                archive.write(path, path.relative_to(draft))
    return digest


def check_run(workdir: Path) -> None:
    """Raises UserError for a folder with the runs of several seeds or tasks."""
    if not exists(workdir) and (runs := sorted(str(path.parent) for path in workdir.glob(f"*/{CONFIG}"))):
        raise UserError(f"{workdir}: holds several runs; choose one of {listed(runs)}")


def write_package(workdir: Path, folder: Path, name: str, step: int | None, data_license: str) -> str:
    """Writes the files of a package to an empty folder, and checks them; returns the SHA-256 of the checksums."""
    checkpoint = Checkpoint.open(workdir, step, 1.0)
    predictor = Predictor.load(workdir, checkpoint.step)
    inputs = example_inputs(predictor)
    answers = predictor.predict(inputs)
    write_run(checkpoint, folder / packaged_predict.RUN, predictor)
    roots = ["bert_jax.predict", *task_modules(checkpoint.config)]
    closure = import_closure(roots)
    for path in closure.modules.values():
        copied = folder / "bert_jax" / path.relative_to(PACKAGE)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
    write_text(folder / "requirements.txt", "".join(f"{line}\n" for line in requirements(closure.packages)))
    shutil.copyfile(packaged_predict.__file__, folder / "predict.py")
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    write_json(folder / METRICS_FILE, metrics(workdir, checkpoint))
    lines = [json_line(values | answer) for values, answer in zip(inputs, answers, strict=True)]
    write_text(folder / EXAMPLES, "".join(lines))
    write_text(folder / "README.md", card(workdir, name, predictor, data_license, lines[0]))
    sums = "".join(f"{digest_of(path)}  {path.relative_to(folder)}\n" for path in all_files(folder))
    write_text(folder / packaged_predict.SUMS, sums)
    check_package(folder, answers)
    return digest_of(folder / packaged_predict.SUMS)


def example_inputs(predictor: Predictor) -> list[dict[str, Any]]:
    """Returns inputs for any run of this task."""
    fields = predictor.input_fields
    if set(fields) == set(QUESTION):
        return [dict(QUESTION)]
    texts = MASKED if predictor.task.config.task == "pretraining" else TEXTS
    return [dict(zip(fields, pair, strict=False)) for pair in (texts, texts[::-1])]


def task_modules(config: dict[str, Any]) -> list[str]:
    """Returns the modules that are found by their names in a config."""
    objectives = {*config.get("objectives", ()), *config.get("options", {})}  # each section of `options` is one's
    return [f"bert_jax.tasks.{config['task']}", *(f"bert_jax.objectives.{name}" for name in sorted(objectives))]


def write_run(checkpoint: Checkpoint, folder: Path, predictor: Predictor) -> None:
    """Writes the run without its optimizer, average, phases, and paths of this machine."""
    folder.mkdir()
    copy_files(checkpoint.folder, folder, ALL_FILES)
    config = config_of_params(checkpoint.config, checkpoint.step)
    config = with_changed_paths(config, lambda path: Path(path).name) | {"init_from": ""}
    origin = Origin(tool="package_run", sources=[Source(run=checkpoint.folder.name, step=checkpoint.step)])
    write_model(folder, config, checkpoint.read(), predictor.task.tokenizer, origin)
    (folder / STARTS).unlink()  # names folders and the command
    for path in folder.glob("checkpoints/**/commit_success.txt"):  # Orbax asks whether it exists
        write_text(path, "complete\n")


def metrics(workdir: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the contents of metrics.json."""
    step, held_out = default_evaluation(workdir)
    others = {
        path.parent.name: read_result(path, dict[int, Row], {}).get(checkpoint.step, {})
        for path in sorted(workdir.glob(f"evaluations/*/{EVALUATION}"))
    }
    seeds = workdir.absolute().parent / SCORES
    is_of_several = workdir.absolute().name.startswith("seed_") and seeds.exists()
    return {
        "task": checkpoint.config["task"],
        "step": checkpoint.step,
        "seed": checkpoint.config["train"].get("seed"),
        "held_out": held_out if step == checkpoint.step else {},
        "evaluations": {name: row for name, row in others.items() if row},
        "all_seeds": read_json(seeds, dict[str, Any], "remove it") if is_of_several else {},
        "bert_jax": __version__,
        "code": commit(),
    }


def card(workdir: Path, name: str, predictor: Predictor, data_license: str, example: str) -> str:
    """Returns README.md, with an input and its answer as an example."""
    task, model = predictor.task, predictor.task.losses.model
    num_parameters = sum(math.prod(array.shape) for array in jax.tree.leaves(predictor.params))
    fields = ", ".join(f"`{escaped(field)}`" for field in predictor.input_fields)
    lines = [
        f"# {escaped(name)}",
        "",
        f"A model of the task `{escaped(task.config.task)}` with {sizes(model.config, task.tokenizer, num_parameters)}. "
        f"Inputs: {fields}. Packaged with bert_jax {__version__}.",
        "",
        "```",
        "pip install -r requirements.txt",
        f"python predict.py --input={EXAMPLES}",
        "```",
        "",
        "An input with its answer, as `predict.py` prints it:",
        "",
        "```json",
        example.rstrip("\n"),
        "```",
        "",
        f"`predict.py` has more, also for Python. The answers for the inputs in `{EXAMPLES}` must be those that it holds. "
        f"`{packaged_predict.SUMS}` has the checksums of all files, which `predict.py` compares.",
        "",
        *training_and_results(workdir),
        "",
        f"Scores on other data and the seed are in `{METRICS_FILE}`.",
        "",
        "## Licenses",
        "",
        f"Data: {escaped(data_license)}. The modules in `bert_jax/`: Apache 2.0 (`LICENSE`).",
    ]
    return "\n".join(lines) + "\n"


def all_files(folder: Path) -> list[Path]:
    """Returns the files of a folder in the order of their names, without compiled modules."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_package(folder: Path, expected: Sequence[dict[str, Any]]) -> None:
    """Predicts the examples with the package alone, in a process of its own. Raises UserError if the answers differ."""
    folder = folder.absolute()  # the command runs in it
    command = [sys.executable, "-I", "-B", str(folder / "predict.py"), f"--input={folder / EXAMPLES}"]
    environment = os.environ | {"JAX_PLATFORMS": jax.default_backend()}
    done = subprocess.run(
        command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise UserError(f"the package does not predict: {plain(reason, 500)}; report this with the config of the run")
    answers = [decode_json(line, dict[str, Any]) for line in done.stdout.splitlines()]
    if len(answers) != len(expected) or not all(
        is_close({name: answer.get(name) for name in of_run}, of_run)
        for answer, of_run in zip(answers, expected, strict=True)
    ):
        raise UserError("the package predicts something else than the run; report this with the config of the run")


def is_close(one: Any, other: Any) -> bool:
    """Returns whether two JSON values are the same, with a tolerance for numbers."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_close(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_close, one, other))
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return one == other


if __name__ == "__main__":
    define_flags()
    run_command(main)
