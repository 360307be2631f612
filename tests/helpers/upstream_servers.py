"""A stand-in for an inference server, as a process: transformers' scores in the reply formats of vLLM and SGLang.

It replaces a real server on the wire only. Tests against it show that the gateway sends what the servers' documentation
and sources describe, reads such replies, and survives faults. The same suite runs against a real vLLM, with candidates
and without, and a real SGLang (test_backend_conformance).

    python upstream_servers.py MODEL --port 8001 [--other MODEL]

One process speaks every dialect, each under its own path: /vllm, /vllm-rows (with candidates) and /sglang, and with a
fault /vllm-short (a position too few), /vllm-other-ids, /vllm-positive, /vllm-processed (log-probabilities of what was
sampled at the temperature), /vllm-rows-null-cache (candidates are null with the prefix cache, as vLLM's may be),
/vllm-refuse-long (400 past 100 tokens), /vllm-key (wants the key "secret"), /vllm-busy (refuses every other
request with 503), /vllm-other (the other model under the same name), and so on for the other two; /sglang-unseeded
ignores the seed of a request. POST /swap exchanges the two models.
"""

import argparse
import base64
import io
import itertools
import json
import secrets

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from transformers import AutoModelForCausalLM

MAX_LOGPROBS = 40
MAX_LENGTH = 512
FAULTS = (
    "",
    "short",
    "other-ids",
    "positive",
    "processed",
    "null-cache",
    "refuse-long",
    "key",
    "other",
    "busy",
    "unseeded",
)


class Model:
    def __init__(self, path: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    @torch.inference_mode()
    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """[S, V]: row s is of the token after the first s + 1."""
        return self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    async def generate(
        self,
        request: Request,
        ids: list[int],
        max_tokens: int,
        temperature: float,
        seed: int,
        stops: set[int],
        processed: bool,
        min_p: float,
    ):
        """(id, log-probability) token by token, until the caller disconnects."""
        rng = torch.Generator().manual_seed(seed)
        ids = list(ids)
        for _ in range(max_tokens):
            if await request.is_disconnected():
                return
            row = self.logprobs(ids)[-1]
            scaled = (row / temperature).log_softmax(-1) if temperature else row
            likely = torch.where(scaled.exp() >= min_p * scaled.exp().max(), scaled.exp(), 0.0)
            chosen = int(torch.multinomial(likely, 1, generator=rng)) if temperature else int(row.argmax())
            yield chosen, float((scaled if processed else row)[chosen])
            ids.append(chosen)
            if chosen in stops:
                return


def refuse(message: str, status: int = 400) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "BadRequestError", "code": status}}, status)


