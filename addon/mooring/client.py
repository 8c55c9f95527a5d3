# Copyright the Mooring authors. Licensed under LGPL-3.0-or-later.
"""Speaks with the sidecar, as docs/orm-cache.md describes it. It never raises, and never waits for long."""

import logging
import os
import socket
import struct
import time

from .breaker import Breaker

_logger = logging.getLogger(__name__)

VERSION = 1
LONGEST = (2 << 20) + 1024
GET, PUT, RELEASE, INVALIDATE = 1, 2, 3, 4
VALUE, LEASE, WAIT, MISS, DONE = 0x81, 0x82, 0x83, 0x84, 0x85

#: A sidecar that said that it waits says so again well within this.
TOLD = 0.1
#: Connections that are kept for the next question.
MOST_IDLE = 8


class _Answer(Exception):
    """Something that is no answer to what was asked."""


class _Connection:
    def __init__(self, path, patience):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(patience)
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise
        self.process = os.getpid()

    def close(self):
        self._socket.close()

    def send(self, kind, *parts, patience):
        body = b''.join(parts)
        self._socket.settimeout(patience)
        self._socket.sendall(struct.pack('>IBB', len(body) + 2, VERSION, kind) + body)

    def receive(self, patience):
        """The kind and the body of the next frame."""
        length, version, kind = struct.unpack('>IBB', self._exactly(6, patience))
        if version != VERSION or not 2 <= length <= LONGEST:
            raise _Answer(f'version {version}, {length} bytes')
        return kind, self._exactly(length - 2, patience)

    def _exactly(self, length, patience):
        deadline = time.monotonic() + patience
        buffer = bytearray(length)
        view = memoryview(buffer)
        while view:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError('the sidecar is slow')
            self._socket.settimeout(left)
            count = self._socket.recv_into(view)
            if not count:
                raise _Answer('the connection ended')
            view = view[count:]
        return buffer


def _label(cache, method):
    return b''.join(bytes([len(name)]) + name for name in (cache.encode()[:255], method.encode()[:255]))


class Client:
    """The sidecar at a socket.

    :param path: of the socket
    :param timeout: how long an answer may take, in seconds
    :param wait: how long to wait for somebody else who computes a value, in seconds
    """

    def __init__(self, path, timeout, wait, breaker=None):
        self._path, self._timeout, self._wait = path, timeout, wait
        self._breaker = breaker or Breaker()
        self._idle = []

    def get(self, key, cache, method):
        """A value, or what is to be done: `(value, None)`, `(None, lease)`; the lease may be 0: none."""
        def ask(connection):
            wait = struct.pack('>I', int(self._wait * 1000))
            connection.send(GET, key, wait, _label(cache, method), patience=self._timeout)
            kind, body = connection.receive(self._timeout)
            deadline = time.monotonic() + self._wait + TOLD
            while kind == WAIT and time.monotonic() < deadline:
                kind, body = connection.receive(max(self._timeout, TOLD))
            if kind == VALUE and len(body) >= 8:
                return memoryview(body)[8:], None
            if kind == LEASE and len(body) == 8:
                return None, struct.unpack('>Q', body)[0]
            if kind == MISS:
                return None, 0
            raise _Answer(f'an answer of kind {kind:#x}')

        return self._with_connection(ask) or (None, 0)

    def put(self, scope, key, lease, cost, method, value):
        """Publishes a value that took `cost` seconds to compute."""
        head = struct.pack('>QQ', lease, int(cost * 1e6))
        parts = (key, head, scope.family, scope.generation, _label(scope.cache, method), value)
        # A long value takes a moment; what it takes is little beside what it took.
        self._tell(PUT, *parts, patience=self._timeout + min(cost / 10, TOLD))

    def release(self, key, lease):
        """Lets somebody else compute a value."""
        if lease:
            self._tell(RELEASE, key, struct.pack('>Q', lease), patience=self._timeout)

    def invalidate(self, scope):
        """Says that whatever the scope's cache has of other generations is of no use any more."""
        def say(connection):
            connection.send(INVALIDATE, scope.family, scope.generation, patience=self._timeout)

        self._with_connection(say)

    def lied(self):
        """The sidecar gave something that is no value."""
        self._failed('it gave something that is no value')

    def close(self):
        """Ends the connections that are kept."""
        while self._idle:
            self._idle.pop().close()

    def _tell(self, kind, *parts, patience):
        def tell(connection):
            connection.send(kind, *parts, patience=patience)
            answer, _ = connection.receive(patience)
            if answer != DONE:
                raise _Answer(f'an answer of kind {answer:#x}')

        self._with_connection(tell)

    def _with_connection(self, work):
        """The result of `work`; None if the sidecar fails, or is left alone."""
        if not self._breaker.allows():
            return None
        connection = None
        try:
            connection = self._take()
            result = work(connection)
        except (OSError, _Answer, struct.error) as problem:
            if connection is not None:
                connection.close()
            self._failed(problem)
            return None
        except BaseException:
            # Such as a worker's time limit: what comes over this connection next answers an old question.
            if connection is not None:
                connection.close()
            raise
        self._breaker.succeeded()
        if len(self._idle) < MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.close()
        return result

    def _take(self):
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            # After a fork its other end is the parent's as well.
            if connection.process == os.getpid():
                return connection
        return _Connection(self._path, self._timeout)

    def _failed(self, problem):
        pause = self._breaker.failed()
        if pause:
            _logger.info('the sidecar at %s is left alone for %.0f s: %s', self._path, pause, problem)
