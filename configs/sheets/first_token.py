"""A grid for tools/experiment_sheet.py: what the state of the first token, [CLS], tells of a text, and the mean of all tokens.

    python tools/technical_note.py --encoder=runs/x --data=DATA --workdir=runs/note

The tool makes the tasks from sentences of SST-2, and runs this grid with an encoder before and after fine-tuning. Linear models
over frozen states predict, after Conneau et al. 2018 (What you can cram into a single vector):

- sentiment: the label of SST-2
- length: which of 6 equally frequent ranges the number of words is in
- word: which of 20 words the sentence contains, exactly one of them
- order: whether two adjacent words were exchanged

Hardware: any; with an encoder of 4 layers of 256 some minutes on 2 CPU cores.
Score: not measured yet.
"""

from ml_collections import ConfigDict

PROBES = ("sentiment", "length", "word", "order")


def get_config():
    return ConfigDict(
        {
            "encoders": "",  # NAME=RUN,NAME=RUN
            "data": "",
            "only": "",  # names of tasks; '': all
            "seeds": 3,  # samples of sentences
            "ways": {
                "first token": {"kind": "features", "pooling": "first", "settings": {}},
                "mean": {"kind": "features", "settings": {}},
                "words": {"kind": "words", "settings": {}},
            },
            "tasks": {
                name: {
                    "config": "configs/finetune/text.py",
                    "score": "accuracy",
                    "highest": 1.0,
                    "has_linear": True,
                    "settings": {
                        "data": {
                            "train": f"{{data}}/{name}_{{seed}}/train.jsonl",
                            "validation": f"{{data}}/{name}_{{seed}}/dev.jsonl",
                        }
                    },
                }
                for name in PROBES
            },
        }
    )
