# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""What values are found by: digests of everything that they depend on."""

import hashlib

from .codec import NotShared


def digest(size, *parts):
    """A digest of byte strings, that differs if any of them does."""
    made = hashlib.blake2b(digest_size=size)
    for part in parts:
        made.update(len(part).to_bytes(8, 'big'))
        made.update(part)
    return made.digest()


def canonical(codec, value):
    """Bytes of a part of a key, the same for equal sets in whatever order they are gone through."""
    if type(value) in (set, frozenset):
        return b'{%s}' % b','.join(sorted(canonical(codec, part) for part in value))
    if type(value) in (tuple, list):
        return b'(%s)' % b','.join(canonical(codec, part) for part in value)
    if hasattr(value, '_name') and hasattr(value, '_ids'):
        # Records, as Odoo's own keys may hold them.
        return b'r' + canonical(codec, (value._name, value._ids))
    return codec.encode(value)


class Scope:
    """One of a database's caches, as it was for certain signalling sequences.

    :param database: what names the database, and tells it from one of the same name
    :param code: the code's version
    :param cache: the cache's name
    :param sequences: all sequences by which the cache could be cleared
    """

    def __init__(self, database, code, cache, sequences):
        text = [str(part).encode() for part in (*database, code, cache)]
        self.cache = cache
        self.family = digest(16, *text)
        self.generation = digest(16, self.family, repr(sequences).encode())

    def key(self, codec, model, method, arguments):
        """The key of a call; None if its arguments cannot be told apart."""
        try:
            arguments = canonical(codec, arguments)
        except NotShared:
            return None
        return digest(32, self.generation, model.encode(), method.encode(), arguments)
