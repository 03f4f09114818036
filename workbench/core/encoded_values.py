"""Find known values in text and bytes, in every usual encoding.

The text is decoded (escapes of JSON, JavaScript and Python, HTML, URLs, quoted-printable, base64,
hexadecimal, UTF-7, uuencode, full-width and styled letters), also several encodings inside each
other, and each form is searched with and without its line breaks, quotes, invisible characters and
colours of a terminal. A match leads back to the characters that it came from. Bytes are searched as
they are, as UTF-16, and unpacked.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import html
import io
import json
import lzma
import re
import unicodedata
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

__all__ = ()

Span = tuple[int, int]
Value = tuple[str, str]
"""A value to search for, and the name of the secret that it is, or is a part of."""

MIN_LENGTH = 4
"""A shorter value would match everywhere."""

MIN_ENCODED_LENGTH = 6
_MIN_BASE64_LENGTH = 7
_MIN_SQUEEZED_LENGTH = 8
"""Shorter ones would match by chance in images, or in text without its spaces."""

_MIN_BASE32_LENGTH = 10
_MIN_KEY_LENGTH = 32
_MAX_DEPTH = 3
"""Of encodings inside each other, and of archives."""

_MAX_UNPACKED_BYTES = 64 * 2**20
_MAX_STREAMS = 2000
_MIN_RUN, _MIN_RUN_IN_LARGE = 6, 12
"""Shorter runs of printable characters in a binary file are chance. In a large one, such as the
weights of a model, there are so many that only longer ones are decoded; what stands there as it is
is always found."""

_LARGE_BYTES = 2**20


def find_values(text: str, values: tuple[Value, ...]) -> Iterator[tuple[str, Span]]:
    """Name and span of each of ``values`` that stands in ``text``, in any encoding."""
    needles = _needles(values)
    if needles.text:
        yield from _search(text, needles, _MAX_DEPTH)


def names_in_bytes(content: bytes, values: tuple[Value, ...]) -> set[str]:
    """Names of the values that stand in a binary file, as it is or packed."""
    needles = _needles(values)
    found: set[str] = set()
    for piece in (content, *_unpacked(content, _MAX_DEPTH)):
        found |= {name for raw, name in needles.raw if raw in piece}
        for text in _texts_in(piece, large=len(content) >= _LARGE_BYTES):
            found |= {name for name, _ in _search(text, needles, _MAX_DEPTH)}
    return found


# What to search for

Needle = tuple[str, str]
"""A string to search for, and the name of the secret that it means."""


@dataclass(frozen=True)
class _Needles:
    """What to search for: as written, without spaces and quotes, in base64, in hexadecimal; and in
    bytes, where everything else is found in printable characters."""

    text: tuple[Needle, ...]
    squeezed: tuple[Needle, ...]
    base64: tuple[Needle, ...]
    hexadecimal: tuple[Needle, ...]
    raw: tuple[tuple[bytes, str], ...]


@lru_cache(maxsize=16)
def _needles(values: tuple[Value, ...]) -> _Needles:
    text: set[Needle] = set()
    squeezed: set[Needle] = set()
    encoded: set[tuple[bytes, str]] = set()
    raw: set[tuple[bytes, str]] = set()
    for value, name in values:
        if len(value) < MIN_LENGTH:
            continue
        plain = value.encode("utf-8", "surrogatepass")
        text |= {(value, name), (value.replace(" ", "+"), name)}  # the latter in an address
        squeezed |= {(_SQUEEZED.sub("", form), name) for form in (value, plain.decode("latin-1"))}
        raw.add((plain, name))
        if len(value) >= MIN_ENCODED_LENGTH:
            spellings = (value, json.dumps(value)[1:-1], html.escape(value), quote(value))
            encoded |= {(spelling.encode("utf-8", "surrogatepass"), name) for spelling in spellings}
            wide = ("utf-16-le", "utf-16-be", "utf-32-le")
            encoded |= {(value.encode(code, "surrogatepass"), name) for code in wide}
            raw |= {(value.encode(code, "surrogatepass"), name) for code in wide}
            in_85 = _base85_parts(plain)
            text |= {(part, name) for part in in_85}
            squeezed |= {(_SQUEEZED.sub("", part), name) for part in in_85}
            squeezed |= {(part, name) for part in _base32_parts(plain)}
            squeezed |= {(_SQUEEZED.sub("", part), name) for part in _uu_parts(plain)}
        if len(value) >= _MIN_KEY_LENGTH and (inner := _decode_base64(_SQUEEZED.sub("", value))):
            raw.add((inner, name))  # such as the bytes of a key
            encoded.add((inner, name))
    text |= {(content.decode("latin-1"), name) for content, name in encoded}
    numbers = {("".join(map(str, content)), name) for content, name in encoded}
    once = {(part, name) for content, name in encoded for part in _base64_parts(content)}
    no_zeros = {(content, name) for content, name in encoded if b"\0" not in content}
    twice = {
        (inner, name)
        for content, name in no_zeros
        for part in _base64_parts(content)
        for inner in _base64_parts(part.encode())
    }
    squeezed = {(part, name) for part, name in squeezed if len(part) >= _MIN_SQUEEZED_LENGTH}
    return _Needles(
        tuple(sorted(text)),
        tuple(sorted(squeezed | numbers)),
        tuple(sorted(once | twice)),
        tuple(sorted({(content.hex(), name) for content, name in encoded})),
        tuple(sorted(raw)),
    )


def _base64_parts(content: bytes) -> set[str]:
    """What base64 makes of ``content`` wherever it begins in a group of three bytes.

    Characters that depend on the bytes around it are left out.
    """
    parts = set()
    for before in range(3):
        text = base64.b64encode(bytes(before) + content).decode().rstrip("=")
        whole = (before + len(content)) * 8 // 6
        parts.add(text[-(-before * 8 // 6) : whole])
    return {part for part in parts if len(part) >= _MIN_BASE64_LENGTH}


def _base32_parts(content: bytes) -> set[str]:
    """As `_base64_parts`, for groups of five bytes, in both cases."""
    parts = set()
    for before in range(5):
        text = base64.b32encode(bytes(before) + content).decode().rstrip("=")
        parts.add(text[-(-before * 8 // 5) : (before + len(content)) * 8 // 5])
    long = {part for part in parts if len(part) >= _MIN_BASE32_LENGTH}
    return long | {part.lower() for part in long}


def _base85_parts(content: bytes) -> set[str]:
    """What Python's two base85 encodings make of the whole groups of four bytes."""
    parts = set()
    for skipped in range(4):
        groups = content[skipped : skipped + (len(content) - skipped) // 4 * 4]
        parts |= {base64.b85encode(groups).decode(), base64.a85encode(groups).decode()}
    return {part for part in parts if len(part) >= _MIN_BASE32_LENGTH}


def _uu_parts(content: bytes) -> set[str]:
    """What uuencode makes of the whole groups of three bytes in one of its lines."""
    groups = [content[skipped : skipped + 45] for skipped in range(3)]
    lines = (binascii.b2a_uu(part[: len(part) // 3 * 3]) for part in groups)
    return {line[1:-1].decode() for line in lines if len(line) >= _MIN_BASE32_LENGTH + 2}


# The search in one text


def _search(text: str, needles: _Needles, depth: int) -> Iterator[tuple[str, Span]]:
    """Name and span of every known value in ``text``, decoded up to ``depth`` times.

    Each form is made without the way back first, which is many times faster.
    """
    yield from _find_all(text, needles.text)
    forms = [(_squeezed(text), _SQUEEZED)]
    if _PREFIX.search(text):
        forms.append((_squeezed(_PREFIX.sub("", text)), _PREFIXED))
    for form, tokens in forms:
        if any(True for _ in _search_squeezed(form, needles, _same)):
            for read, origin in _view(text, tokens, lambda _: "") or [(text, _same)]:
                yield from _search_squeezed(read, needles, origin)
    if depth > 0:
        for decode, tokens, decode_token in _DECODERS:
            plain = decode(text)
            if plain is not None and any(True for _ in _search(plain, needles, depth - 1)):
                for read, origin in _view(text, tokens, decode_token):
                    for name, span in _search(read, needles, depth - 1):
                        yield name, origin(*span)


def _search_squeezed(text: str, needles: _Needles, back: Origin) -> Iterator[tuple[str, Span]]:
    for name, span in _find_all(text, needles.squeezed):
        yield name, back(*span)
    standard = text.replace("-", "+").replace("_", "/")
    for name, (start, end) in _find_all(standard, needles.base64):
        first, last = back(start, end)
        # A character beside it holds some of its bits.
        before = start > 0 and back(start - 1, start)[1] == first
        after = end < len(text) and back(end, end + 1)[0] == last
        yield name, (first - before, last + after)
    lower = text.lower()
    if len(lower) != len(text):  # a letter whose lower case has two characters
        lower = text
    for name, span in _find_all(lower, needles.hexadecimal):
        yield name, back(*span)
    pairs = lower.replace(":", "").replace("-", "").replace("0x", "")
    if len(pairs) < len(lower) and any(True for _ in _find_all(pairs, needles.hexadecimal)):
        for read, source in _view(lower, _BETWEEN_PAIRS, lambda _: ""):
            for name, span in _find_all(read, needles.hexadecimal):
                yield name, back(*source(*span))


def _find_all(text: str, needles: Iterable[Needle]) -> Iterator[tuple[str, Span]]:
    for needle, name in needles:
        at = text.find(needle)
        while at >= 0:
            yield name, (at, at + len(needle))
            at = text.find(needle, at + 1)


# Decoded forms of a text, each with the way back: the span that a decoded span came from.

Origin = Callable[[int, int], Span]
View = tuple[str, Origin]

_INVISIBLE = "\x00-\x08\x0e-\x1f\x7f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"
_TERMINAL = (
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]{0,2000}(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]"
    r"|[^\x08\n]\x08"
)
"""Colours, links and characters that the next one overwrites."""

_SQUEEZED = re.compile(f"(?:{_TERMINAL}|" + r"\\[nrtfv0]|[\s\"'`,\\" + _INVISIBLE + "])+")
_ESCAPE_SEQUENCE = re.compile(_TERMINAL)
_PREFIX = re.compile(r"\n[ \t]*(?:[+-]|[#>|*]+|\d+[:|])[ \t]*")
_PREFIXED = re.compile(f"{_PREFIX.pattern}|{_SQUEEZED.pattern}")
_ESCAPED_BREAK = re.compile(r"\\[nrtfv0]")
_DROPPED = re.compile(r"[\s\"'`,\\" + _INVISIBLE + "]")
_SPACES_AND_QUOTES = {
    code: None for code in (*range(0x3001), 0xFEFF) if _DROPPED.fullmatch(chr(code))
}
_ONE_BACKSLASH = "\U000f8ff0"
"""A private character, in place of an escaped backslash while other escapes are decoded."""

_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|\\(?:u[0-9a-fA-F]{4}|u\{[0-9a-fA-F]{1,6}\}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2}|[0-7]{1,3}"
    r"|[\s\S])"
)
_SINGLE = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "b": "\b", "a": "\a"}
_ENTITY = re.compile(
    r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});|<[^<>]{1,300}>"
)
_PERCENT = re.compile(r"(?:%[0-9a-fA-F]{2})+")
_QUOTED_PRINTABLE = re.compile(r"(?:=[0-9A-F]{2})+|=\r?\n")
_BASE64_WORD = re.compile(r"(?:[A-Za-z0-9+/_-]{20,76}\r?\n)*[A-Za-z0-9+/_-]{16,}={0,2}")
_HEXADECIMAL_WORD = re.compile(r"(?:[0-9a-fA-F]{2}){12,}")
_UTF_7 = re.compile(r"\+(?:-|A[A-Za-z0-9+/]{2,1000}-?)")
_UU_BLOCK = re.compile(
    r"begin(?:-base64)? [0-7]{3,4} [^\n]{1,200}\n(?:[ -`]{1,62}\r?\n){1,9999}end"
)
_STYLED = re.compile(r"[\u2460-\u24ff\uff01-\uff5e\U0001d400-\U0001d7ff]+")
"""Letters that mean the same as Latin ones: circled, full-width, mathematical."""

