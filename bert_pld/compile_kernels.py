"""Compile every Triton kernel without a GPU, and report the resources that its machine code needs.

    python -m bert_pld.compile_kernels --hidden_sizes 768,1024 --capabilities 80,90,100

prints registers per thread, bytes spilled to local memory, shared memory and machine instructions of each kernel, in
the variants that training launches. Triton contains NVIDIA's assembler. The exit code is 1 if any kernel spills.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_pld.cli import explain_missing_package, make_parser, run

with explain_missing_package("bert_pld.compile_kernels"):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bert_pld.kernels import add_norm, bias_gelu, linear_cross_entropy
    from bert_pld.kernels.tiles import element_tile, reducing_row_tile, row_tile

CAPABILITIES = (80, 90, 100)
DTYPES = ("bf16", "fp16", "fp32")
_NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_ARGUMENT_TYPES = {
    **dict.fromkeys(("branch_rows_ptr", "norm_rows_ptr", "correct_ptr"), "*i32"),
    **dict.fromkeys(("mean_ptr", "rstd_ptr", "partial_ptr", "losses_ptr"), "*fp32"),
    **{"labels_ptr": "*i64", "scale": "fp32", "eps": "fp32"},
}
"""Types of the arguments that are neither pointers to the model's dtype nor 32-bit integers."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One kernel as training launches it."""

    name: str
    kernel: Any
    arguments: dict[str, Any]
    """The kernel's constants and `num_warps`."""


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

    @property
    def spills(self) -> bool:
        """Whether registers are spilled to memory."""
        return bool(self.spill_store_bytes or self.spill_load_bytes)


def variants(hidden_size: int, vocabulary: int = 30528) -> Iterator[Variant]:
    """Yield every kernel in the variants that training at this hidden size launches."""
    plain = {"HAS_BRANCH": False, "HAS_BRANCH_ROWS": False, "HAS_NORM_ROWS": False, "HAS_DROPOUT": False}
    branch = {**plain, "HAS_BRANCH": True, "HAS_DROPOUT": True}
    scattered = {**branch, "HAS_BRANCH_ROWS": True, "HAS_NORM_ROWS": True}
    gradients = {"HAS_GRAD_NORMED": True, "HAS_GRAD_NEW_STREAM": True}
    forms = {"norm": plain, "norm gather": {**plain, "HAS_NORM_ROWS": True}, "branch norm": branch}
    for name, form in {**forms, "scatter norm gather": scattered}.items():
        launch = row_tile(hidden_size).launch_arguments(hidden_size)
        yield Variant(f"{name} forward", add_norm.add_norm_forward_kernel, {**launch, **form})
        launch = reducing_row_tile(hidden_size).launch_arguments(hidden_size)
        yield Variant(f"{name} backward", add_norm.add_norm_backward_kernel, {**launch, **form, **gradients})
    launch = element_tile(4 * hidden_size).launch_arguments(4 * hidden_size)
    for name, tanh in (("gelu", False), ("gelu_tanh", True)):
        yield Variant(f"bias {name} forward", bias_gelu.bias_gelu_forward_kernel, {**launch, "TANH": tanh})
        yield Variant(f"bias {name} backward", bias_gelu.bias_gelu_backward_kernel, {**launch, "TANH": tanh})
    block, warps = linear_cross_entropy.block_and_warps(vocabulary)
    launch = {"VOCABULARY": vocabulary, "BLOCK": block, "num_warps": warps}
    for name, gradient in (("cross entropy", False), ("cross entropy with gradient", True)):
        yield Variant(name, linear_cross_entropy.cross_entropy_kernel, {**launch, "WRITE_GRADIENT": gradient})


def compile_variant(variant: Variant, hidden_size: int, dtype: str, capability: int) -> Resources:
    """Compile a variant for sm_`capability` and read its resources from the assembler's output.

    If it does not compile, a RuntimeError has the compiler's message.
    """
    signature, attributes = {}, {}
    for index, parameter in enumerate(variant.kernel.params):
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            continue
        default = f"*{dtype}" if parameter.name.endswith("_ptr") else "i32"
        signature[parameter.name] = _ARGUMENT_TYPES.get(parameter.name, default)
        if parameter.name.endswith("_ptr"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    constants = dict(variant.arguments)
    num_warps = constants.pop("num_warps")
    source = ASTSource(variant.kernel, signature, constants, attributes)
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps})
    except Exception as error:
        raise RuntimeError(f"{variant.name}, H = {hidden_size}, {dtype}, sm_{capability}: {error}") from error
    output = _assemble(compiled.asm["ptx"], capability)
    return Resources(
        kernel=variant.name,
        hidden_size=hidden_size,
        dtype=dtype,
        capability=capability,
        registers=_number(r"Used (\d+) registers", output),
        spill_store_bytes=_number(r"(\d+) bytes spill stores", output),
        spill_load_bytes=_number(r"(\d+) bytes spill loads", output),
        shared_bytes=compiled.metadata.shared,
        num_warps=num_warps,
        instructions=_count_instructions(compiled.asm["cubin"]),
    )


def _assemble(ptx: str, capability: int) -> str:
    """Return the output of `ptxas -v`."""
    # Triton ships a second assembler for Blackwell, which its own driver uses from sm_100.
    newer = _NVIDIA_TOOLS / "ptxas-blackwell"
    assembler = newer if capability >= 100 and newer.exists() else _NVIDIA_TOOLS / "ptxas"
    architecture = re.search(r"\.target (sm_\w+)", ptx)
    assert architecture is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [str(assembler), "-v", f"--gpu-name={architecture[1]}", str(path), "-o", str(path.with_suffix(".o"))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _count_instructions(cubin: bytes) -> int:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_NVIDIA_TOOLS / "cuobjdump"), "-sass", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?!NOP)", listing, flags=re.MULTILINE))


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def compile_all(hidden_sizes: list[int], dtypes: list[str], capabilities: list[int]) -> list[Resources]:
    """Compile every variant for every size, dtype and GPU, on all cores."""
    jobs = [
        (variant, hidden, dtype, capability)
        for capability in capabilities
        for dtype in dtypes
        for hidden in hidden_sizes
        for variant in variants(hidden)
    ]
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda job: compile_variant(*job), jobs))


def format_table(found: list[Resources]) -> str:
    """Return a table with one line per variant."""
    names = ("sm", 4), ("registers", 10), ("spills", 8), ("shared", 8), ("instr.", 8), ("warps", 6)
    lines = [f"{'kernel':30}{'H':>6} {'dtype':6}" + "".join(f"{name:>{width}}" for name, width in names)]
    lines += [
        f"{r.kernel:30}{r.hidden_size:>6} {r.dtype:6}{r.capability:>4}{r.registers:>10}"
        f"{r.spill_store_bytes + r.spill_load_bytes:>8}{r.shared_bytes:>8}{r.instructions:>8}{r.num_warps:>6}"
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
        "--capabilities", default=",".join(map(str, CAPABILITIES)), help="compute capabilities × 10 (default 80,90,100)"
    )
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    return parser


def main(options: argparse.Namespace) -> None:
    """Compile and print; exit with 1 if any kernel spills."""
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
    found = compile_all(hidden_sizes, dtypes, capabilities)
    print(format_table(found))
    if options.json is not None:
        options.json.write_text(json.dumps([dataclasses.asdict(r) for r in found], indent=2) + "\n", encoding="utf-8")
    if any(r.spills for r in found):
        sys.exit(1)


if __name__ == "__main__":
    run(main, build_parser())
