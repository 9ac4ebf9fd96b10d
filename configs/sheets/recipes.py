"""A sheet for tools/compare_recipes.py: the recipes of configs/small.py, pretrained on the same text and fine-tuned.

    python tools/compare_recipes.py --config=configs/sheets/recipes.py --workdir=runs/recipes --config.data=DATA

DATA ($BERT_JAX_DATA by default) holds text/*.txt.xz, glue/ (official folders) and ner/wnut17/.

All recipes see the same number of tokens, 3,200 steps of 2,048, in two seeds. Recipes that need over a fifth more FLOPs per
token are also trained for fewer steps, at the total FLOPs of the recipe that they are compared with. New and repeated examples
are compared on a part of the corpus that is repeated about five times, since they are the same while no text is repeated.

`recipes.py:pilot` does everything in a few steps; its records are in the work folder. `recipes.py:rates` tries several learning
rates in a quarter of the steps, without fine-tuning. configs/small.py has the rate of the lowest held-out loss. ELECTRA has
BERT's rate: higher ones are better for the generator and lower ones for the discriminator, which learns next to nothing in so
few steps (docs/results.md). Recipes for which none are tried have the rate of the one that they are compared with.

Fine-tuning is the same for all: 3 epochs (SST-2 one, WNUT-17 six) in batches of 32 at a learning rate of 3e-4, one run for each
seed. It is tuned for no recipe.

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
RECORDS = {"all": "docs/records/recipes", "rates": "docs/records/recipes_rates"}

FINETUNING: Settings = {
    "num_epochs": 3.0,
    "train.batch_size": 32,
    "optimizer.learning_rate": 3e-4,
    "model.dropout": 0.1,
}
WNUT = {
    "data.train": "{data}/ner/wnut17/wnut17train.conll",
    "data.validation": "{data}/ner/wnut17/emerging.test.annotated",  # the test set: nothing is chosen by its scores
}
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
# Learning rates that `rates` tries: until the best one is between others.
RATES: dict[str, tuple[float, ...]] = {
    "bert": (5e-4, 1e-3, 2e-3),
    "albert": (2.5e-4, 5e-4, 1e-3, 2e-3),
    "electra": (5e-4, 1e-3, 2e-3, 4e-3),
    "distilbert": (1e-3, 2e-3, 4e-3),
    "modern": (5e-4, 1e-3, 2e-3, 4e-3),
    "modern_muon": (2e-3, 4e-3, 8e-3),
}


class Row(NamedTuple):
    """A recipe of configs/small.py in the sheet; see `Experiment` in tools/lib/recipes_sheet.py."""

    title: str
    group: str
    recipe: str
    against: str = ""
    steps: float = 1.0  # share of the steps of the others
    checkpoints: int = 10  # points of the curve of held-out loss
    corpus: str = "whole"
    evaluated_on: str = "mlm"
    teacher: str = ""
    weights: str = "pretrained"
    settings: Settings = {}  # noqa: RUF012

    def experiment(self, num_steps: int) -> dict[str, Any]:
        """Returns the experiment without its name; `num_steps` are those of a whole pretraining."""
        # Where nothing is pretrained, a run of one step has the encoder's sizes.
        steps = round(self.steps * num_steps) if self.weights == "pretrained" else 1
        checkpoints = {"checkpoint.every": max(1, steps // self.checkpoints), "checkpoint.keep_last": 10}
        own = {"config": f"configs/small.py:{self.recipe},{steps}", "settings": checkpoints | self.settings}
        fields = self._asdict() | own
        return {name: value for name, value in fields.items() if name not in ("recipe", "steps", "checkpoints")}


ROWS = {
    "bert": Row("BERT (masks, next sentence)", "families", "bert"),
    "bert_learned": Row("BERT with learned positions", "families", "bert_learned", "bert"),
    "bert_no_nsp": Row("BERT without next sentence", "families", "bert_no_nsp", "bert"),
    "roberta": Row("RoBERTa-style", "families", "roberta", "bert"),
    "albert": Row("ALBERT (n-grams, sentence order)", "families", "albert", "bert"),
    "electra": Row("ELECTRA (replaced tokens)", "families", "electra", "bert", evaluated_on=""),
    "electra_flops": Row("ELECTRA, FLOPs of BERT", "families", "electra", "bert", steps=0.777, evaluated_on=""),
    "distilbert": Row("DistilBERT from this BERT", "families", "distilbert", "bert", teacher="bert"),
    "distilbert_flops": Row("DistilBERT, FLOPs of BERT", "families", "distilbert", "bert", steps=0.545, teacher="bert"),
    "modern": Row("Modern (pre-norm, rotary, GeGLU), 15%", "masks", "modern", "bert_no_nsp"),
    "modern_30": Row("Modern, 30%", "masks", "modern_30", "modern"),
    "modern_40": Row("Modern, 40%", "masks", "modern_40", "modern"),
    "modern_40_flops": Row("Modern, 40%, FLOPs of 15%", "masks", "modern_40", "modern", steps=0.812),
    "modern_30_to_15": Row("Modern, 30% to 15%", "masks", "modern_30_to_15", "modern"),
    "modern_muon": Row("Modern, Muon", "optimizers", "modern_muon", "modern"),
    "modern_dynamic": Row("Modern, repeated text, new masks", "repeated", "modern", corpus="repeated"),
    "modern_static": Row(
        "Modern, repeated text, the same examples", "repeated", "modern_static", "modern_dynamic", corpus="repeated"
    ),
    "modern_left": Row("Modern, attention to the left", "sides", "modern_left", "modern"),
    "modern_right": Row("Modern, attention to the right", "sides", "modern_right", "modern"),
    "bert_random": Row("BERT, not pretrained", "baselines", "bert", "bert", weights="random"),
    "modern_random": Row("Modern, not pretrained", "baselines", "modern", "modern", weights="random"),
    "words": Row("Linear models over words", "baselines", "bert", "bert", weights="none"),
}


def rows_of_rates() -> dict[str, Row]:
    """Returns the recipes that have a learning rate of their own, with several of them."""
    rows = {}
    for name, rates in RATES.items():
        row = ROWS[name]
        for rate in rates:
            rows[f"{name}_{rate:g}"] = row._replace(
                title=f"{row.title}, {rate:g}",
                against="",
                teacher=f"{row.teacher}_0.001" if row.teacher else "",
                settings={"optimizer.learning_rate": rate},
                checkpoints=1,
            )
    return rows


def get_config(argument: str = "all"):
    num_steps = sizes_entry({"all": small.STEPS, "pilot": 10, "rates": small.STEPS // 4}, argument)
    rows = rows_of_rates() if argument == "rates" else ROWS
    if argument == "pilot":
        rows = {name: row._replace(settings={"train.eval_examples": 64}) for name, row in rows.items()}
    tasks = {} if argument == "rates" else TASKS
    shortened: Settings = {"train.num_steps": 4} if argument == "pilot" else {}
    return ConfigDict(
        {
            "data": os.environ.get("BERT_JAX_DATA", ""),
            "records": RECORDS.get(argument, ""),  # folder; '': in the work folder
            "seeds": 2 if argument == "all" else 1,
            "minutes": 25.0 * num_steps / small.STEPS,  # of an experiment, while none is measured
            "corpus": CORPUS,
            # Its texts measure students and teachers (Sanh et al. 2019, table 3).
            "speed_task": "STS-B" if tasks else "",
            # In their order, and with dots in names, which a ConfigDict does not keep.
            "tasks": tuple(
                {"name": name, **task, "settings": task["settings"] | shortened} for name, task in tasks.items()
            ),
            "experiments": tuple({"name": name, **row.experiment(num_steps)} for name, row in rows.items()),
        }
    )
