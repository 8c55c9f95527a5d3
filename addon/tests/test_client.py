# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""The client, with sidecars that are well, slow, gone or lying."""

import contextlib
import os
import random
import socket
import struct
import tempfile
import threading
import time
import unittest

from mooring.breaker import Breaker
from mooring.client import Client
from mooring.code_version import code_version
from mooring.keys import Scope
from mooring.settings import Settings

KEY = b'k' * 32


class Sidecar(threading.Thread):
    """Answers each frame with the bytes that `answer` gives for it; None ends the connection."""

    def __init__(self, answer):
        super().__init__(daemon=True)
        self.folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.folder.name, 'sock')
        self.answer, self.connections = answer, 0
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(self.path)
        self.socket.listen()
        self.start()

    def run(self):
        while True:
            connection, _ = self.socket.accept()
            self.connections += 1
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        # The client may go away at any time.
        with contextlib.suppress(OSError), connection, connection.makefile('rb') as incoming:
            while head := incoming.read(4):
                frame = incoming.read(struct.unpack('>I', head)[0])
                answer = self.answer(frame[1], frame[2:])
                if answer is None:
                    return
                connection.sendall(answer)


def frame(kind, body=b'', version=1):
    return struct.pack('>IBB', len(body) + 2, version, kind) + body


class WithSidecar(unittest.TestCase):

    def client(self, answer, timeout=1.0, wait=1.0):
        self.sidecar = Sidecar(answer)
        self.addCleanup(self.sidecar.folder.cleanup)
        client = Client(self.sidecar.path, timeout, wait)
        self.addCleanup(client.close)
        return client

    def get(self, client):
        found, lease = client.get(KEY, 'default', 'a.b:C.d')
        return (None if found is None else bytes(found)), lease

    def test_a_value_a_lease_and_a_miss(self):
        answers = [frame(0x81, bytes(8) + b'value'), frame(0x82, struct.pack('>Q', 7)), frame(0x84)]
        client = self.client(lambda kind, body: answers.pop(0))
        self.assertEqual([self.get(client) for _ in range(3)], [(b'value', None), (None, 7), (None, 0)])
        self.assertEqual(self.sidecar.connections, 1, 'a connection is kept')

    def test_the_frames_are_as_documented(self):
        frames = []

        def answer(kind, body):
            frames.append((kind, body))
            return frame(0x82, struct.pack('>Q', 9)) if kind == 1 else b'' if kind == 4 else frame(0x85)

        client = self.client(answer)
        scope = Scope(('prod',), 'code', 'default', 1)
        self.get(client)
        client.put(scope, KEY, 9, 0.25, 'a.b:C.d', b'value')
        client.release(KEY, 9)
        client.release(KEY, 0)
        client.invalidate(scope)
        self.get(client)
        label = b'\x07default\x07a.b:C.d'
        self.assertEqual(frames[:4], [
            (1, KEY + struct.pack('>I', 1000) + label),
            (2, KEY + struct.pack('>QQ', 9, 250_000) + scope.family + scope.generation + label + b'value'),
            (3, KEY + struct.pack('>Q', 9)),
            (4, scope.family + scope.generation),
        ])

    def test_who_must_wait_waits_while_it_is_told_so(self):
        def answer(kind, body):
            time.sleep(0.05)
            return frame(0x83) * 3 + frame(0x81, bytes(8) + b'value')

        self.assertEqual(self.get(self.client(answer)), (b'value', None))

    def test_a_slow_sidecar_costs_little_and_then_nothing(self):
        def answer(kind, body):
            time.sleep(5)

        client = self.client(answer, timeout=0.02)
        began = time.monotonic()
        self.assertEqual([self.get(client) for _ in range(200)], [(None, 0)] * 200)
        self.assertLess(time.monotonic() - began, 2)
        self.assertEqual(self.sidecar.connections, Breaker.FAILURES)

    def test_a_sidecar_that_drips_or_waits_for_ever_is_not_waited_for(self):
        for answer in (lambda kind, body: frame(0x83), lambda kind, body: b'\x00'):
            client = self.client(answer, timeout=0.05, wait=0.1)
            began = time.monotonic()
            self.assertEqual(self.get(client), (None, 0))
            self.assertLess(time.monotonic() - began, 2)

    def test_one_that_is_gone_costs_nothing(self):
        client = Client('/nowhere/at/all', 1.0, 1.0)
        self.assertEqual([self.get(client) for _ in range(10)], [(None, 0)] * 10)

    def test_a_lying_one_is_no_error(self):
        scope = Scope(('prod',), 'code', 'default', 1)
        lies = [b'', None, b'\xff\xff\xff\xff\x01\x81', frame(0x81), frame(0x82, b'x'), frame(0x99), frame(0x85),
                frame(0x81, bytes(9), version=2), struct.pack('>I', 0) + b'\x01\x81', os.urandom(40)]
        lies += [random.Random(seed).randbytes(30) for seed in range(20)]
        for lie in lies:
            client = self.client(lambda kind, body: lie, timeout=0.02, wait=0.02)
            self.get(client)
            client.put(scope, KEY, 1, 0.1, 'a.b:C.d', b'value')
            client.release(KEY, 1)

    def test_a_child_does_not_use_its_parent_s_connection(self):
        client = self.client(lambda kind, body: frame(0x84))
        self.get(client)
        child = os.fork()
        if child == 0:
            self.get(client)
            os._exit(0)
        os.waitpid(child, 0)
        self.assertEqual(self.sidecar.connections, 2)


class Parts(unittest.TestCase):

    def test_the_breaker_opens_for_longer_and_longer_and_closes(self):
        now = [0.0]
        breaker = Breaker(clock=lambda: now[0])
        self.assertEqual([breaker.failed() for _ in range(4)], [0.0, 1.0, 2.0, 4.0])
        self.assertFalse(breaker.allows())
        now[0] = 4.0
        self.assertTrue(breaker.allows())
        breaker.succeeded()
        self.assertEqual(breaker.failed(), 0.0)

    def test_settings(self):
        self.assertEqual(Settings.read({}), Settings())
        read = Settings.read({'timeout_ms': '25', 'methods': 'a:B.c, d:E.f', 'cache_socket': ''})
        self.assertEqual((read.timeout_ms, read.cache_socket), (25, ''))
        self.assertEqual(read.more_methods(), {'a:B.c', 'd:E.f'})
        for wrong in ({'timeout_ms': 'x'}, {'nothing': '1'}):
            with self.assertRaises(ValueError):
                Settings.read(wrong)

    def test_the_code_s_version_is_of_the_code(self):
        with tempfile.TemporaryDirectory() as folder:
            def write(name, text):
                with open(os.path.join(folder, name), 'w') as file:
                    file.write(text)
                return code_version('18.0', [folder])

            first = write('a.py', '1')
            self.assertEqual(first, code_version('18.0', [folder]))
            self.assertNotEqual(first, code_version('19.0', [folder]))
            self.assertEqual(first, write('a.pyc', 'whatever'))
            versions = [first, write('a.py', '2'), write('b.png', 'x'), write('b.png', 'xy'), write('c.py', '')]
            self.assertEqual(len(set(versions)), 5)


if __name__ == '__main__':
    unittest.main()
