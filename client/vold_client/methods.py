"""The remote methods: the name of each on gRPC, its route on HTTP, and its messages."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message
from vold_proto.v1 import quota_pb2, teacher_pb2, verifier_pb2

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Reply]):
    """path: on gRPC. verb, route: on HTTP; empty if only gRPC has the method."""

    path: str
    request: type[Request]
    reply: type[Reply]
    verb: str = ""
    route: str = ""


_TEACHER = "/vold.v1.TeacherService"
_VERIFIER = "/vold.v1.VerifierService"

GET_INFO = Method(f"{_TEACHER}/GetInfo", teacher_pb2.GetInfoRequest, teacher_pb2.TeacherInfo, "GET", "/v1/info")
GET_TOKENIZER = Method(
    f"{_TEACHER}/GetTokenizer", teacher_pb2.GetTokenizerRequest, teacher_pb2.TokenizerReply, "GET", "/v1/tokenizer"
)
GET_USAGE = Method(f"{_TEACHER}/GetUsage", teacher_pb2.GetUsageRequest, teacher_pb2.UsageReply, "GET", "/v1/usage")
GET_TEACHER_QUOTA = Method(f"{_TEACHER}/GetQuota", quota_pb2.GetQuotaRequest, quota_pb2.Quota, "GET", "/v1/quota")
SCORE = Method(f"{_TEACHER}/Score", teacher_pb2.ScoreRequest, teacher_pb2.ScoreReply, "POST", "/v1/score")
SCORE_STREAM = Method(f"{_TEACHER}/ScoreStream", teacher_pb2.ScoreRequest, teacher_pb2.ScoreReply)
GENERATE = Method(
    f"{_TEACHER}/Generate", teacher_pb2.GenerateRequest, teacher_pb2.GenerateEvent, "POST", "/v1/generate"
)
LIST_VERIFIERS = Method(
    f"{_VERIFIER}/ListVerifiers",
    verifier_pb2.ListVerifiersRequest,
    verifier_pb2.ListVerifiersReply,
    "GET",
    "/v1/verifiers",
)
GET_VERIFIER_QUOTA = Method(f"{_VERIFIER}/GetQuota", quota_pb2.GetQuotaRequest, quota_pb2.Quota, "GET", "/v1/quota")
VERIFY = Method(f"{_VERIFIER}/Verify", verifier_pb2.VerifyRequest, verifier_pb2.VerifyReply, "POST", "/v1/verify")
VERIFY_STREAM = Method(f"{_VERIFIER}/VerifyStream", verifier_pb2.VerifyItem, verifier_pb2.VerifyResult)
