"""Compile every kernel for NVIDIA GPUs, down to machine code; needs no GPU."""

from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rlvr_decode.kernels import delta_logprobs, extrapolate, gated_extrapolate

KERNELS = [
    (extrapolate._sum_kernel, {"BLOCK": 4096}),
    (extrapolate._write_kernel, {"IN_PLACE": True, "BLOCK": 4096, "PARTS": 64}),
    (extrapolate._write_kernel, {"IN_PLACE": False, "BLOCK": 4096, "PARTS": 64}),
    (delta_logprobs._sum_kernel, {"BLOCK": 4096}),
    (delta_logprobs._join_kernel, {"PARTS": 64, "CHOSEN_BLOCK": 16}),
    (gated_extrapolate._gated_extrapolate_kernel, {"HAS_BIAS": True, "BLOCK": 4096}),
]
# Of logits, of strides and sizes, and the GPU's: every one with the most usual of the others.
VARIANTS = [
    ("*bf16", "i32", 90),
    ("*fp32", "i32", 90),
    ("*fp16", "i32", 90),
    ("*bf16", "i64", 90),
    ("*bf16", "i32", 80),
]


def main() -> None:
    for kernel, constants in KERNELS:
        for logits, integer, capability in VARIANTS:
            source = ASTSource(
                fn=kernel,
                signature=signature(kernel.arg_names, constants, logits, integer),
                constexprs=constants,
            )
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
            "*fp32"
            if name.endswith(("_N", "_NK", "_NP")) or name in ("logq_NV", "bias_NV")
            else integer
        )

    return {name: type_of(name) for name in names}


def compile_one(source: ASTSource, capability: int) -> None:
    options = {"num_warps": 8, "enable_fp_fusion": True}
    binary = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert binary.asm["cubin"]


if __name__ == "__main__":
    main()
