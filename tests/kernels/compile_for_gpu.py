"""Compile every kernel for NVIDIA GPUs, down to machine code; needs no GPU."""

from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rlvr_decode.kernels.delta_logprobs import _delta_logprobs_kernel
from rlvr_decode.kernels.extrapolate import _extrapolate_kernel
from rlvr_decode.kernels.gated_extrapolate import _gated_extrapolate_kernel

CONSTANTS = {
    _extrapolate_kernel: [{"IN_PLACE": in_place, "BLOCK": 4096} for in_place in (True, False)],
    _delta_logprobs_kernel: [{"BLOCK": 4096, "CHOSEN_BLOCK": 16}],
    _gated_extrapolate_kernel: [{"HAS_BIAS": True, "BLOCK": 4096}],
}


def main() -> None:
    for kernel, variants in CONSTANTS.items():
        for constants in variants:
            for logits in ("*fp32", "*bf16", "*fp16"):
                for integer in ("i32", "i64"):
                    source = ASTSource(
                        fn=kernel,
                        signature=signature(kernel.arg_names, constants, logits, integer),
                        constexprs=constants,
                    )
                    for capability in (80, 90):
                        compile_one(source, capability)
                        print(kernel.__name__, constants, logits, integer, capability)


def signature(names: list[str], constants: dict, logits: str, integer: str) -> dict[str, str]:
    def type_of(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in ("out_NV", "rlvr_NV", "base_NW"):
            return logits
        if name == "tokens_NK":
            return "*i64"
        if name in ("gate_N", "primary_N", "top_k_N"):
            return "*i32"
        return (
            "*fp32" if name.endswith(("_N", "_NK")) or name in ("logq_NV", "bias_NV") else integer
        )

    return {name: type_of(name) for name in names}


def compile_one(source: ASTSource, capability: int) -> None:
    options = {"num_warps": 8, "enable_fp_fusion": True}
    binary = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert binary.asm["cubin"]


if __name__ == "__main__":
    main()
