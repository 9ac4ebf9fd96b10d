"""The classical baseline of a text classification task: TF-IDF over words and pairs of words, logistic regression.

python tools/tfidf_baseline.py --train=train.jsonl --validation=validation.jsonl --output=tfidf.json
"""

import json
import sys
from pathlib import Path

from absl import flags
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, without an installation

from bert_jax import cli
from bert_jax.data.tables import read_table


def define_flags() -> None:
    """Not at import: other programs have flags of the same names."""
    flags.DEFINE_string("train", None, ".jsonl or .tsv file with the fields text and label", required=True)
    flags.DEFINE_string("validation", None, "the same, held out", required=True)
    flags.DEFINE_string("output", "", "file for the accuracies, as JSON")


def main() -> None:
    result = baseline(flags.FLAGS.train, flags.FLAGS.validation)
    print(f"held-out accuracy {result['accuracy']:.4f}; the same label always: {result['majority']:.4f} at best")
    if flags.FLAGS.output:
        Path(flags.FLAGS.output).write_text(json.dumps(result) + "\n")


def baseline(train: str | Path, validation: str | Path) -> dict[str, float]:
    """Held-out 'accuracy' of the classifier, and 'majority': the most that one label for all texts can reach.

    Raises:
      UserError: a file is missing or lacks the fields.
    """
    (texts, labels), (held_out_texts, held_out_labels) = columns(train), columns(validation)
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, tol=1e-3, max_iter=1000)
    )
    classifier.fit(texts, labels)
    return {
        "accuracy": float(classifier.score(held_out_texts, held_out_labels)),
        "majority": max(map(held_out_labels.count, set(labels))) / len(held_out_labels),
    }


def columns(path: str | Path) -> tuple[list[str], list[str]]:
    """Texts and labels of a file."""
    rows = read_table(path, ("text", "label"))
    return [row["text"] for row in rows], [row["label"] for row in rows]


if __name__ == "__main__":
    define_flags()
    cli.run(main)
