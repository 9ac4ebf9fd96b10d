"""The experiments of a sheet of tools/compare_recipes.py: what each of them is, and the commands that run it."""

import dataclasses
import hashlib
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from ml_collections import ConfigDict

from bert_jax.config import to_config_dict
from bert_jax.errors import UserError
from bert_jax.run_folder.folder import flattened
from tools.experiment_sheet import Cell
from tools.lib.logged_process import ROOT

WEIGHTS = ("pretrained", "random", "none")  # 'none': linear models over words
CORPORA = ("whole", "repeated")
DATA = re.compile(r"\{data\}")  # in settings, stands for the folder of the data


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A recipe with a seed: a pretraining run, evaluated and fine-tuned on each task."""

    name: str
    seed: int
    title: str
    group: str  # of rows and plots
    against: str  # name of the experiment that it is compared with; '' for none
    config: str  # config file of pretraining, with its argument
    settings: dict[str, Any]  # changes to the config, by 'section.field'
    corpus: str  # 'whole', or 'repeated' for a small part of it
    evaluated_on: str  # objectives of the evaluation of each checkpoint; '': those of training
    teacher: str  # name of the experiment whose run is the teacher; '' for none
    weights: str  # what is fine-tuned: see WEIGHTS
    tasks: dict[str, Any]
    source: dict[str, Any]  # how the corpus is made
    teacher_digest: str = ""

    @property
    def key(self) -> str:
        return f"{self.name}_{self.seed}"

    @property
    def is_pretrained(self) -> bool:
        return self.weights == "pretrained"

    def pretraining(self) -> ConfigDict:
        """Returns the config of pretraining, without the folders of corpus and teacher."""
        return config_of(self.config, self.settings | {"train.seed": self.seed})

    @cached_property
    def settings_of_pretraining(self) -> dict[str, Any]:
        """What the config of pretraining sets, by 'section.field': options that have other values than their defaults."""
        return differences(self.pretraining())

    @cached_property
    def digest(self) -> str:
        """Hash of everything that determines the results, but for the code and the text of the corpus."""
        content = {
            "pretraining": self.settings_of_pretraining,
            "evaluated_on": self.evaluated_on,
            "corpus": [self.corpus, self.source],
            "weights": self.weights,
            "teacher": self.teacher_digest,
            "tasks": {
                name: [task["config"], task["score"], differences(config_of(task["config"], task["settings"]))]
                for name, task in self.tasks.items()
            },
        }
        encoded = msgspec.json.encode(content, order="deterministic")
        return hashlib.blake2b(encoded, digest_size=8).hexdigest()

    def folder(self, workdir: Path) -> Path:
        """Returns the folder of the experiment's runs; another recipe has another one."""
        return workdir / "experiments" / f"{self.key}_{self.digest}"

    def run(self, workdir: Path) -> Path:
        """Returns the run folder of pretraining."""
        return self.folder(workdir) / "pretrain"

    def cells(self, workdir: Path, data: str) -> list[Cell]:
        """Returns the fine-tuning runs, or the linear models, one for each task; see tools/experiment_sheet.py."""
        own = {"from_scratch": True} if self.weights == "random" else {}
        kind = "words" if self.weights == "none" else "finetune"
        return [
            Cell(
                encoder=self.name,
                way=self.weights,
                task=name,
                seed=self.seed,
                kind=kind,
                config=task["config"],
                settings=with_data(task["settings"], data) | own | {"init_from": str(self.run(workdir))},
                score=task["score"],
                highest=1.0,
            )
            for name, task in self.tasks.items()
        ]


