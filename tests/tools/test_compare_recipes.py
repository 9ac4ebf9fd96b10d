"""The comparison of recipes: its sheet, records, counts and tables, and a small one from text to the page of results."""

import json
import shutil

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from ml_collections import ConfigDict

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.tasks import base as tasks
from bert_jax.train.flops import flops_per_token
from configs import small
from configs.sheets import recipes
from tests.conftest import TINY_MODEL, TINY_RUN
from tests.data.datasets.test_glue import write_split
from tests.running import environment
from tools.compare_recipes import Comparison
from tools.lib import recipes_page
from tools.lib.recipes_corpus import corpus_hash, padding_share, write_part
from tools.lib.recipes_records import Point, Record, expected_minutes, read_records, record_path, write_record
from tools.lib.recipes_sheet import Experiment, experiments_of, pretraining_command
from tools.lib.traced_flops import config_flops, product_flops

# Of the fields of TINY_RUN, those that are not the recipe's own.
SHRUNK = TINY_MODEL | {name: TINY_RUN[name] for name in TINY_RUN if name.startswith(("data.", "train."))}


def sheet_of(argument: str = "all", **changes) -> dict:
    return recipes.get_config(argument).to_dict() | changes


def only(sheet: dict, *names: str) -> dict:
    """The sheet with these experiments alone."""
    return sheet | {"experiments": tuple(fields for fields in sheet["experiments"] if fields["name"] in names)}


# ---------------------------------------------------------------------------------------------------------- the sheet


@pytest.mark.parametrize("argument", ["all", "pilot", "rates"])
def test_the_experiments(argument):
    experiments = experiments_of(sheet_of(argument))
    keys = [experiment.key for experiment in experiments]
    assert len(set(keys)) == len(keys) == len({experiment.digest for experiment in experiments})
    trained = [experiment for experiment in experiments if experiment.is_pretrained]
    assert {experiment.config.split(":")[1].split(",")[0] for experiment in trained} >= {
        "bert",
        "electra",
        "modern_muon",
    }
    for experiment in trained:
        config = experiment.pretraining()
        assert config.train.num_steps // config.checkpoint.every <= config.checkpoint.keep_last + 1
        (masking,) = set(config.objectives) & {"mlm", "rtd", "distillation"}
        is_compared = masking != "rtd"  # whose loss is another one
        assert config.options[masking].standard_evaluation == is_compared
        assert experiment.evaluated_on == ("mlm" if is_compared else "")
    if argument == "all":
        assert set(small.RECIPES) <= {experiment.name for experiment in experiments}
        assert [experiment.seed for experiment in experiments if experiment.name == "modern"] == [0, 1]
        assert [experiment.seed for experiment in experiments if experiment.name == "words"] == [0], "nothing is drawn"


@pytest.mark.parametrize("name", small.RECIPES)
def test_each_recipe_creates_its_task(name, corpus_dir, tmp_path):
    experiment = next(experiment for experiment in experiments_of(sheet_of(seeds=1)) if experiment.name == name)
    config = experiment.pretraining()
    layers = {"model.num_layers": config.model.num_layers, "model.num_heads": 4}
    config.update_from_flattened_dict(SHRUNK | layers | {"data.corpus": str(corpus_dir)})
    if experiment.teacher:
        config.options.distillation.folder = str(tmp_path / "teacher")
    if config.model.embedding_size:
        config.model.embedding_size = 16
    task = tasks.create(config, tmp_path / "run")
    batch = task.training.batch(task.training.phases(1)[0], np.arange(2), 0)
    assert batch["input_ids"].shape == (2, 32) and set(task.losses.objectives) == set(config.objectives)


def test_arguments_of_the_recipes():
    assert (
        small.get_config("modern,30").optimizer.warmup_steps == 3 and small.get_config().train.num_steps == small.STEPS
    )
    for argument, message in (
        ("berd", "no such entry; choose one of bert,"),
        ("bert,0", "'0' is not a number of steps"),
    ):
        with pytest.raises(UserError, match=message):
            small.get_config(argument)


