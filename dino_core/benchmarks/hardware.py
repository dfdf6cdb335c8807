"""What this machine is, and the most it could do: the limits that figures are held against."""

import platform
import time
from pathlib import Path

import torch

from dino_core import distributed

# Dense bf16 operations a second by the device's whole name. 790 TFLOP/s is what products reach on
# an H100 or H200 in practice, and what this project's marks are set against; the maker says 989.
PEAKS = {
    "NVIDIA H200": 790e12,
    "NVIDIA H100 80GB HBM3": 790e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
}


def hardware(device: torch.device) -> str:
    """The machine in words: "NVIDIA H200, torch 2.11", "2 cores of AMD EPYC 9B14, torch 2.15"."""
    version = f"torch {torch.__version__.split('+')[0]}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {version}"
    if device.type == "mps":
        return f"{platform.machine()} GPU (MPS), {version}"
    threads, cores = torch.get_num_threads(), distributed.cores()
    computing = f"{threads} thread{'s' if threads > 1 else ''} on {cores} cores"
    return f"{computing} of {_processor()}, {version}"


def flops_limit(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Floating-point operations per second at best, and where the number is from.

    For known GPUs what the maker states for dense bf16, else what one large matrix product reaches
    here and now, the best of ten.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, peak in PEAKS.items():
            if part in name:
                return peak, f"dense bf16 matrix products of {part}, {peak / 1e12:.0f} TFLOP/s"
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = min(_seconds_of_product(left, right) for _ in range(11))
    rate = 2 * side**3 / best
    kind = str(dtype).removeprefix("torch.")
    return rate, f"{kind} matrix products as measured here, {rate / 1e12:.2g} TFLOP/s"


def _seconds_of_product(left: torch.Tensor, right: torch.Tensor) -> float:
    if left.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    left @ right
    if left.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
