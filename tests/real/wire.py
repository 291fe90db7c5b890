"""A link between two network namespaces that can delay, lose and reorder packets, and drop those of existing connections.

Not every kernel has netem. Therefore the link consists of a pair of tun devices, between which this process copies packets."""

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import threading
import time

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 1, 0x1000


class Wire:
    """Carries IP packets from each of two tun devices to the other. Delays are in seconds, for each direction."""

    def __init__(self, names, delay=0.0, jitter=0.0, loss=0.0):
        self.delay, self.jitter, self.loss = delay, jitter, loss
        self._random = random.Random(11)
        self._seen, self._forgotten = set(), set()
        self._queue, self._number, self._news = [], itertools.count(), threading.Condition()
        self._ends = [device(name) for name in names]
        self._closed = False
        self._stop = os.eventfd(0)
        self._threads = [
            threading.Thread(target=self._take, args=ends, daemon=True) for ends in (self._ends, self._ends[::-1])
        ]
        self._threads.append(threading.Thread(target=self._deliver, daemon=True))
        for thread in self._threads:
            thread.start()

    def forget(self):
        """From now on, drops packets of all existing TCP connections without an error."""
        self._forgotten |= self._seen

    def _take(self, source, sink):
        ready = select.poll()
        for end in (source, self._stop):
            ready.register(end, select.POLLIN)
        with contextlib.suppress(OSError):
            while all(end != self._stop for end, _ in ready.poll()):
                packet = os.read(source, 1 << 16)
                flow = tcp_flow(packet)
                self._seen.add(flow)
                if (flow and flow in self._forgotten) or self._random.random() < self.loss:
                    continue
                # With jitter a packet may overtake the previous one.
                due = time.monotonic() + self.delay + self._random.random() * self.jitter
                with self._news:
                    heapq.heappush(self._queue, (due, next(self._number), sink, packet))
                    self._news.notify()

    def _deliver(self):
        with self._news:
            while not self._closed:
                wait = self._queue[0][0] - time.monotonic() if self._queue else None
                if wait is None or wait > 0:
                    self._news.wait(wait)
                    continue
                _, _, sink, packet = heapq.heappop(self._queue)
                # The device may be down while its address changes.
                with contextlib.suppress(OSError):
                    os.write(sink, packet)

    def close(self):
        with self._news:
            self._closed = True
            self._news.notify()
        os.eventfd_write(self._stop, 1)
        # The number of a closed descriptor is soon reused for another file. A thread that still read from it would read the
        # data of another test.
        for thread in self._threads:
            thread.join()
        for end in [*self._ends, self._stop]:
            os.close(end)


def device(name):
    """Creates a tun device. Packets that are written to the returned descriptor arrive there."""
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return end


def tcp_flow(packet):
    """Returns the connection of a packet, independent of the direction, or None if it is not a TCP packet."""
    if packet[0] >> 4 == 4:
        start, protocol, addresses = (packet[0] & 15) * 4, packet[9], packet[12:20]
    else:
        start, protocol, addresses = 40, packet[6], packet[8:40]
    if protocol != 6:
        return None
    half = len(addresses) // 2
    ends = [addresses[:half] + packet[start : start + 2], addresses[half:] + packet[start + 2 : start + 4]]
    return frozenset(ends)
