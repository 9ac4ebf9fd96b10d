"""New tokens of a trained model: chosen by what they save, with rows of their pieces, and nothing else changes."""

import json

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax.conversion import convert as conversion
from bert_jax.data.corpus.prepare import prepare
from bert_jax.data.sources.documents import held_out, read_documents
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import EXIT_USER_ERROR, UserError
from bert_jax.run import run_training
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.provenance import read_origin
from tests.running import ROOT, assert_one_line, command, run
from tools.extend_vocabulary import Options, extend, new_tokens
from tools.lib.new_rows import num_rows, with_rows
from tools.lib.new_words import best_words, count_words, is_word, listed_words, measure

# 'tender' saves most: 3 times as frequent as 'shore', which is seldom but has many pieces.
DOCUMENTS = [
    f"The tender ship and the Tender river, or a tender train {number}.\n{'An old shore. ' * (number % 2)}"
    for number in range(40)
]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """The flag --source of DOCUMENTS."""
    path = tmp_path_factory.mktemp("source") / "texts.txt"
    path.write_text("\n\n".join(DOCUMENTS))
    return f"text:{path}"


def tool(*flags: str, code: int = 0):
    python, *_ = command("predict")
    return run([python, str(ROOT / "tools" / "extend_vocabulary.py"), *flags], code=code)


@pytest.fixture(scope="module")
def extended(model_folder, source, tmp_path_factory):
    """A model in Hugging Face's format, the run made of it with three new tokens, and what was printed."""
    folder = model_folder("bert/pretraining")
    output = tmp_path_factory.mktemp("extended") / "new" / "run"
    flags = ("--num_tokens=3", "--held_out=0.2", f"--output={output}")
    done = tool(f"--init_from={folder}", f"--source={source}", *flags)
    assert [path.name for path in output.parent.iterdir()] == ["run"], "nothing temporary is left"
    return folder, output, done


def test_new_tokens_are_shown_and_there(extended):
    folder, output, done = extended
    before, after = (bert_jax.load(place).tokenizer for place in (folder, output))
    first = before.vocab_size
    assert after.tokens(range(first, after.vocab_size)) == ["tender", "train", "shore"]
    assert after.encode(["a TENDER train; tenders"])[0].tolist()[:3] == [before.encode(["a"])[0][0], first, first + 1]
    lines = done.stdout.splitlines()
    (row,) = [line for line in lines if "tender" in line]
    pieces = before.tokens(before.encode(["tender"])[0])
    assert " ".join(pieces) in row
    frequency, saved = (int(cell.strip("│ ")) for cell in row.split("│")[-3:-1])
    assert saved == frequency * (len(pieces) - 1) and frequency % 3 == 0 and 3 * 25 < frequency < 3 * 40
    (summary,) = [line for line in lines if line.startswith("held-out text")]
    assert "tokens per word before" in summary and "(-" in summary
    assert read_origin(output) == {"tool": "extend_vocabulary", "sources": [{"run": str(folder)}]}


