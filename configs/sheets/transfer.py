"""A grid for tools/experiment_sheet.py: encoders x ways to use them x tasks x seeds.

    python tools/experiment_sheet.py --output=sheets/mine --config=configs/sheets/transfer.py \\
        --config.encoders=bert=runs/bert --config.data=DATA

DATA holds glue/ (official folders), squad/train-v1.1.json and dev-v1.1.json, and ner/NAME/train.conll and dev.conll. If some of
them are missing, name the other tasks: `--config.only=CoLA,MRPC`.

Ways: `fine-tuned` with BERT's settings; `frozen`, a linear model over features that are computed once (for questions a head
trained on a frozen encoder); `from scratch`; and `words`, a linear model without an encoder (TF-IDF). SST-2 has one epoch.
SQuAD is a sample of 2,000 training and 500 held-out questions, with two epochs in batches of 8 at a learning rate of 1e-4,
which is among those that Turc et al. 2019 (section 4) try for compact models: BERT's settings would give 128 steps, too few to
learn much.

Hardware: any; with an encoder of 6 layers of 384 all 65 experiments took 5.3 hours on 2 CPU cores (docs/results.md).
Score: docs/results.md.
"""

from ml_collections import ConfigDict

GLUE = {"CoLA": "matthews", "SST-2": "accuracy", "MRPC": "accuracy", "RTE": "accuracy", "STS-B": "spearman"}
NER = ("wnut17", "wikigold")


def get_config():
    tasks = {
        name: {
            "config": f"configs/finetune/glue.py:{name}",
            "score": score,
            "highest": 1.0,
            "has_linear": True,
            "settings": {"data": {"dir": "{data}/glue"}} | ({"num_epochs": 1.0} if name == "SST-2" else {}),
        }
        for name, score in GLUE.items()
    }
    tasks["SQuAD"] = {
        "config": "configs/finetune/squad.py:1.1",
        "score": "f1",
        "highest": 100.0,
        "has_linear": False,  # no linear model answers questions
        "settings": {
            "data": {
                "train": "{data}/squad/train-v1.1.json",
                "validation": "{data}/squad/dev-v1.1.json",
                "train_questions": 2000,
                "validation_questions": 500,
            },
            "num_epochs": 2.0,
            "train": {"batch_size": 8},
            "optimizer": {"learning_rate": 1e-4},
        },
    }
    for name in NER:
        files = {"train": f"{{data}}/ner/{name}/train.conll", "validation": f"{{data}}/ner/{name}/dev.conll"}
        tasks[name] = {
            "config": "configs/finetune/tokens.py",
            "score": "f1",
            "highest": 1.0,
            "has_linear": True,
            "settings": {"data": files},
        }
    return ConfigDict(
        {
            "encoders": "",  # NAME=RUN,NAME=RUN
            "data": "",
            "only": "",  # names of tasks; '': all
            "seeds": 3,
            "ways": {
                "fine-tuned": {"kind": "finetune", "settings": {}},
                "frozen": {
                    "kind": "features",
                    "settings": {"optimizer": {"trainable": "heads/", "learning_rate": 1e-3}},
                },
                "from scratch": {"kind": "finetune", "settings": {"from_scratch": True}},
                "words": {"kind": "words", "settings": {}},
            },
            "tasks": tasks,
        }
    )
