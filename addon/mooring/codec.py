# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""Values as bytes, and back with every type as it was.

JSON, in which lists, strings, numbers, booleans and None are themselves and everything else is an object of
one member that names its type. What has another type, also a derived one, is not shared: it would come back as
something else. Nothing is ever unpickled.
"""

import datetime
import json


class NotShared(Exception):
    """A value of a type that has no encoding, or a text that is no encoding."""


_PLAIN = (str, int, float, bool, type(None))


class Codec:
    """Encodes and decodes.

    :param mappings: further types made from a dict, by tag; as Odoo's frozendict
    :param strings: further types made from a str, by tag; as Markup
    """

    def __init__(self, mappings=None, strings=None):
        mappings = {'d': dict, **(mappings or {})}
        strings = strings or {}
        self._encoders = {kind: self._itself for kind in _PLAIN}
        self._encoders[list] = self._list
        self._decoders = {}
        for tag, kind in mappings.items():
            self._add(tag, kind, self._flat, lambda items, kind=kind: kind(zip(items[::2], items[1::2])))
        for tag, kind in {'t': tuple, 's': set, 'f': frozenset}.items():
            self._add(tag, kind, self._list, kind)
        for tag, kind in strings.items():
            self._add(tag, kind, str.__str__, kind)
        for tag, kind in {'D': datetime.date, 'T': datetime.datetime}.items():
            self._add(tag, kind, kind.isoformat, kind.fromisoformat)
        self._add('b', bytes, bytes.hex, bytes.fromhex)
        self._parser = json.JSONDecoder(object_hook=self._restore)

    def _add(self, tag, kind, encode, decode):
        self._encoders[kind] = lambda value: {tag: encode(value)}
        self._decoders[tag] = decode

    @staticmethod
    def _itself(value):
        return value

    def _encode(self, value):
        encoder = self._encoders.get(type(value))
        if encoder is None:
            raise NotShared(f'{type(value).__module__}.{type(value).__qualname__}')
        return encoder(value)

    def _list(self, values):
        return [self._encode(value) for value in values]

    def _flat(self, mapping):
        return [self._encode(part) for item in mapping.items() for part in item]

    def _restore(self, tagged):
        ((tag, value),) = tagged.items()
        return self._decoders[tag](value)

    def encode(self, value):
        """Bytes of a value.

        :raise NotShared: if there are none
        """
        try:
            return json.dumps(self._encode(value), separators=(',', ':')).encode('ascii')
        except (RecursionError, ValueError) as problem:
            raise NotShared(str(problem)) from problem

    def decode(self, encoded):
        """The value of bytes.

        :raise NotShared: if there is none
        """
        try:
            return self._parser.decode(str(encoded, 'ascii'))
        except Exception as problem:  # whatever a lying sidecar makes of it
            raise NotShared(str(problem)) from problem
