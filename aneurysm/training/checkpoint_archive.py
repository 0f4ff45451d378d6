"""
check_archive(): sure that a file is what `torch.save` wrote, to the last bit, and that to read it can do no harm.

A checkpoint is a zip archive, whose members each have a CRC-32. torch's reader does not look at them: of a flipped bit
it makes other weights without a word. And it takes more than we write: compressed members of any size, and calls such
as ``bytearray(10**12)``, which run no code but take all memory there is. So all of that is checked before it reads.
"""

from __future__ import annotations

import pickletools
import re
import struct
import zipfile
import zlib
from typing import BinaryIO, Final

_MOST_DIRECTORY: Final = 16 * 2**20
_MOST_PICKLE: Final = 4 * 2**20
"""Bytes. That of a model of 1,000 tensors with its optimiser takes 0.3 MB; each byte may become 64 in memory."""
_BLOCK: Final = 1 << 20
_IS_FOLDER: Final = 0x10
_END: Final = struct.Struct("<4s4H2LH")
_END_64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_BYTES: Final = 20
_KNOWN: Final = re.compile(
    r"collections OrderedDict"
    r"|torch (Float|Half|BFloat16|Double|Long|Int|Short|Char|Byte|Bool)Storage"
    r"|torch (bfloat16|float16|float32|float64)"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)"
)
"""What the pickle of a checkpoint names: containers and tensors."""


class ArchiveError(ValueError):
    """The file is damaged, or none that we wrote."""


def check_archive(file: BinaryIO) -> None:
    """
    Check a checkpoint's file from its beginning to its end; nothing of it is run, and little of it held in memory.

    Raises
    ------
    ArchiveError
        It is damaged, or has what no checkpoint has. The message says what.
    OSError
        It can't be read.
    """
    try:
        _check(file)
    except ArchiveError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
    ) as error:
        raise ArchiveError(str(error) or type(error).__name__) from error
    except (struct.error, OverflowError) as error:
        raise ArchiveError(str(error)) from error


def _check(file: BinaryIO) -> None:
    size = file.seek(0, 2)
    file.seek(0)
    # Of another beginning torch would make a file of its older format.
    if file.read(4) != b"PK\x03\x04":
        raise ArchiveError("it is no zip archive")
    if _directory_bytes(file, size) > min(_MOST_DIRECTORY, size):
        raise ArchiveError("its list of members is too long")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > size:
            raise ArchiveError("its members are larger than the file")
        if len({member.filename for member in members}) != len(members):
            raise ArchiveError("two members have one name")
        pickles = [m for m in members if m.filename.count("/") == 1 and m.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ArchiveError("it has no member data.pkl, or several")
        for member in members:
            if member.is_dir() or member.external_attr & _IS_FOLDER:  # of which torch reads nothing, not even zeros
                raise ArchiveError("a member is marked as a folder")
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ArchiveError(f"a member is compressed ({member.file_size} bytes from {member.compress_size})")
            with archive.open(member) as content:
                while content.read(_BLOCK):  # which compares the CRC at the end
                    pass
        if pickles[0].file_size > _MOST_PICKLE:
            raise ArchiveError(f"its pickle has {pickles[0].file_size} bytes, more than any checkpoint's")
        for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
            if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
                raise ArchiveError(f"its pickle makes objects ({opcode.name})")
            if opcode.name == "GLOBAL" and not _KNOWN.fullmatch(str(argument)):
                raise ArchiveError(f"its pickle names {str(argument)[:80]!r}, which no checkpoint does")


def _directory_bytes(file: BinaryIO, size: int) -> int:
    """Return what the archive's end says of the length of its directory, which Python reads as a whole."""
    if size < _END.size:
        raise ArchiveError("it is too short")
    file.seek(size - _END.size)
    mark, *_, length, _, comment = _END.unpack(file.read(_END.size))
    if mark != b"PK\x05\x06" or comment:
        raise ArchiveError("its end is missing")
    at = size - _END.size - _LOCATOR_BYTES - _END_64.size
    if at >= 0:
        file.seek(at)
        mark, *_, length_64, _ = _END_64.unpack(file.read(_END_64.size))
        if mark == b"PK\x06\x06":
            length = length_64
    return int(length)
