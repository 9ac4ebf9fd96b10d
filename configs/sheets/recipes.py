"""A sheet for tools/compare_recipes.py: the recipes of configs/small.py, pretrained on the same text and fine-tuned.

    python tools/compare_recipes.py --config=configs/sheets/recipes.py --workdir=runs/recipes --config.data=DATA

DATA ($BERT_JAX_DATA by default) holds text/*.txt.xz, glue/ (official folders) and ner/wnut17/.

Every recipe is trained on as many tokens as the others, 6,400 steps of 2,048, in two seeds. Those that cost more operations for
a token are also trained with fewer steps, which cost what the recipe that they are compared with does. Static and dynamic masks
are compared on a part of the corpus that is repeated about eight times, as they are the same while no text is repeated.

`recipes.py:pilot` does everything in a few steps, and `recipes.py:rates` tries each recipe, without fine-tuning, with half and
twice its learning rate in an eighth of the steps; their records are in the work folder.

Fine-tuning is the same for all: 3 epochs (SST-2 one, WNUT-17 six) in batches of 32 at a learning rate of 3e-4, one run for each
seed.

Hardware: 2 CPU cores, about 25 minutes for each of the experiments; any other machine works, too.
Score: docs/results.md.
"""

import os
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from bert_jax.config import sizes_entry
from configs import small
from configs.sheets.transfer import GLUE

Settings = dict[str, Any]  # by 'section.field'

FINETUNING: Settings = {
    "num_epochs": 3.0,
    "train.batch_size": 32,
    "optimizer.learning_rate": 3e-4,
    "model.dropout": 0.1,
}
WNUT = {"data.train": "{data}/ner/wnut17/wnut17train.conll", "data.validation": "{data}/ner/wnut17/emerging.dev.conll"}
TASKS: dict[str, dict[str, Any]] = {
    name: {
        "config": f"configs/finetune/glue.py:{name}",
        "score": GLUE[name],
        "settings": FINETUNING | {"data.dir": "{data}/glue"} | ({"num_epochs": 1.0} if name == "SST-2" else {}),
    }
    for name in ("SST-2", "MRPC", "STS-B", "CoLA")
} | {
    "WNUT-17": {
        "config": "configs/finetune/tokens.py",
        "score": "f1",
        "settings": FINETUNING | WNUT | {"num_epochs": 6.0},
    }
}
CORPUS = {
    "source": "text:{data}/text/*.txt.xz",
    "vocab_size": 8192,
    "held_out": 0.0075,  # 2 books and 31 articles, all of which are evaluated
    "shard_megabytes": 2.0,
    "repeated_every": 40,  # the repeated part has every fortieth shard
}
RATES = {"half": 0.5, "same": 1.0, "double": 2.0}  # by `rates`, of the learning rate of a recipe


