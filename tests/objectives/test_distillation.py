"""Distillation: losses and gradients against torch, tables of other sizes, students that start from a teacher's layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.formats import huggingface, huggingface_config
from bert_jax.model import heads
from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import MaskedLMHead, PooledClassifier
from bert_jax.objectives import distillation
from bert_jax.objectives.losses import Losses, build_model
from tests.objectives.test_base import Vocabulary
from tests.objectives.test_rtd import LENGTH, ROWS, batch

__all__ = ["batch"]  # a fixture
TEACHER = EncoderConfig(
    vocab_size=60, hidden_size=16, num_layers=4, num_heads=2, intermediate_size=24, max_positions=LENGTH
)
STUDENT = dataclasses.replace(TEACHER, vocab_size=64, num_layers=2, num_token_types=0, pooler=False, classifier="relu")
OPTIONS = distillation.Options(folder="teacher")


@pytest.fixture(scope="module")
def make(random_params):
    """`make(**options)`: the losses, the student's parameters and the teacher's."""

    def of(student=STUDENT, **options):
        objectives = {"distillation": distillation.Objective(dataclasses.replace(OPTIONS, **options), Vocabulary())}
        teacher, model = Model.build(TEACHER, {"mlm": MaskedLMHead}), build_model(student, objectives)
        losses = Losses(model, objectives, {"distillation": {"teacher": teacher}})
        return losses, random_params(model), {"distillation": {"teacher": random_params(teacher, seed=1)}}

    return of


def computed(losses, params, frozen, batch):
    """Loss and metrics without dropout, and the gradient."""

    def total(params, frozen):
        value, metrics, _ = losses.compute(params, frozen, batch, losses.normalizers(batch))
        return value, metrics

    (value, metrics), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params, frozen)
    return float(value), {name: float(x) for name, x in metrics.items()}, gradient


def torch_model(torch, transformers, architecture, config_class, model, params):
    family, config = huggingface_config.family_of(model.config)
    with_head = getattr(transformers, architecture)(
        getattr(transformers, config_class)(**config, attn_implementation="eager")
    )
    tensors = huggingface.exported_tensors(model, params, family, ("mlm",))
    _, unexpected = with_head.load_state_dict({name: torch.tensor(np.array(x)) for name, x in tensors}, strict=False)
    assert not [name for name in unexpected if "pooler" not in name]
    with_head.tie_weights()
    return with_head.eval()


@pytest.mark.parametrize("restrict", [False, True])
def test_losses_and_gradients_are_those_of_the_published_formulas(restrict, make, batch, torch, transformers):
    pairs = ((0, 0), (1, 2), (2, 4))
    options = {"hidden_mse_weight": 0.5, "hidden_layers": tuple(f"{student}:{teacher}" for student, teacher in pairs)}
    losses, params, frozen = make(restrict_ce_to_mask=restrict, **options)
    value, metrics, gradient = computed(losses, params, frozen, batch)

    student = torch_model(torch, transformers, "DistilBertForMaskedLM", "DistilBertConfig", losses.model, params)
    teacher_model = losses.frozen["distillation"]["teacher"]
    teacher = torch_model(
        torch, transformers, "BertForMaskedLM", "BertConfig", teacher_model, frozen["distillation"]["teacher"]
    )
    tensor = {name: torch.tensor(array) for name, array in batch.items()}
    ids, mask = tensor["input_ids"].long(), tensor["attention_mask"]
    types = tensor["token_type_ids"].long()
    ours = student(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    with torch.no_grad():
        theirs = teacher(input_ids=ids, attention_mask=mask, token_type_ids=types, output_hidden_states=True)

    functional = torch.nn.functional
    is_token = (mask * tensor["example_weights"][:, None]) > 0
    labels = torch.full((ROWS, LENGTH), -100)
    for row, column in zip(*np.nonzero(batch["mlm_weights"]), strict=True):
        labels[row, batch["mlm_positions"][row, column]] = int(batch["mlm_labels"][row, column])
    compared = labels > -1 if restrict else is_token
    kl = torch.nn.KLDivLoss(reduction="batchmean")(
        functional.log_softmax(ours.logits[compared][:, : Vocabulary.vocab_size] / 2.0, dim=-1),
        functional.softmax(theirs.logits[compared] / 2.0, dim=-1),
    )
    kl = kl * 2.0**2
    mlm_loss = functional.cross_entropy(ours.logits.view(-1, STUDENT.vocab_size), labels.view(-1))
    states, target = ours.hidden_states[-1][is_token], torch.ones(int(is_token.sum()))
    cosine = torch.nn.CosineEmbeddingLoss()(states, theirs.hidden_states[-1][is_token], target)
    mse = sum(
        functional.mse_loss(ours.hidden_states[own][is_token], theirs.hidden_states[other][is_token])
        for own, other in pairs
    )
    total = 5.0 * kl + 2.0 * mlm_loss + 1.0 * cosine + 0.5 * mse
    total.backward()

    expected = {"kl": kl, "mlm": mlm_loss, "cosine": cosine, "hidden_mse": mse}
    for name, loss in expected.items():
        np.testing.assert_allclose(metrics[f"{name}/loss"], loss.item(), rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(value, total.item(), rtol=1e-5)
    embeddings = student.distilbert.embeddings
    np.testing.assert_allclose(
        gradient["encoder"]["embeddings"]["tokens"]["embedding"], embeddings.word_embeddings.weight.grad, atol=1e-4
    )
    np.testing.assert_allclose(gradient["heads"]["mlm"]["bias"], student.vocab_projector.bias.grad, atol=1e-5)
    down = student.distilbert.transformer.layer[1].ffn.lin2.weight.grad
    np.testing.assert_allclose(gradient["encoder"]["layers"]["mlp"]["down"]["kernel"][1], down.T, rtol=1e-3, atol=1e-4)


def test_no_gradient_flows_into_the_teacher(make, batch):
    losses, params, frozen = make()
    arrays = {name: jnp.asarray(array) for name, array in batch.items()}

    def of_teacher(teacher):
        return losses.compute(params, {"distillation": {"teacher": teacher}}, arrays, losses.normalizers(arrays))[0]

    gradient = jax.jit(jax.grad(of_teacher))(frozen["distillation"]["teacher"])
    assert not any(np.any(x) for x in jax.tree.leaves(gradient))


def test_chunks_of_logits_change_nothing(make, batch, monkeypatch):
    losses, params, frozen = make()
    value, _, gradient = computed(losses, params, frozen, batch)
    monkeypatch.setattr(heads, "LOGITS_BYTES", 4 * ROWS * 2 * Vocabulary.vocab_size)  # a position of each row at a time
    in_chunks, _, gradient_in_chunks = computed(losses, params, frozen, batch)
    np.testing.assert_allclose(in_chunks, value, rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), gradient, gradient_in_chunks)


def test_a_student_that_is_the_teacher_has_nothing_to_learn_from_it(make, batch):
    losses, _, frozen = make(TEACHER)
    _, metrics, _ = computed(losses, frozen["distillation"]["teacher"], frozen, batch)
    assert abs(metrics["kl/loss"]) < 1e-5 and abs(metrics["cosine/loss"]) < 1e-5


@pytest.mark.parametrize(
    "student, options, length, message",
    [
        ({"hidden_size": 32}, {}, 12, "model.hidden_size is 32, the teacher's 16: cosine_weight and hidden_mse_weight"),
        ({}, {"hidden_mse_weight": 1.0, "hidden_layers": ("1:5",)}, 12, "1:5: the student has 2 layers, the teacher 4"),
        ({}, {}, 13, "a teacher of 12 positions, for sequences of 13 tokens"),
    ],
)
def test_teachers_that_do_not_fit(student, options, length, message, make):
    losses, _, _ = make(dataclasses.replace(STUDENT, **student), **options)
    with pytest.raises(UserError, match=message) as raised:
        losses.objectives["distillation"].check(losses.model, losses.frozen["distillation"], length)
    assert "\n" not in str(raised.value)


def test_a_narrower_teacher_is_one_for_its_predictions(make):
    losses, _, _ = make(dataclasses.replace(STUDENT, hidden_size=32), cosine_weight=0.0)
    losses.objectives["distillation"].check(losses.model, losses.frozen["distillation"], LENGTH)


def test_a_teacher_without_predictions(make):
    losses, _, _ = make()
    teacher = Model.build(TEACHER, {"nsp": lambda config, rngs: PooledClassifier(config, 2, rngs)})
    with pytest.raises(UserError, match="teacher: has no head mlm"):
        losses.objectives["distillation"].check(losses.model, {"teacher": teacher}, LENGTH)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0 must not be negative"),
        ({"kl_weight": 0.0, "cosine_weight": 0.0}, "are all 0: nothing of the teacher is read"),
        ({"hidden_mse_weight": 1.0}, "hidden_mse_weight and hidden_layers need each other"),
        ({"hidden_layers": ("1:1",)}, "hidden_mse_weight and hidden_layers need each other"),
        ({"hidden_mse_weight": 1.0, "hidden_layers": ("1",)}, "write STUDENT:TEACHER"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OPTIONS, **options)
