"""Kernels compiled without a GPU: the command reports register spills and fails if there are any."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from repository import REPOSITORY


def compile_ahead(*arguments, code="", **environment):
    """Run the command, after `code`, in a process that does not interpret kernels."""
    script = f"import sys; sys.argv[1:] = {list(arguments)!r}\n{code}\n" + (
        "from bert_pld.cli import run\nfrom bert_pld import compile_kernels\n"
        "run(compile_kernels.main, compile_kernels.build_parser())\n"
    )
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**inherited, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
    )


def test_every_kernel_compiles_and_none_spills(tmp_path):
    done = compile_ahead("--hidden_sizes", "1000", "--capabilities", "90", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    assert "32 kernels compiled" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    names = {"norm forward", "scatter norm gather backward", "bias gelu backward", "geglu backward", "rotary forward"}
    names |= {"fp8 largest value", "fp8 rounding", "embed norm forward", "embed words norm backward", "embed word sums"}
    assert {one["kernel"] for one in found} >= names
    for one in found:
        assert one["spill_store_bytes"] == one["spill_load_bytes"] == 0
        assert 16 <= one["registers"] <= 255
        assert one["instructions"] > 100
        assert one["warps_per_multiprocessor"] >= 8
        # Rotating, joining or adding up takes a few instructions; everything else has a GELU, a LayerNorm or a random
        # number.
        assert (
            (3 if one["kernel"].startswith(("rotary", "split")) or "sums" in one["kernel"] else 10)
            < one["instructions_per_element"]
            < 60
        )


def test_spilling_kernel_is_reported_and_the_command_fails():
    tall = (
        "import dataclasses\nfrom bert_pld.kernels import tiles\nplain = tiles.reducing_row_tile\n"
        "tiles.reducing_row_tile = lambda width: dataclasses.replace(plain(width), rows=4)"
    )
    done = compile_ahead("--hidden_sizes", "1024", "--capabilities", "90", code=tall)
    assert done.returncode == 1
    assert "compiled with Triton" in done.stdout
    assert ", 0 spill" not in done.stdout


def test_embeddings_of_post_norm_in_fp32_fit_the_gpus_with_least_shared_memory(tmp_path):
    one = (
        "from bert_pld import compile_kernels\nevery = compile_kernels.variants\n"
        "compile_kernels.variants = lambda *given, **more: ("
        "    variant for variant in every(*given, **more) if variant.name == 'embed norm backward')"
    )
    sizes = ("--hidden_sizes", "768", "--dtypes", "fp32", "--capabilities", "86")
    done = compile_ahead(*sizes, "--json", str(tmp_path / "found.json"), code=one)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert 60_000 < found["shared_bytes"] <= 99 * 1024
    assert found["warps_per_multiprocessor"] == 4


def test_invalid_option_is_reported_in_one_line():
    for arguments, environment, expected in (
        (["--dtypes", "int8"], {}, "--dtypes int8: must be any of bf16, fp16, fp32"),
        (["--hidden_sizes", "x"], {}, "must be integers separated by commas"),
        (["--capabilities", "75,90"], {}, "--capabilities 75: must be any of 80, 86, 89, 90, 100, 120"),
        ([], {"TRITON_INTERPRET": "1"}, "TRITON_INTERPRET is set"),
    ):
        done = compile_ahead(*arguments, **environment)
        assert done.returncode == 1
        assert expected in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
