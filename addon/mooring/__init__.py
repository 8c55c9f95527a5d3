# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""Odoo's ORM caches, shared between workers and servers through the sidecar beside this server.

Everything but `activate` and `versions` knows nothing of Odoo.
"""


def post_load():
    """Called by Odoo once this server-wide module is loaded."""
    from .activate import activate

    activate()
