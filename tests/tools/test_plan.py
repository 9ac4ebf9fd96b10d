"""Plans: what a step needs without the hardware. Programs are compiled in child processes, as the tool does."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import re
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from bert_jax.errors import UserError
from bert_jax.model.config import EncoderConfig
from bert_jax.parallel.chips import CHIPS
from bert_jax.parallel.mesh import ParallelConfig, make_mesh
from bert_jax.tasks.pretraining import Config
from bert_jax.train.optimizers import OptimizerConfig
from bert_jax.train.step import Training
from tests.running import assert_one_line, run
from tools.lib import plan_measure, plan_search
from tools.lib.hlo import Program
from tools.lib.hlo_costs import Collective, costs
from tools.lib.plan_bounds import Plan, network_seconds
from tools.lib.plan_compile import activation_bytes, compile_step, needed_bytes, splash_flops
from tools.lib.plan_table import Price, search_text, to_json, to_text
from tools.lib.plan_topology import Topology, check_libtpu
from tools.lib.step_of_config import abstract_batch, losses_of, pretraining_config, random_batch

MODEL = EncoderConfig(vocab_size=512, hidden_size=64, num_layers=3, num_heads=4, intermediate_size=256, pooler=False)


def config(model: EncoderConfig = MODEL, batch_size: int = 16, **parallel: int) -> Config:
    default = Config(model=model, objectives=("mlm",), optimizer=OptimizerConfig(name="adamw"))
    return dataclasses.replace(
        default,
        parallel=ParallelConfig(**parallel),
        data=dataclasses.replace(default.data, sequence_length=64),
        train=dataclasses.replace(default.train, batch_size=batch_size),
    )


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A plan for eight GPUs, over which everything is split."""
    topology, split = Topology.parse("h100:8"), config(data=2, fsdp=4)
    return Plan(split, topology, compile_step(split, topology))


def test_what_a_device_holds(plan):
    facts = plan.facts
    assert facts.mesh == {"data": 2, "fsdp": 4, "tensor": 1}
    abstract = losses_of(plan.config).model.abstract
    assert facts.parameters == sum(array.size for array in jax.tree.leaves(abstract))
    assert facts.parameters < facts.parameter_bytes < 1.2 * facts.parameters, (
        "a quarter of four bytes each; norms are whole"
    )
    assert 2 * facts.parameter_bytes <= facts.optimizer_bytes < 2.1 * facts.parameter_bytes, "two moments"
    assert facts.total_bytes > facts.parameter_bytes + facts.optimizer_bytes + facts.temporary_bytes
    assert plan.fits and not facts.out_of_memory


def test_operations_are_those_of_the_formula(plan):
    assert plan.facts.formula_flops < plan.facts.matmul_flops < 1.25 * plan.facts.formula_flops


def test_operations_in_kernels():
    """Of layers that the kernel computes, but the last one, whose queries are few: 12 D for each key."""
    both = dataclasses.replace(MODEL, global_attention_every=2, local_window=8)  # layers 0 and 2 are global
    of_keys = 16 * 64 * 12 * 64
    assert splash_flops(config(MODEL), {"global": "splash"}) == of_keys * 2 * 64
    assert splash_flops(config(both), {"global": "splash", "local": "chunked"}) == of_keys * 64
    assert splash_flops(config(both), {"global": "chunked", "local": "splash"}) == of_keys * (17 - 8 * 9 / 64)
    assert splash_flops(config(MODEL), {"global": "plain"}) == 0


