"""Fine-tunes a pretrained encoder on a task.

python -m bert_jax.finetune --config=configs/finetune/text.py --workdir=runs/y --config.init_from=runs/x \\
    --config.data.train=train.jsonl --config.data.validation=dev.jsonl

Exit codes: 0 when the run is complete, 75 when it was told to stop (SIGTERM) and saved, 2 for bad input.
"""

from bert_jax import cli, command
from bert_jax.run import train_command


def main() -> None:
    train_command(*command.start())


if __name__ == "__main__":
    cli.run(main)
