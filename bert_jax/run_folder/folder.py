"""Reads and writes the files of a run folder, which holds everything that belongs to a run.

config.json, tokenizer/ and its fingerprint, checkpoints/, frozen/, metrics.jsonl, tensorboard/, starts.jsonl, times.jsonl,
stacks/, lock, report.html, evaluation.json, evaluations/ (on other data); after fine-tuning also labels.json, scheme.json,
null_threshold.json or temperature.json, and predictions/.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Required, TypedDict

import msgspec
from flax import traverse_util
from ml_collections import ConfigDict

from bert_jax.config import with_new_names
from bert_jax.data.remote import is_url
from bert_jax.data.sources.base import SOURCE_KINDS
from bert_jax.errors import UserError, plain
from bert_jax.files import decode_json, read_json, read_lines, same_path, write_json, write_text

CONFIG = "config.json"
TOKENIZER = "tokenizer"
STARTS = "starts.jsonl"  # one line per start: command, folder, versions (see provenance.py)
FRESH_HEADS = "fresh_heads.json"  # of an imported run: names of the heads that start from random weights
PREDICTIONS = "predictions"  # on the held-out set, of the best evaluation or of the last `evaluate`
EVALUATION = "evaluation.json"
LABELS = "labels.json"  # names of the classes, in the order of the logits
SCHEME = "scheme.json"  # tagging scheme (see data/datasets/schemes.py)
THRESHOLD = "null_threshold.json"  # question answering: null_score_diff above which there is no answer
TEMPERATURE = "temperature.json"  # of calibrated runs: divides the logits
FROZEN = "frozen"  # models that the run reads and does not train (see frozen_models.py)
FINGERPRINT = "tokenizer_fingerprint.json"  # of the tokenizer at the start of training (see tasks/base.py)
TUNED = {THRESHOLD, TEMPERATURE}
# Types of the JSON files that `read_value` reads.
FORMS: dict[str, Any] = {
    FRESH_HEADS: list[str],
    LABELS: list[str],
    SCHEME: str,
    THRESHOLD: float,
    TEMPERATURE: Annotated[float, msgspec.Meta(ge=1e-3, le=1e3)],  # training chooses from 0.01 to 100
    FINGERPRINT: str,
}
_RESTORE = "restore it, or use another run"

HOW_DATA_IS_READ = {"data.workers", "data.prefetch", "data.cache_megabytes", "data.stream_version"}
# Options that are paths, which are stored as absolute paths (see `with_paths_from`).
PATHS = {
    *("init_from", "data.train", "data.validation", "data.dir"),
    *("data.corpus", "data.tokenizer", "data.mixture", "data.eval_corpora", "phases.corpus", "phases.mixture"),
}
# Of GLUE as a TFDS dataset; of text in the place of a corpus; of a mixture, with its share.
_PREFIXED_PATH = re.compile(rf"({'|'.join(SOURCE_KINDS)}|-?(?:[0-9.e-]+|nan|inf)):(.*)", re.DOTALL)
_NO_PATHS = ("tfds", "python-docs")
_MODEL_OF_OBJECTIVE = re.compile(r"options\.\w+\.folder")  # that of a frozen model
# Options of `model` that may change on resuming or with `init_from`; others determine the parameters.
NOT_STRUCTURE = {
    *("dropout", "attention_dropout", "initializer_range", "exported_as"),
    *("dtype", "attention", "remat", "scan_unroll"),
}

_Value = bool | int | float | str | None
_Option = bool | int | float | str | list[_Value | dict[str, _Value | list[_Value]]] | None
_Section = dict[str, _Option | dict[str, _Option | dict[str, _Option]]]


class _Start(TypedDict):
    folder: str


class _Checkpoint(TypedDict, total=False):
    best_metric: str
    prefer_best: bool


class _Train(TypedDict):
    ema_decay: float


class _Phase(TypedDict, total=False):
    until_step: int
    rope_theta: float


class _Config(TypedDict, total=False):
    """Entries of config.json that are read without building the task, which checks the rest."""

    task: Required[str]
    model: Required[dict[str, Any]]
    train: Required[_Train]
    checkpoint: Required[_Checkpoint]
    init_from: str
    phases: list[_Phase]


def exists(workdir: Path) -> bool:
    """Checks whether the folder holds a run."""
    try:
        return (workdir / CONFIG).exists()
    except OSError:  # e.g. a name that is too long
        return False


def is_run(folder: Path) -> bool:
    """Checks whether the folder holds a run, and not a model in Hugging Face's format, whose config has the same name."""
    return exists(folder) and "task" in read_json(folder / CONFIG, dict[str, Any], _RESTORE)


