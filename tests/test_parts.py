"""Prediction from file to file in parts: the same output as in one go, after an interruption, and from several processes."""

import json
import logging
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
    write_in_parts(output, origin or {"run": 1}, inputs, answers, 4, lines)


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
    assert [int(path.name.split("-")[1]) for path in sorted(parts.glob("part-*"))] == [0, 1, 2]
    with pytest.raises(UserError, match="has parts with another run"):
        write(output, origin={"run": 2})
    seen = []
    write(output, lambda inputs: (seen.append(values["number"]) or values | {"square": 0} for values in inputs))
    assert seen == list(range(12, 25)) and not parts.exists()
    assert output.read_text().splitlines()[11:13] == ["11 121", "12 0"]


def test_only_parts_with_other_inputs_are_made_again(tmp_path, caplog):
    """A line near the end is invalid, so it is corrected, and so is one before it; the other parts stay."""
    output, seen = tmp_path / "out.txt", []

    def up_to_line_20(inputs):
        for values in inputs:
            if values["number"] == 20:
                raise UserError("line 20: fix it")
            seen.append(values["number"])
            yield from squares([values])

    with caplog.at_level(logging.INFO), pytest.raises(UserError, match="line 20"):
        write(output, up_to_line_20)
    assert "keeps the answers up to here" in caplog.text
    seen.clear()
    corrected = [{"number": values["number"] + 100} if values["number"] in (9, 20) else values for values in INPUTS]
    write(
        output, lambda inputs: squares(seen.append(values["number"]) or values for values in inputs), inputs=corrected
    )
    assert seen == [8, 109, 10, 11, 120, *range(21, 25)]
    expected = [values["number"] for values in corrected]
    assert output.read_text() == "".join(f"{number} {number**2}\n" for number in expected)


def test_two_jobs_do_not_write_one_output(tmp_path):
    output = tmp_path / "out.txt"

    def writes_again(inputs):
        with pytest.raises(UserError, match=r"in use by process .*; wait for it, stop it, or use another --output"):
            write(output)
        yield from squares(inputs)

    write(output, writes_again)
    assert len(output.read_text().splitlines()) == 25


def test_a_damaged_part_and_an_invalid_input(tmp_path):
    output = tmp_path / "out.txt"

    def invalid(inputs):
        yield from squares(inputs[:3])
        raise UserError("line 4: fix it")

    with pytest.raises(UserError, match="line 4"):
        write(output, invalid)
    assert not list(tmp_path.iterdir()), "nothing was answered that could be kept"

    damaged = part_path(parts_folder(output), 2, INPUTS[8:12])

    def damages(inputs):
        for values in squares(inputs):
            if values["number"] == 24:
                damaged.write_text('{"number": ')
            yield values

    with pytest.raises(UserError, match=re.escape(f"{damaged}: damaged; remove it, and start again")):
        write(output, damages)
    damaged.unlink()
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
