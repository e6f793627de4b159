"""Machine code of a Triton kernel, compiled without a GPU, and the resources that it needs.

Triton contains NVIDIA's assembler and disassembler.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_ARGUMENT_TYPES = {
    **dict.fromkeys(("branch_rows_ptr", "norm_rows_ptr", "correct_ptr", "words_ptr"), "*i32"),
    **dict.fromkeys(("mean_ptr", "rstd_ptr", "partial_ptr", "losses_ptr"), "*fp32"),
    **dict.fromkeys(("cosines_ptr", "sines_ptr", "largest_ptr", "unscale_ptr"), "*fp32"),
    **dict.fromkeys(("narrow_ptr", "transposed_ptr"), "*fp8e4nv"),
    **dict.fromkeys(("labels_ptr", "input_ids_ptr", "token_types_ptr", "flat_ptr", "order_ptr"), "*i64"),
    **dict.fromkeys(("positions_ptr", "edges_ptr", "row_ids_ptr", "sorted_ids_ptr"), "*i32"),
    **dict.fromkeys(("scale", "eps"), "fp32"),
}
"""Types of the arguments that are neither pointers to the model's dtype nor 32-bit integers."""
_OPTIONS = {"num_warps", "maxnreg", "sanitize_overflow"}
_REGISTERS = 65536
_RESERVED_SHARED_BYTES = 1024
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(\S.*?);", flags=re.MULTILINE)
_BRANCH = re.compile(r"\bBRA\b.*?\b(?:0x([0-9a-f]+))")


@dataclasses.dataclass(frozen=True)
class Multiprocessor:
    """What a multiprocessor has room for."""

    warps: int
    shared_bytes: int
    """Shared memory of all programs together; each of them takes 1 KiB more than it asks for."""

    @property
    def program_shared_bytes(self) -> int:
        """Shared memory that one program can ask for."""
        return self.shared_bytes - _RESERVED_SHARED_BYTES


_LARGE, _SMALL = 228 * 1024, 100 * 1024
MULTIPROCESSORS = {
    80: Multiprocessor(warps=64, shared_bytes=164 * 1024),
    **{capability: Multiprocessor(warps=64, shared_bytes=_LARGE) for capability in (90, 100)},
    **{capability: Multiprocessor(warps=48, shared_bytes=_SMALL) for capability in (86, 89, 120)},
}
"""By compute capability × 10, from the CUDA C++ Programming Guide."""


@dataclasses.dataclass(frozen=True)
class MachineCode:
    """Resources of a compiled kernel, as the assembler reports them."""

    registers: int
    """Registers of a thread."""
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    instructions: int
    """Machine instructions in the kernel's code."""
    loop_instructions: int
    """Machine instructions in its loops; 0 without one."""


def compile_kernel(kernel: Any, arguments: dict[str, Any], dtype: str, capability: int) -> MachineCode:
    """Compile a kernel for sm_`capability`.

    Args:
        kernel: the function with Triton's decorator.
        arguments: its constants, `num_warps` and perhaps `maxnreg` and `sanitize_overflow`.
        dtype: the model's dtype: bf16, fp16 or fp32.
        capability: compute capability × 10.
    """
    signature, attributes = {}, {}
    for index, parameter in enumerate(kernel.params):
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            continue
        default = f"*{dtype}" if parameter.name.endswith("_ptr") else "i32"
        signature[parameter.name] = _ARGUMENT_TYPES.get(parameter.name, default)
        if parameter.name.endswith("_ptr"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    options = {name: value for name, value in arguments.items() if name in _OPTIONS}
    constants = {name: value for name, value in arguments.items() if name not in _OPTIONS}
    options["debug"] = bool(kernel.debug)  # Whether its assertions are compiled.
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    output = _assemble(compiled.asm["ptx"], capability)
    code = _disassemble(compiled.asm["cubin"])
    return MachineCode(
        registers=_number(r"Used (\d+) registers", output),
        spill_store_bytes=_number(r"(\d+) bytes spill stores", output),
        spill_load_bytes=_number(r"(\d+) bytes spill loads", output),
        shared_bytes=compiled.metadata.shared,
        instructions=len(code),
        loop_instructions=_in_loops(code),
    )


def resident_programs(code: MachineCode, num_warps: int, capability: int) -> int:
    """Return how many programs fit on a multiprocessor by their registers, warps and shared memory.

    0: one program asks for more than `Multiprocessor.program_shared_bytes`, or for too many registers.
    """
    multiprocessor = MULTIPROCESSORS[capability]
    by_registers = _REGISTERS // (-(-code.registers // 8) * 8 * 32 * num_warps)
    by_shared = multiprocessor.shared_bytes // (code.shared_bytes + _RESERVED_SHARED_BYTES)
    return min(by_registers, by_shared, multiprocessor.warps // num_warps)


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


def _disassemble(cubin: bytes) -> list[tuple[int, str]]:
    """Return address and text of each instruction except NOP."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_NVIDIA_TOOLS / "cuobjdump"), "-sass", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = ((int(address, 16), text) for address, text in _INSTRUCTION.findall(listing))
    return [(address, text) for address, text in found if not text.startswith("NOP")]


def _in_loops(code: list[tuple[int, str]]) -> int:
    """Return the number of instructions between a branch backwards and its target."""
    inside: set[int] = set()
    for address, text in code:
        branch = _BRANCH.search(text)
        # The code ends with a branch to itself, which never runs.
        if branch is not None and int(branch[1], 16) < address:
            inside.update(other for other, _ in code if int(branch[1], 16) <= other <= address)
    return len(inside)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0
