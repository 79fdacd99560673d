"""A minimal HTTP server around a pipeline, as people write it: `python -m ...fastapi_server`.

Nothing in it is of ditcast, nor meant to be good or bad: one process, the pipeline behind a lock,
because it is not made for two calls at once, and a PNG as the answer.
"""

from __future__ import annotations

import argparse
import io
import threading
from typing import Any

import cache_dit
import torch
import uvicorn
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from fastapi import FastAPI, Response
from pydantic import BaseModel


class GenerateRequest(BaseModel):
    """What a caller may ask for."""

    prompt: str
    negative_prompt: str | None = None
    true_cfg_scale: float = 4.0
    width: int = 1024
    height: int = 1024
    num_inference_steps: int = 50
    seed: int = 0


def make_app(pipe: Any) -> FastAPI:  # noqa: ANN401 - diffusers says no types
    """Serve a pipeline that is loaded."""
    app = FastAPI()
    turn = threading.Lock()

    @app.get("/health")
    def health() -> str:
        return "OK"

    # Not async: FastAPI calls it in one of its threads, so that others are answered meanwhile.
    @app.post("/generate")
    def generate(request: GenerateRequest) -> Response:
        with turn:
            image = pipe(
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                true_cfg_scale=request.true_cfg_scale,
                width=request.width,
                height=request.height,
                num_inference_steps=request.num_inference_steps,
                generator=torch.Generator("cpu").manual_seed(request.seed),
            ).images[0]
        file = io.BytesIO()
        image.save(file, "PNG")
        return Response(file.getvalue(), media_type="image/png")

    return app


def main() -> None:
    """Load, enable the cache, serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--cache-dit-config", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    pipe: Any = DiffusionPipeline.from_pretrained(arguments.model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    options: Any = cache_dit.load_configs(arguments.cache_dit_config)
    cache_dit.enable_cache(pipe, **options)
    uvicorn.run(make_app(pipe), host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
