"""A terminal with a program, used as a user at a screen would use it."""

import codecs
import fcntl
import os
import re
import struct
import subprocess
import termios
import threading
import time
from pathlib import Path

from harness import PATIENCE, also_end, equal, wait_until

# The shell that starts the program. The shell owns the terminal and continues after the program has ended, even if the program
# is killed or gets Ctrl-C. It prints the exit code, so that the state in which the program left the terminal can be checked.
PARENT = f'trap : INT; "$@"; echo "ended: $?"; sleep {PATIENCE}'

CTRL_C, CTRL_D, ENTER = "\x03", "\x04", "\r"


class Terminal:
    """Sends input to the program and waits for its output."""

    def __init__(self, args, env, rows=24, columns=80):
        self._screen, self._far = os.openpty()
        self.resize(rows, columns)
        self._before = self.settings()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "sh", "-c", PARENT, "sh", *map(str, args)],
            stdin=self._far,
            stdout=self._far,
            stderr=self._far,
            env=env,
        )
        also_end(self.process)
        self._shown = ""
        self._seen = 0
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        # A character may arrive in two parts.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while True:
            try:
                chunk = os.read(self._screen, 1 << 16)
            except OSError:
                return
            with self._news:
                self._shown += decoder.decode(chunk)
                self._news.notify_all()

    def resize(self, rows, columns):
        fcntl.ioctl(self._screen, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def settings(self):
        return termios.tcgetattr(self._far)

    def type(self, text):
        waiting = text.encode()
        while waiting:
            waiting = waiting[os.write(self._screen, waiting) :]

    def enter(self, line):
        self.type(line + ENTER)

    def expect(self, pattern, limit=PATIENCE):
        """Waits until the pattern is shown after the previous match; returns the match."""
        deadline = time.monotonic() + limit
        with self._news:
            while True:
                match = re.compile(pattern).search(self._shown, self._seen)
                if match:
                    self._seen = match.end()
                    return match
                left = deadline - time.monotonic()
                assert left > 0, f"waited {limit} s for {pattern!r} in {self._shown[self._seen :][-2000:]!r}"
                self._news.wait(left)

    @property
    def shown(self):
        return self._shown

    def program(self):
        """Returns the program's process id."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(wait_until("the program to start", lambda: children.read_text().split())[0])

    def ended(self):
        """Waits until the program has ended, checks that the terminal's settings are restored, and returns the exit code."""
        code = int(self.expect(r"ended: (\d+)")[1])
        try:
            wait_until("the terminal's settings to be as before", lambda: self.settings() == self._before, 10)
        except AssertionError:
            equal(self.settings(), self._before)
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # This closes the terminal, and thus ends all programs that run on it.
        self.process.kill()
        self.process.wait()
        os.close(self._far)
        # The descriptor is closed only after reading has stopped, because the next terminal may get its number.
        self._reader.join(5)
        if not self._reader.is_alive():
            os.close(self._screen)
