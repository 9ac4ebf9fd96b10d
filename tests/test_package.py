"""The package: a wheel, installed into a fresh environment outside the checkout and used there; an editable installation."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest

import bert_jax
from bert_jax import __main__ as entry
from bert_jax.errors import EXIT_USER_ERROR
from bert_jax.run_folder import provenance as bert_environment
from tests.running import ROOT, assert_one_line, environment

TEXT = "the old river and a [MASK] ship"
METADATA_FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
REQUIREMENTS = tuple(
    f"requirements{name}.txt"
    for name in ("", "-serve", "-clean", "-cloud", "-wikipedia", "-beam", "-dev", "-parity", "-docs")
)


def run(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a program in an environment that knows nothing of the checkout."""
    variables = environment(1)
    del variables["PYTHONPATH"], variables["VENV"]
    command = [str(argument) for argument in arguments]
    done = subprocess.run(command, env=variables, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == code, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    return done


def no_isolation() -> list[str]:
    """The flags of pip to build with the setuptools of this environment; without a new enough one pip downloads one."""
    try:
        is_new_enough = int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        is_new_enough = False
    return ["--no-build-isolation", "--no-index"] if is_new_enough else []


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the checkout, since building leaves folders behind."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in (*METADATA_FILES, *REQUIREMENTS):
        shutil.copy(ROOT / name, folder)
    for name in ("bert_jax", "tools", "configs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        *no_isolation(),
        f"--wheel-dir={folder}",
        checkout,
        cwd=folder,
    )
    (built,) = folder.glob("*.whl")
    return built


def fresh_environment(folder: Path) -> Path:
    """An environment with what is installed in the running one, and no other checkout; its folder of programs."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def install(programs: Path, *what: object) -> None:
    into = ["--python", programs / "python", "install", "-q", "--no-deps", "--ignore-installed"]
    run(sys.executable, "-m", "pip", *into, *what, cwd=programs)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of programs of a fresh environment with the wheel installed."""
    programs = fresh_environment(tmp_path_factory.mktemp("environment"))
    install(programs, "--no-index", wheel)
    return programs


def test_the_wheel_holds_the_library_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata: Message = Parser().parsestr(
            archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
        )
        (license_file,) = (archive.read(name).decode() for name in names if name.endswith("/LICENSE"))
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "bert_jax").rglob("*.py")} | {"bert_jax/py.typed"}
    ours |= {str(path.relative_to(ROOT)) for path in (ROOT / "bert_jax" / "serving" / "page").iterdir()}
    assert {name for name in names if ".dist-info/" not in name} == ours
    assert metadata["Version"] == bert_jax.__version__ and metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in license_file and "END OF TERMS AND CONDITIONS" in license_file

    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert required == [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    of_extras = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" in line]
    assert metadata.get_all("Provides-Extra") == [
        "cuda",
        "tpu",
        "plan",
        "serve",
        "clean",
        "cloud",
        "beam",
        "wikipedia",
        "dev",
        "parity",
        "docs",
    ]
    assert {'jax[cuda13]; extra == "cuda"', 'jax[tpu]; extra == "tpu"', 'torch==2.13.0; extra == "parity"'} <= {
        *of_extras
    }
    assert not any(line.startswith(("-r", "#")) for line in of_extras)


LIBRARY = """
import json, sys
import bert_jax

run, text = sys.argv[1:]
encoder = bert_jax.load(run)
answers = bert_jax.Predictor.load(run).predict([text])
print(json.dumps([bert_jax.__file__, encoder.encode([text]).tolist(), answers]))
"""


def test_the_library_outside_the_checkout(installed, tiny_bert, tmp_path):
    place, vectors, answers = json.loads(run(installed / "python", "-c", LIBRARY, tiny_bert, TEXT, cwd=tmp_path).stdout)
    assert Path(place).is_relative_to(installed.parent)
    np.testing.assert_allclose(vectors, bert_jax.load(tiny_bert).encode([TEXT]), atol=1e-6)
    expected = bert_jax.Predictor.load(tiny_bert).predict([TEXT])
    best = [mask["token"] for mask in expected[0]["masks"][0]]
    assert [mask["token"] for mask in answers[0]["masks"][0]] == best and len(best) == 5

    done = run(installed / "bert-jax", "predict", f"--workdir={tiny_bert}", f"--text={TEXT}", cwd=tmp_path)
    assert json.loads(done.stdout) == {"text": TEXT, **answers[0]}


def test_config_files_import_their_neighbours(installed, tmp_path):
    flags = ["--config=configs/bert_large.py", f"--workdir={tmp_path / 'run'}"]
    done = run(installed / "bert-jax", "pretrain", *flags, cwd=ROOT, code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, "data.corpus is empty")


def test_tools_run_from_anywhere_with_an_editable_installation(checkout, tmp_path):
    """Including those that import from tools/ and configs/, such as the quickstart."""
    programs = fresh_environment(tmp_path / "environment")
    install(programs, *no_isolation(), "-e", checkout)
    done = run(programs / "python", checkout / "tools" / "quickstart.py", "--help", cwd=tmp_path, code=1)
    assert "--objectives" in done.stdout
    where = "import bert_jax, configs.bert_base as c; print(bert_jax.__file__, c.__file__)"
    files = run(programs / "python", "-c", where, cwd=tmp_path).stdout.split()
    assert files == [f"{checkout}/bert_jax/__init__.py", f"{checkout}/configs/bert_base.py"]


@pytest.mark.parametrize(
    ("arguments", "code", "output", "message"),
    [
        (["--version"], 0, f"bert_jax {bert_jax.__version__}\n", ""),
        (["--help"], 0, entry.HELP + "\n", ""),
        ([], 2, "", "error: no command given; there are pretrain, finetune, evaluate, predict, serve, status\n"),
        (
            ["train"],
            2,
            "",
            "error: train: no such command; there are pretrain, finetune, evaluate, predict, serve, status\n",
        ),
    ],
)
def test_bert_jax_without_a_command(arguments, code, output, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bert-jax", *arguments])
    if code:
        with pytest.raises(SystemExit) as end:
            entry.main()
        assert end.value.code == code
    else:
        entry.main()
    assert capsys.readouterr() == (output, message)


def test_bert_jax_with_a_command(tmp_path):
    """The flags and the errors are those of the command, one line and exit code 2."""
    variables, start = environment(1), [sys.executable, "-m", "bert_jax", "predict"]
    shown = subprocess.run([*start, "--help"], env=variables, cwd=tmp_path, capture_output=True, text=True).stdout
    assert shown.startswith("Predicts with a run") and all(f"  --{name}:" in shown for name in ("text", "workdir"))
    wrong = subprocess.run([*start, "--texts=a"], env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode == EXIT_USER_ERROR
    assert_one_line(wrong.stderr, "Unknown command line flag 'texts'")


def test_the_commit_is_that_of_the_code(tmp_path, monkeypatch):
    """An installed package may lie in a repository that holds other things."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    (tmp_path / "environment.py").write_text("")
    monkeypatch.setattr(bert_environment, "__file__", str(tmp_path / "environment.py"))
    git("init")
    git("commit", "--allow-empty", "-m", "begin")
    assert bert_environment.commit() == ""
    git("add", "environment.py")
    git("commit", "-m", "add")
    assert bert_environment.commit() == git("rev-parse", "HEAD")
