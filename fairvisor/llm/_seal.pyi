"""A reservation's bytes as a token: signed, and spelled for headers and URLs, in `_seal.c`."""

def keyed(key: bytes, /) -> bytes:
    """What `seal` needs of a key of 1 to 64 bytes: work it out once. Raises ValueError for another."""

def seal(keyed: bytes, payload: bytes, /) -> str:
    """`payload`, not empty, and its keyed BLAKE2b of 16 bytes (RFC 7693), as base64url without padding (RFC 4648 5)."""
