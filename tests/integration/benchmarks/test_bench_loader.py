"""benchmarks loader on tiny sizes: every setting has its figures, beside those of its peer."""

import statistics

import pytest
from benchmark_command import check_error, measure, run_benchmark

from benchmarks.loader import command as loader
from benchmarks.loader.made_up_rows import write_made_up_rows

TINY = ["--micro_batch_sizes=8", "--rounds=2", "--seconds=0.05", "--rows=600", "--cold_rows=200"]


@pytest.mark.thorough
def test_every_setting_is_measured_and_compared_with_its_peer(tmp_path, capsys):
    result = measure(tmp_path, "loader", *TINY, "--seq_lengths=16", "--workers=0,1")
    assert loader.report(result) in capsys.readouterr().out
    assert result["rows"] == {"16": 4800}
    kinds = [(f["seq_length"], f["workers"], f["masking"], f["contender"], f["shuffle"]) for f in result["figures"]]
    # Ours: three maskings in two orders; theirs: two maskings.
    assert len(set(kinds)) == len(kinds) == 2 * (3 * 2 + 2)
    for figure in result["figures"]:
        assert len(figure["rounds"]) == 2
        assert figure["tokens_per_second"] == statistics.median(figure["rounds"]) > 0
    for order in result["orders"]:
        assert 1 <= order["regions"]["of_1000_rows"] <= order["regions"]["in_all"] == 1
        assert 200 <= order["cold_cache"]["rows"] < 200 + 256
        assert order["cold_cache"]["seconds"] > 0
    ratio = loader.report(result).splitlines()[2].split()[-1]
    ours, theirs = (next(f for f in result["figures"] if f["contender"] == name) for name in ("ours", "hugging_face"))
    expected = statistics.median(a / b for a, b in zip(ours["rounds"], theirs["rounds"], strict=True))
    assert float(ratio) == pytest.approx(expected, abs=0.06)


def test_data_directory_with_several_sequence_lengths(tmp_path, capsys):
    for length in (16, 32):
        write_made_up_rows(tmp_path / f"seq_{length}", 50, length)
    alone = ["--contenders=ours", "--workers=0", "--masking=static", "--shuffles=global"]
    assert run_benchmark("loader", *TINY, *alone, "--data_dir", str(tmp_path), "--seq_lengths=32,16") == 0
    message = "no seq_64 for data.seq_length 64; found seq_16, seq_32"
    check_error(capsys, message, "loader", *TINY, *alone, "--data_dir", str(tmp_path), "--seq_lengths=64")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers=-1"], "--workers -1: must be numbers of processes"),
        (["--masking=none"], "--masking none: must be a list of dynamic, static, whole_word"),
        (["--rounds=0"], "must be above 0"),
    ],
)
def test_invalid_options_are_rejected(arguments, message, capsys):
    check_error(capsys, message, "loader", *arguments)