class Row(NamedTuple):
    """A recipe of configs/small.py in the sheet; see `Experiment` in tools/lib/recipes_sheet.py."""

    title: str
    group: str
    recipe: str
    against: str = ""
    steps: float = 1.0  # share of the steps of the others
    corpus: str = "whole"
    evaluated_on: str = "mlm"
    teacher: str = ""
    weights: str = "pretrained"
    settings: Settings = {}  # noqa: RUF012

    def experiment(self, num_steps: int) -> dict[str, Any]:
        """Returns the experiment without its name; `num_steps` are those of a whole pretraining."""
        # Where nothing is pretrained, a run of one step has the encoder's sizes.
        steps = round(self.steps * num_steps) if self.weights == "pretrained" else 1
        # Ten checkpoints, for the curve of held-out loss.
        checkpoints = {"checkpoint.every": max(1, steps // 10), "checkpoint.keep_last": 10}
        own = {"config": f"configs/small.py:{self.recipe},{steps}", "settings": checkpoints | self.settings}
        fields = self._asdict() | own
        return {name: value for name, value in fields.items() if name not in ("recipe", "steps")}


ROWS = {
    "bert": Row("BERT (masks, next sentence)", "families", "bert"),
    "bert_no_nsp": Row("BERT without next sentence", "families", "bert_no_nsp", "bert"),
    "roberta": Row("RoBERTa-style", "families", "roberta", "bert"),
    "albert": Row("ALBERT (n-grams, sentence order)", "families", "albert", "bert"),
    "electra": Row("ELECTRA (replaced tokens)", "families", "electra", "bert", evaluated_on=""),
    "electra_flops": Row("ELECTRA, FLOPs of BERT", "families", "electra", "bert", steps=0.777, evaluated_on=""),
    "distilbert": Row("DistilBERT from this BERT", "families", "distilbert", "bert", teacher="bert"),
    "modern": Row("Modern (pre-norm, rotary, GeGLU), 15%", "masks", "modern", "bert"),
    "modern_30": Row("Modern, 30%", "masks", "modern_30", "modern"),
    "modern_40": Row("Modern, 40%", "masks", "modern_40", "modern"),
    "modern_30_to_15": Row("Modern, 30% to 15%", "masks", "modern_30_to_15", "modern"),
    "modern_muon": Row("Modern, Muon", "optimizers", "modern_muon", "modern"),
    "modern_muon_flops": Row("Modern, Muon, FLOPs of AdamW", "optimizers", "modern_muon", "modern", steps=0.648),
    "modern_dynamic": Row("Modern, repeated text, dynamic masks", "repeated", "modern", corpus="repeated"),
    "modern_static": Row(
        "Modern, repeated text, static masks", "repeated", "modern_static", "modern_dynamic", corpus="repeated"
    ),
    "bert_random": Row("BERT, not pretrained", "baselines", "bert", "bert", weights="random"),
    "modern_random": Row("Modern, not pretrained", "baselines", "modern", "modern", weights="random"),
    "words": Row("Linear models over words", "baselines", "bert", "bert", weights="none"),
}


def rows_of_rates() -> dict[str, Row]:
    """Returns each recipe with several learning rates."""
    rows = {}
    for name, row in ROWS.items():
        if name == row.recipe and row.corpus == "whole":  # not one with fewer steps, or without pretraining
            of_recipe = small.get_config(name).optimizer.learning_rate
            for suffix, factor in RATES.items():
                rate = factor * of_recipe
                own: Settings = {"optimizer.learning_rate": rate}
                teacher = f"{row.teacher}_same" if row.teacher else ""
                title = f"{row.title}, {rate:g}"
                rows[f"{name}_{suffix}"] = row._replace(title=title, against="", teacher=teacher, settings=own)
    return rows


def get_config(argument: str = "all"):
    num_steps = sizes_entry({"all": small.STEPS, "pilot": 10, "rates": small.STEPS // 8}, argument)
    rows = rows_of_rates() if argument == "rates" else ROWS
    if argument == "pilot":
        rows = {name: row._replace(settings={"train.eval_examples": 64}) for name, row in rows.items()}
    tasks = {} if argument == "rates" else TASKS
    shortened: Settings = {"train.num_steps": 4} if argument == "pilot" else {}
    return ConfigDict(
        {
            "data": os.environ.get("BERT_JAX_DATA", ""),
            "records": "docs/records/recipes" if argument == "all" else "",  # folder; '': in the work folder
            "seeds": 2 if argument == "all" else 1,
            "minutes": 25.0 * num_steps / small.STEPS,  # of an experiment, while none is measured
            "corpus": CORPUS,
            "speed_task": "STS-B"
            if tasks
            else "",  # its texts measure students and teachers (Sanh et al. 2019, table 3)
            # In their order, and with dots in names, which a ConfigDict does not keep.
            "tasks": tuple(
                {"name": name, **task, "settings": task["settings"] | shortened} for name, task in tasks.items()
            ),
            "experiments": tuple({"name": name, **row.experiment(num_steps)} for name, row in rows.items()),
        }
    )