def test_the_digest_is_that_of_what_determines_the_results():
    def digest_of(sheet: dict, key: str = "bert_0") -> str:
        return {experiment.key: experiment.digest for experiment in experiments_of(sheet)}[key]

    sheet = only(sheet_of(), "bert", "distilbert")

    def changed(name: str, **fields) -> dict:
        experiments = (of | fields if of["name"] == name else of for of in sheet["experiments"])
        return sheet | {"experiments": tuple(experiments)}

    bert, student = digest_of(sheet), digest_of(sheet, "distilbert_0")
    assert (
        digest_of(changed("bert", title="Other words", group="g")) == bert == digest_of(sheet | {"data": "/elsewhere"})
    )
    longer = changed("bert", config="configs/small.py:bert,77")
    assert len({bert, digest_of(sheet, "bert_1"), digest_of(longer), student}) == 4
    assert digest_of(longer, "distilbert_0") != student, "another teacher"
    assert digest_of(sheet | {"tasks": sheet["tasks"][1:]}) != bert
    assert digest_of(sheet | {"corpus": sheet["corpus"] | {"vocab_size": 500}}) != bert


def test_inconsistent_sheets():
    sheet = only(sheet_of(), "bert", "distilbert")
    bert, student = sheet["experiments"]
    for experiments, message in (
        ((student, bert), "experiment distilbert: its teacher bert must be an experiment that comes before it"),
        ((bert | {"against": "x"},), "experiment bert: there is no experiment x to compare it with"),
        ((bert | {"weights": "x"},), "weights are one of pretrained, random, none"),
    ):
        with pytest.raises(UserError, match=message):
            experiments_of(sheet | {"experiments": experiments})
    for change, message in (
        ({"config": "configs/small.py:berd"}, "no such entry"),
        ({"settings": {"train.num_stesp": 3}}, "configs/small.py:bert,3200: .*num_stesp.*change the sheet"),
    ):
        with pytest.raises(UserError, match=message):
            _ = experiments_of(sheet | {"experiments": (bert | change,)})[0].digest


# ---------------------------------------------------------------------------------------------------------- the records


def record_of(experiment: Experiment, losses=(4.0, 3.0), flops_per_step: int = 10, **changes) -> Record:
    """A record with a loss after each ten steps."""
    record = Record(
        name=experiment.name,
        seed=experiment.seed,
        digest=experiment.digest,
        settings={},
        date="2026-01-02",
        commit="0123456789abcdef",
        versions={"jax": "0"},
        cores=2,
        corpus="c" * 16,
        seconds={"pretraining": 120.0, "CoLA": 60.0},
        corpus_tokens=4_000_000,
        parameters=2_000_000,
        steps=10 * len(losses),
        tokens_per_step=100_000,
        padding=0.04,
        flops_per_step=flops_per_step * 10**12,
        curve=[Point(10 * n, {"mlm/loss": loss, "mlm/accuracy": 0.5}) for n, loss in enumerate(losses, 1)],
        held_out={"loss": 9.0, "nsp/accuracy": 0.75},
        scores={name: {task["score"]: 0.5} for name, task in experiment.tasks.items()},
    )
    return msgspec.structs.replace(record, **changes)


def test_records_of_changed_recipes_and_damaged_ones(tmp_path):
    experiments = experiments_of(only(sheet_of(), "bert", "roberta"))
    for experiment in experiments:
        write_record(tmp_path, experiment, record_of(experiment))
    assert list(read_records(tmp_path, experiments)) == ["bert_0", "bert_1", "roberta_0", "roberta_1"]
    path = record_path(tmp_path, experiments[0])
    assert path.stat().st_size < 4096
    path.write_text(path.read_text().replace(experiments[0].digest, "another"))
    assert list(read_records(tmp_path, experiments)) == ["bert_1", "roberta_0", "roberta_1"]
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match=r"bert_0.json: .*remove it, and the experiment is run again"):
        read_records(tmp_path, experiments)


def test_what_is_left(tmp_path):
    sheet = only(sheet_of(), "bert", "roberta", "bert_random") | {"records": ""}
    bert, *_, random = experiments_of(sheet)
    write_record(tmp_path / "records", bert, record_of(bert))
    comparison = Comparison(sheet, tmp_path)
    lines = comparison.status("bert")
    assert "done on 2026-01-02, 01234567" in lines[0] and lines[1].split() == ["bert_1", "3", "minutes"]
    assert lines[-1] == "1 of 6 are done; 1.0 hours are left"  # 3 minutes, twice the same, and twice the sheet's 25
    assert [experiment.key for experiment in comparison.missing("^roberta")] == ["roberta_0", "roberta_1"]
    interrupted = record_of(random, (), seconds={"pretraining": None, "CoLA": 60.0})
    assert expected_minutes(random, {"bert_random_1": interrupted}, 25.0) == 25.0
    linear = record_of(random, (), name="words", steps=0)
    assert expected_minutes(random, {"words_0": linear}, 25.0) == 25.0, "linear models are no measure of fine-tuning"
    for regex, message in (
        ("(", "an invalid regex"),
        ("electra", "matches no experiment; there are bert, bert_random"),
    ):
        with pytest.raises(UserError, match=message):
            comparison.missing(regex)
    with pytest.raises(UserError, match=r"no such folder; set --config\.data"):
        Comparison(sheet | {"data": ""}, tmp_path).run_all("")