def make_app(model: Model, speaks: str, fault: str) -> FastAPI:
    app = FastAPI()
    requests = itertools.count()
    rows_offered = speaks == "vllm-rows"
    salts: list[list] = []

    def note_salt(body: dict, ids: list[int]) -> None:
        salts.append([len(ids), body.get("extra_key" if speaks == "sglang" else "cache_salt")])

    @app.get("/salts")
    async def noted_salts():
        """[the length of a prompt, the salt of its prefix] for each request so far, in order."""
        return salts

    @app.middleware("http")
    async def guard(request: Request, call_next):
        guarded = fault == "key" and not request.url.path.endswith("/health")
        if guarded and request.headers.get("authorization") != "Bearer secret":
            return JSONResponse({"error": "Unauthorized"}, 401)
        if fault == "busy" and request.method == "POST" and next(requests) % 2 == 0:
            return JSONResponse({"error": "Server overloaded"}, 503, {"retry-after": "0"})
        return await call_next(request)

    @app.get("/health")
    async def health():
        return {}

    @app.get("/v1/models")
    async def models():
        return {"object": "list", "data": [{"id": "tiny", "root": "/models/tiny", "max_model_len": MAX_LENGTH}]}

    def spoil(ids: list[int], logprobs: list[float]) -> tuple[list[int], list[float]]:
        """ids and log-probabilities from the second position on, changed by the fault."""
        if fault == "short":
            return ids[:-1], logprobs[:-1]
        if fault == "other-ids":
            return [(index + 1) % 100 for index in ids], logprobs
        if fault == "positive":
            return ids, [-value for value in logprobs]
        return ids, logprobs

    if speaks.startswith("vllm"):

        @app.post("/v1/completions")
        async def completions(request: Request):
            body = await request.json()
            ids = body["prompt"]
            note_salt(body, ids)
            wanted = body.get("prompt_logprobs")
            if len(ids) + body["max_tokens"] > MAX_LENGTH or (fault == "refuse-long" and len(ids) > 100):
                return refuse(f"This model's maximum context length is {MAX_LENGTH} tokens.")
            if wanted is not None:
                if wanted > MAX_LOGPROBS:
                    return refuse(f"Requested prompt logprobs of {wanted}, greater than max allowed: {MAX_LOGPROBS}")
                return {"choices": [{"index": 0, "prompt_logprobs": prompt_logprobs(ids, wanted)}]}
            generated = model.generate(
                request,
                ids,
                body["max_tokens"],
                body["temperature"],
                body["seed"],
                set(body["stop_token_ids"]),
                fault == "processed",
                body["min_p"],
            )
            if body.get("stream"):
                return StreamingResponse(events(generated, body), media_type="text/event-stream")
            return choice([token async for token in generated], body, last=True)

        def choice(generated: list[tuple[int, float]], body: dict, last: bool) -> dict:
            if not generated:  # the caller left
                return {}
            reason = ("stop" if generated[-1][0] in body["stop_token_ids"] else "length") if last else None
            logprobs = {
                "tokens": [f"token_id:{index}" for index, _ in generated],
                "token_logprobs": [value for _, value in generated],
            }
            ids = [index for index, _ in generated]
            return {"choices": [{"index": 0, "token_ids": ids, "logprobs": logprobs, "finish_reason": reason}]}

        async def events(generated, body: dict):
            tokens = [token async for token in generated]
            for position, token in enumerate(tokens):
                yield f"data: {json.dumps(choice([token], body, position == len(tokens) - 1))}\n\n"
            yield "data: [DONE]\n\n"

        def prompt_logprobs(ids: list[int], top_k: int) -> list[dict | None]:
            rows = model.logprobs(ids)
            sampled, values = spoil(ids[1:], [float(rows[at, index]) for at, index in enumerate(ids[1:])])
            entries: list[dict | None] = [None]
            for row, index, value in zip(rows, sampled, values, strict=False):
                rank = int((row > row[index]).sum()) + 1
                entry = {str(index): {"logprob": value, "rank": rank, "decoded_token": "x"}}
                best, which = row.topk(top_k)
                for place, (other, score) in enumerate(zip(which.tolist(), best.tolist(), strict=True)):
                    entry[str(other)] = {"logprob": score, "rank": place + 1, "decoded_token": "x"}
                entries.append(entry)
            return entries

    if rows_offered:

        @app.post("/inference/v1/generate")
        async def generate(request: Request):
            body = await request.json()
            ids, wanted = body["token_ids"], body["sampling_params"]
            note_salt(body, ids)
            start, lists = wanted["prompt_logprob_start"], wanted["prompt_logprob_token_ids"]
            if len(lists) != len(ids) - 1 - start:
                return refuse(f"prompt_logprob_token_ids has {len(lists)} rows")
            if fault == "null-cache" and not wanted["skip_reading_prefix_cache"]:
                return {"choices": [], "prompt_token_id_logprobs": None}
            rows = model.logprobs(ids)[start:-1]
            widest = max(len(one) for one in lists)
            if widest > MAX_LOGPROBS:
                return refuse(f"Requested {widest} token ids per row, greater than max allowed: {MAX_LOGPROBS}")
            scores = np.full((len(lists), widest), -np.inf, np.float32)
            for at, one in enumerate(lists):
                scores[at, : len(one)] = rows[at, one].numpy()
            buffer = io.BytesIO()
            np.save(buffer, scores[:-1] if fault == "short" else scores, allow_pickle=False)
            return {"choices": [], "prompt_token_id_logprobs": base64.b64encode(buffer.getvalue()).decode()}

    if speaks == "sglang":
        longest = MAX_LENGTH - 6

        @app.get("/get_model_info")
        async def model_info():
            return {"model_path": "/models/tiny", "is_generation": True, "weight_version": "default"}

        @app.get("/get_server_info")
        async def server_info():
            return {"max_req_input_len": longest, "enable_deterministic_inference": fault != "unseeded"}

        def reported(index: int) -> int:
            """SGLang takes the vocabulary's last id for an image's padding."""
            return index if index < model.model.config.vocab_size - 1 else 0

        @app.post("/generate")
        async def sglang_generate(request: Request):
            body = await request.json()
            ids, sampling = body["input_ids"], body["sampling_params"]
            note_salt(body, ids)
            if fault == "refuse-long" and len(ids) > 100:
                return refuse("The input is too long")
            if len(ids) >= longest:
                return refuse(f"Input length ({len(ids)} tokens) exceeds the maximum allowed length ({longest} tokens)")
            if not body.get("return_logprob"):
                own = {model.model.config.eos_token_id}
                stops = set() if sampling["ignore_eos"] else own | set(sampling["stop_token_ids"])
                seed = secrets.randbits(31) if fault == "unseeded" else sampling["sampling_seed"]
                max_tokens, temperature = sampling["max_new_tokens"], sampling["temperature"]
                tokens = model.generate(request, ids, max_tokens, temperature, seed, stops, True, sampling["min_p"])
                generated = [token async for token in tokens]
                if not generated:
                    return refuse("the caller left", 499)
                reason = "stop" if generated[-1][0] in stops else "length"
                return {
                    "output_ids": [index for index, _ in generated],
                    "meta_info": {"finish_reason": {"type": reason}},
                }
            start = body["logprob_start_len"]
            rows = model.logprobs(ids)[start:-1]
            sampled, values = spoil(
                ids[start + 1 :], [float(rows[at, index]) for at, index in enumerate(ids[start + 1 :])]
            )
            meta = {
                "input_token_logprobs": [
                    [None, reported(ids[start]), None],
                    *([value, reported(index), None] for value, index in zip(values, sampled, strict=True)),
                ]
            }
            if top_k := body["top_logprobs_num"]:
                meta["input_top_logprobs"] = [None]
                for row in rows:
                    best, which = row.topk(top_k)
                    pairs = zip(best.tolist(), which.tolist(), strict=True)
                    meta["input_top_logprobs"].append([[value, index, None] for value, index in pairs])
            if chosen := body.get("token_ids_logprob"):
                meta["input_token_ids_logprobs"] = [
                    None,
                    *([[float(row[index]), index, None] for index in reversed(chosen)] for row in rows),
                ]
            return {"output_ids": [0], "meta_info": {**meta, "finish_reason": {"type": "length"}}}

    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--other", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = Model(arguments.model)
    other = Model(arguments.other) if arguments.other else model
    app = FastAPI()

    @app.get("/health")
    async def health():
        return {}

    @app.post("/swap")
    async def swap():
        model.model, other.model = other.model, model.model

    for speaks in ("vllm", "vllm-rows", "sglang"):
        for fault in FAULTS:
            computes = other if fault == "other" else model
            app.mount(f"/{speaks}-{fault}" if fault else f"/{speaks}", make_app(computes, speaks, fault))
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