def read_config(workdir: Path) -> dict[str, Any]:
    """Reads the resolved config of a run, with absolute paths, and options of older runs under their new names.

    Relative paths, as older runs have them, are relative to the working directory of the run's last start.

    Raises:
      UserError: the folder is not a run folder, or the config is damaged.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise UserError(f"{workdir}: not a run folder, because {CONFIG} is missing; use the --workdir of a run")
    config = with_new_names(read_json(path, dict[str, Any], _RESTORE))
    if "task" not in config:
        remedy = f"import it first: tools/convert_checkpoint.py import --hf={workdir}"
        raise UserError(f"{workdir}: not a run folder; {remedy}")
    try:
        msgspec.convert(config, dict[str, _Option | _Section])
        msgspec.convert(config, _Config)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: invalid config of a run ({error}); {_RESTORE}") from None
    if isinstance(data := config.get("data"), dict):
        data.pop("num_threads", None)  # older runs have this option
    return with_paths_from(_last_working_directory(workdir / STARTS), config)


def _last_working_directory(starts: Path) -> str:
    """Returns the working directory of the last start of a run; '' if none is known."""
    last = b""
    if starts.exists():
        for line in read_lines(starts, _RESTORE):
            last = line if line.endswith(b"}\n") else last  # a start may have been interrupted while writing
    try:
        return decode_json(last, _Start)["folder"] if last else ""
    except ValueError as error:
        raise UserError(f"{starts}: damaged ({error}); remove it, and set the paths again") from None


def origin(init_from: str) -> Path:
    """Returns the folder that the option `init_from` names. Raises UserError if it holds neither a run nor a model."""
    if not exists(Path(init_from)):
        remedy = "set --config.init_from to a run folder, or to a model in Hugging Face's format"
        raise UserError(f"init_from={init_from}: not a run folder, because {CONFIG} is missing; {remedy}")
    return Path(init_from)


def with_paths_from(folder: str, config: dict[str, Any]) -> dict[str, Any]:
    """Returns the config with absolute paths. Raises UserError for an invalid path.

    Relative paths start from `folder` ('': the working directory), unless they exist only below the working directory.
    `tfds` is not a path; in `tfds:DIR`, DIR is one (see data/datasets/glue.py), and so it is in `0.3:DIR` (a mixture) and in
    `text:GLOB` (a source of text, see data/sources/documents.py).
    """

    def absolute(value: str) -> str:
        try:
            has_moved = not Path(folder, value).exists() and Path(value).exists()
        except (OSError, ValueError) as error:  # too long, or with NUL
            raise UserError(f"{plain(value, 80)}: invalid path ({error}); name another") from None
        return str(Path("" if has_moved else folder, value).absolute()) if value else ""

    return with_changed_paths(config, absolute)


def with_changed_paths(config: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Returns the config with `change(path)` in place of each path, also in `tfds:DIR`, `0.3:DIR` and `text:GLOB`."""

    def changed(value: str) -> str:
        if value in _NO_PATHS or is_url(value):
            return value
        if prefixed := _PREFIXED_PATH.fullmatch(value):
            kind, path = prefixed.groups()
            return f"{kind}:{changed(path)}" if path else value
        return change(value)

    def resolve(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: resolve(entry, f"{name}.{key}" if name else key) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(resolve(entry, name) for entry in value)
        is_path = name in PATHS or _MODEL_OF_OBJECTIVE.fullmatch(name)
        return changed(value) if is_path and isinstance(value, str) else value

    return resolve(config, "")


def model_after(config: dict[str, Any], step: int) -> dict[str, Any]:
    """Returns the options of `model` that a run's checkpoint of `step` was trained with; earlier phases may have others."""
    for phase in config.get("phases", ()):
        if step <= phase.get("until_step", 0):
            return config["model"] | ({"rope_theta": phase["rope_theta"]} if phase.get("rope_theta") else {})
    return config["model"]


def get_config(workdir: str) -> ConfigDict:
    """Returns the config of a run; with this function, folder.py is a config file of ml_collections, for any run folder."""
    try:
        return ConfigDict(_with_tuples(read_config(Path(workdir))))
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # invalid names, such as "keys" or "a.b"
        raise UserError(f"{Path(workdir) / CONFIG}: invalid config of a run ({error}); {_RESTORE}") from None


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_tuples(entry) for name, entry in value.items()}
    return tuple(value) if isinstance(value, list) else value


