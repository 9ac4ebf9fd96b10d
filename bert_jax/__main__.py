"""The commands under one name: `bert-jax predict ...` is `python -m bert_jax.predict ...`."""

import runpy
import sys
from pathlib import Path

from bert_jax import __version__
from bert_jax.cli.main import guarded
from bert_jax.errors import EXIT_USER_ERROR

COMMANDS = {
    "pretrain": "pretrain an encoder on a corpus, or resume a pretraining run",
    "finetune": "fine-tune a pretrained encoder on labelled data",
    "evaluate": "evaluate the checkpoints of a run on held-out data",
    "predict": "fill masks, label texts or words, or answer questions with a run",
    "serve": "serve the predictions of runs over HTTP",
    "status": "show how a run is doing: steps, speed, time left, losses, checkpoints, and where its time went",
}
COMMAND_LINES = "\n".join(f"  {name:10}{what}" for name, what in COMMANDS.items())
HELP = f"""usage: bert-jax COMMAND [flags]

{COMMAND_LINES}

bert-jax COMMAND --help shows the flags of a command, bert-jax --version the version."""


@guarded()
def main() -> None:
    """Runs the command named by the first argument; exits with EXIT_USER_ERROR if it is missing or unknown."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("--help", "-h", "help"):
        print(HELP)
    elif name == "--version":
        print(f"bert_jax {__version__}")
    elif name in COMMANDS:
        del sys.argv[1]
        sys.path.append(str(Path.cwd()))  # a config file may import its neighbours: `from configs import bert_base`
        runpy.run_module(f"bert_jax.{name}", run_name="__main__", alter_sys=True)
    else:
        problem = f"{name}: no such command" if name else "no command given"
        print(f"error: {problem}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


if __name__ == "__main__":
    main()
