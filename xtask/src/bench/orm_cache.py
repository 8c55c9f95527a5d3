"""Times look-ups and values over the cache's socket from Python, beside the same Redis, in turns.

Arguments: the socket, Redis' port, how many of each. Prints a JSON object for each size.
"""

import json
import os
import socket
import sys
import time

from mooring.client import Client
from mooring.codec import Codec
from mooring.keys import Scope


class Redis:
    """As much of its protocol as is needed."""

    def __init__(self, port):
        self._socket = socket.create_connection(('127.0.0.1', port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._incoming = self._socket.makefile('rb')

    def call(self, *words):
        self._socket.sendall(b'*%d\r\n' % len(words) + b''.join(b'$%d\r\n%s\r\n' % (len(w), w) for w in words))
        head = self._incoming.readline()
        if head[:1] == b'$':
            return self._incoming.read(int(head[1:]) + 2)[:-2]
        return head


def timed(work, times):
    began = time.perf_counter()
    result = work()
    times.append(time.perf_counter() - began)
    return result


def main(path, port, count):
    client, redis, codec = Client(path, 5.0, 5.0), Redis(int(port)), Codec()
    scope, method = Scope(('bench',), 'code', 'assets', 1), 'bench:A.value'
    for size, entries in (('1 KB', 8), ('600 KB', 4_400)):
        value = [(f'/web/static/src/file_{n}.js', f'/srv/odoo/addons/web/static/src/file_{n}.js', 'web.assets', 1.5 + n)
                 for n in range(entries)]
        encoded = codec.encode(value)
        times = {name: [] for name in ('get', 'redis_get', 'put', 'redis_set', 'get_and_decode')}
        for _ in range(int(count)):
            key = os.urandom(32)
            timed(lambda: client.put(scope, key, 0, 0.1, method, encoded), times['put'])
            timed(lambda: redis.call(b'SET', b'bench:' + key, encoded, b'PX', b'1000'), times['redis_set'])
            found, _ = timed(lambda: client.get(key, 'assets', method), times['get'])
            again = timed(lambda: redis.call(b'GET', b'bench:' + key), times['redis_get'])
            assert bytes(found) == again == encoded
            assert timed(lambda: codec.decode(client.get(key, 'assets', method)[0]), times['get_and_decode']) == value
        print(json.dumps({'size': size, 'bytes': len(encoded), 'seconds': times}))


main(*sys.argv[1:])
