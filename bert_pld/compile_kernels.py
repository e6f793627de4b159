"""Compile every Triton kernel without a GPU, and report the resources that its machine code needs.

    python -m bert_pld.compile_kernels --hidden_sizes 768,1024 --capabilities 80,90,100

prints one line for each kernel, in the variants that training launches: registers per thread, bytes spilled to local
memory, shared memory, machine instructions (in total, and per element of a thread), and warps per multiprocessor.
Triton contains NVIDIA's assembler. The exit code is 1 if any kernel spills or does not fit a multiprocessor.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_pld.cli import check_output_file, explain_missing_package, make_parser, run
from bert_pld.files import write_json

with explain_missing_package("bert_pld.compile_kernels"):
    import triton

    from bert_pld.kernels import (
        embedding_backward,
        embedding_forward,
        fp8_rounding,
        linear_cross_entropy,
        rotary,
        sorted_sum,
    )
    from bert_pld.kernels.add_norm_backward import add_norm_backward_kernel
    from bert_pld.kernels.add_norm_forward import add_norm_forward_kernel
    from bert_pld.kernels.bias_gelu import bias_gelu_backward_kernel, bias_gelu_forward_kernel
    from bert_pld.kernels.geglu import geglu_backward_kernel, geglu_forward_kernel
    from bert_pld.kernels.machine_code import MULTIPROCESSORS, compile_kernel, resident_programs
    from bert_pld.kernels.split_qkv import split_qkv_backward_kernel
    from bert_pld.kernels.tiles import ASSERTIONS, Tile, column_tile, element_tile, reducing_row_tile, row_tile

CAPABILITIES = (80, 90, 100)
_ALLOWED = ", ".join(map(str, sorted(MULTIPROCESSORS)))
DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4}
"""Bytes of each dtype."""
_WARP = 32


@dataclasses.dataclass(frozen=True)
class Variant:
    """One kernel as training launches it."""

    name: str
    kernel: Any
    arguments: dict[str, Any]
    """The kernel's constants and `num_warps`."""
    elements: int
    """Elements of the matrix that a program, or a turn of its loop, processes, without idle lanes."""
    accesses: int
    """Elements that it reads and writes for each of them, parameters and numbers of a row left out."""
    programs: int | None = None
    """Programs a multiprocessor that a reducing kernel launches; None: as many as there are tiles."""
    least_capability: int = 80


@dataclasses.dataclass(frozen=True)
class Resources:
    """Resources of one compiled variant, as the assembler reports them."""

    kernel: str
    hidden_size: int
    dtype: str
    capability: int
    registers: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    num_warps: int
    instructions: int
    """Number of machine instructions in the kernel's code."""
    instructions_per_element: float
    """Machine instructions of a thread for each of its elements: of the loop, if the kernel has one."""
    bytes_per_element: int
    """Bytes that memory moves for each element."""
    warps_per_multiprocessor: int
    """Warps that run at the same time; 0: a program needs more than a multiprocessor has."""

    @property
    def spills(self) -> bool:
        """Whether registers are spilled to memory."""
        return bool(self.spill_store_bytes or self.spill_load_bytes)


def variants(hidden_size: int, vocabulary: int = 30528, element_bytes: int = 2) -> Iterator[Variant]:
    """Yield every kernel in the variants that training at this hidden size launches, for elements of a size."""
    plain = {"HAS_BRANCH": False, "HAS_BRANCH_ROWS": False, "HAS_NORM_ROWS": False, "HAS_DROPOUT": False}
    branch = {**plain, "HAS_BRANCH": True, "HAS_DROPOUT": True}
    scattered = {**branch, "HAS_BRANCH_ROWS": True, "HAS_NORM_ROWS": True}
    gradients = {"HAS_GRAD_NORMED": True, "HAS_GRAD_NEW_STREAM": True}
    forms = {"norm": plain, "norm gather": {**plain, "HAS_NORM_ROWS": True}, "branch norm": branch}
    for name, form in {**forms, "scatter norm gather": scattered}.items():
        forward, backward = (4, 5) if form["HAS_BRANCH"] else (2, 4)
        tile, reducing = row_tile(hidden_size), reducing_row_tile(hidden_size)
        launch = {**tile.launch_arguments(hidden_size), **form}
        yield Variant(f"{name} forward", add_norm_forward_kernel, launch, tile.rows * hidden_size, forward)
        launch = {**reducing.launch_arguments(hidden_size), "PIECES": reducing.pieces, "STAGES": reducing.num_stages}
        launch |= {**form, **gradients}
        yield _reducing(f"{name} backward", add_norm_backward_kernel, launch, reducing, hidden_size, backward)
    tile = element_tile(4 * hidden_size)
    launch, elements = tile.launch_arguments(4 * hidden_size), tile.rows * tile.width
    for name, tanh in (("gelu", False), ("gelu_tanh", True)):
        yield Variant(f"bias {name} forward", bias_gelu_forward_kernel, {**launch, "TANH": tanh}, elements, 2)
        arguments = {**launch, "TANH": tanh}
        yield _reducing(f"bias {name} backward", bias_gelu_backward_kernel, arguments, tile, tile.width, 3)
    yield from _modernbert_variants(hidden_size)
    yield from _embedding_variants(hidden_size, element_bytes)
    tile = column_tile(hidden_size)
    launch = tile.launch_arguments(hidden_size)
    yield _reducing("split qkv backward", split_qkv_backward_kernel, launch, tile, 3 * tile.width, 2)
    block, warps = linear_cross_entropy.block_and_warps(vocabulary)
    launch = {"VOCABULARY": vocabulary, "BLOCK": block, "num_warps": warps, **ASSERTIONS}
    for name, gradient in (("cross entropy", False), ("cross entropy with gradient", True)):
        arguments, accesses = {**launch, "WRITE_GRADIENT": gradient}, 3 if gradient else 1
        yield Variant(name, linear_cross_entropy.cross_entropy_kernel, arguments, block, accesses)
    launch = fp8_rounding.largest_arguments()
    yield Variant("fp8 largest value", fp8_rounding.largest_kernel, launch, launch["BLOCK"], 1)
    launch = fp8_rounding.rounding_arguments(hidden_size, fp8_rounding.FORWARD_DTYPE)
    launch |= {"WRITE_NARROW": True, "WRITE_TRANSPOSED": True}
    elements = launch["TILE"] ** 2
    yield Variant("fp8 rounding", fp8_rounding.rounding_kernel, launch, elements, 2, least_capability=89)


