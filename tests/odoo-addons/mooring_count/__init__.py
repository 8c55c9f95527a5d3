"""Tests only: a line for each value that an ORM cache had to compute goes to $MOORING_COUNT, with the milliseconds
that it took."""

import functools
import gc
import os
import re
import time


def post_load():
    from odoo.tools.cache import ormcache

    decorate = ormcache.__call__

    def decorated(cache, method):
        lookup = decorate(cache, method)
        count(cache)
        return lookup

    def count(cache):
        # Up to 17 modules are loaded in any order: Mooring's may have taken the method's place already.
        owner, name = (cache.method, '_method') if hasattr(cache.method, '_method') else (cache, 'method')
        method = getattr(owner, name)

        @functools.wraps(method)
        def counted(model, *args, **kwargs):
            # From 19 on the key holds the method.
            key = re.sub(' at 0x[0-9a-f]+', '', repr(cache.key(model, *args, **kwargs)))
            began = time.monotonic()
            value = method(model, *args, **kwargs)
            took = (time.monotonic() - began) * 1000
            line = f'{took:.1f} {method.__qualname__} {model._name} {key}\n'.encode()
            counter = os.open(os.environ['MOORING_COUNT'], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(counter, line)
            os.close(counter)
            return value

        setattr(owner, name, counted)

    ormcache.__call__ = decorated
    # Some versions have decorated their own methods by now.
    for cache in [thing for thing in gc.get_objects() if isinstance(thing, ormcache)]:
        count(cache)