# ------------------------------------------------------------------------------------------------------------ the page


def test_loss_at_equal_flops():
    """By hand: at 10 TFLOP a step, steps 10 and 20 are 100 and 200 TFLOP; at 15, 150 and 300."""
    one, other, *_ = experiments_of(only(sheet_of(), "bert", "roberta"))
    cheap, dear = record_of(one, (4.0, 3.0)), record_of(other, (5.0, 1.0), flops_per_step=15)
    seeds = {"cheap": [cheap], "dear": [dear], "without a loss": [record_of(one, (), flops_per_step=1)]}
    assert recipes_page.common_flops(seeds) == 200e12
    assert recipes_page.loss_at(cheap, 200e12) == 3.0 and recipes_page.loss_at(cheap, 125e12) == 3.75
    assert recipes_page.loss_at(dear, 200e12) == pytest.approx(5.0 - 4.0 / 3)
    assert recipes_page.loss_at(dear, 100e12) is None and recipes_page.loss_at(dear, 301e12) is None


def test_the_page(tmp_path):
    sheet = only(sheet_of(), "bert", "distilbert", "electra", "words")
    experiments = experiments_of(sheet)
    bert_0, bert_1, electra_0, _, student_0, _, words = experiments
    scores = {name: {task["score"]: 0.25} for name, task in bert_0.tasks.items()}
    records = {
        "bert_0": record_of(bert_0),
        "bert_1": record_of(bert_1, (4.0, 3.2)),
        "electra_0": record_of(electra_0, curve=[Point(20, {"rtd/accuracy": 0.9})], held_out={"rtd/accuracy": 0.9}),
        "distilbert_0": record_of(
            student_0, (4.0, 3.5), 20, parameters=1_500_000, scores=scores, speed={"student": 300.0, "teacher": 200.0}
        ),
        "words_0": record_of(words, (), steps=0, held_out={}),
    }
    recipes_page.write(tmp_path, experiments, records)
    lines = (tmp_path / "README.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    bert, student = ([row for row in rows if row[0].startswith(title)] for title in ("BERT", "DistilBERT"))
    # Pretraining: its loss at 200 TFLOP is that of the end for BERT, and of the first half for the student, at 20 a step.
    assert bert[0][1:] == [
        "2.00 M",
        "2.0 M of 4.0 M",
        "4.0%",
        "200",
        "3.100 ± 0.141",
        "0.500 ± 0.000",
        "3.100 ± 0.141",
        "2.0 ± 0.0",
    ]
    assert student[0][1:] == ["1.50 M", "2.0 M of 4.0 M", "4.0%", "400", "3.500", "0.500", "4.000", "2.0"]
    assert bert[1][1:] == ["0.500 ± 0.000"] * 6 and student[1][1:] == ["0.250"] * 6
    assert student[2] == ["DistilBERT from this BERT", "BERT (masks, next sentence)", "+0.500", "-0.250"]
    assert recipes_page.difference({0: 2.0, 1: 2.0, 2: None}, {1: 1.0, 0: 1.5, 3: 7.0}) == "+0.750 (+0.500, +1.000)"
    electra, of_words = ([row for row in rows if row[0].startswith(title)] for title in ("ELECTRA", "Linear"))
    assert electra[0][5:8] == ["-", "-", "-"] and electra[2][2:] == ["-", "+0.000"], "there is no loss to compare"
    assert len(of_words) == 2, "its scores, and their difference to BERT's"
    assert "- ELECTRA (replaced tokens): rtd/accuracy 0.900" in lines
    kept = (
        "has 75% of the parameters of its teacher, reads 1.50 times as many texts a second, reaches 50.0% of its mean"
    )
    assert any(kept in line for line in lines)
    pictures = {"families_tokens.svg", "families_flops.svg"}
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", *pictures}
    for name in pictures:
        text = (tmp_path / name).read_text()
        assert f"]({name})" in lines[-1] + lines[-2] and "DistilBERT" in text and "ELECTRA" not in text


def test_a_page_without_records_or_scores(tmp_path):
    recipes_page.write(tmp_path, experiments_of(sheet_of()), {})
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    rates = [experiment for experiment in experiments_of(sheet_of("rates")) if "bert_" in experiment.name]
    recipes_page.write(tmp_path, rates, {experiment.key: record_of(experiment) for experiment in rates})
    text = (tmp_path / "README.md").read_text()
    assert "has 100% of the parameters of its teacher." in text and "0.002" in text
    assert "## Fine-tuning" not in text and "## Differences" not in text


# ------------------------------------------------------------------------------------------- operations and the corpora


def test_operations_of_products():
    def flops(function, *shapes) -> int:
        return product_flops(jax.make_jaxpr(function)(*map(jnp.zeros, shapes)).jaxpr)

    one = 2 * 3 * 5 * 7
    assert flops(jnp.matmul, (3, 5), (5, 7)) == one
    assert flops(jnp.matmul, (4, 3, 5), (4, 5, 7)) == 4 * one
    assert flops(jax.jit(lambda x, y: jnp.sin(x @ y)), (3, 5), (5, 7)) == one
    assert flops(jax.grad(lambda x, y: jnp.sin(x @ y).sum(), (0, 1)), (3, 5), (5, 7)) == 3 * one
    assert flops(jax.grad(jax.checkpoint(lambda x, y: jnp.sin(jnp.sin(x @ y) @ y.T).sum())), (3, 5), (5, 7)) > 5 * one
    square = 2 * 3**3
    assert flops(lambda x: jax.lax.fori_loop(0, 9, lambda _, y: y @ x, x), (3, 3)) == 9 * square
    assert flops(lambda x: jax.lax.scan(lambda y, _: (y @ x, None), x, length=4)[0], (3, 3)) == 4 * square
    assert flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x @ x @ x), (3, 3)) == 2 * square
    with pytest.raises(ValueError, match="number of passes is not known"):
        flops(lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 1, lambda y: y @ x, x), (3, 3))


