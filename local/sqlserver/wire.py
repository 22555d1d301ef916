"""TDS 7.4: packets, tokens, and values in both directions ([MS-TDS], https://learn.microsoft.com/openspecs/windows_protocols/ms-tds).

Rows are encoded a column at a time: `Column.select` is the DuckDB expression that brings a value into the form that is
cheapest to pack (integers for dates and money), `Column.encode` turns a list of those into wire bytes.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal
from itertools import chain, repeat
from typing import Any, Protocol
from uuid import UUID

from .errors import cannot
from .sqltypes import WIDE, SqlType, make

SQL_BATCH, RPC, REPLY, ATTENTION, TRANSACTION, LOGIN, PRELOGIN = 1, 3, 4, 6, 14, 16, 18
DONE_MORE, DONE_ERROR, DONE_COUNT, DONE_ATTENTION = 0x1, 0x2, 0x10, 0x20
DONE, DONE_PROC, DONE_IN_PROC = 0xFD, 0xFE, 0xFF

COLLATION = bytes.fromhex("0904d00034")  # SQL_Latin1_General_CP1_CI_AS: code page 1252, case-insensitive
CODE_PAGE = "cp1252"
_DAY = 86_400_000_000
_EPOCH = 719_162 * _DAY  # microseconds from 0001-01-01 to 1970-01-01
_1900 = 25_567  # days from 1900-01-01 to 1970-01-01
_EXACT = Context(prec=60)


# ---------------------------------------------------------------- reading


class Reader:
    """A cursor over one message."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        self.at += n
        if self.at > len(self.data):
            raise ValueError("message ends early")
        return self.data[self.at - n : self.at]

    def u8(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "little")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def text8(self) -> str:
        return self.take(2 * self.u8()).decode("utf-16-le")

    def more(self) -> bool:
        return self.at < len(self.data)

    def plp(self) -> bytes | None:
        """A partially length-prefixed value: total, chunks, an empty chunk."""
        if self.take(8) == b"\xff" * 8:
            return None
        parts = []
        while n := self.u32():
            parts.append(self.take(n))
        return b"".join(parts)


_WIRE_NAMES = {0xA5: "varbinary", 0xAD: "binary", 0xA7: "varchar", 0xAF: "char", 0xE7: "nvarchar", 0xEF: "nchar"}
_INTN = {1: "tinyint", 2: "smallint", 4: "int", 8: "bigint"}


def read_parameter(r: Reader) -> tuple[str, int, SqlType, Any]:
    """One RPC parameter: name, status (1 = output), type, value as DuckDB takes it."""
    name, status, kind = r.text8(), r.u8(), r.u8()
    if kind in (0xE7, 0xA7, 0xEF, 0xAF):
        size = r.u16()
        r.at += 5
        wide = kind in (0xE7, 0xEF)
        if size == 0xFFFF:
            raw, length = r.plp(), -1
        else:
            n, length = r.u16(), size // 2 if wide else size
            raw = None if n == 0xFFFF else r.take(n)
        text = (
            None
            if raw is None
            else raw.decode("utf-16-le", "surrogatepass")
            if wide
            else raw.decode(CODE_PAGE, "replace")
        )
        return name, status, SqlType(_WIRE_NAMES[kind], length), text
    if kind in (0xA5, 0xAD):
        size = r.u16()
        if size == 0xFFFF:
            return name, status, SqlType("varbinary", -1), r.plp()
        n = r.u16()
        return name, status, SqlType(_WIRE_NAMES[kind], size), None if n == 0xFFFF else r.take(n)
    if kind in (0x63, 0x23, 0x22):
        r.u32()
        r.at += 0 if kind == 0x22 else 5
        n = r.u32()
        raw = None if n == 0xFFFFFFFF else r.take(n)
        if kind == 0x22:
            return name, status, SqlType("image", -1), raw
        return (
            name,
            status,
            SqlType("ntext" if kind == 0x63 else "text", -1),
            None if raw is None else raw.decode("utf-16-le" if kind == 0x63 else CODE_PAGE),
        )
    if kind == 0xF1:
        if r.u8():
            raise cannot("take an xml parameter with a schema")
        raw = r.plp()
        return name, status, SqlType("xml", -1), None if raw is None else raw.decode("utf-16")
    if kind == 0x1F:
        return name, status, SqlType("null"), None
    if kind in (0x6A, 0x6C):
        r.u8()
        precision, scale = r.u8(), r.u8()
        sql_type = SqlType("decimal", None, precision, scale)
        if not (n := r.u8()):
            return name, status, sql_type, None
        raw = r.take(n)
        value = Decimal(int.from_bytes(raw[1:], "little") * (1 if raw[0] else -1)).scaleb(-scale, _EXACT)
        return name, status, sql_type, value
    if kind == 0x28:
        raw = r.take(r.u8())
        return name, status, SqlType("date"), _days(raw) if raw else None
    if kind in (0x29, 0x2A, 0x2B):
        return name, status, *_moment(kind, r.u8(), r.take(r.u8()))
    if kind == 0x24:
        r.u8()
        raw = r.take(r.u8())
        return name, status, SqlType("uniqueidentifier"), UUID(bytes_le=raw) if raw else None
    if kind in (0x26, 0x68, 0x6D, 0x6E, 0x6F):
        size = r.u8()
        return name, status, *_number(kind, size, r.take(r.u8()))
    raise cannot(f"take a parameter of wire type {kind:#x}")


