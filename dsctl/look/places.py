"""Where engines keep tables of which a token looks up single rows. Data.

In the host's memory, one copy per node, or on the accelerators, shared among the ranks. vLLM: the host by default
(docs/features/engram.md, `cpu_offload`; pull requests 56512, and 57491 for ROCm). SGLang: the accelerators by default
(docs.sglang.io, Engram Tables, `placement`).
"""

from __future__ import annotations

HOST, GPU = "host", "gpu"
PLACES = (HOST, GPU)
