# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""What may be found and what may be published, in every version: two nodes, one database, one sidecar."""

import sys
import tempfile
import unittest
from types import ModuleType, SimpleNamespace
from unittest import mock

from mooring.activate import adopt_all
from mooring.codec import Codec
from mooring.sharing import SharedMethod, Sharing
from mooring.versions import VERSIONS

from . import fakes


class World:
    """Two nodes with a method that is shared."""

    def __init__(self, number, threshold=0):
        registry_class = fakes.REGISTRIES[number]
        self.registry_class = type('Registry', (registry_class,), {})
        self.number = number
        self.names = registry_class.CLEARED_BY
        self.database = fakes.Database(['registry', *self.names])
        module = SimpleNamespace(_CACHES_BY_KEY=registry_class.CLEARED_BY)
        self.version = VERSIONS[number](module, clock=self.database.now)
        self.version.hook(self.registry_class)
        self.sidecar = fakes.Sidecar()
        self.sharing = self.sharing_with('code')
        self.sharing._threshold = threshold
        self.nodes = [self.registry_class(self.database) for _ in range(2)]
        self.computed = 0
        self.greet = self.method('default')

    def sharing_with(self, code):
        more = {f'{__name__}:World.method.<locals>.greet'}
        return Sharing(self.version, self.sidecar, Codec(), code, 0, more)

    def method(self, cache_name):
        """A cached method, which counts how often it is computed."""
        def greet(model, name):
            self.computed += 1
            return model.env.cr.read('greeting') + model.dirty.get('greeting', '') + ' ' + name

        cache = fakes.CACHES[self.number]('name', cache=cache_name)
        lookup = cache(greet)
        self.sharing.adopt(cache)
        assert isinstance(cache.method, SharedMethod)
        return lookup

    def request(self, node):
        """A request at a node, which has looked at the signals."""
        registry = self.nodes[node]
        if self.number >= 18:
            cr = registry.cursor()
            registry.check_signaling(cr)
        else:
            registry.check_signaling()
            cr = registry.cursor()
        return fakes.Model(registry, cr, self.number)

    def write(self, node, value, cache_name='default'):
        """Somebody writes at a node, commits and signals."""
        model = self.request(node)
        model.env.cr.write('greeting', value)
        model.pool.clear_cache(cache_name)
        model.env.cr.commit()
        model.pool.signal_changes()


def versions(test):
    """Runs a test in every version."""
    def run(self):
        for number in fakes.REGISTRIES:
            with self.subTest(odoo=number):
                test(self, World(number))

    run.__doc__ = test.__doc__
    return run


