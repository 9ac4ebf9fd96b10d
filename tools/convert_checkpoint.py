"""Carries models to and from Hugging Face's format, and checks that they compute the same on both sides.

    python tools/convert_checkpoint.py import --hf=DIR --output=RUN [--heads=mlm]
    python tools/convert_checkpoint.py import --tf1=DIR/bert_model.ckpt --output=RUN
    python tools/convert_checkpoint.py export --workdir=RUN [--step=N] [--heads=mlm] --hf=DIR

`import` reads config.json, model.safetensors and the tokenizer's files, with whichever heads it finds, and writes a run folder:
`python -m bert_jax.predict --workdir=RUN` works at once, and `--config.init_from=RUN` fine-tunes it. With `--tf1`, and
tensorflow installed, it reads the original checkpoints of BERT and ALBERT, in a folder as they were released.

`export` writes a folder that `transformers.AutoModel*.from_pretrained` and `AutoTokenizer.from_pretrained` load, and a model
card in it, which names the class that holds all of it. With `--heads=` it is the encoder alone, for `AutoModel`.

Both read again what they wrote, compare logits on random inputs to 1e-4 in float32 (with those of transformers too, when it is
installed), and write config.json, without which the folder is none, only then.
"""

import sys
from pathlib import Path

from absl import flags

from bert_jax.cli import main as cli
from bert_jax.conversion import convert as conversion
from bert_jax.errors import UserError
from bert_jax.formats.families import HEADS

COMMANDS = {"import": ("tf1", "output"), "export": ("workdir", "step")}  # and the flags of each in addition to --hf


def define_flags() -> None:
    flags.DEFINE_string("hf", None, "folder in Hugging Face's format: read by import, written by export")
    flags.DEFINE_string(
        "tf1", None, "instead, for import: prefix of a TensorFlow checkpoint of BERT's or ALBERT's authors"
    )
    flags.DEFINE_string("output", None, "run folder that import writes")
    flags.DEFINE_string("workdir", None, "run folder that export reads")
    flags.DEFINE_integer("step", None, "checkpoint to export; by default the newest")
    flags.DEFINE_list(
        "heads",
        None,
        f"import: heads to add, freshly initialised, where the folder has none ({', '.join(HEADS)}); "
        "export: those to write, nothing for the encoder alone, by default all that were trained",
    )


def main(name: str) -> None:
    values = flags.FLAGS
    for other, names in COMMANDS.items():
        if other != name and (given := [flag for flag in names if values[flag].present]):
            raise UserError(f"--{given[0]}: is a flag of {other}, not of {name}; leave it out")
    if unknown := [head for head in values.heads or () if head not in HEADS]:
        raise UserError(f"--heads={unknown[0]}: no such head; there are {', '.join(HEADS)}")
    if (values.hf is None) == (values.tf1 is None):
        raise UserError(f"--hf: give it{', or --tf1, but not both' if name == 'import' else ''}")
    if name == "import":
        if not values.output:
            raise UserError("--output is missing; name the run folder to write")
        source = Path(values.hf or values.tf1).expanduser()
        written = Path(values.output).expanduser()
        difference = conversion.import_run(
            source, written, tuple(values.heads or ()), tensorflow=values.tf1 is not None
        )
    else:
        if not values.workdir:
            raise UserError("--workdir is missing; name the run folder to export")
        written = Path(values.hf).expanduser()
        heads = None if values.heads is None else tuple(values.heads)
        difference = conversion.export_run(Path(values.workdir).expanduser(), written, values.step, heads)
    print(f"{written}: written; logits differ by {difference:.2g} at most")


if __name__ == "__main__":
    name = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    if name not in COMMANDS and "--help" not in sys.argv:
        cli.fail(f"say first what to do: {' or '.join(COMMANDS)}")
    define_flags()
    cli.run(lambda: main(name))
