# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""A digest of the code that values are computed by: servers share only if theirs are the same."""

import hashlib
import os

#: What is read. Of other files the size counts: pictures and translations, which are large.
READ = ('.py', '.xml', '.js', '.css', '.scss', '.less', '.csv', '.ts')


def code_version(release, folders):
    """A digest of a release and of all files under some folders, and of where they are: values may hold paths.

    :param release: the version of Odoo
    :param folders: where modules are
    """
    made = hashlib.blake2b(digest_size=16)

    def add(*parts):
        for part in parts:
            part = part if isinstance(part, bytes) else os.fsencode(part)
            made.update(len(part).to_bytes(8, 'big'))
            made.update(part)

    add(release)
    for top in folders:
        for folder, folders_below, files in os.walk(top):
            folders_below[:] = sorted(below for below in folders_below if below not in ('__pycache__', '.git'))
            for file in sorted(files):
                path = os.path.join(folder, file)
                try:
                    if file.endswith(READ):
                        with open(path, 'rb') as opened:
                            add(path, opened.read())
                    elif not file.endswith('.pyc'):
                        add(path, str(os.path.getsize(path)))
                except OSError:
                    add(path)
    return made.hexdigest()