class Versions(unittest.TestCase):

    @versions
    def test_one_computes_and_all_find(self, world):
        self.assertEqual([world.greet(world.request(node), name='ann') for node in (0, 1, 0)], ['hello ann'] * 3)
        self.assertEqual(world.computed, 1)
        self.assertEqual(world.greet(world.request(1), name='bob'), 'hello bob')
        self.assertEqual(world.computed, 2)

    @versions
    def test_methods_share_that_were_decorated_before_and_after(self, world):
        ormcache = type('ormcache', (fakes.CACHES[world.number],), {})

        def greet(model, name):
            world.computed += 1
            return name

        greet.__module__, greet.__qualname__ = 'odoo.addons.base.models.ir_ui_menu', 'IrUiMenu.load_menus'
        module = ModuleType('odoo.addons.base')
        module.IrUiMenu = type('IrUiMenu', (), {'load_menus': ormcache('name')(greet), 'other': object()})
        with mock.patch.dict(sys.modules, {module.__name__: module}):
            adopt_all(world.sharing, world.version, ormcache)
        before, after = module.IrUiMenu.load_menus, ormcache('name')(greet)
        for lookup in (before, after):
            for node in (0, 1):
                world.nodes[node].lru.clear()
                self.assertEqual(lookup(world.request(node), name='ann'), 'ann')
        self.assertEqual(world.computed, 1)

    @versions
    def test_a_write_on_a_is_seen_on_b_at_the_next_request(self, world):
        world.greet(world.request(1), name='ann')
        world.write(0, 'hi')
        self.assertEqual(world.greet(world.request(1), name='ann'), 'hi ann')
        self.assertEqual(world.greet(world.request(0), name='ann'), 'hi ann')
        self.assertEqual(world.computed, 2, 'once before the write, once after it')

    @versions
    def test_what_is_rolled_back_is_never_seen(self, world):
        model = world.request(0)
        model.env.cr.write('greeting', 'rubbish')
        self.assertEqual(world.greet(model, name='ann'), 'rubbish ann')
        self.assertEqual(world.sidecar.values, {})
        self.assertEqual(len(world.sidecar.released), 1, 'another may compute it')
        model.env.cr.rollback()
        self.assertEqual(world.greet(world.request(1), name='ann'), 'hello ann')

    @versions
    def test_what_is_not_even_written_is_never_seen(self, world):
        model = world.request(0)
        model.dirty['greeting'] = '!'
        self.assertEqual(world.greet(model, name='ann'), 'hello! ann')
        self.assertEqual(world.greet(world.request(1), name='ann'), 'hello ann')

    @versions
    def test_who_invalidated_sees_its_own_and_shows_nothing(self, world):
        world.greet(world.request(1), name='ann')
        model = world.request(0)
        model.env.cr.write('greeting', 'mine')
        model.pool.clear_cache()
        self.assertEqual(world.greet(model, name='ann'), 'mine ann')
        model.env.cr.rollback()
        model.pool.reset_changes()
        self.assertEqual(world.greet(world.request(0), name='ann'), 'hello ann')

    @versions
    def test_own_signals_are_not_believed_before_the_database_tells_them(self, world):
        world.greet(world.request(1), name='ann')
        model = world.request(0)
        model.env.cr.write('greeting', 'hi')
        model.pool.clear_cache()
        model.env.cr.commit()
        model.pool.signal_changes()
        # In the same request: what was published before must not come into the cache that was cleared.
        self.assertEqual(world.greet(model, name='ann'), 'hi ann')
        self.assertEqual(world.greet(world.request(1), name='ann'), 'hi ann')
        self.assertEqual(world.greet(world.request(0), name='ann'), 'hi ann')

    @versions
    def test_an_old_transaction_publishes_nothing_under_new_sequences(self, world):
        old = world.request(0)
        old.env.cr.begin()
        world.write(1, 'hi')
        # As a scheduled job does that looks at the signals in the middle of its transaction.
        old.pool.check_signaling()
        self.assertEqual(world.greet(old, name='ann'), 'hello ann')
        self.assertEqual(world.greet(world.request(1), name='ann'), 'hi ann')

    @versions
    def test_a_write_between_a_snapshot_and_the_signals(self, world):
        def meanwhile():
            world.write(1, 'hi')

        world.database.meanwhile = meanwhile
        model = world.request(0)
        world.greet(model, name='ann')
        self.assertEqual(world.greet(world.request(1), name='ann'), 'hi ann')
        self.assertEqual(world.greet(world.request(1), name='bob'), 'hi bob')

    @versions
    def test_the_request_that_sees_an_invalidation_publishes(self, world):
        world.greet(world.request(0), name='ann')
        world.write(1, 'hi')
        before = world.computed
        self.assertEqual(world.greet(world.request(0), name='ann'), 'hi ann')
        self.assertEqual(world.greet(world.request(1), name='ann'), 'hi ann')
        self.assertEqual(world.computed, before + 1)

    @versions
    def test_other_code_and_another_database_of_that_name_share_nothing(self, world):
        world.greet(world.request(0), name='ann')
        world.sharing._code = 'other code'
        world.nodes[1] = world.registry_class(world.database)
        world.greet(world.request(1), name='ann')
        self.assertEqual(world.computed, 2)
        world.database.identity = ('16401', '7', '1')
        world.nodes[1] = world.registry_class(world.database)
        world.greet(world.request(1), name='ann')
        self.assertEqual(world.computed, 3)

    @versions
    def test_a_replica_and_tests_publish_nothing(self, world):
        model = world.request(0)
        model.env.cr.readonly = True
        world.greet(model, name='ann')
        model = world.request(0)
        model.pool.test_cr = model.env.cr
        world.greet(model, name='bob')
        self.assertEqual(world.sidecar.values, {})

    @versions
    def test_a_lying_sidecar_is_not_believed(self, world):
        world.sidecar.broken = True
        self.assertEqual(world.greet(world.request(0), name='ann'), 'hello ann')
        self.assertIsNone(world.sidecar.broken, 'nobody was told')

    @versions
    def test_the_method_s_own_error_passes_and_its_lease_ends(self, world):
        model = world.request(0)
        model.env.cr.read = None
        with self.assertRaises(TypeError):
            world.greet(model, name='ann')
        self.assertEqual(len(world.sidecar.released), 1)

    @versions
    def test_cheap_values_stay_where_they_are(self, world):
        world = World(world.number, threshold=60)
        world.greet(world.request(0), name='ann')
        self.assertEqual((world.sidecar.values, len(world.sidecar.released)), ({}, 1))

    @versions
    def test_arguments_without_an_encoding_are_not_shared(self, world):
        class Odd(str):
            pass

        self.assertEqual(world.greet(world.request(0), name=Odd('ann')), 'hello ann')
        self.assertEqual(world.sidecar.values, {})


class Settings(unittest.TestCase):

    def test_they_are_read_from_odoo_s_file(self):
        for number in (16, 17, 18):
            config = SimpleNamespace(misc={'mooring': {'wait_ms': '7'}})
            self.assertEqual(VERSIONS[number].settings(config), {'wait_ms': '7'})
            self.assertEqual(VERSIONS[number].settings(SimpleNamespace(misc={})), {})
        with tempfile.NamedTemporaryFile('w') as file:
            file.write('[options]\nx = %(y)s\n[mooring]\nWait_ms = 7\n')
            file.flush()
            self.assertEqual(VERSIONS[19].settings({'config': file.name}), {'wait_ms': '7'})
        self.assertEqual(VERSIONS[19].settings({'config': '/nowhere'}), {})


class SeveralCaches(unittest.TestCase):

    def test_only_what_can_clear_a_value_counts(self):
        for number in (17, 18, 19):
            with self.subTest(odoo=number):
                world = World(number)
                templates, cached_values = world.method('templates'), world.method('templates.cached_values')
                for method in (templates, cached_values):
                    method(world.request(0), name='ann')
                world.write(1, 'hi', 'default')
                # As Odoo's own cache, which that does not clear.
                self.assertEqual(templates(world.request(1), name='ann'), 'hello ann')
                self.assertEqual(cached_values(world.request(0), name='ann'), 'hi ann')
                world.write(1, 'hey', 'groups')
                self.assertEqual(templates(world.request(0), name='ann'), 'hey ann')

    def test_an_invalidation_is_told_once_by_each_worker(self):
        world = World(18)
        world.greet(world.request(0), name='ann')
        world.greet(world.request(0), name='bob')
        self.assertEqual(world.sidecar.invalidated, ['default'])
        world.write(1, 'hi')
        for name in ('ann', 'bob'):
            world.greet(world.request(0), name=name)
        self.assertEqual(world.sidecar.invalidated, ['default'] * 2)


if __name__ == '__main__':
    unittest.main()
