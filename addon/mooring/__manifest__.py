# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
{
    'name': 'Mooring: shared ORM cache',
    'summary': 'What one worker computed for the ORM caches, all workers of all servers find',
    'version': '1.0',
    'author': 'The Mooring authors',
    'license': 'LGPL-3',
    'category': 'Technical',
    'depends': ['base'],
    # It works when it is named in server_wide_modules; there is nothing to install in a database.
    'installable': False,
    'post_load': 'post_load',
}