def _modernbert_variants(hidden_size: int) -> Iterator[Variant]:
    """Yield the kernels of ModernBERT's blocks, with heads of width 64."""
    inner, heads, pairs = 3 * hidden_size // 2, max(hidden_size // 64, 1), 32
    tile = element_tile(inner)
    launch, elements = tile.launch_arguments(inner), tile.rows * tile.width
    for name, tanh in (("geglu", False), ("geglu_tanh", True)):
        yield Variant(f"{name} forward", geglu_forward_kernel, {**launch, "TANH": tanh}, elements, 3)
        yield Variant(f"{name} backward", geglu_backward_kernel, {**launch, "TANH": tanh}, elements, 5)
    launch = rotary.launch_arguments(heads, pairs)
    elements = 3 * 2 * pairs * launch["BLOCK_ROWS"]
    for name, backward in (("forward", False), ("backward", True)):
        yield Variant(f"rotary {name}", rotary.rotary_kernel, {**launch, "BACKWARD": backward}, elements, 2)


def _embedding_variants(hidden_size: int, element_bytes: int) -> Iterator[Variant]:
    """Yield the kernels of the embeddings: of BERT, pre- and post-norm, without padding, and of ModernBERT."""
    tile = reducing_row_tile(hidden_size)
    launch = {**tile.launch_arguments(hidden_size), "PIECES": tile.pieces, "HAS_DROPOUT": True}
    with_places = {"HAS_FLAT": True, "HAS_EDGES": True, "HAS_POSITION": True, "TYPES": 2}
    words = {"HAS_FLAT": True, "HAS_EDGES": False, "HAS_POSITION": False, "TYPES": 0}
    forms = {
        "embed": {**with_places, "HAS_NORM": False, "HAS_NORM_BIAS": False},
        "embed norm": {**with_places, "HAS_NORM": True, "HAS_NORM_BIAS": True},
        "embed words norm": {**words, "HAS_NORM": True, "HAS_NORM_BIAS": False},
    }
    elements = tile.rows * hidden_size
    for name, form in forms.items():
        forward, backward = embedding_forward.embedding_forward_kernel, embedding_backward.embedding_backward_kernel
        asserting = {**launch, **form, **ASSERTIONS}
        yield Variant(f"{name} forward", forward, asserting, elements, 2)
        stages = embedding_backward.stages(tile, element_bytes)
        summing = {**launch, **form, "SUMS": form["TYPES"], "BLOCK_PLACES": 1, "STAGES": stages}
        yield Variant(f"{name} backward", backward, summing, elements, 2 + form["HAS_NORM"])
    sizes = embedding_backward.SUMS_TILE
    launch = {"WIDTH": hidden_size, "SUMS": 2, "ALL": 2, **sizes}
    elements = sizes["BLOCK_ROWS"] * sizes["BLOCK_WIDTH"]
    yield Variant("embed sums", embedding_backward.embedding_sums_kernel, launch, elements, 2)
    for name, kernel, more, rows in (
        ("embed word sums", sorted_sum.sum_chunks_kernel, sorted_sum.chunk_arguments(), sorted_sum.GROUP),
        ("embed word sums joined", sorted_sum.join_chunks_kernel, sorted_sum.join_arguments(), sorted_sum.PARTS),
    ):
        launch = {**sorted_sum.launch_arguments(hidden_size), **more}
        yield Variant(name, kernel, launch, rows * launch["BLOCK_WIDTH"], 2)


def _reducing(name: str, kernel: Any, arguments: dict[str, Any], tile: Tile, columns: int, accesses: int) -> Variant:
    return Variant(name, kernel, arguments, tile.rows * columns, accesses, tile.programs_per_multiprocessor)


