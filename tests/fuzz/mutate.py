"""Mutations of files: of bytes, and of what a format means by them."""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

NUMBERS = [0, 1, 2, 127, 128, 255, 256, 65_535, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40,
           (1 << 63) - 1, 1 << 63, (1 << 64) - 1]  # fmt: skip
# fmt: off
WORDS = ["", "-1", "0", "1e400", "nan", "inf", "-inf", "99999999999999999999", "1.5", ".", "*",
         "N", "\t", "\n", "\r\n", " ", '"', "'", ",", ";", "=", ":", "%", "#", ">", "\x00", "\xe9",
         "chrX", "\u2028", "[", "]", "{", "}", "&a", "*a", "!!x", "<<", "null", "true", "9" * 400,
         "A" * 3000, "../x", "/etc/passwd", "config"]
VALUES: list[Any] = [None, True, -1, 0, 1 << 31, 1 << 63, 1 << 70, 10**400, 1.5, 1e308, "", "text",
                     "x" * 3000, [], {}, [None], [[[[1]]]], {"a": {"b": 1}}, "\u2028", "kernels/x",
                     "../x"]
OPCODES = (b"()[]{}lLtTdDcCoObBeEaAuUsSqQhHjJkKmMnNiIgGpPrRvVxXfFyYzZ0123\x80\x81\x82\x85\x86\x87"
           b"\x88\x89\x8a\x8b\x8c\x8e\x8f\x90\x91\x92\x93\x94\x95\x96.")
# fmt: on

Draw = random.Random


def mutate(style: str, content: bytes, others: list[bytes], draw: Draw) -> bytes:
    """Change an example a little, mostly; sometimes much.

    Parameters
    ----------
    style
        As in :class:`tests.fuzz.examples.Kind`.
    content
        The example.
    others
        All examples of the kind, to splice with.
    draw
        Decides.
    """
    special = _SPECIAL.get(style)
    if special is not None and draw.random() < 0.6:
        return special(content, draw)
    return raw(content, others, draw)


def raw(content: bytes, others: list[bytes], draw: Draw) -> bytes:
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 2, 4, 16))):
        if not data:
            data += bytes([draw.randrange(256)])
        at = draw.randrange(len(data))
        if draw.random() < 0.3:  # sizes stand at the ends of many formats
            at = draw.choice((at % 64, len(data) - 1 - at % 512)) % len(data)
        match draw.randrange(9):
            case 0:
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                data[at] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
            case 2:
                del data[at:]
            case 3:
                del data[at : at + draw.choice((1, 2, 8, 64, 512))]
            case 4:
                data[at:at] = data[at : at + draw.choice((1, 4, 32, 256))] * draw.choice((1, 2, 50))
            case 5:
                other = draw.choice(others)
                begin = draw.randrange(len(other) + 1)
                data[at : at + draw.choice((0, 16, 256))] = other[begin : begin + 256]
            case 6:
                width = draw.choice((1, 2, 4, 8))
                value = draw.choice(NUMBERS) & ((1 << 8 * width) - 1)
                data[at : at + width] = value.to_bytes(width, draw.choice(("little", "big")))
            case 7:
                data[at:at] = draw.choice(WORDS).encode("latin-1", "replace")
            case 8:
                data[at:at] = bytes(draw.randrange(256) for _ in range(draw.choice((1, 3, 20))))
    return bytes(data[: 1 << 20])


def text(content: bytes, draw: Draw) -> bytes:
    """Change lines and words."""
    lines = content.split(b"\n")
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(lines))
        word = draw.choice(WORDS).encode("utf-8")
        match draw.randrange(6):
            case 0:
                parts = re.split(rb"([\t ,;:=]+)", lines[at])
                parts[draw.randrange(len(parts))] = word
                lines[at] = b"".join(parts)
            case 1:
                lines[at:at] = [lines[draw.randrange(len(lines))]] * draw.choice((1, 1, 20))
            case 2:
                del lines[at]
                lines = lines or [b""]
            case 3:
                lines[at] = word
            case 4:
                lines[at] += word
            case 5:
                found = list(re.finditer(rb"\d+", lines[at]))
                if found:
                    one = draw.choice(found)
                    number = str(draw.choice(NUMBERS)).encode()
                    lines[at] = lines[at][: one.start()] + number + lines[at][one.end() :]
    return draw.choice((b"\n", b"\n", b"\n", b"\r\n")).join(lines)


