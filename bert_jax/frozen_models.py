"""Models that a run reads and does not train, such as a teacher: loaded once, and kept in the run folder.

So a run goes on with the same one, whatever becomes of the folder that it came from.
"""

import dataclasses
import logging
from pathlib import Path

import jax
from jax.sharding import Mesh

from bert_jax.config import to_dict
from bert_jax.errors import UserError
from bert_jax.files import same_path
from bert_jax.formats.families import HEADS
from bert_jax.library import load
from bert_jax.model.build import Model, count
from bert_jax.objectives.losses import FrozenParams, Losses
from bert_jax.parallel import hosts
from bert_jax.parallel.mesh import batch_shards
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointConfig, CheckpointStore
from bert_jax.tasks import base as tasks
from bert_jax.tasks import imported

logger = logging.getLogger(__name__)


def kept_folder(workdir: Path, objective: str, name: str) -> Path:
    """Returns where a run keeps a frozen model of an objective: a run folder of its own."""
    return workdir / run_folder.FROZEN / f"{objective}.{name}"


def folder_to_load(workdir: Path, init_from: str, objective: str, name: str, named: str) -> Path:
    """Returns where to load a frozen model from: the copy that the run keeps, that of the run in `init_from`, or as named.

    The run in `init_from` may have kept another model, which is not taken.

    Raises:
      UserError: the run keeps a copy of another model than the one that its options name now.
    """
    for run in (workdir, Path(init_from)) if init_from else (workdir,):
        kept = kept_folder(run, objective, name)
        if not run_folder.exists(kept):
            continue
        option = f"options.{objective}.folder"
        before = run_folder.flattened(run_folder.read_config(run)).get(option, "")
        if before == named or same_path(before, named):
            return kept
        if run == workdir:
            remedy = f"set --config.{option}={before}, or use another --workdir"
            raise UserError(f"{option}={named}: the run has the {name} of {before}, which it keeps in {kept}; {remedy}")
    return Path(named)


def with_frozen_models(task: tasks.Task, mesh: Mesh, workdir: Path) -> tuple[Losses, FrozenParams]:
    """Loads the models that the objectives read and do not train (see objectives/base.py), sharded over the mesh.

    They compute in the dtype of the trained model, and have their parameters in it.

    Raises:
      UserError: a folder without a model, or with one of another tokenizer or that does not fit the trained one, or as
        `folder_to_load`.
    """
    trained = task.losses.model
    models: dict[str, dict[str, Model]] = {}
    params: FrozenParams = {}
    for objective, term in task.losses.objectives.items():
        for name, named in term.frozen.items():
            folder = folder_to_load(workdir, task.config.init_from, objective, name, named)
            loaded = load(folder, mesh=mesh)
            if loaded.tokenizer is None or loaded.tokenizer.fingerprint != task.tokenizer.fingerprint:
                raise UserError(f"{folder}: has another tokenizer than this run; objective {objective} needs the same")
            dtype = trained.config.dtype
            stored = "float32" if dtype == "float16" else dtype  # in which parameters can be stored
            options = dataclasses.replace(loaded.model.config, dtype=dtype, param_dtype=stored)
            models.setdefault(objective, {})[name] = Model.build(options, loaded.model.heads)
            params.setdefault(objective, {})[name] = jax.tree.map(lambda x, to=stored: x.astype(to), loaded.params)
            logger.info("%s.%s: the model of %s, %s parameters", objective, name, folder, f"{count(loaded.params):,}")
    if models:
        lengths = [phase.shape.length for phase in task.training.phases(batch_shards(mesh))]
        longest = max(task.config.data.sequence_length, *lengths)  # the rows of evaluation may be longer
        for objective, of_objective in models.items():
            task.losses.objectives[objective].check(trained, of_objective, longest)
    return dataclasses.replace(task.losses, frozen=models), params


def keep_frozen_models(losses: Losses, frozen: FrozenParams, tokenizer: tasks.Tokenizer, workdir: Path) -> None:
    """Writes the models to the run folder, those that are not there yet, with the heads that every run can have.

    To be called by all processes.
    """
    for objective, models in losses.frozen.items():
        for name, model in models.items():
            folder = kept_folder(workdir, objective, name)
            if run_folder.exists(folder):
                continue
            values = to_dict(imported.Config(model=model.config))
            params = frozen[objective][name]
            heads = {head: params["heads"][head] for head in params.get("heads", {}) if head in HEADS}
            store = CheckpointStore(folder, CheckpointConfig(), in_background=False)
            store.save(0, {"params": params | {"heads": heads}}, values, {})
            store.wait()
            if hosts.is_first():
                tasks.save_tokenizer(tokenizer, folder)
                run_folder.write_config(folder, values)
