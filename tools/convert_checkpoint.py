"""Converts models to and from Hugging Face's format, and checks that they compute the same.

    python tools/convert_checkpoint.py import --hf=DIR --output=RUN [--heads=mlm]
    python tools/convert_checkpoint.py import --tf1=DIR/bert_model.ckpt --output=RUN
    python tools/convert_checkpoint.py export --workdir=RUN [--step=N] [--heads=mlm] --hf=DIR

`import` reads config.json, model.safetensors with all heads, and the tokenizer's files, and writes a run folder:
`python -m bert_jax.predict --workdir=RUN` works at once, and `--config.init_from=RUN` fine-tunes it. With `--tf1`, and
tensorflow installed, it reads the original checkpoints of BERT and ALBERT in a folder as it was released.

`export` writes a folder that `transformers.AutoModel*.from_pretrained` and `AutoTokenizer.from_pretrained` load, and a model
card, which names the class for all of its heads. With `--heads=` it exports the encoder alone, for `AutoModel`.

Both read the result again, compare logits of random inputs to 1e-4 in float32 (with transformers, too, if it is installed), and
only then write config.json, without which the folder is incomplete.
"""

import sys
from pathlib import Path

from absl import flags

from bert_jax.cli.main import fail, run_command
from bert_jax.conversion.convert import export_run, import_run
from bert_jax.errors import UserError
from bert_jax.formats.families import HEADS

COMMANDS = {"import": ("tf1", "output"), "export": ("workdir", "step")}  # and their flags in addition to --hf


def define_flags() -> None:
    flags.DEFINE_string("hf", None, "folder in Hugging Face's format: read by import, written by export")
    help_of_tf1 = "for import, instead of --hf: prefix of an original TensorFlow checkpoint of BERT or ALBERT"
    flags.DEFINE_string("tf1", None, help_of_tf1)
    flags.DEFINE_string("output", None, "run folder that import writes")
    flags.DEFINE_string("workdir", None, "run folder that export reads")
    flags.DEFINE_integer("step", None, "checkpoint to export; by default the default checkpoint of the run")
    added = f"import: heads to add with random weights if the folder lacks them ({', '.join(HEADS)}); "
    written = "export: heads to write, empty for the encoder alone, by default all trained ones"
    flags.DEFINE_list("heads", None, added + written)


def main(name: str) -> None:
    values = flags.FLAGS
    for other, names in COMMANDS.items():
        if other != name and (wrong := [flag for flag in names if values[flag].present]):
            raise UserError(f"--{wrong[0]} is a flag of {other}, not of {name}; leave it out")
    if unknown := [head for head in values.heads or () if head not in HEADS]:
        raise UserError(f"--heads={unknown[0]}: no such head; choose from {', '.join(HEADS)}")
    if (values.hf is None) == (values.tf1 is None):
        raise UserError(f"--hf: set it{', or --tf1, but not both' if name == 'import' else ''}")
    if name == "import":
        if not values.output:
            raise UserError("--output is missing; set it to the new run folder")
        source = Path(values.hf or values.tf1).expanduser()
        written = Path(values.output).expanduser()
        difference = import_run(source, written, tuple(values.heads or ()), tensorflow=values.tf1 is not None)
    else:
        if not values.workdir:
            raise UserError("--workdir is missing; set it to the run to export")
        written = Path(values.hf).expanduser()
        heads = None if values.heads is None else tuple(values.heads)
        difference = export_run(Path(values.workdir).expanduser(), written, values.step, heads)
    print(f"{written}: written; logits differ by {difference:.2g} at most")


if __name__ == "__main__":
    name = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    if name not in COMMANDS and "--help" not in sys.argv:
        fail(f"no command; the first argument must be {' or '.join(COMMANDS)}")
    define_flags()
    run_command(lambda: main(name))