_BETWEEN_PAIRS = re.compile(r"(?:0x|[:-])+")


def _same(start: int, end: int) -> Span:
    return start, end


def _view(text: str, tokens: re.Pattern[str], decode: Callable[[str], str]) -> list[View]:
    """The text with each token decoded; empty if there is none."""
    parts: list[str] = []
    starts: list[int] = []
    sources: list[tuple[int, int]] = []  # start; end of a token, 0 for text as it was
    at = length = 0

    def add(part: str, start: int, end: int) -> None:
        nonlocal length
        if part:
            parts.append(part)
            starts.append(length)
            sources.append((start, end))
            length += len(part)

    for match in tokens.finditer(text):
        add(text[at : match.start()], at, 0)
        add(decode(match.group()), match.start(), match.end())
        at = match.end()
    if at == 0:
        return []
    add(text[at:], at, 0)

    def span_of(place: int) -> Span:
        piece = bisect_right(starts, place) - 1
        start, end = sources[piece]
        exact = start + place - starts[piece]
        return (start, end) if end else (exact, exact + 1)

    return [("".join(parts), lambda start, end: (span_of(start)[0], span_of(end - 1)[1]))]


def unescaped(text: str) -> str | None:
    """The text with escapes of JSON, JavaScript and Python decoded; None if it has none."""
    if "\\" not in text:
        return None
    plain = text.replace("\\\\", _ONE_BACKSLASH)
    for letter, character in (*_SINGLE.items(), ('"', '"'), ("/", "/"), ("'", "'")):
        plain = plain.replace(f"\\{letter}", character)
    if "\\" in plain:
        plain = _ESCAPE.sub(lambda match: _unescape(match.group()), plain)
    return plain.replace(_ONE_BACKSLASH, "\\")


