"""Prediction from file to file in parts: the same output as in one go, after an interruption, and from several processes."""

import json
import os
import re

import pytest

from bert_jax.errors import UserError
from bert_jax.parts import part_path, parts_folder, write_in_parts
from tests.running import ROOT, command, finish, run, start

INPUTS = [{"number": number} for number in range(25)]


def squares(inputs):
    for values in inputs:
        yield values | {"square": values["number"] ** 2}


def lines(output, results):
    return (f"{result['number']} {result['square']}\n" for result in results)


def write(output, answers=squares, origin=None, inputs=INPUTS):
    write_in_parts(output, origin or {"input": 1}, inputs, answers, 4, lines)


def test_an_interrupted_job_continues_after_its_last_part(tmp_path):
    output, expected = tmp_path / "out.txt", "".join(f"{number} {number**2}\n" for number in range(25))
    write(output)
    assert output.read_text() == expected and not parts_folder(output).exists()

    def stops(inputs):
        for values in squares(inputs):
            if values["number"] == 14:
                raise KeyboardInterrupt
            yield values

    with pytest.raises(KeyboardInterrupt):
        write(output, stops)
    assert output.read_text() == expected, "the old output stays until the new one is whole"
    parts = parts_folder(output)
    assert sorted(path.name for path in parts.glob("part-*")) == [f"part-00000{number}.jsonl" for number in range(3)]
    with pytest.raises(UserError, match="has parts with another input"):
        write(output, origin={"input": 2})
    seen = []
    write(output, lambda inputs: (seen.append(values["number"]) or values | {"square": 0} for values in inputs))
    assert seen == list(range(12, 25)) and not parts.exists()
    assert output.read_text().splitlines()[11:13] == ["11 121", "12 0"]


def test_a_damaged_part_and_an_invalid_input(tmp_path):
    output = tmp_path / "out.txt"

    def invalid(inputs):
        yield from squares(inputs)
        raise UserError("line 4: fix it")

    with pytest.raises(UserError, match="line 4"):
        write(output, invalid)
    assert not list(tmp_path.iterdir()), "a file that must be fixed has no use for parts"

    def damages(inputs):
        for values in squares(inputs):
            if values["number"] == 24:
                part_path(parts_folder(output), 2).write_text('{"number": ')
            yield values

    with pytest.raises(UserError, match=re.escape("part-000002.jsonl: damaged; remove it, and start again")):
        write(output, damages)
    part_path(parts_folder(output), 2).unlink()
    write(output)
    assert len(output.read_text().splitlines()) == 25


def test_several_processes_write_what_one_does(tiny_bert, tmp_path):
    """Columns, too: each process labels its parts, and the first one joins them."""
    texts = [json.dumps({"text": f"the {'old ' * (number % 4)}[MASK] river", "id": number}) for number in range(23)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts) + "\n")
    flags = [f"--workdir={tiny_bert}", f"--input={tmp_path / 'texts.jsonl'}"]
    run(command("predict", *flags, f"--output={tmp_path / 'one.jsonl'}"))
    launcher = [
        "bash",
        str(ROOT / "launch" / "local.sh"),
        "--processes=2",
        "--devices-per-process=2",
        "--command=predict",
    ]
    done = finish(start([*launcher, "--", *flags, f"--output={tmp_path / 'two.jsonl'}", "--part_size=5"]))
    assert done.returncode == 0, done.stderr
    one, two = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("one.jsonl", "two.jsonl")
    )
    assert [answer["id"] for answer in two] == [answer["id"] for answer in one] == list(range(23))
    for answer, other in zip(one, two, strict=True):
        for mask, masks in zip(answer["masks"][0], other["masks"][0], strict=True):
            assert mask["probability"] == pytest.approx(masks["probability"], rel=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "texts.jsonl", "two.jsonl"]
    refused = finish(start([*launcher, "--", f"--workdir={tiny_bert}", "--text=the [MASK]", f"--output={os.devnull}"]))
    assert refused.returncode == 2 and "need an --input and an --output that are files" in refused.stderr
