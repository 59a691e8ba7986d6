"""What the emulated machine shows on its screen, and its keyboard: through QEMU's monitor."""
import gzip
import os
import re
import socket
import time

from joist import Failure

FONT = "/usr/share/consolefonts/Unifont-APL8x16.psf.gz"
KEYS = {" ": "spc", "\n": "ret", "-": "minus"}


class Monitor:
    def __init__(self, path):
        deadline = time.monotonic() + 20
        self.s = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self.s.connect(path)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise Failure("no monitor")
                time.sleep(0.05)
        self.answer()           # the greeting

    def answer(self):
        text = b""
        while not text.endswith(b"(qemu) "):
            got = self.s.recv(65536)
            if not got:
                raise Failure("the monitor has gone")
            text += got
        return text.decode(errors="replace").replace("\r", "")

    def command(self, text):
        self.s.sendall(text.encode() + b"\n")
        return self.answer()

    def type(self, text):
        for c in text:
            self.command("sendkey " + KEYS.get(c, c))


def text_screen(mon):
    """What stands in the EGA text memory."""
    words = re.findall(r"\b0x([0-9a-f]{4})\b", mon.command("xp /2000xh 0xb8000"))
    chars = "".join(chr(int(w, 16) & 0xff) for w in words)
    return "\n".join(chars[i:i + 80].rstrip() for i in range(0, 2000, 80))


def read_font():
    data = gzip.open(FONT).read()
    return {data[4 + 16 * g:20 + 16 * g]: chr(g) for g in range(32, 127)}


def picture(mon, path):
    """Width, height, bytes of red, green and blue."""
    if os.path.exists(path):
        os.remove(path)
    mon.command("screendump " + path)
    deadline = time.monotonic() + 10
    pixels, width, height = b"", 1, 1
    while len(pixels) < width * height * 3:     # the monitor answers before the file is complete
        if time.monotonic() > deadline:
            raise Failure("no picture of the screen")
        time.sleep(0.1)
        data = open(path, "rb").read() if os.path.exists(path) else b""
        if data.count(b"\n") >= 3:
            _, size, _, pixels = data.split(b"\n", 3)
            width, height = map(int, size.split())
    return width, height, pixels


def pixel_screen(mon, path):
    """The picture read back into text with the font it was drawn in."""
    width, height, pixels = picture(mon, path)
    font, lines = read_font(), []
    for y in range(0, height - 15, 16):
        line = ""
        for x in range(0, width - 7, 8):
            rows = []
            for i in range(16):
                at = ((y + i) * width + x) * 3
                rows.append(sum(0x80 >> k for k in range(8) if pixels[at + 3 * k] > 80))
            line += font.get(bytes(rows), "?")
        lines.append(line.rstrip())
    return "\n".join(lines)


def wait_for(screen, text):
    """text may run over the end of a row of the screen."""
    deadline = time.monotonic() + 30
    while True:
        shown = screen()
        if text in shown or text in shown.replace("\n", "") or text in shown.replace("\n", " "):
            return shown
        if time.monotonic() > deadline:
            raise Failure("the screen does not show %r but %r" % (text, shown[-400:]))
        time.sleep(0.3)
