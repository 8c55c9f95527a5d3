#!/bin/sh
# Runs before everything else: makes the secrets, unless they are there, and lets Odoo's user write to new
# volumes. Nothing is printed. Each volume has the secrets of those who mount it and no others.
set -eu
umask 077
cd /run/secrets

random() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }
once() { [ -s "$1" ] || { random > "$1.new" && mv "$1.new" "$1"; }; }

once mooring/secret    # seals sessions in Redis
once redis/password
once postgres/password

cat redis/password > mooring/redis-password
printf 'save ""\nrequirepass %s\n' "$(cat redis/password)" > redis/redis.conf
printf 'postgres:5432:*:odoo:%s\n' "$(cat postgres/password)" > odoo/pgpass
chown "$ODOO_UID:$ODOO_GID" mooring/secret redis/* odoo/pgpass
# Also for the sidecar beside Envoy, which is nobody in particular.
chown "65532:$ODOO_GID" mooring/redis-password
chmod 440 mooring/redis-password

chown "$ODOO_UID:$ODOO_GID" /volumes/*