def test_activations_of_a_microbatch():
    """They grow with its rows, and recomputation keeps less of them."""
    mesh = make_mesh(ParallelConfig(), jax.devices()[:2])

    def saved(of: Config) -> int:
        losses = losses_of(of)
        with jax.set_mesh(mesh):
            return activation_bytes(of, losses, mesh, losses.model.abstract, abstract_batch(of, losses, mesh))

    whole, states = saved(config()), 3 * 4 * (16 // 2) * 64 * 64
    halves = dataclasses.replace(config().train, accumulation_steps=2)
    full = saved(config(dataclasses.replace(MODEL, remat="full")))
    assert saved(dataclasses.replace(config(), train=halves)) == whole // 2
    assert whole > 10 * states and states / 2 < full < whole / 4


def test_bounds(plan):
    bound = plan.bounds
    assert bound.matmuls == pytest.approx(2 * plan.facts.matmul_flops / 989e12), "float32 at half the rate on GPUs"
    assert bound.memory == plan.facts.memory_bytes / 3350e9
    assert bound.seconds == max(bound.matmuls, bound.memory, bound.network) > 0
    assert getattr(bound, bound.bound_by) == bound.seconds <= bound.serial
    assert bound.utilization(bound.seconds) < 1


def test_the_network():
    chip = CHIPS["h100"]
    once = Collective("all-reduce", 10**9, tuple(range(8)), 1, (), "")
    assert network_seconds([once], chip) == pytest.approx(2 * 7 / 8 * 1e9 / 450e9)
    assert network_seconds([once._replace(times=3)], chip) == pytest.approx(3 * network_seconds([once], chip))
    between = 2 * 1 / 2 * 1e9 / 8 / 50e9  # two servers, whose eight devices share what goes between them
    both = once._replace(group=tuple(range(16)))
    assert network_seconds([both], chip) == pytest.approx(max(between, 2 * 15 / 16 * 1e9 / 450e9))
    pair = once._replace(group=(0, 8))  # the copies of a model that is split within servers
    assert network_seconds([pair], chip) == pytest.approx(1e9 / 50e9)
    exchange = both._replace(kind="all-to-all")
    assert network_seconds([exchange], chip) == pytest.approx(1e9 / 2 / 50e9), "each device sends its own half"


def test_text_and_json_say_the_same(plan):
    price = Price(tokens=1e12, chip_hour_price=2.0)
    text, values = to_text(plan, price, "tiny.py"), to_json(plan, price)
    assert max(map(len, text.splitlines())) <= 100
    assert "An estimate" in text and values["is_estimate"]
    assert json.loads(json.dumps(values))["facts"]["parameters"] == plan.facts.parameters
    training = values["training"]["bound"]
    assert f"{training['tokens_per_second']:,.0f}" in text
    assert training["hours"] == pytest.approx(1e12 / training["tokens_per_second"] / 3600)
    assert training["money"] == pytest.approx(2 * training["chip_hours"]) == pytest.approx(16 * training["hours"])
    assert {"all-gather", "all-reduce"} <= values["collectives"].keys()
    for kind, entry in values["collectives"].items():
        assert re.search(rf"{kind} +{entry['count']:,} ", text)


def test_what_gpus_attend_with():
    """cuDNN's attention is only on GPUs: 'chunked' is compiled in its place, and the plan says so."""
    model = dataclasses.replace(MODEL, dtype="bfloat16", attention="cudnn", attention_dropout=0.0)
    topology, here = Topology.parse("h100:1"), config(model)
    facts = compile_step(here, topology)
    assert facts.attention == {"global": "cudnn"}
    text = to_text(Plan(here, topology, facts), Price(), "tiny.py")
    assert "(global layers cudnn)" in text and "as 'chunked' in place of cudnn" in text
    assert max(map(len, text.splitlines())) <= 100
    tried = {candidate.model.attention for candidate in plan_search.candidates(here, topology)}
    assert tried == {"auto", "plain"}


def test_out_of_memory_is_an_answer(plan):
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.01G of 15.75G hbm."
    facts = dataclasses.replace(plan.facts, out_of_memory=message, total_bytes=needed_bytes(message, 1 << 30))
    full = plan._replace(facts=facts)
    text = to_text(full, Price(), "tiny.py")
    assert not full.fits and full.bounds is None
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(r"total +18\.0  of 74\.5: OUT OF MEMORY\nactivations .*\nTo make it fit: raise train.acc", text)
    assert "bounds" not in to_json(full, Price())
    other = "the total memory required for HLO temporaries (272.00G) exceeds available HBM (15.25G)."
    assert needed_bytes(other, 1 << 30) == 273 << 30 and needed_bytes("no figure", 1 << 30) == 0


@pytest.mark.parametrize("devices", [1, 2])
def test_measured_against_predicted(devices):
    """On a CPU steps are run, and the rates that predict them are measured in turns with them."""
    here = config(batch_size=8)
    mesh = make_mesh(here.parallel, jax.devices()[:devices])
    losses = losses_of(here)
    with pytest.MonkeyPatch.context() as patch, jax.set_mesh(mesh):
        patch.setattr(plan_measure, "TURNS", 1)
        patch.setattr(plan_measure, "SECONDS", 0.1)
        patch.setattr(plan_measure, "SIZES", plan_measure.SIZES[:2])
        training, batch = Training.of(losses, here, mesh), random_batch(here, losses, mesh)
        compiled = training.jitted_step.trace(jax.eval_shape(training.make_state), {}, batch).lower().compile()
        each = costs(Program.parse(compiled.as_text()))
        measured = plan_measure.measure(training, compiled, batch, "float32", each)
    assert measured["predicted_share"] == measured["predicted_seconds"] / measured["step_seconds"] > 0
    assert measured["predicted_seconds"] > devices * sum(cost.times * cost.flops for cost in each) / measured["flops"]
    assert np.isfinite(list(measured.values())).all()


# ----------------------------------------------------------------------------------------------------------------------
# The search
# ----------------------------------------------------------------------------------------------------------------------


def test_candidates_divide_everything():
    topology = Topology.parse("v5e:2x4")
    tried = list(plan_search.candidates(config(), topology))
    for candidate in tried:
        mesh = candidate.parallel
        assert mesh.data * mesh.fsdp * mesh.tensor == 8
        assert 16 % (candidate.train.accumulation_steps * mesh.data * mesh.fsdp) == 0 and 4 % mesh.tensor == 0
    assert {candidate.model.remat for candidate in tried} >= {"none", "full"}
    assert {candidate.train.accumulation_steps for candidate in tried if candidate.parallel.data == 8} == {1, 2}
    assert len({tuple(plan_search.flags_of(candidate)) for candidate in tried}) == len(tried)
    base = list(plan_search.candidates(config(EncoderConfig(), batch_size=512), topology))
    best = min(base, key=lambda candidate: plan_search.rough_seconds(candidate, topology))
    assert (best.train.accumulation_steps, best.model.remat, best.parallel.tensor) == (1, "none", 1)


def test_what_comes_to_the_same_is_tried_once():
    """'auto' is one of the others, and those that cannot do what the config asks are left out."""
    topology = Topology.parse("v5e:2x4")
    with_dropout = dataclasses.replace(MODEL, attention_dropout=0.1)
    assert plan_search.attentions_for(config(with_dropout), topology) == ["auto", "chunked"], "plain at 64 tokens"
    assert plan_search.attentions_for(config(dataclasses.replace(MODEL, attention_dropout=0.0)), topology) == [
        *("auto", "chunked", "splash")
    ]
    assert plan_search.attentions_for(config(), Topology.parse("cpu:1")) == ["auto", "chunked"]


def test_a_search_of_what_no_device_can_train():
    refused = config(dataclasses.replace(MODEL, dtype="float16"))
    with pytest.raises(UserError, match=r"model.dtype=float16: its gradients vanish"):
        plan_search.search(refused, Topology.parse("cpu:1"), max_compiles=1)


def test_the_table_of_a_search(plan):
    """The fastest first; what does not fit and what is refused are rows, too."""
    full = plan._replace(facts=dataclasses.replace(plan.facts, out_of_memory="Used 99G of 75G"))
    fits, refused = plan_search.Attempt(config(), plan), plan_search.Attempt(config(), None, "cannot do this; " * 9)
    assert fits.seconds == plan.bounds.serial < plan_search.Attempt(config(), full).seconds == refused.seconds
    text = search_text([fits, plan_search.Attempt(config(), full), refused], plan.topology)
    assert max(map(len, text.splitlines())) <= 100
    assert re.search("out of memory\n.*refused: cannot do this", text)
    assert f"{plan.bounds.tokens_per_second(fits.seconds):,.0f}" in text


def test_a_batch_that_divides_over_no_mesh():
    model = dataclasses.replace(MODEL, num_heads=1)
    with pytest.raises(
        UserError, match=r"train.batch_size=3 divides over no mesh of 2 devices; make it a multiple of 2"
    ):
        plan_search.search(config(model, batch_size=3), Topology.parse("h100:2"), max_compiles=1)


def test_what_needs_more_than_one_that_did_not_fit_is_not_compiled():
    topology, small = Topology.parse("v5e:2x2"), config(data=4)
    halves = dataclasses.replace(small, train=dataclasses.replace(small.train, accumulation_steps=2))
    attempt = plan_search.Attempt(halves, None)
    assert plan_search.needs_more(small, attempt, topology)
    assert not plan_search.needs_more(halves, plan_search.Attempt(small, None), topology)
    assert not plan_search.needs_more(dataclasses.replace(small, parallel=ParallelConfig(fsdp=4)), attempt, topology)


# ----------------------------------------------------------------------------------------------------------------------
# Messages
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "v5e", "v5e:3x3", "v9:2x2", "h100", "h100:0", "cpu:x", "cpu:99999"])
def test_unknown_topologies(name):
    problem = f"={name}: unknown" if name else " is missing"
    with pytest.raises(UserError, match=rf"--topology{problem}; there are v5e:1x1\|2x2.*h200:N.*cpu:N"):
        Topology.parse(name)


