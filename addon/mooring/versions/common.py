# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""What the versions have in common: when a value may be found, and when published.

A key holds the signalling sequences that the database told, not those that Odoo guesses after its own signals.
A value may be published under them if the transaction that computed it began after they had been read: it sees
all that was signalled by them. It must have written nothing, for what it wrote may be rolled back.
"""

import time
from contextlib import closing

_SEEN = '_mooring_seen'

#: What a database is, also after one of its name was restored, and a server after one took its place.
DATABASE = """
    SELECT database.oid::text, system.system_identifier::text, checkpoint.timeline_id::text
      FROM pg_database database, pg_control_system() system, pg_control_checkpoint() checkpoint
     WHERE database.datname = current_database()
"""

#: Whether the transaction wrote nothing, on a server that can be written to, and its age in seconds.
CLEAN = """
    SELECT txid_current_if_assigned() IS NULL AND NOT pg_is_in_recovery(),
           extract(epoch FROM clock_timestamp() - now())::float
"""


class Seen:
    """Sequences as the database told them.

    :ivar since: when they had been read for the first time
    """

    def __init__(self, sequences, clock):
        self.sequences = sequences
        self.since = clock()
        self.database = None
        self.scopes = {}


class Version:
    """A version of Odoo."""

    def __init__(self, clock=time.monotonic):
        self._clock = clock

    # what differs

    @staticmethod
    def settings(config):
        """What stands under [mooring] in odoo.conf."""
        return config.misc.get('mooring', {})

    def sequences(self, registry):
        """The sequences that a registry goes by."""
        raise NotImplementedError

    def clearing(self, sequences, cache_name):
        """Those of them by which a cache could be cleared; None if there is no such cache."""
        raise NotImplementedError

    def hook(self, registry_class):
        """Has a registry's class note what the database tells."""
        raise NotImplementedError

    def cache_of(self, method):
        """The cache of a method that was decorated with one; else whatever."""
        return getattr(method, '__cache__', None)

    def cache_name(self, cache):
        return cache.cache_name

    def arguments(self, cache, args, kwargs):
        """What tells calls of a method apart."""
        return cache.key(*args, **kwargs)

    def unwritten(self, model):
        """What was changed and is not written yet."""
        return model.env.cache._dirty or model.env.transaction.tocompute

    # what does not

    def note(self, registry, sequences):
        """Notes what the database told."""
        seen = registry.__dict__.get(_SEEN)
        if seen is None or seen.sequences != sequences:
            registry.__dict__[_SEEN] = Seen(sequences, self._clock)

    def noted(self, registry):
        return registry.__dict__.get(_SEEN)

    def seen(self, registry):
        """What the registry goes by, if the database told it and this thread has invalidated nothing."""
        if not registry.ready or registry.registry_invalidated or registry.cache_invalidated:
            return None
        if getattr(registry, 'test_cr', None) is not None:
            return None
        seen = self.noted(registry)
        return seen if seen is not None and seen.sequences == self.sequences(registry) else None

    def database(self, registry):
        """What names a database across processes."""
        with closing(registry.cursor()) as cr, cr._cnx.cursor() as own:
            own.execute(DATABASE)
            return (registry.db_name, *own.fetchone())

    def may_publish(self, model, seen):
        """Whether others may see what was computed."""
        cr = model.env.cr
        if self.seen(model.pool) is not seen or self.unwritten(model) or getattr(cr, 'readonly', False):
            return False
        elapsed = self._clock() - seen.since
        # A cursor of its own: the other's last result may not have been fetched.
        with cr._cnx.cursor() as own:
            own.execute(CLEAN)
            clean, age = own.fetchone()
        return bool(clean) and age <= elapsed


class NamedCaches(Version):
    """Odoo 17 and later: several caches, and a sequence for each that can be cleared.

    :param registry_module: it says which caches are cleared by which sequence
    """

    def __init__(self, registry_module, **kwargs):
        super().__init__(**kwargs)
        self._cleared_by = registry_module._CACHES_BY_KEY

    def sequences(self, registry):
        return registry.registry_sequence, dict(registry.cache_sequences)

    def clearing(self, sequences, cache_name):
        registry_sequence, cache_sequences = sequences
        names = sorted(name for name, cleared in self._cleared_by.items() if cache_name in cleared)
        if not names or any(name not in cache_sequences for name in names):
            return None
        return registry_sequence, [(name, cache_sequences[name]) for name in names]

    def hook(self, registry_class):
        get_sequences, check_signaling = registry_class.get_sequences, registry_class.check_signaling
        version = self

        def noting(registry, cr):
            registry_sequence, cache_sequences = get_sequences(registry, cr)
            version.note(registry, (registry_sequence, dict(cache_sequences)))
            return registry_sequence, cache_sequences

        def checking(registry, *args, **kwargs):
            before = version.noted(registry)
            checked = check_signaling(registry, *args, **kwargs)
            cr = args[0] if args else kwargs.get('cr')
            if cr is not None and version.noted(checked) is not before:
                # The request goes on with this cursor, whose transaction began a moment before what was
                # noted: it shall see what the sequences tell.
                cr.rollback()
            return checked

        registry_class.get_sequences = noting
        registry_class.check_signaling = checking
