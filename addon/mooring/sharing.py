# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""What happens when a worker has to compute a value: it is looked for, computed, and published."""

import functools
import logging
import time

from .allowed import is_allowed, name
from .codec import NotShared
from .keys import Scope

_logger = logging.getLogger(__name__)

#: As the sidecar has it.
LONGEST_VALUE = 2 << 20


class SharedMethod:
    """Takes the place of a method that Odoo's cache calls on a miss. To dictionaries it is that method."""

    def __init__(self, sharing, cache, method):
        functools.update_wrapper(self, method)
        self._sharing, self._cache, self._method = sharing, cache, method
        self.shared_name = name(method)

    def __call__(self, *args, **kwargs):
        return self._sharing.compute(self._cache, self, self._method, args, kwargs)

    def __hash__(self):
        return hash(self._method)

    def __eq__(self, other):
        return self is other or self._method == other


class Sharing:
    """Shares what methods return.

    :param version: of Odoo: one of `versions`
    :param client: the sidecar
    :param codec: how values become bytes
    :param code: the code's version
    :param threshold: in seconds
    """

    def __init__(self, version, client, codec, code, threshold, more_methods=()):
        self._version, self._client, self._codec = version, client, codec
        self._code, self._threshold, self._more = code, threshold, more_methods

    def adopt(self, cache):
        """Has a cache (an instance of Odoo's ormcache) call a shared method, if its method is allowed."""
        method = cache.method
        if not isinstance(method, SharedMethod) and is_allowed(method, self._more):
            cache.method = SharedMethod(self, cache, method)

    def compute(self, cache, shared, method, args, kwargs):
        """The value of a call: somebody else's, or computed and published."""
        try:
            asked = self._ask(cache, shared, args, kwargs)
        except Exception:
            # Odoo goes on, whatever is wrong here.
            _logger.warning('%s is not shared', shared.shared_name, exc_info=True)
            asked = None
        if asked is None:
            return method(*args, **kwargs)
        seen, scope, key, found, lease = asked
        if lease is None:
            return found
        started = time.monotonic()
        published = False
        try:
            value = method(*args, **kwargs)
            cost = time.monotonic() - started
            if cost >= self._threshold:
                published = self._publish(args[0], seen, scope, key, lease, cost, shared.shared_name, value)
        finally:
            if not published:
                self._client.release(key, lease)
        return value

    def _ask(self, cache, shared, args, kwargs):
        """None if the call cannot be shared now; else what is known, with a value or with a lease."""
        model = args[0]
        seen = self._version.seen(model.pool)
        if seen is None:
            return None
        scope = self._scope(model.pool, seen, self._version.cache_name(cache))
        if scope is None:
            return None
        arguments = self._version.arguments(cache, args, kwargs)
        key = scope.key(self._codec, model._name, shared.shared_name, arguments)
        if key is None:
            return None
        encoded, lease = self._client.get(key, scope.cache, shared.shared_name)
        if lease is not None:
            return seen, scope, key, None, lease
        try:
            return seen, scope, key, self._codec.decode(encoded), None
        except NotShared:
            self._client.lied()
            return None

    def _scope(self, registry, seen, cache_name):
        """A cache as it is for what was seen; the first time, what it was before is invalidated."""
        scope = seen.scopes.get(cache_name)
        if scope is None:
            sequences = self._version.clearing(seen.sequences, cache_name)
            if sequences is None:
                return None
            if seen.database is None:
                seen.database = self._version.database(registry)
            scope = seen.scopes[cache_name] = Scope(seen.database, self._code, cache_name, sequences)
            self._client.invalidate(scope)
        return scope

    def _publish(self, model, seen, scope, key, lease, cost, method, value):
        """Publishes a value, if others may see it and it has an encoding. Whether it was."""
        try:
            if not self._version.may_publish(model, seen):
                return False
            encoded = self._codec.encode(value)
        except NotShared as problem:
            _logger.debug('%s is not shared: %s', method, problem)
            return False
        except Exception:
            _logger.warning('%s is not shared', method, exc_info=True)
            return False
        if len(encoded) > LONGEST_VALUE:
            return False
        self._client.put(scope, key, lease, cost, method, encoded)
        return True
