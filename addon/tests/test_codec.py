# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""Values and keys as bytes."""

import datetime
import random
import unittest
from collections import OrderedDict, defaultdict
from types import SimpleNamespace

from mooring.codec import Codec, NotShared
from mooring.keys import Scope, canonical


class Frozen(dict):
    def __hash__(self):
        return hash(frozenset(self.items()))


class Text(str):
    pass


CODEC = Codec(mappings={'z': Frozen}, strings={'m': Text})

VALUES = [
    None, True, 0, -1, 2**70, 1.5, float('inf'), '', 'é\u20ac\U0001f600', '\ud800', b'', b'\x00\xff', [], (), {},
    set(), frozenset(), {1: 'a', '1': 'b', None: 'c', (1, 2): [3], True is None: 4}, {'d': 1, 't': [], '': {}},
    [('/a/b.js', '/srv/a/b.js', 'web.assets', 1.25)], {'x': (1, [2, {'y': {3, 4}}])}, frozenset({(1, 'a')}),
    datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 1, 2, 3, 4),
    datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc),
    Frozen(a=(Frozen(b=None),)), [Text('<b>')], {Frozen(a=1): Text('x')},
]


def types(value):
    """The types of a value, all the way down."""
    if isinstance(value, dict):
        return type(value), [(types(key), types(part)) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [types(part) for part in value]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(map(repr, map(types, value)))
    return type(value)


def some(depth):
    """A random value."""
    if depth == 0 or random.random() < 0.3:
        return random.choice([0, 1, -5, 'a', 'b\n', b'c', None, True, 2.5])
    parts = [some(depth - 1) for _ in range(random.randrange(4))]
    hashable = [part for part in parts if not isinstance(part, (list, dict, set))]
    try:
        return random.choice([list, tuple, set, frozenset, lambda p: dict(enumerate(p)), lambda p: Frozen(enumerate(p))])(
            random.choice([parts, hashable]))
    except TypeError:
        return parts


class Values(unittest.TestCase):

    def assertSame(self, value):
        back = CODEC.decode(CODEC.encode(value))
        self.assertEqual(back, value)
        self.assertEqual(types(back), types(value))

    def test_values_come_back_with_their_types(self):
        for value in VALUES:
            with self.subTest(value=value):
                self.assertSame(value)

    def test_random_values_come_back(self):
        for seed in range(2000):
            random.seed(seed)
            self.assertSame(some(4))

    def test_the_order_of_a_dict_comes_back(self):
        self.assertEqual(list(CODEC.decode(CODEC.encode({'b': 1, 'a': 2}))), ['b', 'a'])

    def test_what_would_come_back_as_something_else_is_not_shared(self):
        class Number(int):
            pass

        loop = []
        loop.append(loop)
        for value in (object(), len, Number(1), OrderedDict(), defaultdict(dict), [{1: [object()]}], loop, 1j,
                      bytearray(b'x'), datetime.timedelta(1), range(3)):
            with self.subTest(value=type(value)), self.assertRaises(NotShared):
                CODEC.encode(value)

    def test_whatever_comes_is_a_value_or_refused(self):
        for text in (b'', b'{', b'{"x":1}', b'{"t":1}', b'{"t":[],"s":[]}', b'{}', b'{"d":1}', b'{"b":"xyz"}',
                     b'{"D":"never"}', b'\xff', b'{"s":[[]]}', b'[' * 100_000, b'{"d":[1]}x'):
            with self.subTest(text=text[:20]), self.assertRaises(NotShared):
                CODEC.decode(text)
        good = CODEC.encode(VALUES[17:])
        for seed in range(2000):
            random.seed(seed)
            bad = bytearray(good)
            for _ in range(random.randrange(1, 4)):
                bad[random.randrange(len(bad))] = random.randrange(256)
            try:
                CODEC.decode(bad)
            except NotShared:
                pass


class Keys(unittest.TestCase):

    def key(self, database=('prod', '1'), code='c', cache='default', sequences=(1, 2), model='m', method='f', args=()):
        return Scope(database, code, cache, sequences).key(CODEC, model, method, args)

    def test_everything_that_a_value_depends_on_makes_another_key(self):
        keys = {self.key(), self.key(database=('prod', '2')), self.key(code='d'), self.key(cache='assets'),
                self.key(sequences=(1, 3)), self.key(model='n'), self.key(method='g'), self.key(args=(1,)),
                self.key(args=('1',)), self.key(args=((1,),)), self.key(args=(None,)), self.key(args=(True,)),
                self.key(args=(1.0,)), self.key(args=(frozenset({1}),))}
        self.assertEqual(len(keys), 14)
        self.assertEqual(self.key(), self.key())
        self.assertIsNone(self.key(args=(object(),)))

    def test_records_are_told_apart_by_model_and_ids(self):
        def records(name, *ids):
            return SimpleNamespace(_name=name, _ids=ids)

        alike = {canonical(CODEC, value) for value in (records('a', 1), records('a', 1))}
        others = {canonical(CODEC, value) for value in (records('a', 2), records('b', 1), records('a'), ('a', (1,)))}
        self.assertEqual((len(alike), len(alike | others)), (1, 5))
        self.assertIsNone(self.key(args=(records('a', object()),)))

    def test_sets_are_the_same_however_they_were_made(self):
        names = [f'name {number}' for number in range(100)]
        self.assertEqual(canonical(CODEC, frozenset(names)), canonical(CODEC, frozenset(reversed(names))))


if __name__ == '__main__':
    unittest.main()
