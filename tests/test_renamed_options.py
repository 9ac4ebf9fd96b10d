"""Options under names that they had: folders of older runs are read, and new configs are told the new names."""

import dataclasses
import json
import re
from typing import Any

import pytest
from flax.traverse_util import unflatten_dict

from bert_jax.config import FORMER_SWITCHES, RENAMED, from_dict, to_dict, with_new_names
from bert_jax.errors import EXIT_USER_ERROR, UserError
from bert_jax.model.config import EncoderConfig
from bert_jax.run_folder.folder import NOT_STRUCTURE, flattened, get_config, read_config
from bert_jax.run_folder.resuming import check_same_run, warn_of_changes
from bert_jax.tasks import pretraining, qa, text
from tests.running import assert_one_line, command
from tests.running import run as run_command

CONFIGS = {config.task: config for config in (pretraining.Config(), text.Config(), qa.Config())}


def new_path(old: str) -> str:
    section, _, _ = old.rpartition(".")
    return f"{section}.{RENAMED[old]}".lstrip(".")


def config_with(old: str) -> Any:
    """The config of a task that has the option."""
    return next(config for config in CONFIGS.values() if new_path(old) in flattened(to_dict(config)))


def with_old_name(config: Any, old: str, value: Any) -> dict[str, Any]:
    """The config as an older version wrote it: the option under its former name, with this value."""
    values = json.loads(json.dumps(to_dict(config)))
    *sections, name = old.split(".")
    section = values
    for part in sections:
        section = section[part]
    del section[RENAMED[old]]
    section[name] = value
    return values


def other_value(value: Any) -> Any:
    """Another value that the option may have."""
    return {bool: not value, int: 7, float: 0.05, str: "0.5:layers/"}[type(value)]


def other_values(config: Any, old: str) -> list[tuple[Any, Any]]:
    """Values under the former name and what they are now."""
    if old in FORMER_SWITCHES:
        return list(zip((False, True), FORMER_SWITCHES[old], strict=True))
    value = other_value(flattened(to_dict(config))[new_path(old)])
    return [(value, value)]


CASES = [(old, *values) for old in RENAMED for values in other_values(config_with(old), old)]


@pytest.mark.parametrize("old, former, value", CASES)
def test_a_folder_of_an_older_run_is_read(old, former, value, tmp_path):
    config = config_with(old)
    values = with_old_name(config, old, former)
    (tmp_path / "config.json").write_text(json.dumps(values))
    expected = flattened(to_dict(config)) | {new_path(old): value}
    for read in (read_config(tmp_path), get_config(str(tmp_path))):
        assert flattened(to_dict(from_dict(config, read))) == expected


@pytest.mark.parametrize("name", [f"model.{field.name}" for field in dataclasses.fields(EncoderConfig)] + ["init_from"])
def test_a_run_of_a_program_without_an_option_is_resumed(name, tmp_path, caplog):
    """It did what the option's default means now, which needs no warning; another value is another run."""
    config = flattened(json.loads(json.dumps(to_dict(pretraining.Config()))))
    older = {option: value for option, value in config.items() if option != name}
    (tmp_path / "config.json").write_text(json.dumps(unflatten_dict(older, sep=".")))
    check_same_run(tmp_path, unflatten_dict(config, sep="."))
    warn_of_changes(tmp_path, unflatten_dict(config, sep="."), lambda *_: "", step=4)
    assert not caplog.records
    if name.removeprefix("model.") not in NOT_STRUCTURE:
        default, other = config[name], other_value(config[name])
        with pytest.raises(UserError, match=re.escape(f"{name} is {str(default) or 'empty'} there, {other} here")):
            check_same_run(tmp_path, unflatten_dict(config | {name: other}, sep="."))


@pytest.mark.parametrize("old", RENAMED)
def test_a_new_config_is_told_the_new_name(old):
    config = config_with(old)
    with pytest.raises(UserError) as raised:
        from_dict(config, with_old_name(config, old, other_values(config, old)[0][0]))
    message = f"config.{old}: the option is called {RENAMED[old]} now"
    if old in FORMER_SWITCHES:
        off, on = FORMER_SWITCHES[old]
        message += f", with '{on}' for True and '{off}' for False"
    assert str(raised.value) == message


def test_switches_that_became_choices_keep_their_meaning():
    """The options of an older run give the same masks; a switch that is no bool is left for the check of types."""
    older = to_dict(pretraining.Config())
    older["options"]["mlm"] = {"whole_word_mask": True, "exact_count": False}
    mlm = from_dict(pretraining.Config(), with_new_names(older)).options["mlm"]
    assert (mlm.masking, mlm.count) == ("word", "independent")
    older["options"]["mlm"] = {"exact_count": ["yes"]}
    with pytest.raises(UserError, match=r"config.options.mlm.count=\['yes'\]: must be of type str"):
        from_dict(pretraining.Config(), with_new_names(older))


def test_a_new_name_is_no_former_one():
    options = {option for config in CONFIGS.values() for option in flattened(to_dict(config))}
    assert options.isdisjoint(RENAMED)
    assert options >= set(map(new_path, RENAMED))


@pytest.mark.parametrize("damage", [{"model": 3}, {"options": {"mlm": None}}, {"data": []}])
def test_a_damaged_config_is_not_translated(damage, tmp_path):
    values = to_dict(pretraining.Config()) | damage
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError):
        from_dict(pretraining.Config(), read_config(tmp_path))


FILES = {
    "a dataclass": "config = to_config_dict(Config(fresh_layers=2))",
    "a ConfigDict": "config = to_config_dict(Config())\n    config.fresh_layers = 2",
}


@pytest.mark.parametrize("where", FILES)
def test_a_config_file_with_a_former_name(where, tmp_path):
    file = tmp_path / "config.py"
    imports = "from bert_jax.config import to_config_dict\nfrom bert_jax.tasks.text import Config\n"
    file.write_text(f"{imports}\n\ndef get_config():\n    {FILES[where]}\n    return config\n")
    flags = (f"--config={file}", f"--workdir={tmp_path}/run")
    done = run_command(command("finetune", *flags), code=EXIT_USER_ERROR)
    assert_one_line(done.stderr, "fresh_layers", "called reinit_layers now")