def unescaped_view(text: str) -> list[View]:
    """The text as `unescaped` gives it, with the way back; empty if it has no escapes."""
    return _view(text, _ESCAPE, _unescape)


def _without_markup(text: str) -> str | None:
    if "&" not in text and "<" not in text:
        return None
    return _ENTITY.sub(lambda match: _decode_markup(match.group()), text)


def _decode_markup(token: str) -> str:
    return "" if token[0] == "<" else html.unescape(token)


def _unquoted(text: str) -> str | None:
    if "%" not in text:
        return None
    return _PERCENT.sub(lambda match: _decode_percent(match.group()), text)


def _decode_percent(token: str) -> str:
    return unquote_to_bytes(token).decode("utf-8", "surrogateescape")


def _squeezed(text: str) -> str:
    """Without line breaks, spaces, quotes, and what a terminal does not show."""
    if "\x1b" in text or "\b" in text:
        text = _ESCAPE_SEQUENCE.sub("", text)
    if "\\" in text:
        text = _ESCAPED_BREAK.sub("", text)
    return text.translate(_SPACES_AND_QUOTES)


def _unescape(token: str) -> str:
    if len(token) == 12 and token[6:8] == "\\u":
        high, low = int(token[2:6], 16), int(token[8:], 16)
        return chr(0x10000 + ((high - 0xD800) << 10) + low - 0xDC00)
    kind, digits = token[1], token[2:]
    if kind in "uUx" and digits:
        return chr(min(int(digits.strip("{}"), 16), 0x10FFFF))
    if kind in "01234567":
        return chr(int(token[1:], 8))
    return _SINGLE.get(kind, kind)


