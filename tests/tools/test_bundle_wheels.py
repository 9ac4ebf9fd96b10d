"""What launch/bundle_wheels.sh deletes; pip is replaced by a program that does nothing."""

from tests.running import ROOT, assert_one_line, run

SCRIPT = str(ROOT / "launch" / "bundle_wheels.sh")


def test_foreign_folders_are_refused_and_other_files_are_kept(tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    thesis, old = folder / "thesis.txt", folder / "old-1.0-py3-none-any.whl"
    (folder / "README.txt").write_text("My thesis.\n")
    thesis.write_text("text")
    pip = tmp_path / "python"
    pip.write_text("#!/bin/sh\n")
    pip.chmod(0o755)
    command = ["env", f"PYTHON={pip}", "bash", SCRIPT, "--python=3.12", f"--output={folder}"]
    assert_one_line(run(command, code=2).stderr, "was not made by this script")
    assert (folder / "README.txt").read_text() == "My thesis.\n" and thesis.exists()

    (folder / "README.txt").unlink()
    thesis.unlink()
    run(command)  # an empty folder
    thesis.write_text("text")
    old.write_text("")
    run(command)
    assert thesis.read_text() == "text" and not old.exists()


def test_help():
    lines = run(["bash", SCRIPT, "--help"]).stdout.splitlines()
    assert lines[0].startswith("Collects") and any("--output" in line for line in lines)
    assert lines[-1].startswith("It prints the command")