def _number(kind: int, size: int, raw: bytes) -> tuple[SqlType, Any]:
    if kind == 0x26:
        return SqlType(_INTN[size]), int.from_bytes(raw, "little", signed=size > 1) if raw else None
    if kind == 0x68:
        return SqlType("bit"), bool(raw[0]) if raw else None
    if kind == 0x6D:
        return SqlType("float" if size == 8 else "real"), struct.unpack("<d" if size == 8 else "<f", raw)[
            0
        ] if raw else None
    if kind == 0x6E:
        money = SqlType("money" if size == 8 else "smallmoney")
        if not raw:
            return money, None
        high, low = struct.unpack("<iI", raw) if size == 8 else (0, struct.unpack("<i", raw)[0])
        return money, Decimal((high << 32) + low).scaleb(-4)
    if size == 8:
        days, ticks = struct.unpack("<iI", raw) if raw else (0, 0)
        moment = datetime(1900, 1, 1) + timedelta(days=days, microseconds=round(ticks * 10_000 / 3))  # noqa: DTZ001
        return SqlType("datetime"), moment if raw else None
    days, minutes = struct.unpack("<HH", raw) if raw else (0, 0)
    return SqlType("smalldatetime"), datetime(1900, 1, 1) + timedelta(days, minutes=minutes) if raw else None  # noqa: DTZ001


def _days(raw: bytes) -> date:
    return date.fromordinal(int.from_bytes(raw, "little") + 1)