def tree(content: bytes, draw: Draw) -> bytes:
    """Change values, names and the shape of JSON."""
    try:
        top: Any = json.loads(content)
    except ValueError:
        return content[: draw.randrange(len(content) + 1)]
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = list(_walk(top)) if isinstance(top, dict | list) else []
        if not places:
            break
        # Values near the top are few among all, and matter most.
        pick = min(draw.randrange(len(places)), draw.randrange(len(places)))
        holder, key = places[pick]
        match draw.randrange(6):
            case 0 | 1 | 2:
                holder[key] = copy.deepcopy(draw.choice(VALUES))
            case 3:
                del holder[key]
            case 4 if isinstance(holder, dict):
                holder[draw.choice([*WORDS[:20], "auto_map", "_x", "to_dict"])] = holder.pop(key)
            case _:
                inside, name = draw.choice(places)
                found = inside.get(name) if isinstance(inside, dict) else inside[:1]
                holder[key] = copy.deepcopy(found)
    return json.dumps(top).encode()


def _walk(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items)[:200]:
        yield value, key
        if isinstance(item, dict | list):
            yield from _walk(item)


def packed(content: bytes, draw: Draw) -> bytes:
    """Change the text inside of gzip."""
    try:
        inside = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return content
    return gzip.compress(text(inside, draw), 1)


_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def bcf(content: bytes, draw: Draw) -> bytes:
    """Change the bytes inside of bgzip blocks."""
    inside = bytearray(gzip.decompress(content))
    changed = raw(bytes(inside), [bytes(inside)], draw)[:60_000]
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    data = packer.compress(changed) + packer.flush()
    if len(data) > 65_000:
        return content[: len(content) // 2]
    head = bytes.fromhex("1f8b08040000000000ff060042430200") + struct.pack("<H", len(data) + 25)
    return head + data + struct.pack("<II", zlib.crc32(changed), len(changed)) + _END


def archive(content: bytes, draw: Draw) -> bytes:
    """Change one member of a zip archive, or what its directory says of it."""
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(output, "w") as new:
        members = old.infolist()
        chosen = draw.choice(members).filename
        if draw.random() < 0.6:
            chosen = next((m.filename for m in members if m.filename.endswith(".pkl")), chosen)
        for member in members:
            data = old.read(member)
            if member.filename == chosen:
                data = pickled(data, draw) if chosen.endswith(".pkl") else raw(data, [data], draw)
                if draw.random() < 0.1:
                    continue
            kind = zipfile.ZIP_DEFLATED if draw.random() < 0.03 else zipfile.ZIP_STORED
            new.writestr(zipfile.ZipInfo(member.filename), data, kind)
    changed = bytearray(output.getvalue())
    if draw.random() < 0.2:
        found = [match.start() for match in re.finditer(rb"PK\x01\x02", changed)]
        at = draw.choice(found) + draw.choice((10, 20, 24, 28, 42))
        changed[at : at + 4] = struct.pack("<I", draw.choice(NUMBERS) & 0xFFFFFFFF)
    return bytes(changed)


def pickled(content: bytes, draw: Draw) -> bytes:
    """Change and add instructions of a pickle."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(len(data)) if data else 0
        match draw.randrange(5):
            case 0:
                data[at : at + 1] = bytes([draw.choice(OPCODES)])
            case 1:
                data[at:at] = bytes([draw.choice(OPCODES)]) * draw.choice((1, 1, 2, 30, 3000))
            case 2:
                data[at:at] = b"2\x86" * draw.choice((1, 40, 400))
            case 3:
                data[at:at] = bytes(draw.choice((b"h", b"q", b"K", b"M"))) + bytes(
                    [draw.randrange(40)]
                )
            case 4:
                return raw(bytes(data), [content], draw)
    return bytes(data)


def store(content: bytes, draw: Draw) -> bytes:
    """Change the metadata or the header of a store, with a right sha256."""
    offset = struct.unpack_from("<Q", content, 32)[0]
    metadata = content[offset:]
    metadata = tree(metadata, draw) if draw.random() < 0.8 else raw(metadata, [metadata], draw)
    head = bytearray(content[:offset])
    head[40:48] = struct.pack("<Q", len(metadata))
    head[48:80] = hashlib.sha256(metadata).digest()
    if draw.random() < 0.2:
        at = draw.choice((8, 16, 24, 32, 40))
        head[at : at + 8] = struct.pack("<Q", draw.choice(NUMBERS))
    if draw.random() < 0.2:
        head[draw.randrange(4096, len(head))] = draw.randrange(256)
    return bytes(head) + metadata


def tensors(content: bytes, draw: Draw) -> bytes:
    """Change the header of a safetensors file, with its right length."""
    length = struct.unpack_from("<Q", content)[0]
    header = tree(content[8 : 8 + length], draw)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


_SPECIAL: dict[str, Callable[[bytes, Draw], bytes]] = {
    "text": text, "json": tree, "gzip": packed, "bcf": bcf, "zip": archive, "pickle": pickled,
    "store": store, "safetensors": tensors,
}  # fmt: skip