def _from_quoted_printable(text: str) -> str | None:
    if "=" not in text:
        return None
    return _changed(
        _QUOTED_PRINTABLE.sub(lambda match: _decode_quoted_printable(match[0]), text), text
    )


def _decode_quoted_printable(token: str) -> str:
    return "" if token[1] in "\r\n" else binascii.a2b_qp(token).decode("utf-8", "surrogateescape")


def _from_base64(text: str) -> str | None:
    return _changed(_BASE64_WORD.sub(lambda match: _decode_base64_word(match[0]), text), text)


def _decode_base64_word(word: str) -> str:
    """What a word means as base64: text, or what is packed in it; otherwise the word itself."""
    content = _decode_base64(re.sub(r"\s", "", word))
    return (_readable(content) if content else "") or word


def _from_utf_7(text: str) -> str | None:
    if "+A" not in text and "+-" not in text:
        return None
    return _changed(_UTF_7.sub(lambda match: _decode_utf_7(match[0]), text), text)


def _decode_utf_7(token: str) -> str:
    try:
        return token.encode().decode("utf-7")
    except UnicodeDecodeError:
        return token


def _from_uu(text: str) -> str | None:
    if "begin " not in text:
        return None
    return _changed(_UU_BLOCK.sub(lambda match: _decode_uu(match[0]), text), text)