def _moment(kind: int, scale: int, raw: bytes) -> tuple[SqlType, Any]:
    sql_type = make({0x29: "time", 0x2A: "datetime2", 0x2B: "datetimeoffset"}[kind], scale)
    if not raw:
        return sql_type, None
    width = 3 if scale <= 2 else 4 if scale <= 4 else 5
    ticks = int.from_bytes(raw[:width], "little") * 10 ** (7 - scale)
    seconds, rest = divmod(ticks // 10, 1_000_000)
    at = time(seconds // 3600, seconds // 60 % 60, seconds % 60, rest)
    if kind == 0x29:
        return sql_type, at
    moment = datetime.combine(_days(raw[width : width + 3]), at)
    if kind == 0x2A:
        return sql_type, moment
    return sql_type, {"utc": moment, "m": int.from_bytes(raw[width + 3 :], "little", signed=True)}


# ---------------------------------------------------------------- columns of a result


@dataclass(frozen=True, slots=True)
class Column:
    """How one result column travels."""

    name: str
    type: SqlType
    info: bytes
    select: str
    encode: Callable[[Sequence[Any]], Iterable[bytes]]


def _each(pack: Callable[[Any], bytes], null: bytes) -> Callable[[Sequence[Any]], list[bytes]]:
    return lambda values: [null if v is None else pack(v) for v in values]


def _short(codec: Callable[[Any], bytes]) -> Callable[[Sequence[Any]], list[bytes]]:
    def encode(values: Sequence[Any]) -> list[bytes]:
        out = []
        for v in values:
            if v is None:
                out.append(b"\xff\xff")
            else:
                raw = codec(v)
                out.append(len(raw).to_bytes(2, "little") + raw)
        return out

    return encode


def _long(codec: Callable[[Any], bytes]) -> Callable[[Sequence[Any]], list[bytes]]:
    def pack(v: Any) -> bytes:
        raw = codec(v)
        chunk = len(raw).to_bytes(4, "little") + raw if raw else b""
        return len(raw).to_bytes(8, "little") + chunk + b"\0\0\0\0"

    return _each(pack, b"\xff" * 8)


def _blob(codec: Callable[[Any], bytes]) -> Callable[[Sequence[Any]], list[bytes]]:
    def pack(v: Any) -> bytes:
        raw = codec(v)
        return b"\x10" + b"stand-in textptr" + b"\0" * 8 + len(raw).to_bytes(4, "little") + raw

    return _each(pack, b"\0")


def _wide(v: str) -> bytes:
    return v.encode("utf-16-le", "surrogatepass")


def _narrow(v: str) -> bytes:
    return v.encode(CODE_PAGE, "replace")


def _bytes(v: Any) -> bytes:
    return bytes(v)


def _ticks(scale: int) -> tuple[int, int, int]:
    """Bytes of the time of day, and the factor and divisor from microseconds to its unit."""
    return 3 if scale <= 2 else 4 if scale <= 4 else 5, 10 if scale == 7 else 1, 10 ** max(0, 6 - scale)


def column(name: str, t: SqlType) -> Column:
    """The wire form of a column; the DuckDB expression has `{}` where the value goes."""
    info, select, encode = _column(t)
    return Column(name, t, info, select, encode)


def _column(t: SqlType) -> tuple[bytes, str, Callable[[Sequence[Any]], Iterable[bytes]]]:
    kind = t.name
    if kind in ("tinyint", "smallint", "int", "bigint", "null"):
        code, size = {"tinyint": ("B", 1), "smallint": ("h", 2), "int": ("i", 4), "null": ("i", 4), "bigint": ("q", 8)}[
            kind
        ]
        pack = struct.Struct("<B" + code).pack
        return bytes([0x26, size]), "{}", lambda values: [b"\0" if v is None else pack(size, v) for v in values]
    if kind == "bit":
        table = {True: b"\1\1", False: b"\1\0", None: b"\0"}
        return b"\x68\x01", "{}", lambda values: [table[v] for v in values]
    if kind in ("float", "real"):
        size = 8 if kind == "float" else 4
        pack = struct.Struct("<Bd" if size == 8 else "<Bf").pack
        return bytes([0x6D, size]), "{}", lambda values: [b"\0" if v is None else pack(size, v) for v in values]
    if kind in ("decimal", "numeric"):
        precision, scale = t.digits
        size = 5 if precision <= 9 else 9 if precision <= 19 else 13 if precision <= 28 else 17
        plus, minus, width = bytes([size, 1]), bytes([size, 0]), size - 1

        def pack_scaled(v: int) -> bytes:
            return plus + v.to_bytes(width, "little") if v >= 0 else minus + (-v).to_bytes(width, "little")

        info = bytes([0x6A if kind == "decimal" else 0x6C, size, precision, scale])
        if precision <= 18:
            return info, f"CAST({{}} * {10**scale}::BIGINT AS BIGINT)", _each(pack_scaled, b"\0")
        return info, "{}", _each(lambda v: pack_scaled(int(v.scaleb(scale, _EXACT))), b"\0")
    if kind == "money":
        pack = struct.Struct("<BiI").pack
        return (
            b"\x6e\x08",
            "CAST({} * 10000::BIGINT AS BIGINT)",
            _each(lambda v: pack(8, v >> 32, v & 0xFFFFFFFF), b"\0"),
        )
    if kind == "smallmoney":
        pack = struct.Struct("<Bi").pack
        return b"\x6e\x04", "CAST({} * 10000::BIGINT AS BIGINT)", _each(lambda v: pack(4, v), b"\0")
    if kind == "date":
        return b"\x28", "({} - DATE '0001-01-01')", _each(lambda v: b"\3" + v.to_bytes(3, "little"), b"\0")
    if kind == "time":
        width, times, per = _ticks(t.scale or 0)
        head = bytes([width])
        return (
            bytes([0x29, t.scale or 0]),
            "epoch_us({})",
            _each(lambda v: head + (v * times // per).to_bytes(width, "little"), b"\0"),
        )
    if kind == "datetime2":
        width, times, per = _ticks(t.scale or 0)
        head = bytes([width + 3])

        def pack_moment(v: int) -> bytes:
            days, us = divmod(v + _EPOCH, _DAY)
            return head + (us * times // per).to_bytes(width, "little") + days.to_bytes(3, "little")

        return bytes([0x2A, t.scale or 0]), "epoch_us({})", _each(pack_moment, b"\0")
    if kind == "datetimeoffset":
        width, times, per = _ticks(t.scale or 0)
        head = bytes([width + 5])

        def pack_offset(v: int) -> bytes:
            days, us = divmod((v >> 11) + _EPOCH, _DAY)
            at = (us * times // per).to_bytes(width, "little") + days.to_bytes(3, "little")
            return head + at + ((v & 2047) - 1024).to_bytes(2, "little", signed=True)

        select = "(epoch_us(({0}).utc)::HUGEINT * 2048 + ({0}).m + 1024)"
        return bytes([0x2B, t.scale or 0]), select, _each(pack_offset, b"\0")
    if kind == "datetime":
        pack = struct.Struct("<BiI").pack

        def pack_ticks(v: int) -> bytes:
            days, us = divmod(v, _DAY)
            return pack(8, days + _1900, min((us * 3 + 5_000) // 10_000, 25_919_999))

        return b"\x6f\x08", "epoch_us({})", _each(pack_ticks, b"\0")
    if kind == "smalldatetime":
        pack = struct.Struct("<BHH").pack
        return b"\x6f\x04", "(epoch_us({}) // 60000000)", _each(lambda v: pack(4, v // 1440 + _1900, v % 1440), b"\0")
    if kind == "uniqueidentifier":
        select = "unhex(replace({}::VARCHAR, '-', ''))"
        return b"\x24\x10", select, _each(lambda v: b"\x10" + v[3::-1] + v[5:3:-1] + v[7:5:-1] + v[8:], b"\0")
    if kind in ("text", "ntext", "image"):
        token, blob = {"text": (0x23, _narrow), "ntext": (0x63, _wide), "image": (0x22, _bytes)}[kind]
        info = struct.pack("<BI", token, 0x7FFFFFFF) + (b"" if kind == "image" else COLLATION) + b"\0"
        return info, "{}", _blob(blob)
    if kind == "xml":
        return b"\xf1\0", "{}", _long(_wide)
    if kind in ("binary", "varbinary", "timestamp", "geography"):
        if t.length is None or t.length < 0 or t.length > 8000:
            return b"\xa5\xff\xff", "{}", _long(bytes)
        return struct.pack("<BH", 0xA5 if kind == "varbinary" else 0xAD, t.length), "{}", _short(bytes)
    if kind in ("char", "varchar", "nchar", "nvarchar", "sql_variant", "unknown"):
        wide = kind in WIDE or kind == "unknown"
        codec = _wide if wide else _narrow
        length = {"sql_variant": 4000, "unknown": 4000}.get(kind, t.length or 1)
        token = {"char": 0xAF, "varchar": 0xA7, "nchar": 0xEF}.get(kind, 0xE7)
        if length < 0 or length > (4000 if wide else 8000):
            return struct.pack("<BH", 0xE7 if wide else 0xA7, 0xFFFF) + COLLATION, "{}", _long(codec)
        return struct.pack("<BH", token, max(length, 1) * (2 if wide else 1)) + COLLATION, "{}", _short(codec)
    raise cannot(f"send a value of type {t}")


def rows(columns: Sequence[Column], batch: Sequence[tuple[Any, ...]]) -> bytes:
    """ROW tokens of one batch of DuckDB tuples."""
    encoded = [c.encode(values) for c, values in zip(columns, zip(*batch, strict=True), strict=True)]
    return b"".join(chain.from_iterable(zip(repeat(b"\xd1", len(batch)), *encoded, strict=True)))


# ---------------------------------------------------------------- tokens


class Coded(Protocol):
    """What an ERROR token says."""

    number: int
    message: str
    severity: int
    state: int


def metadata(columns: Sequence[Column]) -> bytes:
    out = [b"\x81", len(columns).to_bytes(2, "little")]
    for c in columns:
        user_type = 80 if c.type.name == "timestamp" else 0
        out += [struct.pack("<IH", user_type, 0x09), c.info, text8(c.name[:128])]
    return b"".join(out)


def text8(s: str) -> bytes:
    return bytes([len(s)]) + s.encode("utf-16-le")


def text16(s: str) -> bytes:
    raw = s.encode("utf-16-le", "surrogatepass")
    return (len(raw) // 2).to_bytes(2, "little") + raw


def error(e: Coded, server: str = "STANDIN") -> bytes:
    body = (
        struct.pack("<iBB", e.number, e.state, e.severity)
        + text16(e.message[:2000])
        + text8(server)
        + text8("")
        + b"\1\0\0\0"
    )
    return b"\xaa" + len(body).to_bytes(2, "little") + body


def env_change(kind: int, new: bytes, old: bytes) -> bytes:
    body = bytes([kind]) + new + old
    return b"\xe3" + len(body).to_bytes(2, "little") + body


def bytes8(raw: bytes) -> bytes:
    return bytes([len(raw)]) + raw


def done(token: int, status: int = 0, count: int | None = None, command: int = 0) -> bytes:
    """DONE, DONEPROC or DONEINPROC. command: SELECT 0xC1, INSERT 0xC3, DELETE 0xC4, UPDATE 0xC5."""
    return struct.pack("<BHHQ", token, status | (0 if count is None else DONE_COUNT), command, count or 0)


def login_ack() -> bytes:
    name = "Microsoft SQL Server"
    body = b"\x01\x74\x00\x00\x04" + text8(name) + bytes([16, 0, 0x03, 0xE8])
    return b"\xad" + len(body).to_bytes(2, "little") + body


def return_handle(ordinal: int, handle: int) -> bytes:
    """RETURNVALUE of an int output parameter."""
    return (
        b"\xac"
        + ordinal.to_bytes(2, "little")
        + text8("")
        + b"\x01"
        + b"\0\0\0\0"
        + b"\0\0"
        + struct.pack("<BBBi", 0x26, 4, 4, handle)
    )


RETURN_STATUS = b"\x79\0\0\0\0"


class Link:
    """One connection's packets. Reading and writing may happen on different threads, each on one."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.size, self._out, self._packet = sock, 4096, bytearray(), 0
        self._in = sock.makefile("rb", buffering=1 << 16)

    def receive(self) -> tuple[int, int, bytes] | None:
        """The next message: type, first packet's status bits, payload. None when the client has gone."""
        parts, first = [], 0
        try:
            while True:
                head = self._in.read(8)
                if len(head) < 8:
                    return None
                length = int.from_bytes(head[2:4], "big") - 8
                body = self._in.read(length) if length else b""
                if len(body) < length:
                    return None
                first = first or head[1]
                parts.append(body)
                if head[1] & 1:
                    return head[0], first, b"".join(parts)
        except (OSError, ValueError):
            return None

    def write(self, data: bytes) -> None:
        self._out += data
        if len(self._out) > 1 << 16:
            self._send(final=False)

    def flush(self) -> None:
        """Sends the packets that are full."""
        self._send(final=False)

    def finish(self, data: bytes = b"") -> None:
        """Ends the message: the packet with the last bytes carries the end-of-message bit."""
        self._out += data
        self._send(final=True)

    def _send(self, *, final: bool) -> None:
        room, out, packets, at = self.size - 8, self._out, bytearray(), 0
        # The last packet of a message must not be empty, so a full one is held back until more comes or the end.
        while len(out) - at > room or (final and at < len(out)):
            body = out[at : at + room]
            at += len(body)
            last = final and at >= len(out)
            self._packet = self._packet % 255 + 1
            packets += struct.pack(">BBHHBB", REPLY, int(last), len(body) + 8, 0, self._packet, 0) + body
        del out[:at]
        self.sock.sendall(packets)

    def close(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


def utc_now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
