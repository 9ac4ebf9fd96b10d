"""A grid for tools/experiment_sheet.py: what an encoder is worth with 100, 1,000 and 10,000 labels, and ways to use it.

    python tools/technical_note.py --encoder=runs/x --data=DATA --workdir=runs/note

The tool draws the samples that this grid reads, N_SEED/ with the folder of the task, and runs it. CoLA has 8,551 sentences.

Ways: `fine-tuned` end to end; `frozen`, a linear model over features of the pretrained encoder (means over the tokens);
`from scratch`; and `words`, a linear model without an encoder (TF-IDF of words and pairs of words). The learning rate suits
small encoders, as in configs/sheets/recipes.py, and with few labels there are more epochs.

Hardware: any; with an encoder of 4 layers of 256 about an hour on 2 CPU cores.
Score: not measured yet.
"""

from ml_collections import ConfigDict

from configs.sheets.transfer import GLUE

SIZES = {"SST-2": (100, 1_000, 10_000), "CoLA": (100, 1_000, 8_551)}
EPOCHS = {100: 20.0, 1_000: 10.0}  # otherwise 3


def get_config():
    return ConfigDict(
        {
            "encoders": "",  # NAME=RUN
            "data": "",
            "only": "",  # names of tasks; '': all
            "seeds": 3,
            "ways": {
                "fine-tuned": {"kind": "finetune", "settings": {}},
                "frozen": {"kind": "features", "settings": {}},
                "from scratch": {"kind": "finetune", "settings": {"from_scratch": True}},
                "words": {"kind": "words", "settings": {}},
            },
            "tasks": {
                f"{name}, {size} labels": {
                    "config": f"configs/finetune/glue.py:{name}",
                    "score": GLUE[name],
                    "highest": 1.0,
                    "has_linear": True,
                    "settings": {
                        "data": {"dir": f"{{data}}/{size}_{{seed}}"},
                        "num_epochs": EPOCHS.get(size, 3.0),
                        "optimizer": {"learning_rate": 3e-4},
                    },
                }
                for name, sizes in SIZES.items()
                for size in sizes
            },
        }
    )