def _decode_uu(block: str) -> str:
    try:
        content = b"".join(map(binascii.a2b_uu, block.splitlines()[1:-1]))
    except binascii.Error:
        return block
    return _readable(content) or block


def _from_styled(text: str) -> str | None:
    if text.isascii():
        return None
    return _changed(_STYLED.sub(lambda match: _decode_styled(match[0]), text), text)


def _decode_styled(token: str) -> str:
    return unicodedata.normalize("NFKC", token)


def _from_hexadecimal(text: str) -> str | None:
    return _changed(
        _HEXADECIMAL_WORD.sub(lambda match: _decode_hexadecimal_word(match[0]), text), text
    )


def _decode_hexadecimal_word(word: str) -> str:
    return _readable(bytes.fromhex(word)) or word


def _changed(plain: str, text: str) -> str | None:
    return None if plain == text else plain


def _decode_base64(word: str) -> bytes | None:
    standard = word.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except (ValueError, binascii.Error):
        return None


_DECODERS: tuple[tuple[Callable[[str], str | None], re.Pattern[str], Callable[[str], str]], ...] = (
    (unescaped, _ESCAPE, _unescape),
    (_without_markup, _ENTITY, _decode_markup),
    (_unquoted, _PERCENT, _decode_percent),
    (_from_quoted_printable, _QUOTED_PRINTABLE, _decode_quoted_printable),
    (_from_base64, _BASE64_WORD, _decode_base64_word),
    (_from_hexadecimal, _HEXADECIMAL_WORD, _decode_hexadecimal_word),
    (_from_utf_7, _UTF_7, _decode_utf_7),
    (_from_uu, _UU_BLOCK, _decode_uu),
    (_from_styled, _STYLED, _decode_styled),
)

# Bytes

_LINE_BREAKS = {ord(character): None for character in "\t\n\r"}


def _run_patterns(least: int) -> tuple[re.Pattern[bytes], re.Pattern[str]]:
    narrow = (
        rb"(?:[\x07\x08\x1b\t\n\r -~]"  # and what is UTF-8
        rb"|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})"
        rb"{%d,}" % least
    )
    wide = rf"[^\x00-\x06\x0e-\x1a\x1c-\x1f\x7f-\x9f\ufffd]{{{least},}}"
    return re.compile(narrow), re.compile(wide)


