"""A reservation as a token: packed, signed, and spelled for headers and URLs, in `_seal.c`."""

def keyed(key: bytes, /) -> bytes:
    """What `seal` needs of a key of 1 to 64 bytes: work it out once. Raises ValueError for another."""

def seal(keyed: bytes, nonce: int, expires_wall_ns: int, takes: list[tuple[bytes, int, int, int]], /) -> str:
    """The token of a reservation. A take is its bytes, and the key, amount and end to put there.

    Raises OverflowError for a number beyond 64 bits, ValueError or TypeError for anything else that does not fit.
    """