def experiments_of(sheet: dict[str, Any]) -> list[Experiment]:
    """Returns the experiments of a sheet, teachers before their students. Raises UserError for one that is inconsistent."""
    experiments: dict[str, Experiment] = {}
    tasks = {task["name"]: task for task in sheet["tasks"]}
    names = [fields["name"] for fields in sheet["experiments"]]
    for fields in sheet["experiments"]:
        problem = ""
        if fields["weights"] not in WEIGHTS or fields["corpus"] not in CORPORA:
            problem = f"weights are one of {', '.join(WEIGHTS)}, and the corpus is one of {', '.join(CORPORA)}"
        elif fields["against"] and fields["against"] not in names:
            problem = f"there is no experiment {fields['against']} to compare it with"
        elif fields["teacher"] and f"{fields['teacher']}_0" not in experiments:
            problem = f"its teacher {fields['teacher']} must be an experiment that comes before it"
        if problem:
            raise UserError(f"experiment {fields['name']}: {problem}; change the sheet")
        for seed in range(sheet["seeds"] if fields["weights"] != "none" else 1):
            teacher = experiments[f"{fields['teacher']}_{seed}"].digest if fields["teacher"] else ""
            source = dict(sheet["corpus"])
            experiment = Experiment(seed=seed, tasks=tasks, source=source, teacher_digest=teacher, **fields)
            experiments[experiment.key] = experiment
    return list(experiments.values())


def teacher_of(experiment: Experiment, experiments: Sequence[Experiment]) -> Experiment | None:
    """Returns the experiment whose run is the teacher; None without one."""
    keys = {other.key: other for other in experiments}
    return keys[f"{experiment.teacher}_{experiment.seed}"] if experiment.teacher else None


def students_of(experiment: Experiment, experiments: Sequence[Experiment]) -> Iterator[Experiment]:
    """Yields the experiments whose teacher an experiment is."""
    return (other for other in experiments if (other.teacher, other.seed) == (experiment.name, experiment.seed))


def config_of(file: str, settings: dict[str, Any]) -> ConfigDict:
    """Returns the config of FILE[:ARGUMENT] in this repository, with settings by 'section.field'.

    Raises:
      UserError: the file refuses the argument, or has no such option.
    """
    path, _, argument = file.partition(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    config = module.get_config(*filter(None, [argument]))
    try:
        config.lock().update_from_flattened_dict(settings)
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: {error}; change the sheet") from None
    return config


def differences(config: ConfigDict) -> dict[str, Any]:
    """Returns the options of a config that have other values than their defaults, by 'section.field'.

    So a config stays the same when the code gets another option.
    """
    task = importlib.import_module(f"bert_jax.tasks.{config.task}")
    defaults = flattened(to_config_dict(task.Config()).to_dict())
    values = flattened(config.to_dict())
    return {name: value for name, value in sorted(values.items()) if value != defaults.get(name)}


def with_data(settings: dict[str, Any], data: str) -> dict[str, Any]:
    """Returns settings with the folder of the data in the place of '{data}'."""
    return {
        name: DATA.sub(lambda _: data, value) if isinstance(value, str) else value for name, value in settings.items()
    }


def pretraining_command(experiment: Experiment, workdir: Path, corpus: Path, teacher: Path | None) -> list[str]:
    """Returns the command line of pretraining."""
    settings = experiment.settings | {"train.seed": experiment.seed, "data.corpus": str(corpus)}
    if teacher:
        settings |= dict.fromkeys(("options.distillation.folder", "init_from"), str(teacher))
    flags = [f"--config.{option}={value}" for option, value in settings.items()]
    file = f"--config={ROOT / experiment.config}"
    return [sys.executable, "-m", "bert_jax.pretrain", file, f"--workdir={experiment.run(workdir)}", *flags]


def evaluation_command(experiment: Experiment, workdir: Path) -> list[str]:
    """Returns the command line that evaluates all checkpoints of pretraining."""
    objectives = [f"--config.objectives={experiment.evaluated_on}"] if experiment.evaluated_on else []
    return [
        sys.executable,
        "-m",
        "bert_jax.evaluate",
        f"--workdir={experiment.run(workdir)}",
        "--step=all",
        *objectives,
    ]
