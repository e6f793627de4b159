"""Where a step's time goes: kernels are sorted by name, and each contender's times are in the result."""

from __future__ import annotations

import pytest
import torch
from benchmark_command import measure

from benchmarks.train.profile import KINDS, busiest_calls, kind_of, profile_lines


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "products"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>", "products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_64x64x64_4x1x1_kernel0_0", "attention"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<pytorch_flash::Flash_bwd>", "attention"),
        (
            "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::FusedAdamMathFunctor>",
            "update",
        ),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("Memset (Device)", "copies"),
        ("add_norm_backward_kernel", "our kernels"),
        ("cross_entropy_kernel", "our kernels"),
        ("triton_poi_fused_gelu_1", "compiled"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "others"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>", "others"),
        ("aten::addmm", "products"),
        ("aten::mm", "products"),
        ("aten::add", "others"),
    ],
)
def test_kernels_are_sorted_by_their_names(kernel, kind):
    assert kind_of(kernel) == kind


def test_calls_that_cost_the_host_most_come_first_and_are_printed():
    a = torch.randn(1024, 1024)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        for _ in range(3):
            (a @ a).relu()
    calls = busiest_calls(recorded.key_averages(), most=2)
    assert (calls[0]["name"], calls[0]["calls"]) == ("aten::mm", 3)
    assert calls[0]["ms"] > calls[1]["ms"] > 0
    contender = {
        "dtype": "fp32",
        "name": "x",
        "profile": {"step_ms": 1.0, "launches": 6, "ms": dict.fromkeys(KINDS, 0)},
    }
    assert len(profile_lines([contender])) == 3
    contender["profile"]["host"] = calls
    assert f"aten::mm {calls[0]['ms']:.1f} (3)" in profile_lines([contender])[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="DeepSpeed runs on the GPU here")
def test_profile_of_each_contender_is_in_the_result(tmp_path, capsys):
    sizes = ["--num_layers=2", "--hidden_size=32", "--vocab_size=64", "--micro_batch_size=4", "--seq_length=16"]
    rounds = ["--rounds=1", "--steps_per_round=1", "--dtypes=fp32", "--contenders=reference"]
    result = measure(tmp_path, "train", *sizes, *rounds, "--profile")
    found = result["contenders"][0]["profile"]
    assert list(found["ms"]) == list(KINDS)
    assert found["ms"]["products"] > 0
    assert found["ms"]["our kernels"] == 0
    assert 100 < found["launches"] < 5000
    assert found["step_ms"] > 0
    table = capsys.readouterr().out.split("ms of one step on the device")[1]
    assert "idle" in table
    assert f"{found['launches']:,}" in table
