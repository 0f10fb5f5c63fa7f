"""What merging an adapter costs: seconds, seconds of the processor, and memory, on matrices of V3's real sizes.

    python benchmarks/lora.py [--folder DIR] [--layers 2] [--experts 8] [--ranks 16 256]

The checkpoint is FP8 with V3's hidden size, heads and widths, but few layers and experts. Each run has a process of its
own, one worker, whose largest memory is told; the first run merges nothing. Factors are random and of float32, as
PEFT saves them.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from dsctl.checkpoint.opening import open_checkpoint
from dsctl.core.amounts import size
from dsctl.core.params import Param
from dsctl.stores.local import LocalFolder
from dsctl.tiny import make
from dsctl.tiny.blueprint import TinyRecipe

ATTENTION, MATRICES = "attention", ("attention", "dense mlp", "shared experts", "routed experts")
RUN = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
RUN += (
    "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_maxrss * 1024, used.ru_utime + used.ru_stime)"
)


def checkpoint(folder: Path, layers: int, experts: int) -> Path:
    """A small number of layers of V3's real widths."""
    sizes = {"hidden": 7168, "heads": 128, "vocab": 4096, "intermediate": 18432, "moe_intermediate": 2048}
    make("v3", folder, TinyRecipe(layers=layers, experts=experts, mtp=False, shards=2, **sizes))
    return folder


def adapter(folder: Path, params: list[Param], rank: int) -> Path:
    """Random factors for these matrices."""
    folder.mkdir()
    generator, held = torch.Generator().manual_seed(0), {}
    for param in params:
        (rows, columns), name = param.shape, f"base_model.model.{param.name.removesuffix('.weight')}"
        held[f"{name}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * 0.02
        held[f"{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.002
    save_file(held, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", "target_modules": []}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def measured(source: Path, target: Path, *asked: object) -> tuple[float, float, int]:
    """Seconds of a conversion, seconds of the processor, and its largest resident memory."""
    words = [sys.executable, "-m", "dsctl", "convert", source, target, *asked, "--workers", "1", "--quiet"]
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", RUN, *map(str, words)], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    shutil.rmtree(target)
    peak, busy = done.stdout.split()
    return seconds, float(busy), int(peak)


def show(what: str, to: str, held: int, seconds: float, busy: float, peak: int) -> None:
    print(f"{what:28} {to:6} {size(held):>9} {seconds:8.1f} {busy:9.1f} {size(peak):>9}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 256])
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="dsctl-lora-", dir=options.folder))
    try:
        source = checkpoint(place / "source", options.layers, options.experts)
        params = open_checkpoint(LocalFolder.at(source)).params
        nbytes = sum(path.stat().st_size for path in source.iterdir())
        print(f"source: {size(nbytes)}; this process at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:,} kB")
        print(f"{'merged':28} {'to':6} {'adapter':>9} {'seconds':>8} {'processor':>9} {'peak':>9}")
        for to, asked in (("keep", ("--layout", "published")), ("bf16", ("--bf16",))):
            show("nothing", to, 0, *measured(source, place / "out", *asked))
            for rank in options.ranks:
                for what, roles in (("attention", (ATTENTION,)), ("every matrix", MATRICES)):
                    chosen = [param for param in params if param.role in roles and len(param.shape) == 2]
                    folder = adapter(place / "adapter", chosen, rank)
                    held = sum(path.stat().st_size for path in folder.iterdir())
                    found = measured(source, place / "out", "--lora", folder, *asked)
                    shutil.rmtree(folder)
                    show(f"r {rank}, {what} ({len(chosen)})", to, held, *found)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