def test_outputs_of_old_tokens_are_the_same(extended):
    folder, output, _ = extended
    before, after = bert_jax.load(folder), bert_jax.load(output)
    assert before.model.config.vocab_size == 53 and after.model.config.vocab_size in (53, 128)
    ids = np.arange(before.tokenizer.vocab_size)[None, 4:20]
    one, other = before(ids), after(ids)
    for left, right in zip(one.hidden_states, other.hidden_states, strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(one.logits["nsp"], other.logits["nsp"])
    size = before.tokenizer.vocab_size
    np.testing.assert_allclose(one.logits["mlm"][..., :size], other.logits["mlm"][..., :size], atol=1e-5)


@pytest.mark.parametrize("case", ["bert/pretraining", "albert/masked_lm", "electra/pretraining"])
def test_rows_are_means_of_pieces(case, model_folder):
    """ALBERT's table is narrower than its encoder, and ELECTRA's discriminator has no output for tokens."""
    encoder = bert_jax.load(model_folder(case))
    words, first = [(5, 6, 7), (9, 9)], 50  # one row of padding is used, and two are added

    def check(model, params, size):
        table = np.asarray(params["encoder"]["embeddings"]["tokens"]["embedding"])
        old = np.asarray(encoder.params["encoder"]["embeddings"]["tokens"]["embedding"])
        assert model.config.vocab_size == len(table) == size
        np.testing.assert_array_equal(table[:first], old[:first])
        np.testing.assert_allclose(table[first], old[[5, 6, 7]].mean(0), rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(table[first + 1], old[9])
        if "mlm" in model.heads:
            bias, old_bias = (np.asarray(tree["heads"]["mlm"]["bias"]) for tree in (params, encoder.params))
            np.testing.assert_allclose(bias[first], old_bias[[5, 6, 7]].mean(), rtol=1e-4, atol=1e-7)
            assert len(bias) == size
        changed = {
            jax.tree_util.keystr(path)
            for (path, array), other in zip(
                jax.tree.leaves_with_path(params), jax.tree.leaves(encoder.params), strict=True
            )
            if array is not other
        }
        assert len(changed) == 1 + ("mlm" in model.heads), "the rest of the parameters is the same"

    check(*with_rows(encoder.model, encoder.params, words, first), 53)
    first = 53
    check(*with_rows(encoder.model, encoder.params, words, first), 128)


def test_tables_grow_to_multiples_of_128():
    assert [num_rows(128, tokens) for tokens in (100, 128, 129, 256, 257)] == [128, 128, 256, 256, 384]
    assert num_rows(53, 53) == 53 and num_rows(53, 54) == 128 and num_rows(30522, 30523) == 30592


def test_training_goes_on(extended, source, tiny_config, tmp_path):
    _, output, _ = extended
    tokenizer = Tokenizer.load(output / "tokenizer")
    prepare(read_documents(source), tokenizer, tmp_path / "corpus", source="tests", held_out_fraction=0.2)
    model = run_folder.read_config(output)["model"]
    changes = {f"model.{name}": value for name, value in model.items()} | {"data.sequence_length": 16}
    changes |= {"init_from": str(output), "data.corpus": str(tmp_path / "corpus"), "train.num_steps": 1}
    changes |= {"objectives": ("mlm",)}
    scores = run_training(tiny_config(**changes), tmp_path / "run")
    assert np.isfinite(scores["loss"])


def test_transformers_has_the_same_ids_and_outputs(transformers, torch, extended, tmp_path):
    _, output, _ = extended
    conversion.export_run(output, tmp_path / "hf")
    texts = ["a tender train on the SHORE, tender-ship tenders", "Tender!"]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    encoder = bert_jax.load(output)
    for text in texts:
        ids = theirs(text)["input_ids"]
        assert ids[1:-1] == encoder.tokenizer.encode([text])[0].tolist()
        assert max(ids) >= encoder.tokenizer.vocab_size - 3
    model = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        expected = model(**theirs(texts[1:], return_tensors="pt")).prediction_logits.numpy()
    ids = np.array(theirs(texts[1:])["input_ids"])
    np.testing.assert_allclose(encoder(ids).logits["mlm"], expected, atol=1e-4)


def test_a_run_is_extended_once_more(extended, source, tmp_path):
    """With words of a file; those of the first time are there already."""
    _, output, _ = extended
    path = tmp_path / "words.txt"
    path.write_text("quieter\n\nShores\n")
    options = Options(source, "blank-line", None, str(path), 10, 0.2)
    extend(output, None, options, tmp_path / "run")
    before, after = bert_jax.load(output), bert_jax.load(tmp_path / "run")
    text = "a quieter shores on the tender shore"
    assert after.tokenizer.tokens(after.tokenizer.encode([text])[0])[1:3] == ["quieter", "shores"]
    np.testing.assert_allclose(before.encode(["a tender shore"]), after.encode(["a tender shore"]), atol=1e-6)
    assert after.tokenizer.vocab_size == before.tokenizer.vocab_size + 2
    assert read_origin(tmp_path / "run")["sources"] == [{"run": str(output), "step": 0}]
    path.write_text("quieter\nTender\n")
    with pytest.raises(UserError, match="line 2, 'Tender': is already in the vocabulary; remove this line"):
        extend(output, None, options, tmp_path / "x")
    assert not (tmp_path / "x").exists()


# ----------------------------------------------------------------------------------------------------------------------
# The choice
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_words_that_save_most_are_chosen(kind):
    texts = ["the old river and a quiet ship of the (tender) shore, or so"] * 3
    tokenizer = Tokenizer.train(
        ["the old river and a quiet ship ( ) , 0 1"] * 9, 300 if kind == "bpe" else 60, kind=kind
    )
    counts = count_words(tokenizer, [*texts, "shore, shore. shore: 10 1011 --- 🙂🙂"])
    assert sum(count for text, count in counts.items() if text.strip() == "shore") == 6
    assert all(is_word(text.strip()) for text in counts)
    words = best_words(tokenizer, counts, 100, 1)
    assert [word.saved for word in words] == sorted((word.saved for word in words), reverse=True)
    assert all(word.saved == (len(word.pieces) - 1) * counts[word.text] > 0 for word in words)
    assert len(best_words(tokenizer, counts, 2, 1)) == 2 and best_words(tokenizer, counts, 100, 7) == []
    longer = tokenizer.extended([word.pieces for word in words])
    lengths = measure(tokenizer, longer, texts)
    assert lengths.words == 3 * len(texts[0].split())
    assert lengths.before - lengths.after == sum(
        word.saved for word in best_words(tokenizer, count_words(tokenizer, texts), 100, 1)
    )
    assert best_words(longer, count_words(longer, texts), 100, 1) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shore", True),
        ("x86", True),
        ("हिन्दी", True),
        ("2019", False),
        ("a_b", False),
        ("™", False),
        ("", False),
        ("m²", False),
    ],
)
def test_words_are_letters_accents_and_digits(text, expected):
    assert is_word(text) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("shore\n\na\n", "line 3, 'a': is already in the vocabulary; remove this line"),
        ("shore\nshore\n", "line 2, 'shore': is listed twice; remove one of the lines"),
        ("an old ship\n", "line 1, 'an old ship': several words by the rules of this tokenizer"),
        ("wxyz\n", "line 1, 'wxyz': has characters that the tokenizer does not know"),
        ("\n", "has no words; write one a line"),
    ],
)
def test_words_that_cannot_become_tokens(small_tokenizer, tmp_path, content, message):
    (tmp_path / "words.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        listed_words(small_tokenizer, tmp_path / "words.txt")


def test_words_of_a_file_have_their_counts(small_tokenizer, tmp_path):
    (tmp_path / "words.txt").write_text("Shore\n  tender\n")
    (tmp_path / "text.txt").write_text("\n\n".join(f"a shore, the SHORE {number}" for number in range(40)))
    options = Options(f"text:{tmp_path / 'text.txt'}", "blank-line", None, str(tmp_path / "words.txt"), 10, 0.5)
    words, longer, _ = new_tokens(small_tokenizer, options)
    num_counted = sum(not held_out(document.id, 0.5) for document in read_documents(options.source))
    assert [(word.text, word.frequency) for word in words] == [("shore", 2 * num_counted), ("tender", 0)]
    assert longer.vocab_size == small_tokenizer.vocab_size + 2


def test_mistakes_are_one_line(tiny_bert, source, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    right = Options(source, "blank-line", 3, None, 10, 0.2)
    for folder, step, options, message in [
        (tiny_bert.parent / "hf", None, right._replace(tokens="x"), "set --num_tokens=N or --tokens=FILE, and not"),
        (
            tiny_bert.parent / "hf",
            None,
            right._replace(source="text:x", num_tokens=None, tokens="x"),
            "x: missing",
        ),
        (tiny_bert, 7, right, "no checkpoint of step 7; choose from 0"),
        (tiny_bert.parent / "hf", 7, right, "--step=7: is for runs"),
        (tmp_path / "no", None, right, "no: has no config.json; use a run folder or a model"),
        (tmp_path / "other", None, right, "model_type 'gpt2' is not one of"),
        (tiny_bert, None, right._replace(held_out=1e-9), "no document of text:.* is held out; set a larger fraction"),
        (
            tiny_bert,
            None,
            right._replace(min_frequency=999),
            "all are there already; use more text, or a lower --min_freq",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            extend(folder, step, options, tmp_path / "new" / "out")
    with pytest.raises(UserError, match="exists and is not empty; choose a new folder"):
        extend(tiny_bert, None, right, tiny_bert)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match=r"--source=text:.*empty.txt: has no text"):
        extend(tiny_bert, None, right._replace(source=f"text:{tmp_path / 'empty.txt'}"), tmp_path / "new" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "other"]
    done = tool(f"--init_from={tiny_bert}", f"--source={source}x", f"--output={tmp_path / 'o'}", code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, "set --num_tokens=N or --tokens=FILE")
