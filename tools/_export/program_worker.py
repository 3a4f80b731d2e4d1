"""Runs an exported program in a process of its own, which imports PyTorch and nothing of vertebra.

What runs here runs wherever PyTorch is installed. `programs.py` starts it, and compares the answers.

    python -P program_worker.py FORMAT PROGRAM IMAGES ANSWERS DEVICE THREADS

IMAGES holds a list of tensors (B, C, H, W), ANSWERS gets a list of each one's outputs; both are files of `torch.save`.
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def open_program(kind: str, path: str, device: str) -> Callable[[Tensor], Any]:
    """The program in a file: images (B, C, H, W) -> a tensor, or a list or tuple of them.

    Args:
        kind: `torchscript`, `exported` or `aoti`.
        path: the file.
        device: where a script runs; the others run where they were exported.
    """
    if kind == "torchscript":
        return torch.jit.load(path, map_location=device)
    if kind == "exported":
        return torch.export.load(path).module()
    from torch._inductor import aoti_load_package  # `import torch` does not bring it

    return aoti_load_package(path)


def main(kind: str, program: str, images: str, answers: str, device: str, threads: str) -> None:
    """Answer every batch of images; outputs come back on the CPU."""
    torch.set_num_threads(int(threads))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    run, found = open_program(kind, program, device), []
    with torch.inference_mode():
        for batch in torch.load(images, weights_only=True):
            answer = run(batch.to(device))
            found.append([x.cpu() for x in ((answer,) if isinstance(answer, Tensor) else answer)])
    torch.save(found, answers)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # stderr is for the error that ends this process
    main(*sys.argv[1:])
