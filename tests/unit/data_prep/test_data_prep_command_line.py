import errno
import fcntl
import shlex
import subprocess
import sys

import pytest
from made_up_corpus import build, build_arguments, write_corpus
from tokenizers import Tokenizer, models

from data_prep.__main__ import main
from data_prep.build_folder import open_build_folder
from data_prep.plan import BuildArguments, BuildPlan


def failed(capfd, *argv):
    """Run a command that fails, and return its single line of error."""
    status = main(list(argv))
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert status == 1
    assert len(lines) == 1
    return lines[0]


def build_flags(tmp_path, source):
    return ["build", "--source", source, "--vocab_size", "300", "--output_dir", str(tmp_path / "out"), "--workers", "1"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--executor condor", "--executor condor: not available; allowed: local, slurm, ray"),
        ("--format parquet", "--format parquet: not available; allowed: native, nvidia"),
        ("--format nvidia --dupe_factor 0", "error: --dupe_factor 0: must be between 1 and 1000"),
        ("--dupe_factor 5", "error: --dupe_factor: requires --format nvidia; native rows hold no masks"),
        ("--seq_length 4", "--seq_length 4: must be between 8 and 65535"),
        ("--validation_fraction 1.5", "--validation_fraction 1.5: must be above 0 and below 1"),
        ("--seed -1", "--seed -1: must be between 0 and 4294967295"),
        ("--similarity 0", "--similarity 0.0: must be above 0 and at most 1"),
        ("--similarity 1.5", "--similarity 1.5: must be above 0 and at most 1"),
        ("--keep_language en,xx", "--keep_language en,xx: unknown language xx; allowed"),
        ("--vocab /no/vocab.txt", "--vocab /no/vocab.txt: no such file"),
        ("--source book=x", "unknown kind 'book'; did you mean 'books'?"),
        ("--source text=/no/such/place", "/no/such/place: no such file, and no file matches it as a glob"),
    ],
)
def test_invalid_argument_is_an_error_of_one_line(tmp_path, corpus, capfd, flags, message):
    assert message in failed(capfd, *build_arguments(corpus, tmp_path / "out", *flags.split()))
    assert not (tmp_path / "out").exists()


def test_damaged_input_in_a_worker_is_an_error_of_one_line(tmp_path, capfd):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{oops}\n')
    assert "a.jsonl:2: not JSON" in failed(capfd, *build_flags(tmp_path, f"jsonl={tmp_path}/a.jsonl"))


def test_corpus_without_documents_after_cleaning_is_an_error_with_reasons(tmp_path, capfd):
    (tmp_path / "a.txt").write_text("Short.\n\nAlso short.\n\n" + "1234 5678 | " * 20)
    line = failed(capfd, *build_flags(tmp_path, f"text={tmp_path}/a.txt"))
    assert "no document is left after cleaning: 1 not prose" in line
    assert "2 shorter than 64 characters" in line


def test_single_document_is_an_error_of_one_line(tmp_path, tiny_vocab, capfd):
    (tmp_path / "a.txt").write_text("This is the one and only document there is. " * 80)
    arguments = build_arguments(tmp_path / "a.txt", tmp_path / "out", "--vocab", tiny_vocab)
    assert "hold a single document" in failed(capfd, *arguments)


@pytest.mark.parametrize("flags", ["--objective mlm", "--objective mlm --pack documents", "--objective mlm+nsp"])
def test_split_without_a_row_is_an_error_of_one_line(tmp_path, capfd, flags):
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate([*special, "я"])}, merges=[]))
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    folder = write_corpus(tmp_path / "text", files=1, documents=8)
    arguments = ["build", "--source", f"text={folder}", "--output_dir", str(tmp_path / "out"), "--workers", "1"]
    line = failed(capfd, *arguments, "--tokenizer", str(tmp_path / "tokenizer.json"), *flags.split())
    assert "--seq_length 128: the train documents give no row" in line


def test_directory_that_cannot_be_made_is_an_error_of_one_line(tmp_path, corpus, capfd):
    (tmp_path / "out").write_text("a file")
    assert "out: File exists" in failed(capfd, *build_flags(tmp_path, f"text={corpus}"))


def test_directory_with_other_files_is_an_error(tmp_path, corpus, capfd):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    assert "holds other files (thesis.tex)" in failed(capfd, *build_flags(tmp_path, f"text={corpus}"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_full_disk_is_an_error_of_one_line_and_the_build_can_be_resumed(tmp_path, corpus, sound_build, capfd):
    """A limit on file size simulates a full disk."""
    output_dir, vocab = tmp_path / "out", sound_build / "vocab.txt"
    arguments = shlex.join(build_arguments(corpus, output_dir, "--vocab", str(vocab)))
    command = f"ulimit -f 24; exec {sys.executable} -m data_prep {arguments}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert (result.returncode, len(errors)) == (1, 1), result.stderr
    assert "no space left to write" in errors[0]
    assert "Traceback" not in result.stderr
    assert build(corpus, output_dir, "--vocab", str(vocab)) == 0


def test_sources_lists_every_kind_with_an_example(capsys):
    assert main(["sources"]) == 0
    out = capsys.readouterr().out
    for example in ("wikipedia-dump=", "wikiextractor=", "books=", "text=", "jsonl=", "--source python-docs"):
        assert example in out


@pytest.mark.parametrize("command", [["--help"], ["build", "--help"], ["verify", "--help"], ["sources", "--help"]])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 0
    assert "python -m data_prep " in capsys.readouterr().out.split("example", 1)[1]


def test_training_libraries_are_not_imported():
    code = "import sys, data_prep.__main__; sys.exit(bool({'torch', 'deepspeed', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO], ids=errno.errorcode.get)
def test_build_says_where_the_file_system_has_no_locks(number, tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    plan = BuildPlan(BuildArguments((), None, 300, False, (32,), "mlm", 0.1, 0, 64, "en"), [], [])
    with open_build_folder(tmp_path / "out", plan) as folder:
        assert BuildPlan.read(folder) == plan
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: --output_dir {tmp_path / 'out'}: its file system has no locks")


def test_second_build_in_a_directory_is_refused(tmp_path):
    plan = BuildPlan(BuildArguments((), None, 300, False, (32,), "mlm", 0.1, 0, 64, "en"), [], [])
    refused = pytest.raises(ValueError, match="another build is running in this directory")
    with open_build_folder(tmp_path, plan), refused, open_build_folder(tmp_path, plan):
        pass
