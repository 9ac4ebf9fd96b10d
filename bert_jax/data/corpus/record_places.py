"""Where the records of a shard lie in its file: they have one size and are not compressed, so their places are computed.

This is Riegeli's records format: every 64 KiB of a file begin with a header, even within a record. In what is left, a signature
of 40 bytes is followed by chunks: a header of 40 bytes, one for the compression (none), three for lengths, and the record.
"""

_PAGE, _PAGE_HEADER, _SIGNATURE, _CHUNK_HEADER = 1 << 16, 24, 40, 44


def in_file(record_size: int, number, place):
    """Returns where byte `place` of a record lies in the file, and the bytes from there to the next header; also of arrays."""
    position = _SIGNATURE + (number + 1) * _CHUNK_HEADER + number * record_size + place
    page, in_page = divmod(position, _PAGE - _PAGE_HEADER)
    return page * _PAGE + _PAGE_HEADER + in_page, _PAGE - _PAGE_HEADER - in_page


def span(record_size: int, first: int, stop: int) -> tuple[int, int]:
    """Returns the bytes [start, end) of the file from the beginning of record `first` to the end of record `stop` - 1."""
    start, _ = in_file(record_size, first, 0)
    last, _ = in_file(record_size, stop - 1, record_size - 1)
    return start, last + 1


def records_in(content: bytes, record_size: int, first: int, stop: int) -> list[bytes]:
    """Returns the records from the bytes of their `span`; they are shorter where bytes are missing at the end."""
    start, _ = span(record_size, first, stop)
    parts, position = [], 0
    while position < len(content):  # from a header to the next one
        begin = max(position, _PAGE_HEADER - (start + position) % _PAGE + position)
        end = position + _PAGE - (start + position) % _PAGE
        parts.append(content[begin:end])
        position = end
    chunks, distance = b"".join(parts), record_size + _CHUNK_HEADER
    return [chunks[number * distance :][:record_size] for number in range(stop - first)]