_RUNS, _RUNS_IN_LARGE = _run_patterns(_MIN_RUN), _run_patterns(_MIN_RUN_IN_LARGE)
_STREAMS = (
    (b"\x1f\x8b\x08", 31),
    *((b"\x78" + level, 15) for level in (b"\x01", b"\x5e", b"\x9c", b"\xda")),
)
"""How compressed data begins, and what tells zlib so."""

_ZSTANDARD = b"\x28\xb5\x2f\xfd"


def _readable(content: bytes) -> str:
    """Text that bytes stand for: their own, or what is packed in them; empty if there is none."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if text and text.translate(_LINE_BREAKS).isprintable():
        return text
    packed = [content, *_unpacked(content, _MAX_DEPTH)]
    if len(packed) == 1:
        zeros = content.count(0)
        return content.replace(b"\0", b"").decode("latin-1") if 3 * zeros >= len(content) else ""
    return "\n".join(text for piece in packed for text in _texts_in(piece))


def _texts_in(content: bytes, *, large: bool = False) -> Iterator[str]:
    """The printable characters of bytes, also of UTF-16 and UTF-32, run by run."""
    narrow, wide = _RUNS_IN_LARGE if large else _RUNS
    yield b"\n".join(narrow.findall(content)).decode("utf-8", "replace")
    if 10 * content.count(0) >= len(content) > 0:
        yield b"\n".join(narrow.findall(content.replace(b"\0", b""))).decode("utf-8", "replace")
        for encoding in ("utf-16-le", "utf-16-be"):
            for shift in (0, 1):
                yield "\n".join(wide.findall(content[shift:].decode(encoding, "replace")))


def _unpacked(content: bytes, depth: int) -> Iterator[bytes]:
    """What archives, images and documents hold in compressed form, up to a limit."""
    left = _MAX_UNPACKED_BYTES
    for data in _unpacked_once(content, left):
        if left <= 0:
            return
        left -= len(data)
        yield data
        if depth > 1:
            yield from _unpacked(data, depth - 1)


def _unpacked_once(content: bytes, limit: int) -> Iterator[bytes]:
    for mark, opener in (
        (b"BZh", bz2.BZ2File),
        (b"\xfd7zXZ", lzma.LZMAFile),
        (b"\x5d\0\0", lzma.LZMAFile),
    ):
        if content.startswith(mark):
            try:
                with opener(io.BytesIO(content)) as stream:
                    yield stream.read(limit)
            except (OSError, EOFError, lzma.LZMAError):
                pass
    if b"PK\x05\x06" in content:
        yield from _zipped(content, limit)
    streams = 0
    for mark, window in _STREAMS:
        at = content.find(mark)
        while at >= 0 and streams < _MAX_STREAMS:
            streams += 1
            try:
                data = zlib.decompressobj(window).decompress(content[at:], limit)
            except zlib.error:
                data = b""
            if len(data) >= MIN_LENGTH:
                yield data
            at = content.find(mark, at + 1)
    at = content.find(_ZSTANDARD)
    while at >= 0 and streams < _MAX_STREAMS:  # also in the pages of a Parquet file
        streams += 1
        yield _from_zstandard(content[at:], limit)
        at = content.find(_ZSTANDARD, at + 1)


def _from_zstandard(content: bytes, limit: int) -> bytes:
    try:
        from backports import zstd
    except ImportError:
        return b""
    try:
        return zstd.ZstdDecompressor().decompress(content, limit)
    except zstd.ZstdError:
        return b""


def _zipped(content: bytes, limit: int) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            yield archive.comment
            for name in archive.namelist():
                yield name.encode("utf-8", "surrogatepass")
                with archive.open(name) as member:
                    data = member.read(limit)
                limit -= len(data)
                yield data
    except (
        *(OSError, EOFError, RuntimeError, NotImplementedError, ValueError),
        *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    ):
        return
