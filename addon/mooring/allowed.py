# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""The methods whose values are shared: those that cost much, and whose values depend on the database, the code
and their arguments only. Each is named by the module and by its qualified names in the versions of Odoo."""

_BASE = 'odoo.addons.base.models.'

METHODS = frozenset(
    f'{_BASE}{module}:{name}.{method}'
    for module, names, methods in (
        ('ir_asset', ('IrAsset',), ('_get_asset_paths',)),
        ('ir_qweb', ('IrQWeb', 'IrQweb'), ('_generate_asset_links_cache',)),
        # Of 16.
        ('ir_qweb', ('IrQWeb',), ('_generate_asset_nodes_cache', '_get_asset_content')),
        ('ir_ui_view', ('Model', 'Base'), ('_get_view_cache',)),
        ('ir_ui_menu', ('IrUiMenu',), ('load_menus', 'load_menus_root', '_visible_menu_ids')),
        ('ir_actions', ('IrActions', 'IrActionsActions'), ('_get_bindings',)),
        ('ir_model', ('IrModelFields',), ('_get_fields_cached', 'get_field_string', 'get_field_help')),
    )
    for name in names
    for method in methods
)


def name(method):
    """What a method is called across processes."""
    return f'{method.__module__}:{method.__qualname__}'


def is_allowed(method, more=()):
    return name(method) in METHODS or name(method) in more