def test_topologies():
    assert Topology.parse("v5p:4x4x4") == ("v5p:4x4x4", "tpu", 64, CHIPS["v5p"])
    assert Topology.parse("cpu:2") == ("cpu:2", "cpu", 2, None)
    assert Topology.parse("a100:16").devices == 16
    with pytest.raises(UserError, match="above 8, use a multiple of 8"):
        Topology.parse("h100:12")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": 3, "fsdp": -1}, "3 does not divide the 8 devices; use sizes that do"),
        ({"batch_size": 12}, "train.batch_size=12 does not divide into 1 microbatches over 8 devices"),
    ],
)
def test_what_does_not_fit_the_devices(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        compile_step(config(**changes), Topology.parse("h100:8"))


def test_other_messages():
    for values in ({"tokens": -1}, {"chip_hour_price": float("nan")}):
        with pytest.raises(UserError, match=r"--\w+=\S+: must be a positive number, or left out"):
            Price(**values)
    with pytest.raises(UserError, match=r"config.task='glue': only steps of pretraining"):
        pretraining_config(ConfigDict({"task": "glue"}))


def test_libtpu_is_missing_or_of_another_version(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu.*not installed.*pip install 'jax\[tpu\]=="):
        check_libtpu()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    with pytest.raises(
        UserError, match=rf"libtpu 0.0.1 is not the version for jax {jax.__version__}, which is \d+.*pip"
    ):
        check_libtpu()


def test_the_report(plan, tmp_path):
    """One row for each file in both tables; of a step that does not fit, what it needs."""
    full = plan._replace(facts=dataclasses.replace(plan.facts, out_of_memory="Used 99G of 75G", total_bytes=99 << 30))
    for name, each in (("fits", plan), ("full", full)):
        (tmp_path / f"{name}.json").write_text(json.dumps(to_json(each, Price())))
    report = [sys.executable, "tools/plan_report.py", f"--plans={tmp_path}"]
    lines = run(report).stdout.splitlines()
    assert lines[2].startswith("| fits | 2 x 4 x 1, 1, none, plain | 0.00 of 74.51 | ")
    assert lines[3] == "| full | 2 x 4 x 1, 1, none, plain | 99.00 of 74.51: out of memory | - | - | - |"
    assert re.match(r"\| fits \| 8 \| .*\d+ all-gather.* \| [\d.]+ \|$", lines[7])
    (tmp_path / "none.json").write_text(json.dumps({"command": [], "search": []}))
    assert_one_line(run(report, code=2).stderr, f"{tmp_path}/none.json: is a search in which nothing fits")
    (tmp_path / "none.json").write_text("{}")
    assert_one_line(run(report, code=2).stderr, f"{tmp_path}/none.json: is not a plan of tools/plan.py")
    assert_one_line(run([*report[:2], "--plans=no"], code=2).stderr, "--plans=no: has no *.json", "plan.py --output")


def test_the_command(tmp_path):
    """From the flags to the file, in a real process; a mistake is one line."""
    output = tmp_path / "new" / "plan.json"
    flags = ["--config", "configs/quickstart.py", f"--output={output}", "--config.model.num_layers=1"]
    search = ["--search", "--max_compiles=1", "--tokens=1e9"]
    done = run([sys.executable, "tools/plan.py", "--topology=a100:2", *search, *flags])
    values = json.loads(output.read_text())
    assert values["step"]["layers"] == 1 and values["training"]["serial"]["chip_hours"] > 0
    (only,) = values["search"]
    assert only["facts"] == values["facts"] and f"The fastest that fits: {' '.join(only['flags'])}\n" in done.stdout
    assert "\nquickstart.py on a100:2: 2 x NVIDIA A100-SXM4-80GB, mesh" in done.stdout
    assert done.stderr.startswith("1 of 1: --config.parallel.data=")
    done = run([sys.executable, "tools/plan.py", "--topology=a100:2", "--phase=1", *flags], code=2)
    assert done.stderr == "error: --phase=1: the config has a single phase, 0\n"
    done = run([sys.executable, "tools/plan.py", "--config=configs/nope.py", "--topology=a100:2"], code=2)
    assert done.stderr == "error: configs/nope.py: no such config file; use a file of configs/\n"


def test_a_plan_for_tpus(libtpu):
    """As it is for real: products with the matrix units, the memory of the chip, gradients scattered."""
    check_libtpu()
    topology, split = (
        Topology.parse("v5e:2x2"),
        config(data=1, fsdp=4, model=dataclasses.replace(MODEL, dtype="bfloat16")),
    )
    plan = Plan(split, topology, compile_step(split, topology))
    assert plan.fits and plan.bounds.bound_by in ("matmuls", "memory", "network")
    assert 0.95 * plan.facts.formula_flops < plan.facts.matmul_flops < 1.3 * plan.facts.formula_flops
    kinds = to_json(plan, Price())["collectives"].keys()
    assert "all-gather" in kinds and kinds & {"reduce-scatter", "all-reduce"}


def test_a_step_that_does_not_fit_a_tpu(libtpu):
    large = config(
        dataclasses.replace(MODEL, hidden_size=2048, intermediate_size=8192, vocab_size=1 << 20), batch_size=1
    )
    topology = Topology.parse("v5e:1x1")
    facts = compile_step(large, topology)
    assert "RESOURCE_EXHAUSTED" in facts.out_of_memory and facts.total_bytes > topology.chip.memory
