"""Measures what an encoder is worth at few labels and what its [CLS] holds, and draws the plots of the technical note.

    python tools/technical_note.py --encoder=RUN --data=DATA --workdir=runs/note
    python tools/technical_note.py

The first form runs the grids configs/sheets/labels.py and configs/sheets/first_token.py with an encoder of your own (RUN, a run
of pretraining), writes their results to docs/records/note, and draws the plots; if interrupted, it continues. The second only
draws the plots, from the results that are there. DATA holds glue/, the official folders.

The states of [CLS] after fine-tuning are those of a run on all of SST-2, one epoch, whose classifier reads that token. The
other figures of the note are in the records of tools/compare_recipes.py.
"""

import sys
from pathlib import Path

from absl import flags

from bert_jax.cli.main import run_command
from bert_jax.errors import UserError
from bert_jax.files import write_json, write_text
from bert_jax.run_folder.default_checkpoint import default_evaluation
from bert_jax.run_folder.folder import read_config
from bert_jax.run_folder.provenance import commit
from configs.sheets import labels
from tools.lib import note_data, note_plots
from tools.lib.cramming_records import today
from tools.lib.logged_process import ROOT, run_logged

RECORDS = ROOT / "docs" / "records" / "note"
FINE_TUNING = {
    "num_epochs": 1.0,
    "optimizer.learning_rate": 3e-4,
    "model.classifier_pooling": "first",
}


def define_flags() -> None:
    flags.DEFINE_string("encoder", None, "Run of pretraining that is measured; without it, only the plots are drawn.")
    flags.DEFINE_string("data", None, "Folder with glue/.")
    flags.DEFINE_string("workdir", None, "Folder for samples, runs and sheets.")
    flags.DEFINE_string("records", str(RECORDS), "Folder for results and plots.")


def main() -> None:
    values = flags.FLAGS
    records = Path(values.records)
    if values.encoder:
        if not values.data or not values.workdir:
            raise UserError("--data or --workdir is missing; set the folder with glue/, and one for what is made")
        measure(Path(values.encoder).absolute(), Path(values.data).absolute(), Path(values.workdir).absolute(), records)
    for path in note_plots.write(records):
        print(path)


def measure(encoder: Path, data: Path, workdir: Path, records: Path) -> None:
    """Runs both grids, and writes labels.csv, first_token.csv and encoder.json to `records`."""
    config = read_config(encoder)
    samples = workdir / "data"
    if not samples.exists():
        unfinished = workdir / "unfinished"
        for seed in range(labels.get_config().seeds):
            for task, sizes in labels.SIZES.items():
                for size in sizes:
                    note_data.sample_lines(data / "glue", task, size, seed, unfinished / f"{size}_{seed}")
            note_data.write_probes(data / "glue", seed, unfinished)
        unfinished.rename(samples)
    run_sheet("labels", f"encoder={encoder}", samples, workdir, records)
    tuned = workdir / "fine_tuned"
    options = {"init_from": encoder, "data.dir": data / "glue"} | FINE_TUNING
    program = [
        sys.executable,
        "-m",
        "bert_jax.finetune",
        "--config=configs/finetune/glue.py:SST-2",
        f"--workdir={tuned}",
    ]
    run_logged([*program, *(f"--config.{name}={value}" for name, value in options.items())], workdir / "fine_tuned.txt")
    run_sheet("first_token", f"before={encoder},after={tuned}", samples, workdir, records)
    what = {
        "date": today(),
        "commit": commit(),
        "model": config["model"],
        "objectives": config["objectives"],
        "tokens": config["train"]["num_steps"] * config["train"]["batch_size"] * config["data"]["sequence_length"],
        "held_out": default_evaluation(encoder)[1],
        "fine_tuned": default_evaluation(tuned)[1],
    }
    write_json(records / "encoder.json", what)


def run_sheet(name: str, encoders: str, samples: Path, workdir: Path, records: Path) -> None:
    """Runs configs/sheets/NAME.py, and copies its results to NAME.csv in `records`."""
    print(f"{name}: see {workdir / name}.txt", file=sys.stderr, flush=True)
    options = [f"--config.encoders={encoders}", f"--config.data={samples}", f"--output={workdir / name}"]
    program = [sys.executable, "tools/experiment_sheet.py", f"--config=configs/sheets/{name}.py"]
    run_logged([*program, *options], workdir / f"{name}.txt")
    records.mkdir(parents=True, exist_ok=True)
    write_text(records / f"{name}.csv", (workdir / name / "sheet.csv").read_text(encoding="utf-8"))


if __name__ == "__main__":
    define_flags()
    run_command(main)