def differing_model_options(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns the options of `model` that differ, except those in `NOT_STRUCTURE`."""
    return [name for name in now if name not in NOT_STRUCTURE and name in before and before[name] != now[name]]


def flattened(config: dict[str, Any]) -> dict[str, Any]:
    """Returns {'section.field': value} for a nested dict."""
    return traverse_util.flatten_dict(config, sep=".")


def results_folder(workdir: Path, config: dict[str, Any]) -> Path:
    """Returns the folder for evaluation results: the run folder for its own data, else one named after the differences."""
    own = flattened(get_config(str(workdir)).to_dict())
    names = list[str]()
    for name, value in flattened(config).items():
        is_data = name.startswith("data.") and not name.startswith("data.train") and name not in HOW_DATA_IS_READ
        if not is_data or value == own.get(name):
            continue
        if not (isinstance(value, str) and value and name in own):
            names.append(f"{name.removeprefix('data.')} {value}")
        elif not same_path(value, own[name]):
            names += Path(value).with_suffix("").parts[-2:]
    return workdir / "evaluations" / re.sub(r"\W+", "_", "_".join(names)).strip("_") if names else workdir


def read_value(workdir: Path, name: str, default: Any) -> Any:
    """Reads a file of `FORMS`; returns the default if the run or the file does not exist. Raises UserError for damage."""
    path = workdir / name
    return read_json(path, FORMS[name], _RESTORE) if exists(workdir) and path.exists() else default


def read_labels(workdir: Path) -> list[str]:
    """Returns the names of a run's classes; empty if it has no classes. Raises UserError for duplicates."""
    labels = read_value(workdir, LABELS, [])
    if len(set(labels)) < len(labels):
        raise UserError(f"{workdir / LABELS}: has duplicate labels; {_RESTORE}")
    return labels


def write_files(workdir: Path, files: dict[str, Any]) -> None:
    """Writes files by name: strings as text, other values as JSON."""
    for name, content in files.items():
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        write = write_text if isinstance(content, str) else write_json
        write(workdir / name, content)


def add_evaluations(folder: Path, results: dict[int, dict[str, float]]) -> None:
    """Adds the metrics of checkpoints, by step, to evaluation.json. Raises UserError if the file is damaged."""
    path = folder / EVALUATION
    form = dict[int, dict[str, float | None]]
    stored = read_json(path, form, "remove it, and evaluate again") if path.exists() else {}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, dict(sorted((stored | results).items())))


def write_config(workdir: Path, config: dict[str, Any]) -> None:
    """Writes config.json."""
    write_json(workdir / CONFIG, config)
