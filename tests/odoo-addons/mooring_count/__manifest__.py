# Tests only: counts what the ORM caches compute.
{
    'name': 'Mooring: counts computed values',
    'license': 'LGPL-3',
    'installable': False,
    'post_load': 'post_load',
}
