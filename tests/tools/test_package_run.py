"""Packages of runs predict what the runs do, in an environment that has their requirements and no bert_jax."""

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

import bert_jax
from bert_jax.conversion.convert import import_run
from bert_jax.errors import EXIT_USER_ERROR, UserError
from bert_jax.files import write_json
from bert_jax.run_folder import folder as run_folder
from tests.running import assert_one_line, environment
from tools.lib import packaged_predict
from tools.lib.import_closure import PACKAGE, dependencies_of, import_closure, requirements
from tools.package_run import is_close, package_run

TEXTS = ["the old river", "a quiet ship on the river", "the ship was old"]
CASES = {  # task: (golden model, inputs)
    "texts": ("bert/sequence_classification", [{"text": text} for text in TEXTS]),
    "pairs": ("bert/sequence_classification", [{"text": text, "other": TEXTS[0]} for text in TEXTS]),
    "numbers": ("bert/sequence_classification", [{"text": text} for text in TEXTS]),
    "labels": ("bert/sequence_classification", [{"text": text} for text in TEXTS]),
    "tokens": ("bert/token_classification", [{"text": TEXTS[0]}, {"text": TEXTS[1], "words": TEXTS[1].split()}]),
    "questions": ("bert/question_answering", [{"question": "a ship", "context": text} for text in TEXTS]),
    "masks": ("bert/masked_lm", [{"text": "the [MASK] river"}, {"text": "a [MASK] [MASK]"}]),
}


@pytest.fixture(scope="module")
def run_for(model_folder, tmp_path_factory) -> Callable[[str], Path]:
    """`run_for('pairs')`: a run of a golden model, as if it had been fine-tuned for the task."""

    def make(case: str) -> Path:
        source = model_folder(CASES[case][0])
        config = json.loads((source / "config.json").read_text())
        if case == "labels":
            config["problem_type"] = "multi_label_classification"
        if case == "numbers":
            tensors = load_file(source / "model.safetensors")
            tensors |= {name: tensors[name][:1] for name in ("classifier.weight", "classifier.bias")}
            save_file(tensors, source / "model.safetensors")
            config |= {"problem_type": "regression", "id2label": {"0": "x"}}
        write_json(source / "config.json", config)
        run = tmp_path_factory.mktemp(case) / "run"
        import_run(source, run)
        values = run_folder.read_config(run)
        if case == "pairs":
            values["data"]["second_field"] = "other"
        if "train" in values["data"]:
            values["data"]["train"] = "/a/private/place/train.jsonl"
        run_folder.write_config(run, values)
        if case == "texts":
            write_json(run / "temperature.json", 3.0)
        return run

    return make


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of an environment with what requirements.txt of a package names, and what that requires, alone."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python3*/site-packages")
    lines = requirements(import_closure(["bert_jax.predict", "bert_jax.tasks.pretraining"]).packages)
    for name in set[str]().union(*(dependencies_of(line.partition("==")[0]) for line in lines)):
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or ():
            if file.parts[0] != ".." and "__pycache__" not in file.parts:
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                (site / file).symlink_to(distribution.locate_file(file))
    return folder / "bin" / "python"