def compile_variant(variant: Variant, hidden_size: int, dtype: str, capability: int) -> Resources:
    """Compile a variant for sm_`capability` and read its resources from the assembler's output.

    If it does not compile, a RuntimeError has the compiler's message.
    """
    try:
        code = compile_kernel(variant.kernel, variant.arguments, dtype, capability)
    except Exception as error:
        raise RuntimeError(f"{variant.name}, H = {hidden_size}, {dtype}, sm_{capability}: {error}") from error
    num_warps = variant.arguments["num_warps"]
    fitting = resident_programs(code, num_warps, capability)
    running = fitting if variant.programs is None else min(variant.programs, fitting)
    per_thread = variant.elements / (_WARP * num_warps)
    return Resources(
        kernel=variant.name,
        hidden_size=hidden_size,
        dtype=dtype,
        capability=capability,
        registers=code.registers,
        spill_store_bytes=code.spill_store_bytes,
        spill_load_bytes=code.spill_load_bytes,
        shared_bytes=code.shared_bytes,
        num_warps=num_warps,
        instructions=code.instructions,
        instructions_per_element=round((code.loop_instructions or code.instructions) / per_thread, 1),
        bytes_per_element=variant.accesses * DTYPES[dtype],
        warps_per_multiprocessor=running * num_warps,
    )


def compile_all(hidden_sizes: list[int], dtypes: list[str], capabilities: list[int]) -> list[Resources]:
    """Compile every variant for every size, dtype and GPU, on all cores."""
    jobs = [
        (variant, hidden, dtype, capability)
        for capability in capabilities
        for dtype in dtypes
        for hidden in hidden_sizes
        for variant in variants(hidden, element_bytes=DTYPES[dtype])
        if capability >= variant.least_capability
    ]
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda job: compile_variant(*job), jobs))


def format_table(found: list[Resources]) -> str:
    """Return a table with one line per variant."""
    names = ("sm", 4), ("registers", 10), ("spills", 8), ("shared", 8), ("instr.", 8), ("/element", 9), ("warps/SM", 9)
    lines = [f"{'kernel':30}{'H':>6} {'dtype':6}" + "".join(f"{name:>{width}}" for name, width in names)]
    lines += [
        f"{r.kernel:30}{r.hidden_size:>6} {r.dtype:6}{r.capability:>4}{r.registers:>10}"
        f"{r.spill_store_bytes + r.spill_load_bytes:>8}{r.shared_bytes:>8}{r.instructions:>8}"
        f"{r.instructions_per_element:>9}{r.warps_per_multiprocessor:>9}"
        for r in found
    ]
    spilling = sum(r.spills for r in found)
    return "\n".join([*lines, f"{len(found)} kernels compiled with Triton {triton.__version__}, {spilling} spill"])


def build_parser() -> argparse.ArgumentParser:
    """Make the argument parser of `python -m bert_pld.compile_kernels`."""
    parser = make_parser(
        "bert_pld.compile_kernels",
        "Compile every Triton kernel without a GPU and report registers and spills.",
        "python -m bert_pld.compile_kernels --hidden_sizes 768,1024 --capabilities 90 --dtypes bf16",
    )
    parser.add_argument(
        "--hidden_sizes", default="768,1024", help="hidden sizes, separated by commas (default 768,1024)"
    )
    parser.add_argument(
        "--dtypes", default="bf16", help=f"any of {', '.join(DTYPES)}, separated by commas (default bf16)"
    )
    parser.add_argument(
        "--capabilities",
        default=",".join(map(str, CAPABILITIES)),
        help=f"compute capabilities × 10: any of {_ALLOWED}, separated by commas (default 80,90,100)",
    )
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    return parser


def main(options: argparse.Namespace) -> None:
    """Compile and print; exit with 1 if any kernel spills or cannot run."""
    if triton.knobs.runtime.interpret:
        raise ValueError("TRITON_INTERPRET is set: interpreted kernels cannot be compiled; unset it")
    dtypes = options.dtypes.split(",")
    if unknown := [dtype for dtype in dtypes if dtype not in DTYPES]:
        raise ValueError(f"--dtypes {','.join(unknown)}: must be any of {', '.join(DTYPES)}")
    try:
        hidden_sizes, capabilities = (
            [int(part) for part in text.split(",")] for text in (options.hidden_sizes, options.capabilities)
        )
    except ValueError as error:
        raise ValueError(f"--hidden_sizes, --capabilities: must be integers separated by commas ({error})") from error
    if others := [str(capability) for capability in capabilities if capability not in MULTIPROCESSORS]:
        raise ValueError(f"--capabilities {','.join(others)}: must be any of {_ALLOWED}")
    check_output_file("--json", options.json, "nothing was compiled")
    found = compile_all(hidden_sizes, dtypes, capabilities)
    print(format_table(found))
    if options.json is not None:
        write_json(options.json, [dataclasses.asdict(r) for r in found])
    if any(r.spills or not r.warps_per_multiprocessor for r in found):
        sys.exit(1)


if __name__ == "__main__":
    run(main, build_parser())
