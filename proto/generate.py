"""Generate the Python stubs beside the .proto files.

    python proto/generate.py [OUT]     OUT defaults to this folder

tests/unit/proto/test_proto.py generates the stubs into a temporary folder and compares. grpcio-tools is pinned in the
`dev` extra: generated code runs with its own and the next major version of the protobuf runtime, so an older generator
supports more users.
"""

import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent


def generate(out: Path) -> None:
    """Write `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` under `out`, in the same folders as the sources."""
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("vold_proto/**/*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    code = protoc.main(
        [
            "protoc",
            f"-I{ROOT}",
            f"-I{well_known}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            *sources,
        ]
    )
    if code:
        raise SystemExit(f"protoc failed with status {code}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