def test_operations_of_a_step(tiny_config, tmp_path):
    """Those of masked language modelling are those of the formula; Muon's own come on top."""
    changes = {"objectives": ("mlm",), "model.pooler": False}
    config = tiny_config(**changes)
    model = tasks.create(config, tmp_path / "run").config.model
    of_formula = flops_per_token(model, 32, 5 / 32) * 8 * 32  # 5 of 32 positions are predicted
    assert config_flops(config, tmp_path / "run") == pytest.approx(of_formula, rel=0.02)
    assert config_flops(tiny_config(**changes, **{"optimizer.name": "muon"}), tmp_path / "run") > 1.1 * of_formula


def test_a_part_of_a_corpus(corpus_dir, tmp_path):
    whole, whole_held_out = Corpus.open(corpus_dir, "train"), Corpus.open(corpus_dir, "validation")
    write_part(corpus_dir, tmp_path / "part", 3)
    part, held_out = (Corpus.open(tmp_path / "part", split) for split in ("train", "validation"))
    assert part.shard_tokens.tolist() == whole.shard_tokens[::3].tolist() and len(whole.shard_tokens) > 3
    assert 0 < part.num_documents < whole.num_documents
    shards, starts = np.zeros((2, 1), np.int64)
    assert (held_out.tokens(shards, starts, 50) == whole_held_out.tokens(shards, starts, 50)).all()
    assert part.documents(np.array([1]), np.array([0])) == whole.documents(np.array([3]), np.array([0]))
    part.check_tokenizer(Tokenizer.load(tmp_path / "part" / "tokenizer"), "")
    shutil.copytree(corpus_dir, tmp_path / "copy")
    hashes = [corpus_hash(folder) for folder in (corpus_dir, tmp_path / "copy", tmp_path / "part")]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("name", ["electra_flops", "modern_40_flops"])
