"""Clients of vold's services: token ids in, NumPy arrays out.

    with TeacherClient("grpc://127.0.0.1:50051") as teacher:
        result = teacher.score([prompt_ids], [Completion(prompt=0, ids=completion_ids)])
        result.scores[0].logprobs  # float32 [T]

The async clients have the same methods. Neither needs torch or transformers.
"""

from vold_client.errors import (
    Cancelled,
    DeadlineExceeded,
    IdentityChanged,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    VoldError,
)
from vold_client.keys import KeySource
from vold_client.packing import Budget
from vold_client.replicas import Throttled
from vold_client.sync import TeacherClient, VerifierClient
from vold_client.teacher import AsyncTeacherClient
from vold_client.tls import Tls
from vold_client.types import (
    Completion,
    CompletionScore,
    Generation,
    Identity,
    Item,
    Part,
    Quota,
    ScoreRequest,
    ScoreResult,
    TeacherInfo,
    TokenizerFile,
    Usage,
    Verdict,
    VerifierInfo,
)
from vold_client.verifier import AsyncVerifierClient, ItemBudget

__all__ = [
    "AsyncTeacherClient",
    "AsyncVerifierClient",
    "Budget",
    "Cancelled",
    "Completion",
    "CompletionScore",
    "DeadlineExceeded",
    "Generation",
    "Identity",
    "IdentityChanged",
    "Internal",
    "InvalidArgument",
    "Item",
    "ItemBudget",
    "KeySource",
    "NotFound",
    "Part",
    "PermissionDenied",
    "Quota",
    "ResourceExhausted",
    "ScoreRequest",
    "ScoreResult",
    "TeacherClient",
    "TeacherInfo",
    "Throttled",
    "Tls",
    "TokenizerFile",
    "Unauthenticated",
    "Unavailable",
    "Usage",
    "Verdict",
    "VerifierClient",
    "VerifierInfo",
    "VoldError",
]
