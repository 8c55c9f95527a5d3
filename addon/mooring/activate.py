# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""Has a running Odoo share its ORM caches."""

import importlib
import logging
import sys

from .client import Client
from .code_version import code_version
from .codec import Codec
from .settings import Settings
from .sharing import Sharing
from .versions import VERSIONS

_logger = logging.getLogger(__name__)


def activate():
    """Shares, if it is set up to and this is a version that is known."""
    import odoo
    from odoo.tools import config

    version = VERSIONS.get(odoo.release.version_info[0])
    if version is None:
        _logger.warning('the ORM caches of Odoo %s are not shared', odoo.release.version)
        return
    try:
        settings = Settings.read(version.settings(config))
    except ValueError as problem:
        _logger.error('%s: the ORM caches are not shared', problem)
        return
    if config['test_enable'] or config['dev_mode']:
        _logger.info('the ORM caches are not shared with --test-enable or --dev')
    elif settings.cache_socket:
        _share(version, settings, odoo.release.version)


def _share(version, settings, release):
    import odoo.modules
    from odoo.modules.registry import Registry
    from odoo.tools import frozendict
    # Not by its full name: in 16 and 17 `odoo.tools.cache` is the class itself.
    from odoo.tools.cache import ormcache

    # In 19 the class is where the ORM is.
    version = version(sys.modules[Registry.__module__])
    code = settings.code_version or code_version(release, odoo.addons.__path__)
    markup = importlib.import_module('markupsafe').Markup
    sharing = Sharing(
        version,
        Client(settings.cache_socket, settings.timeout_ms / 1000, settings.wait_ms / 1000),
        Codec(mappings={'z': frozendict}, strings={'m': markup}),
        code,
        settings.threshold_ms / 1000,
        settings.more_methods(),
    )
    version.hook(Registry)
    adopt_all(sharing, version, ormcache)
    _logger.info('the ORM caches are shared through %s, code version %s', settings.cache_socket, code)


def adopt_all(sharing, version, ormcache):
    """Has the caches of methods share that are decorated from now on, and of those that were already."""
    decorate = ormcache.__call__

    def decorated(cache, method):
        lookup = decorate(cache, method)
        sharing.adopt(cache)
        return lookup

    ormcache.__call__ = decorated
    for module in [module for name, module in list(sys.modules.items()) if name.startswith('odoo.addons.')]:
        for model in [model for model in vars(module).values() if isinstance(model, type)]:
            for member in vars(model).values():
                cache = version.cache_of(member)
                if isinstance(cache, ormcache):
                    sharing.adopt(cache)
