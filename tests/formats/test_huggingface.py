"""Models in Hugging Face's format: golden cases of all families and heads, round trips, shards, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert_jax.config import from_dict
from bert_jax.errors import UserError
from bert_jax.formats import huggingface, huggingface_config
from bert_jax.formats.families import FAMILIES, HEADS
from bert_jax.formats.tensors import Tensors, write_safetensors
from bert_jax.model.build import Model
from bert_jax.parallel.mesh import ParallelConfig, make_mesh, shardings
from bert_jax.tasks import pretraining
from configs import small

GOLDEN = Path(__file__).parents[1] / "golden"  # made by golden/make.py
TOLERANCE = 2e-5
LAYOUTS = [name for name, family in FAMILIES.items() if "exported_as" not in family.fixed]  # others: test_families.py
CASES = sorted(str(path.parent.relative_to(GOLDEN)) for path in GOLDEN.glob("*/*/config.json"))
ORACLE_CASES = [
    f"{family}/{head}"
    for family in LAYOUTS
    for head in (
        "masked_lm",
        *(["pretraining"] if family in ("bert", "albert", "electra") else []),
        "sequence_classification",
        "token_classification",
        *(["question_answering"] if family not in ("electra", "modernbert") else []),
    )
]
THEIR_LOGITS = {"mlm": "prediction_logits", "nsp": "seq_relationship_logits", "sop": "sop_logits"}


def test_there_is_a_case_of_every_family_and_head():
    assert {case.split("/")[0] for case in CASES} == set(LAYOUTS)
    for family in LAYOUTS:
        found = {name for case in CASES if case.startswith(f"{family}/") for name in look(case).heads}
        assert found == set(FAMILIES[family].heads)


def look(case: str) -> huggingface.ModelFolder:
    return huggingface.inspect(GOLDEN / case)


def run(model: Model, params, golden):
    """Hidden states after every layer, logits by head."""

    @jax.jit
    def forward(params):
        bound = model.bind(params)
        mask = golden["attention_mask"]
        output = bound.encoder(golden["input_ids"], mask, golden.get("token_type_ids"), all_hidden_states=True)
        return output.hidden_states, bound.all_logits(output, mask)

    return jax.tree.map(lambda x: np.asarray(x, np.float32), forward(params))


def assert_golden(found: huggingface.ModelFolder, params, golden, tolerance=TOLERANCE, model: Model | None = None):
    hidden_states, logits = run(model or found.model, params, golden)
    is_token = golden["attention_mask"] > 0  # states of padding mean nothing

    def compare(ours, theirs, what):
        assert ours.shape == theirs.shape, f"{what}: {ours.shape} for {theirs.shape}"
        if ours.shape[:2] == is_token.shape:
            ours, theirs = ours[is_token], theirs[is_token]
        difference = np.abs(ours - theirs).max()
        assert difference <= tolerance, f"{what} differs from the reference by {difference:.2e}"

    for number, state in enumerate(hidden_states):
        compare(state, golden[f"hidden_{number}"], f"hidden state {number} (0 is the embeddings)")
    assert f"hidden_{len(hidden_states)}" not in golden
    for name, ours in logits.items():
        if name == "qa":
            theirs = np.stack([golden["start_logits"], golden["end_logits"]], -1)
        else:
            theirs = golden[THEIR_LOGITS[name] if THEIR_LOGITS.get(name) in golden else "logits"]
        compare(ours, theirs, f"{name} logits")


@pytest.mark.parametrize("case", CASES)
def test_computes_what_the_reference_does(case):
    found = look(case)
    assert_golden(found, huggingface.load_params(found), dict(np.load(GOLDEN / case / "io.npz")))


@pytest.mark.real
@pytest.mark.parametrize("case", ORACLE_CASES)
def test_computes_what_the_reference_does_in_more_cases(case, oracle):
    found = huggingface.inspect(oracle / "hf" / case)
    assert_golden(found, huggingface.load_params(found), dict(np.load(oracle / "hf" / case / "io.npz")))


EXECUTIONS = {
    "unrolled": ({"scan_unroll": 4}, TOLERANCE),
    "remat": ({"remat": "full"}, TOLERANCE),
    "bfloat16": ({"dtype": "bfloat16"}, 0.25),  # of hidden states up to 4, after four layers of 8 bits each
}


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("family", ["albert", "modernbert"])
def test_holds_however_it_is_computed(family, execution):
    case = f"{family}/masked_lm"
    found = look(case)
    options, tolerance = EXECUTIONS[execution]
    model = Model.build(
        dataclasses.replace(found.model.config, **options),
        {name: HEADS[name].factory(count) for name, count in found.heads.items()},
    )
    assert_golden(found, huggingface.load_params(found), dict(np.load(GOLDEN / case / "io.npz")), tolerance, model)


@pytest.mark.parametrize("family", LAYOUTS)
def test_each_device_gets_its_part(family):
    found = look(f"{family}/masked_lm")
    mesh = make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        placed = shardings(found.model.abstract, found.model.axes, mesh)
        params = huggingface.load_params(found, placed)
        assert jax.tree.map(lambda x: x.sharding, params) == placed
        up = params["encoder"]["layers"]["mlp"]["up"]["kernel"]
        assert up.addressable_shards[0].data.size == up.size // 4
        assert_golden(found, params, dict(np.load(GOLDEN / family / "masked_lm" / "io.npz")))


# ----------------------------------------------------------------------------------------------------------------------
# Round trips
# ----------------------------------------------------------------------------------------------------------------------


def export(found: huggingface.ModelFolder, params, folder: Path) -> Path:
    folder.mkdir()
    family, config = huggingface_config.family_of(found.model.config)
    architecture, heads = huggingface_config.architecture_of(family, tuple(found.model.heads))
    tensors = dict(huggingface.exported_tensors(found.model, params, family, heads))
    write_safetensors(folder / "model.safetensors", {name: x.shape for name, x in tensors.items()}, tensors.items())
    classes = next((count for count in found.heads.values() if count), 2)
    special = {name: value for name, value in found.config.items() if name.endswith("_token_id")}
    config |= special | {"architectures": [architecture], "id2label": {str(i): f"LABEL_{i}" for i in range(classes)}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_what_is_exported_is_what_was_imported_to_the_last_bit(case, tmp_path):
    found = look(case)
    folder = export(found, huggingface.load_params(found), tmp_path / "exported")
    again = huggingface.inspect(folder)
    assert again.family is found.family and again.heads == found.heads
    assert again.model.config == found.model.config
    before, after = load_file(GOLDEN / case / "model.safetensors"), load_file(folder / "model.safetensors")
    assert set(before) - set(found.family.duplicates) == set(after)
    for name, array in after.items():
        np.testing.assert_array_equal(array, before[name], strict=True, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_what_is_exported(case, torch, transformers, tmp_path):
    found = look(case)
    folder = export(found, huggingface.load_params(found), tmp_path / "exported")
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    model, notes = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert not any(notes.values()), f"missing or unexpected: {notes}"
    golden = dict(np.load(GOLDEN / case / "io.npz"))
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        inputs = {name: torch.from_numpy(golden[name]) for name in names if name in golden}
        output = model.eval()(**inputs, output_hidden_states=True)
    for name, theirs in golden.items():
        if "logits" in name:
            np.testing.assert_allclose(output[name].numpy(), theirs, atol=1e-4, err_msg=name)
    is_token = golden["attention_mask"] > 0
    np.testing.assert_allclose(
        output.hidden_states[-1].numpy()[is_token],
        golden[f"hidden_{len(output.hidden_states) - 1}"][is_token],
        atol=1e-4,
    )


def test_an_encoder_that_no_family_has_is_not_exported():
    config = dataclasses.replace(look("bert/base").model.config, norm="rmsnorm")
    with pytest.raises(
        UserError, match=r"no family .* computes this encoder: it differs from bert in norm; from roberta"
    ):
        huggingface_config.family_of(config)
    padded = dataclasses.replace(config, norm="layernorm", dtype="bfloat16", remat="full")
    assert huggingface_config.family_of(padded)[0].model_type == "bert", "how it is computed does not matter"


def test_small_recipes_can_be_exported():
    """An empty option counts as what it stands for: `head_activation` as `activation`."""
    expected = {"modern": "modernbert", "bert_learned": "bert"}
    models = {name: from_dict(pretraining.Config(), small.get_config(name)).model for name in expected}
    assert all(model.head_activation == "" for model in models.values())
    assert {name: huggingface_config.family_of(model)[0].model_type for name, model in models.items()} == expected


def test_files_in_several_parts_and_of_other_types(tmp_path):
    source = load_file(GOLDEN / "bert/masked_lm/model.safetensors")
    shutil.copy(GOLDEN / "bert/masked_lm/config.json", tmp_path)
    names = sorted(source)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, members in parts.items():
        save_file({name: np.asarray(jnp.asarray(source[name], jnp.bfloat16)) for name in members}, tmp_path / part)
    index = {"weight_map": {name: part for part, members in parts.items() for name in members}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    params = huggingface.load_params(huggingface.inspect(tmp_path))
    whole = huggingface.load_params(look("bert/masked_lm"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), params, whole)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"b\.safetensors: missing; get the file again"):
        huggingface.inspect(tmp_path)


def test_old_names_bare_names_and_counters(tmp_path):
    source = load_file(GOLDEN / "bert/base/model.safetensors")
    renamed = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): array for name, array in source.items()}
    renamed = {name.replace("LayerNorm.bias", "LayerNorm.beta"): array for name, array in renamed.items()}
    renamed["embeddings.position_ids"] = np.arange(17)[None]
    save_file(renamed, tmp_path / "model.safetensors")
    shutil.copy(GOLDEN / "bert/base/config.json", tmp_path)
    params, whole = huggingface.load_params(huggingface.inspect(tmp_path)), huggingface.load_params(look("bert/base"))
    jax.tree.map(np.testing.assert_array_equal, params, whole)


def test_heads_that_are_not_there_are_fresh():
    found = huggingface.inspect(GOLDEN / "roberta/base", ("mlm", "classification"))
    assert found.fresh == ("mlm", "classification")
    params = huggingface.load_params(found)
    assert np.abs(params["heads"]["classification"]["dense"]["kernel"]).max() > 0
    whole = huggingface.load_params(look("roberta/base"))
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], whole["encoder"])


# ----------------------------------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------------------------------


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\nX\x04\x00\x00\x00true\x85R.")


LAYER = "bert.encoder.layer.1.output.dense.weight"
WORDS = "bert.embeddings.word_embeddings.weight"
REFUSED = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"no config\.json in it; use a model folder"),
    "no JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json: damaged, or not .*; get the folder again",
    ),
    "no object": (lambda folder: (folder / "config.json").write_text("[]"), "Expected `object`, got `array`"),
    "a word for a number": (
        lambda folder: change_config(folder, num_attention_heads="two"),
        "num_attention_heads='two' in config.json is not of type int; get the folder again",
    ),
    "other family": (
        lambda folder: change_config(folder, model_type="t5"),
        "model_type 't5' is not one of bert, roberta",
    ),
    "decoder": (
        lambda folder: change_config(folder, is_decoder=True),
        "is_decoder=True .* is not supported, only False",
    ),
    "activation": (lambda folder: change_config(folder, hidden_act="mish"), "activation 'mish' is not one of gelu"),
    "no activation": (lambda folder: change_config(folder, hidden_act=["gelu"]), "activation .* is not one of gelu"),
    "no number": (
        lambda folder: change_config(folder, layer_norm_eps="1e-12"),
        "layer_norm_eps='1e-12' .* is not of type float",
    ),
    "no index": (
        lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}'),
        "index.json: damaged, or not what is expected",
    ),
    "no file": (
        lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}'),
        "index.json: damaged, or not what is expected",
    ),
    "uneven heads": (lambda folder: change_config(folder, num_attention_heads=5), "hidden_size=12 does not divide"),
    "more layers": (lambda folder: change_config(folder, num_hidden_layers=4), r"missing bert\.encoder\.layer\.3\."),
    "fewer layers": (lambda folder: change_config(folder, num_hidden_layers=2), r"unknown bert\.encoder\.layer\.2\."),
    "other sizes": (
        lambda folder: change_config(folder, vocab_size=60),
        rf"tensors with other shapes than in config\.json: {WORDS} \(53, 12\) instead of \(60, 12\)",
    ),
    "no tensors": (lambda folder: (folder / "model.safetensors").unlink(), r"no model\.safetensors in it"),
    "truncated": (truncate, "truncated or not a safetensors file"),
    "missing": (lambda folder: change_tensors(folder, lambda x: x.pop(LAYER)), f"missing {LAYER}"),
    "unknown": (lambda folder: change_tensors(folder, lambda x: x.update({"a.b": np.ones(2)})), "a.b: of type F64"),
    "more": (lambda folder: change_tensors(folder, lambda x: x.update(more=np.ones(2, np.float32))), "unknown more"),
    "integers": (
        lambda folder: change_tensors(folder, lambda x: x.update({LAYER: np.ones((12, 20), np.int8)})),
        f"tensor {LAYER}: of type I8; only float32",
    ),
    "nan": (
        lambda folder: change_tensors(folder, lambda x: x[LAYER].fill(np.nan)),
        f"{LAYER}: holds numbers that are not",
    ),
    "untied": (
        lambda folder: change_tensors(folder, lambda x: x.update({"cls.predictions.decoder.weight": x[WORDS] + 1})),
        "cls.predictions.decoder.weight differs from .*untied weights are not supported",
    ),
    "pickle": (pickle, r"pytorch_model\.bin: (a pickle, which needs torch|not a file of weights only)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, tmp_path):
    spoil, message = REFUSED[name]
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "bert/masked_lm", folder)
    spoil(folder)
    with pytest.raises(UserError, match=message) as raised:
        huggingface.load_params(huggingface.inspect(folder))
    assert "\n" not in str(raised.value)


def test_tied_weights_stored_twice_are_read(tmp_path):
    shutil.copytree(GOLDEN / "bert/masked_lm", tmp_path, dirs_exist_ok=True)
    change_tensors(tmp_path, lambda x: x.update({"cls.predictions.decoder.weight": x[WORDS].copy()}))
    params = huggingface.load_params(huggingface.inspect(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, params, huggingface.load_params(look("bert/masked_lm")))


def test_tied_weights_stored_under_the_name_of_the_head_are_read(tmp_path):
    shutil.copytree(GOLDEN / "bert/masked_lm", tmp_path, dirs_exist_ok=True)
    ties = {WORDS: "cls.predictions.decoder.weight", "cls.predictions.bias": "cls.predictions.decoder.bias"}
    change_tensors(tmp_path, lambda x: x.update({ties[name]: x.pop(name) for name in ties}))
    params = huggingface.load_params(huggingface.inspect(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, params, huggingface.load_params(look("bert/masked_lm")))


@pytest.mark.parametrize("family", FAMILIES)
def test_options_that_are_left_out_are_those_of_transformers(family, transformers):
    """Of a config.json with nothing but the sizes; the other way round, one that the newest transformers writes is read."""
    written = transformers.AutoConfig.for_model(family).to_dict()
    sizes = {name for name in FAMILIES[family].options.values() if name not in FAMILIES[family].defaults}
    sizes |= {"num_hidden_layers", "max_position_embeddings", "embedding_size"}
    alone = {name: value for name, value in written.items() if name in sizes}
    ours = huggingface_config.encoder_config(FAMILIES[family], alone, "alone")
    assert ours == huggingface_config.encoder_config(FAMILIES[family], written, "written")


def test_layers_that_attend_globally_by_the_names_of_transformers_5():
    config = json.loads((GOLDEN / "modernbert" / "base" / "config.json").read_text())
    del config["global_attn_every_n_layers"]

    def every(types: str) -> int:
        names = {"f": "full_attention", "s": "sliding_attention"}
        options = config | {"num_hidden_layers": len(types), "layer_types": [names[letter] for letter in types]}
        return huggingface_config.encoder_config(FAMILIES["modernbert"], options, "").global_attention_every

    assert [every(types) for types in ("ffff", "fsfsf", "fssf", "fsss")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["sliding_attention", "full_attention"] * 2}, "layer_types in config.json"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear"}}}, "rope_type='linear' .* is not supported"),
    ],
)
def test_attention_that_no_option_expresses_is_refused(changes, message, tmp_path):
    shutil.copytree(GOLDEN / "modernbert/base", tmp_path, dirs_exist_ok=True)
    change_config(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        huggingface.inspect(tmp_path)


def test_weights_of_torch_are_read_by_torch(torch, tmp_path):
    source = load_file(GOLDEN / "bert/masked_lm/model.safetensors")
    torch.save({name: torch.from_numpy(array) for name, array in source.items()}, tmp_path / "pytorch_model.bin")
    shutil.copy(GOLDEN / "bert/masked_lm/config.json", tmp_path)
    jax.tree.map(
        np.testing.assert_array_equal,
        huggingface.load_params(huggingface.inspect(tmp_path)),
        huggingface.load_params(look("bert/masked_lm")),
    )


def test_our_writer_writes_what_the_library_reads(tmp_path):
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b": np.float32([]),
        "c": np.ones((1, 5), np.float32),
    }
    write_safetensors(tmp_path / "model.safetensors", {name: x.shape for name, x in arrays.items()}, arrays.items())
    for name, array in load_file(tmp_path / "model.safetensors").items():
        np.testing.assert_array_equal(array, arrays[name], strict=True)
    assert Tensors.open(tmp_path).shapes == {name: x.shape for name, x in arrays.items()}
