"""A steered model behind transformers' own OpenAI-compatible server.

    steerlab serve MODEL --steer refusal.safetensors:1@12 --port 8000

transformers packs what arrives into shared passes (continuous batching), answers the endpoints and streams; nothing of
that is written anew here. Each request names its vectors, strengths and probes in extra fields of its body, among those
that the server was started with.
"""

from __future__ import annotations

from steerlab.serving.desk import Desk, Wish
from steerlab.serving.server import Server

__all__ = ["Desk", "Server", "Wish"]
