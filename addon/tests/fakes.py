# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""As much of each Odoo as the module touches: a database with transactions and signals, registries, cached methods.

Written from what the versions do, not from their text. A node is a registry; several have one database.
"""

import itertools
import threading
from types import SimpleNamespace


class Database:
    """Values, which transactions see as they were committed when they began, and signals, which they see at once."""

    def __init__(self, names):
        self.values = {'greeting': 'hello'}
        self.signals = dict.fromkeys(names, 1)
        self.clock = itertools.count(1000)
        self.identity = ('16400', '7', '1')
        #: Called once between a transaction's beginning and what it reads first.
        self.meanwhile = None

    def now(self):
        return float(next(self.clock))


class Connection:
    """What a cursor's connection gives: cursors of the same transaction."""

    def __init__(self, cr):
        self._cr = cr

    def cursor(self):
        return Own(self._cr)


class Own:
    def __init__(self, cr):
        self._cr, self._row = cr, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def execute(self, query):
        cr = self._cr
        cr.begin()
        if 'pg_control_system' in query:
            self._row = cr.database.identity
        else:
            self._row = (not cr.written, cr.database.now() - cr.began)

    def fetchone(self):
        return self._row


class Cursor:
    readonly = False

    def __init__(self, database):
        self.database = database
        self._cnx = Connection(self)
        self._end()

    def _end(self):
        self.snapshot, self.began, self.written = None, None, {}

    def begin(self):
        if self.snapshot is None:
            self.snapshot, self.began = dict(self.database.values), self.database.now()
            if self.database.meanwhile is not None:
                meanwhile, self.database.meanwhile = self.database.meanwhile, None
                meanwhile()

    def read(self, name):
        self.begin()
        return {**self.snapshot, **self.written}[name]

    def write(self, name, value):
        self.begin()
        self.written[name] = value

    def signals(self):
        self.begin()
        return dict(self.database.signals)

    def commit(self):
        self.database.values.update(self.written)
        self._end()

    def rollback(self):
        self._end()

    def close(self):
        self._end()


class Registry16:
    """One cache, one sequence, and a flag."""

    CLEARED_BY = {'cache': ('default',)}

    def __init__(self, database):
        self.db_name, self.database, self.ready, self.test_cr = 'prod', database, True, None
        self.registry_invalidated = False
        self.lru = {}
        self._flags = threading.local()
        self.registry_sequence, self.cache_sequence = database.signals['registry'], database.signals['cache']

    def cursor(self):
        return Cursor(self.database)

    @property
    def cache_invalidated(self):
        return getattr(self._flags, 'cache', False)

    def check_signaling(self):
        cr = self.cursor()
        signals = cr.signals()
        if self.cache_sequence != signals['cache']:
            self.lru.clear()
        self._flags.cache = False
        self.registry_sequence, self.cache_sequence = signals['registry'], signals['cache']
        return self

    def clear_cache(self, *names):
        self.lru.clear()
        self._flags.cache = True

    def signal_changes(self):
        if self.cache_invalidated:
            self.database.signals['cache'] += 1
            self.cache_sequence = self.database.signals['cache']
        self._flags.cache = False

    def reset_changes(self):
        if self.cache_invalidated:
            self.lru.clear()
        self._flags.cache = False