def alone(python: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs Python without a checkout on its path, in the root folder."""
    variables = environment(1)
    del variables["PYTHONPATH"], variables["VENV"]
    command = [str(python), "-I", "-B", *map(str, arguments)]
    done = subprocess.run(command, env=variables, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == code, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    return done


def assert_predicts_alone(case: str, run: Path, package: Path, python: Path, tmp_path: Path) -> None:
    inputs = CASES[case][1]
    expected = bert_jax.Predictor.load(run).predict(inputs)
    (tmp_path / "inputs.jsonl").write_text("".join(json.dumps(values) + "\n" for values in inputs))
    done = alone(python, package / "predict.py", f"--input={tmp_path / 'inputs.jsonl'}")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(inputs)
    for values, answer, of_run in zip(inputs, answers, expected, strict=True):
        assert is_close(answer, values | of_run), (answer, of_run)


@pytest.fixture(scope="module")
def classifier(run_for) -> Path:
    return run_for("texts")


@pytest.fixture(scope="module")
def package(classifier, tmp_path_factory) -> Path:
    """A package of a classifier. To be read only."""
    output = tmp_path_factory.mktemp("packages") / "films"
    package_run(classifier, output, data_license="CC BY 4.0 <b>")
    return output


@pytest.mark.slow
def test_a_classifier_predicts_alone(package, classifier, python, tmp_path):
    shown = alone(python, "-c", "import importlib.util as u; print(u.find_spec('bert_jax'), u.find_spec('sklearn'))")
    assert shown.stdout == "None None\n", "the environment has neither bert_jax nor what only training needs"
    assert_predicts_alone("texts", classifier, package, python, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case != "texts"])
def test_every_task_predicts_alone(case, run_for, python, tmp_path, monkeypatch):
    run = run_for(case)
    monkeypatch.chdir(tmp_path)
    package_run(run, Path(f"{case}.zip"))
    with zipfile.ZipFile(tmp_path / f"{case}.zip") as archive:
        archive.extractall(tmp_path / "elsewhere")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(f"{case}.")] == [f"{case}.zip"]
    assert_predicts_alone(case, run, tmp_path / "elsewhere" / case, python, tmp_path)


@pytest.mark.slow
def test_a_checkpoint_of_a_moving_average(run_with_average, python, tmp_path):
    """It is what fills masks; the package has it as its parameters."""
    package_run(run_with_average, tmp_path / "package", step=2)
    config = run_folder.read_config(tmp_path / "package" / "run")
    assert config["train"]["ema_decay"] == 0.0 and config["data"]["corpus"].endswith("/corpus")
    expected = bert_jax.Predictor.load(run_with_average, 2).predict(["the [MASK] river"])
    done = alone(python, tmp_path / "package" / "predict.py", "--text=the [MASK] river")
    assert is_close(json.loads(done.stdout), {"text": "the [MASK] river", **expected[0]})


def test_what_a_package_holds(package, classifier):
    names = {path.name for path in package.iterdir()}
    assert names == {
        *("predict.py", "requirements.txt", "run", "bert_jax", "metrics.json", "examples.jsonl"),
        *("README.md", "LICENSE", "SHA256SUMS"),
    }
    lines = (package / "requirements.txt").read_text().splitlines()
    assert {line.partition("==")[0] for line in lines} == {
        *("jax", "flax", "tokenizers", "msgspec", "ml_collections", "safetensors", "sentencepiece", "array_record")
    }
    modules = {path.relative_to(package) for path in package.glob("bert_jax/**/*.py")}
    assert Path("bert_jax/tasks/text.py") in modules and Path("bert_jax/tasks/qa.py") not in modules
    card = (package / "README.md").read_text()
    assert (package / "examples.jsonl").read_text().splitlines()[0] in card
    assert card.startswith("# films\n") and "CC BY 4.0 \\<b\\>" in card and "parameters: 3 layers" in card
    content = b"".join(path.read_bytes() for path in package.rglob("*") if path.is_file())
    for private in (b"/a/private/place", str(package.parent).encode(), str(classifier).encode()):
        assert private not in content, "paths of this machine are nobody's business"
    assert json.loads((package / "metrics.json").read_text())["task"] == "text"
    (encoder,) = {type(bert_jax.load(package / "run")).__name__}
    assert encoder == "LoadedEncoder", "it is a run folder"


def test_the_checksums_are_those_of_sha256sum(package):
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=package, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    listed = {line.partition("  ")[2] for line in (package / "SHA256SUMS").read_text().splitlines()}
    existing = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert existing - listed == {"SHA256SUMS"}


def change(package: Path, kind: str) -> None:
    sums = package / "SHA256SUMS"
    lines = sums.read_text().splitlines()
    match kind:
        case "a bit of a weight":
            largest = max((package / "run" / "checkpoints").rglob("*"), key=lambda path: path.stat().st_size)
            content = bytearray(largest.read_bytes())
            content[len(content) // 2] ^= 1
            largest.write_bytes(content)
        case "a module":
            (package / "bert_jax" / "errors.py").unlink()
        case "a list with a path":
            sums.write_text("\n".join([*lines, f"{'0' * 64}  ../outside"]))
        case "a damaged list":
            sums.write_bytes(b"\xff\x00")
        case "an empty list":
            sums.write_text("")
        case "no list":
            sums.unlink()
        case "a link":
            shutil.copyfile(package / "LICENSE", package.parent / "LICENSE")
            (package / "LICENSE").unlink()
            (package / "LICENSE").symlink_to(package.parent / "LICENSE")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("a bit of a weight", "not the file that was packaged"),
        ("a module", "bert_jax/errors.py: missing"),
        ("a list with a path", "is damaged"),
        ("a damaged list", "cannot be read"),
        ("an empty list", "empty"),
        ("no list", "cannot be read"),
        ("a link", "LICENSE: missing"),
    ],
)
def test_a_damaged_package_is_an_error(kind, message, package, tmp_path):
    copied = shutil.copytree(package, tmp_path / "package")
    packaged_predict.check(copied)
    change(copied, kind)
    done = alone(
        Path(sys.executable), copied / "predict.py", "--text=a", code=EXIT_USER_ERROR
    )  # before jax is imported
    assert_one_line(done.stderr, message, "get the package again")
    spec = importlib.util.spec_from_file_location("packaged", copied / "predict.py")
    assert spec and spec.loader
    script: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with pytest.raises(ValueError, match=message):
        script.load()


def test_what_cannot_be_packaged(classifier, package, run_for, tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        package_run(tmp_path, tmp_path / "package")
    with pytest.raises(UserError, match="exists and is not empty"):
        package_run(classifier, package)
    (tmp_path / "there.zip").write_text("")
    with pytest.raises(UserError, match="exists; choose a new file"):
        package_run(classifier, tmp_path / "there.zip")
    shutil.copytree(classifier, tmp_path / "seeds" / "seed_0")
    with pytest.raises(UserError, match=r"holds several runs; choose one of .*seed_0"):
        package_run(tmp_path / "seeds", tmp_path / "package")
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        package_run(classifier, tmp_path / "package", step=7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seeds", "there.zip"], "nothing half is left"


def test_a_closure_holds_what_its_modules_import():
    closure = import_closure(["bert_jax.tasks.text"])
    assert {
        "bert_jax",
        "bert_jax.tasks",
        "bert_jax.tasks.text",
        "bert_jax.tasks.finetuning.texts",
    } <= closure.modules.keys()
    assert "bert_jax.tasks.qa" not in closure.modules and {"jax", "flax", "scipy"} <= closure.packages
    assert closure.packages.isdisjoint({"sklearn", "tensorflow_datasets", "torch", "grain"}), "imported by functions"
    assert all(path.is_relative_to(PACKAGE) for path in closure.modules.values())
    assert requirements({"flax", "optax", "numpy", "google"})[0].startswith("flax==")


def test_numbers_are_compared_with_a_tolerance():
    assert is_close({"a": [1.0, "x"]}, {"a": [1.0001, "x"]}) and not is_close({"a": 1.0}, {"a": 1.1})
    assert not is_close([1.0], [1.0, 2.0]) and not is_close({"a": 1.0}, {"b": 1.0}) and not is_close("a", "b")
