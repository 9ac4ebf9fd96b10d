"""Trains a classifier of support requests, from labelled sentences to a calibrated model with a report and a package.

    python examples/intents/run.py [--init_from=ENCODER] [--workdir=runs/intents] [--seeds=3]

ENCODER is a run folder or a model in Hugging Face's format; by default the encoder of the quickstart. Each command is printed
and can be run by itself. Scores are those on test.jsonl, by which nothing is chosen; dev.jsonl chooses the checkpoint, the
temperature and, of several seeds, the model. Interrupted, the same command continues.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from bert_jax.cli.main import run_command
from bert_jax.errors import UserError
from bert_jax.files import read_json, write_json
from bert_jax.run_folder.default_checkpoint import default_evaluation
from bert_jax.run_folder.folder import EVALUATION, exists
from tools.lib.quickstart_commands import ROOT, Commands
from tools.lib.run_files import NOTES, Comparison, Notes, Row, literal

DATA = "examples/intents"  # from the root of the checkout, where the commands run
TEST = "intents_test"  # name of the folder that `evaluate` writes for test.jsonl
LICENSE = "Apache-2.0"  # of the sentences
QUICKSTART = "runs/quickstart/pretrain"
SETTINGS = {"data.sequence_length": 64, "train.batch_size": 16, "num_epochs": 15.0, "train.eval_every": 45}
# By the loss on dev.jsonl: the best of 1e-4, 2e-4 and 5e-4 for the quickstart's encoder, of 1e-4 and 2e-4 for all-MiniLM-L6-v2.
RATE_OF_QUICKSTART, RATE = 5e-4, 2e-4
console = Console(highlight=False)


def define_flags() -> None:
    # Not at import, because commands in forked processes import this file and have the same flags.
    flags.DEFINE_string("init_from", "", "the encoder; '': that of the quickstart")
    flags.DEFINE_string("workdir", "runs/intents", "folder for all outputs")
    flags.DEFINE_integer("seeds", 1, "number of models, of which the best on dev.jsonl is kept", lower_bound=1)
    flags.DEFINE_multi_string(
        "finetune", [], "a change to the options of configs/finetune/text.py: SECTION.FIELD=VALUE"
    )


def main() -> None:
    values, commands = flags.FLAGS, Commands(console)
    encoder, workdir = encoder_for(values.init_from), Path(values.workdir).absolute()
    rate = RATE_OF_QUICKSTART if encoder == ROOT / QUICKSTART else RATE
    settings = [f"{name}={value}" for name, value in (SETTINGS | {"optimizer.learning_rate": rate}).items()]
    changes = [f"--config.{change}" for change in (*settings, *values.finetune)]
    for over in ("words", "features"):
        console.print(f"\n[bold]A linear model over {over}")
        folder = f"--output={workdir / over}"
        commands.run("tools/linear_models.py", f"--over={over}", folder, *data_flags(encoder, "test"), *changes)
    runs = [workdir / f"seed_{seed}" for seed in range(values.seeds)]
    for seed, run in enumerate(runs):
        console.print(f"\n[bold]The encoder, fine-tuned, seed {seed}")
        folder, options = f"--workdir={run}", [f"--config.train.seed={seed}", "--config.calibrated=True", *changes]
        commands.run("-m", "bert_jax.finetune", folder, *data_flags(encoder, "dev"), *options)
        commands.run("-m", "bert_jax.evaluate", folder, f"--config.data.validation={DATA}/test.jsonl")
    best = max(runs, key=on_dev)
    write_json(best / NOTES, Notes(task=comparison(workdir, runs)))
    console.print("\n[bold]Report and package")
    commands.run("tools/report.py", f"--workdir={best}")
    if not (package := workdir / "package").exists():
        flags_of_package = [f"--output={package}", f"--data_license={LICENSE}"]
        commands.run("tools/package_run.py", f"--workdir={best}", *flags_of_package)
    show_next(best, package)


def encoder_for(init_from: str) -> Path:
    """Returns the folder of the encoder. Raises UserError if none is named and there is no quickstart."""
    folder = Path(init_from).absolute() if init_from else ROOT / QUICKSTART
    if exists(folder):
        return folder
    if init_from:
        raise UserError(f"--init_from={init_from}: holds no config.json; name a run folder or a model's")
    raise UserError(
        f"no encoder: {QUICKSTART} does not exist; run launch/quickstart.sh first, or set --init_from to a run folder or a "
        "model in Hugging Face's format"
    )


def data_flags(encoder: Path, held_out: str) -> list[str]:
    """Returns the flags for a fine-tuning with train.jsonl that is evaluated on another file."""
    files = {"train": "train", "validation": held_out}
    options = [f"--config.data.{part}={DATA}/{name}.jsonl" for part, name in files.items()]
    return ["--config=configs/finetune/text.py", f"--config.init_from={encoder}", *options]


def on_dev(run: Path) -> tuple[float, float]:
    """Returns the accuracy on dev.jsonl of the default checkpoint and, for ties, the negative loss."""
    row = default_evaluation(run)[1]
    return row["accuracy"], -row["loss"]


def comparison(workdir: Path, runs: Sequence[Path]) -> Comparison:
    """Returns the accuracies on test.jsonl of the linear models and, as a mean over seeds, of the fine-tuned encoder."""
    remedy = "remove it, and run again"
    linear = [read_json(workdir / over / "scores.json", Row, remedy)["accuracy"] for over in ("words", "features")]
    tests = [read_json(run / "evaluations" / TEST / EVALUATION, dict[int, Row], remedy) for run in runs]
    accuracies = [row["accuracy"] or 0.0 for of_run in tests for row in (of_run[max(of_run)],)]
    mean = statistics.mean(accuracies)
    name = "encoder, fine-tuned"
    if len(runs) > 1:
        name += f" ({len(runs)} seeds)"
        each = ", ".join(f"{accuracy:.1%}" for accuracy in accuracies)
        spread = {"mean": mean, "std": statistics.stdev(accuracies), "seeds": accuracies}
        write_json(workdir / "scores.json", {"test accuracy": spread})  # as of several seeds; for the package
        console.print(f"test accuracy of the seeds: {each}; standard deviation {spread['std']:.1%}")
    rows = [("TF-IDF, linear", linear[0] or 0.0), ("encoder frozen, linear", linear[1] or 0.0), (name, mean)]
    for row, accuracy in rows:
        console.print(f"{row}: {accuracy:.1%}")
    note = "Accuracy on test.jsonl: 72 sentences, six for each of twelve intents; each is 1.4 points."
    return Comparison("What does this customer want?", note, rows, "accuracy")


def show_next(run: Path, package: Path) -> None:
    """Prints what can be done with the model."""
    console.print()
    for line in (f"report: {run / 'report.html'}", f"package: {package}", "next:"):
        console.print(literal(line), soft_wrap=True)
    for command in (
        f"python -m bert_jax.predict --workdir={run} --text='my parcel never came'",
        f"python -m bert_jax.serve --workdir={run}",
    ):
        console.print(literal(command), style="green", soft_wrap=True)


if __name__ == "__main__":
    define_flags()
    run_command(main)
