"""The messages between the worker library and its host, as plain objects.

The real ones are protobuf classes of the host's gRPC contract
(https://github.com/Azure/azure-functions-language-worker-protobuf). The library takes whatever has their attributes.
"""

from types import SimpleNamespace
from typing import Any


class Message(SimpleNamespace):
    """A message with the fields that it was given; a oneof is the one field that was set."""

    def WhichOneof(self, group: str) -> str | None:
        return "data" if group == "rpc_data" else next(iter(self.__dict__), None)


class StatusResult(Message):
    Failure, Success = "failure", "success"


class BindingInfo(Message):
    # `in` is a keyword; undefined is a data type, the others are directions.
    out, inout, undefined = 1, 2, 0


class RpcHttpCookie(Message):
    SameSite = SimpleNamespace(**{"None": "None", "Lax": "Lax", "Strict": "Strict", "ExplicitNone": "None"})


class Protos:
    """What the library knows as its `protos` module."""

    BindingInfo = BindingInfo
    FunctionLoadResponse = FunctionMetadataResponse = InvocationResponse = WorkerInitResponse = Message
    NullableBool = NullableDouble = NullableString = NullableTimestamp = Timestamp = Message
    ParameterBinding = RpcException = RpcFunctionMetadata = RpcHttp = RpcRetryOptions = TypedData = Message
    RpcHttpCookie = RpcHttpCookie
    StatusResult = StatusResult
    WorkerMetadata = Message


def request(**parts: Any) -> Message:
    """A request as the library's front half hands it on: `request(worker_init_request=Message(...))`."""
    return Message(request=Message(**parts), properties={"host": "127.0.0.1", "protos": Protos})