class Registry17:
    """Several caches, and sequences that are guessed after own signals."""

    CLEARED_BY = {
        'default': ('default', 'templates.cached_values'),
        'templates': ('templates', 'templates.cached_values'),
        'groups': ('groups', 'templates', 'templates.cached_values'),
    }

    def __init__(self, database):
        self.db_name, self.database, self.ready, self.test_cr = 'prod', database, True, None
        self.registry_invalidated = False
        self.lru = {}
        self._flags = threading.local()
        self.cache_sequences = {}
        self.registry_sequence, sequences = self.get_sequences(self.cursor())
        self.cache_sequences.update(sequences)

    def cursor(self):
        return Cursor(self.database)

    @property
    def cache_invalidated(self):
        return self._flags.__dict__.setdefault('cache', set())

    def get_sequences(self, cr):
        signals = cr.signals()
        return signals.pop('registry'), signals

    def check_signaling(self):
        return self._check(self.cursor())

    def _check(self, cr):
        _, sequences = self.get_sequences(cr)
        for name, sequence in sequences.items():
            if self.cache_sequences[name] != sequence:
                self._clear(name)
        self.cache_sequences.update(sequences)
        return self

    def _clear(self, name):
        for key in [key for key in self.lru if key[0] in self.CLEARED_BY[name]]:
            del self.lru[key]

    def clear_cache(self, *names):
        for name in names or ('default',):
            self._clear(name)
            self.cache_invalidated.add(name)

    def signal_changes(self):
        for name in self.cache_invalidated:
            self.database.signals[name] += 1
            self.cache_sequences[name] += 1
        self.cache_invalidated.clear()

    def reset_changes(self):
        for name in self.cache_invalidated:
            self._clear(name)
        self.cache_invalidated.clear()


class Registry18(Registry17):
    """Reads the sequences with the request's cursor, if it is given."""

    def check_signaling(self, cr=None):
        return self._check(cr or self.cursor())


class Registry19(Registry18):
    CLEARED_BY = {**Registry18.CLEARED_BY, 'stable': ('stable', 'default', 'templates.cached_values')}


class Cache:
    """The decorator up to 18: the key is of the arguments, and entries are also of the model and the method."""

    def __init__(self, *names, cache='default'):
        self.names, self.cache_name = names, cache

    def __call__(self, method):
        self.method = method
        self.key = lambda model, **arguments: tuple(arguments[name] for name in self.names)

        def lookup(model, **arguments):
            return self.lookup(model, **arguments)

        self.mark(lookup)
        return lookup

    def mark(self, lookup):
        """How it is found again."""
        lookup.__cache__ = self

    def entry(self, model, arguments):
        return (self.cache_name, model._name, self.method, *self.key(model, **arguments))

    def lookup(self, model, **arguments):
        entry = self.entry(model, arguments)
        if entry not in model.pool.lru:
            model.pool.lru[entry] = self.method(model, **arguments)
        return model.pool.lru[entry]


class Cache16(Cache):
    """Has no name."""

    def __init__(self, *names, cache='default'):
        super().__init__(*names)
        del self.cache_name

    def mark(self, lookup):
        lookup.clear_cache = self.clear

    def clear(self, model):
        pass

    def entry(self, model, arguments):
        return ('default', model._name, self.method, *self.key(model, **arguments))


class Cache17(Cache):

    def mark(self, lookup):
        lookup.cache = self


class Cache19(Cache):
    """The key begins with the model's name and the method."""

    def __call__(self, method):
        lookup = super().__call__(method)
        self.key = lambda model, **arguments: (model._name, method, *(arguments[name] for name in self.names))
        return lookup

    def entry(self, model, arguments):
        return (self.cache_name, *self.key(model, **arguments))


class Model:
    """A model in a request: its cursor, and what it changed and has not written."""

    _name = 'some.model'

    def __init__(self, registry, cr, version):
        dirty = {}
        transaction = SimpleNamespace(tocompute={}, field_dirty=dirty)
        self.pool = registry
        self.env = SimpleNamespace(cr=cr, transaction=transaction)
        if version < 19:
            self.env.cache = SimpleNamespace(_dirty=dirty)
            del transaction.field_dirty
        self.dirty = dirty


REGISTRIES = {16: Registry16, 17: Registry17, 18: Registry18, 19: Registry19}
CACHES = {16: Cache16, 17: Cache17, 18: Cache, 19: Cache19}


class Sidecar:
    """A client whose values are kept here."""

    def __init__(self):
        self.values, self.invalidated, self.released = {}, [], []
        self.broken = False

    def get(self, key, cache, method):
        found = self.values.get(key)
        if self.broken:
            return b'{"x":1}', None
        return (found, None) if found is not None else (None, 1)

    def put(self, scope, key, lease, cost, method, value):
        self.values[key] = value

    def release(self, key, lease):
        self.released.append(key)

    def invalidate(self, scope):
        self.invalidated.append(scope.cache)

    def lied(self):
        self.broken = None