@pytest.mark.slow
def test_fewer_steps_of_equal_operations(name, corpus_dir, tmp_path):
    row = recipes.ROWS[name]
    flops = []
    for recipe in (row.recipe, row.against):
        config = small.get_config(recipe)
        config.data.corpus = str(corpus_dir)
        flops.append(config_flops(config, tmp_path / recipe))
    assert row.steps == pytest.approx(flops[1] / flops[0], rel=0.01)


def test_padding(tiny_config, tmp_path):
    """Windows are full; pairs of segments leave some of their row."""
    assert padding_share(tiny_config(objectives=("mlm",)), tmp_path) == 0.0
    assert 0.01 < padding_share(tiny_config(objectives=("mlm", "nsp")), tmp_path) < 0.5


# --------------------------------------------------------------------------------------------------------- a whole one


@pytest.mark.slow
def test_a_student_and_its_teacher(corpus_dir, tmp_path, monkeypatch):
    """From the corpus to the page: the teacher first; what is complete is not done again after a failure."""
    for name, value in environment(1).items():
        monkeypatch.setenv(name, value)
    workdir = tmp_path / "work"
    shutil.copytree(corpus_dir, workdir / "corpus")
    for split in ("train", "dev"):
        (tmp_path / "glue").mkdir(exist_ok=True)
        write_split(tmp_path / "glue", "CoLA", split, count=16)
    sheet = only(sheet_of("pilot"), "bert", "distilbert")
    shrunk = SHRUNK | {"train.num_steps": 4, "checkpoint.every": 2}
    for fields, own in zip(sheet["experiments"], ({}, {"init_layers": (0,)}), strict=True):
        fields["settings"] |= shrunk | {"model.num_layers": 1} | own
    cola = next(task for task in sheet["tasks"] if task["name"] == "CoLA")
    cola["settings"] |= {"data.sequence_length": 32, "train.num_steps": 2}
    sheet |= {"data": str(tmp_path), "tasks": (cola,), "speed_task": "CoLA"}
    comparison = Comparison(sheet, workdir)
    teacher, student = comparison.experiments

    # A failure does not end the others, and what is complete stays.
    seconds = student.folder(workdir) / "seconds.json"
    seconds.parent.mkdir(parents=True)
    seconds.write_text("[")
    with pytest.raises(UserError, match=r"1 experiments failed; see .*distilbert_0_.*start again"):
        comparison.run_all("distilbert")
    seconds.unlink()
    trained = set(comparison.seconds(teacher))
    comparison.run_all("distilbert")
    assert trained == set(comparison.seconds(teacher)) == {"pretraining"}
    assert len((teacher.run(workdir) / "starts.jsonl").read_text().splitlines()) == 1
    assert teacher.run(workdir).is_dir() and not student.folder(workdir).exists(), "the teacher's record is to come"

    (record,) = read_records(workdir / "records", comparison.experiments).values()
    assert [point.step for point in record.curve] == [2, 4] and record.points("mlm/loss")[-1][1] > 0
    assert set(record.scores["CoLA"]) >= {"matthews"} and set(record.seconds) == {"pretraining", "evaluation", "CoLA"}
    assert record.tokens == 4 * 8 * 32 and record.flops_per_step > 0 and record.speed["student"] > 0
    assert str(tmp_path) not in json.dumps(msgspec.to_builtins(record)), "a path of this machine"
    assert "DistilBERT" in (workdir / "records" / "README.md").read_text()
    assert Comparison(sheet, workdir).missing("distilbert") == []

    # Without the last checkpoint there is no record, and on another corpus none that would not compare.
    shutil.rmtree(teacher.run(workdir) / "checkpoints" / "4")
    with pytest.raises(UserError, match="1 experiments failed"):
        comparison.run_all("^bert")
    assert "bert_0" not in comparison.records
    write_record(workdir / "records", student, msgspec.structs.replace(record, corpus="another"))
    with pytest.raises(UserError, match=r"distilbert_0.json: of corpus another, but .* is .*remove the records"):
        Comparison(sheet, workdir).run_all("^bert")


def test_the_command_of_pretraining(tmp_path):
    bert, _, student, _ = experiments_of(only(sheet_of(), "bert", "distilbert"))
    command = pretraining_command(student, tmp_path, tmp_path / "corpus", bert.run(tmp_path))
    assert f"--config.options.distillation.folder={bert.run(tmp_path)}" in command
    assert "--config.train.seed=0" in command and any(part.endswith("small.py:distilbert,3200") for part in command)
    assert isinstance(student.pretraining(), ConfigDict)
