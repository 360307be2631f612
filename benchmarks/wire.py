"""Bytes on the wire per scored token: packed protobuf and JSON, for the same requests and teacher.

python benchmarks/wire.py
"""

import httpx
from common import POCKET_TEACHER, sequences, serving, show
from vold_proto.arrays import pack_ids
from vold_proto.v1 import teacher_pb2 as pb

PROTOBUF = "application/x-protobuf"
CASES = (("sampled token", 0, "F32"), ("sampled token", 0, "F16"), ("top-20", 20, "F32"), ("top-20", 20, "F16"))


def main() -> None:
    prompts, completions = sequences(100, prompts=8, group=8, prompt=100, completion=100)
    tokens = sum(len(ids) for _, ids in completions)
    rows = []
    with serving("teacher", "--model", str(POCKET_TEACHER)) as urls, httpx.Client(timeout=60) as http:
        for label, top_k, dtype in CASES:
            message = pb.ScoreRequest(
                prompts=[pb.Prompt(ids=pack_ids(ids)) for ids in prompts],
                completions=[
                    pb.Completion(id=str(i), prompt=p, ids=pack_ids(ids)) for i, (p, ids) in enumerate(completions)
                ],
                options=pb.ScoreOptions(top_k=top_k, dtype=pb.DType.Value(dtype)),
            )
            packed = http.post(
                f"{urls['http']}/v1/score", content=message.SerializeToString(), headers={"content-type": PROTOBUF}
            ).raise_for_status()
            body = {
                "prompts": [{"ids": ids.tolist()} for ids in prompts],
                "completions": [{"prompt": p, "ids": ids.tolist()} for p, ids in completions],
                "options": {"top_k": top_k},
            }
            text = http.post(f"{urls['http']}/v1/score", json=body).raise_for_status()
            sizes = [
                len(message.SerializeToString()) / tokens,
                len(packed.content) / tokens,
                len(text.request.content) / tokens,
                len(text.content) / tokens,
            ]
            rows.append(
                [f"{label}, {dtype.lower()}", *(f"{size:.1f}" for size in sizes), f"{sizes[3] / sizes[1]:.1f}x"]
            )
    columns = ["reply", "packed request", "packed reply", "JSON request", "JSON reply", "JSON / packed reply"]
    show(f"Bytes a completion token, {tokens} tokens", columns, rows)


if __name__ == "__main__":
    main()
