"""Sizes of models and batches that the suites of `tools/benchmark.py` measure, from the flags and the platform."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax

from bert_jax.config import from_dict
from bert_jax.errors import UserError
from bert_jax.model.config import EncoderConfig
from bert_jax.tasks.pretraining import Config
from bert_jax.train.optimizers import OptimizerConfig
from configs import modernbert
from tools.lib.benchmark_sides import Side, rival

# Layers, width, heads: Turc et al. 2019 (mini, small), Devlin et al. 2019 (base, large). `tiny` is for tests.
SIZES = {"tiny": (2, 64, 2), "mini": (4, 256, 4), "small": (4, 512, 8), "base": (12, 768, 12), "large": (24, 1024, 16)}
MODERNBERT = "modernbert"  # ModernBERT-base
LENGTHS = {"tiny": 32, "large": 512, MODERNBERT: 8192}  # tokens of a sequence; 128 for the others
CPU_TOKENS = {"tiny": 256, "mini": 4096, "small": 4096}  # of a step on CPUs; 1,024 for the others
ACCELERATOR_TOKENS = {"large": 16_384}  # of a step and a device; 32,768 for the others
RIVAL = "transformers"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of tools/benchmark.py; None and '' stand for defaults that depend on the platform or the suite."""

    turns: int = 9
    quick: bool = False  # the smallest sizes: whether a suite works, not how fast
    config: Any = None  # ConfigDict of a pretraining run
    size: str = ""
    dtype: str = ""
    batch_size: int | None = None
    sequence_length: int | None = None
    attention_dropout: float | None = None
    source: str = "python-docs"  # text for the suites that need some
    data: str = ""  # folder for what they make of it
    corpus: str = ""
    init_from: str = ""
    glue_dir: str = ""
    glue_task: str = "MRPC"
    workdir: str = ""
    against: str = ""
    rival_dtype: str = ""
    rival_python: str = sys.executable
    rival_environment: Sequence[str] = ()

    def child(self, script: str, options: dict[str, Any]) -> tuple[str, Side]:
        """Returns what `rival` does, in the Python and the environment of the flags."""
        return rival(script, {"threads": self.threads} | options, self.rival_python, self.rival_environment)

    @property
    def threads(self) -> int:
        """Threads of a rival: one for each core."""
        return len(os.sched_getaffinity(0))

    @property
    def devices(self) -> list[jax.Device]:
        """Devices to train on: all, or only the first one next to a rival, which uses one."""
        return jax.local_devices()[:1] if self.against else jax.devices()

    @property
    def on_cpu(self) -> bool:
        return jax.default_backend() == "cpu"

    @property
    def model_size(self) -> str:
        return self.size or ("tiny" if self.quick else "mini" if self.on_cpu else "base")

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder of --size."""
        dtype = self.dtype or ("float32" if self.on_cpu else "bfloat16")
        changes: dict[str, Any] = {"dtype": dtype}
        if self.attention_dropout is not None:
            changes["attention_dropout"] = self.attention_dropout
        if self.model_size == MODERNBERT:
            return dataclasses.replace(from_dict(Config(), modernbert.get_config("base")).model, **changes)
        layers, width, heads = SIZES[self.model_size]
        return EncoderConfig(
            vocab_size=1024 if self.model_size == "tiny" else EncoderConfig.vocab_size,
            num_layers=layers,
            hidden_size=width,
            num_heads=heads,
            intermediate_size=4 * width,
            max_positions=max(512, self.sequence_length or 0),
            pooler=False,
            **changes,
        )

    @property
    def pretraining(self) -> Config:
        """The config in --config or, for an encoder of --size, masked-language modelling with AdamW.

        Raises:
          UserError: the config is not one of pretraining.
        """
        if self.config is not None:
            if self.config.task != Config.task:
                raise UserError(f"--config: has the task {self.config.task!r}; use a config of pretraining")
            return from_dict(Config(), self.config)
        length = self.sequence_length or LENGTHS.get(self.model_size, 128)
        if self.on_cpu:
            tokens = CPU_TOKENS.get(self.model_size, 1024)
        else:
            tokens = ACCELERATOR_TOKENS.get(self.model_size, 32_768) * len(self.devices)
        batch_size = self.batch_size or max(1, tokens // length)
        data = dataclasses.replace(Config().data, sequence_length=length)
        train = dataclasses.replace(Config().train, batch_size=batch_size)
        return Config(
            model=self.encoder, objectives=("mlm",), optimizer=OptimizerConfig(name="adamw"), data=data, train=train
        )
