"""Downloads that break off, change on the way or arrive damaged: nothing lost, nothing wrong."""

from __future__ import annotations

import http.server
import os
import socketserver
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from neural_mesh.data import downloads
from neural_mesh.data.archives import half_unpacked, unpack
from neural_mesh.data.downloads import download

BY_HAND = "do it by hand"


def archive_bytes(tmp_path: Path, seed: int) -> bytes:
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        archive.writestr("images/a.JPEG", np.random.default_rng(seed).bytes(300_000))
    return (tmp_path / "made.zip").read_bytes()


# ---- a web server ----


class ServeRanges(http.server.BaseHTTPRequestHandler):
    """The one file of the server's state, from where it is asked for."""

    def do_GET(self):
        state = self.server.state
        content = state["content"]
        tag = f'"{zlib.crc32(content):x}"'
        asked = self.headers.get("Range")
        state["asked"].append(asked)
        start = 0
        if asked and self.headers.get("If-Range") == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if state["marked"]:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start : start + state["most"]])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    """A web server with ranges whose one file may change and whose connections may break off."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), ServeRanges) as running:
        running.state = {"content": b"", "most": 10**9, "asked": [], "marked": True}
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.state, f"http://127.0.0.1:{running.server_port}/a.zip"
        running.shutdown()


def test_a_download_that_breaks_off_goes_on_where_it_was(server, tmp_path, monkeypatch):
    state, address = server
    monkeypatch.setattr(downloads, "SECONDS_BETWEEN_ATTEMPTS", 0.0)
    state |= {"content": archive_bytes(tmp_path, 0), "most": 60_000}
    with pytest.raises(ValueError, match=r"240,000 bytes arrived and are kept.*by hand"):
        download(address, tmp_path / "a.zip", BY_HAND)
    assert not (tmp_path / "a.zip").exists()
    download(address, tmp_path / "a.zip", BY_HAND)
    assert (tmp_path / "a.zip").read_bytes() == state["content"]
    starts = (60_000, 120_000, 180_000, 240_000, 300_000)
    assert state["asked"] == [None, *(f"bytes={start}-" for start in starts)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "made.zip"]


def test_a_server_without_a_mark_of_its_file_is_not_said_to_go_on(server, tmp_path, monkeypatch):
    state, address = server
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    state |= {"content": archive_bytes(tmp_path, 0), "most": 60_000, "marked": False}
    complaint = (
        "60,000 bytes arrived, but .* does not let a download go on, the same command starts again"
    )
    with pytest.raises(ValueError, match=complaint):
        download(address, tmp_path / "a.zip", BY_HAND)


# ---- an FTP server ----


class ServeFtp(socketserver.StreamRequestHandler):
    """The few commands of FTP that a download needs, for the one file of the server's state."""

    def handle(self):
        self.start = 0
        self.say("220 ready")
        while line := self.rfile.readline().decode().strip():
            command, _, argument = line.partition(" ")
            if command in self.server.state["lacks"]:
                self.say("502 no such command")
            else:
                self.answer(command, argument)

    def answer(self, command: str, argument: str) -> None:
        state = self.server.state
        is_file = argument == "a b.zip"
        if command == "USER":
            self.say("331 password?")
        elif command in ("PASS", "TYPE"):
            self.say("230 fine")
        elif command == "SIZE" and is_file:
            self.say(f"213 {len(state['content'])}")
        elif command == "MDTM" and is_file:
            self.say(f"213 {state['changed']}")
        elif command == "PASV":
            self.data = socketserver.TCPServer(("127.0.0.1", 0), None)
            self.say("227 at (127,0,0,1,%d,%d)" % divmod(self.data.server_address[1], 256))
        elif command == "REST":
            self.start = int(argument)
            self.say("350 from there")
        elif command == "RETR" and is_file:
            self.send_file()
        else:
            self.say("550 no such file")

    def send_file(self) -> None:
        state = self.server.state
        state["asked"].append(self.start)
        connection, _ = self.data.get_request()
        self.say("150 it comes")
        connection.sendall(state["content"][self.start : self.start + state["most"]])
        connection.close()
        self.data.server_close()

    def say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


@pytest.fixture
def ftp_server():
    """An FTP server with one file; `lacks` names commands that it does not know."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), ServeFtp) as running:
        running.state = {
            "content": b"",
            "most": 10**9,
            "changed": "20200101000000",
            "asked": [],
            "lacks": (),
        }
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running.state, f"ftp://127.0.0.1:{running.server_address[1]}/a%20b.zip"
        running.shutdown()


@pytest.mark.parametrize("lacks", [(), ("MDTM",), ("REST",), ("SIZE",)])
def test_a_download_from_an_ftp_server_goes_on_where_that_can_be(
    ftp_server, tmp_path, monkeypatch, lacks
):
    state, address = ftp_server
    monkeypatch.setattr(downloads, "SECONDS_BETWEEN_ATTEMPTS", 0.0)
    state |= {"content": archive_bytes(tmp_path, 0), "most": 60_000, "lacks": lacks}
    if "SIZE" in lacks:  # then nothing says that it broke off but the archive itself
        with pytest.raises(ValueError, match="not a zip archive"):
            download(address, tmp_path / "a.zip", BY_HAND)
        return
    starts, complaint = [0, 60_000, 120_000, 180_000], "240,000 bytes arrived and are kept"
    if "REST" in lacks:
        starts, complaint = [0] * 4, "60,000 bytes arrived, but this server"
    else:
        complaint += ", the same command"
    with pytest.raises(ValueError, match=f"broke off 4 times; {complaint}.*by hand"):
        download(address, tmp_path / "a.zip", BY_HAND)
    assert state["asked"] == starts

    state["most"] = 10**9
    download(address, tmp_path / "a.zip", BY_HAND)
    assert (tmp_path / "a.zip").read_bytes() == state["content"]
    assert state["asked"][-1] == (0 if "REST" in lacks else 240_000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "made.zip"]
    with pytest.raises(ValueError, match="550 no such file"):
        download(address.replace("a%20b", "b"), tmp_path / "b.zip", BY_HAND)


# ---- either ----

# Where the second attempt starts. A web server then answers with the whole file.
ASKED = {"server": [None, "bytes=60000-"], "ftp_server": [0, 0]}


@pytest.mark.parametrize("kind", ASKED)
def test_a_download_whose_file_changed_meanwhile_starts_again(request, tmp_path, monkeypatch, kind):
    state, address = request.getfixturevalue(kind)
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    state |= {"content": archive_bytes(tmp_path, 0), "most": 60_000}
    with pytest.raises(ValueError, match="60,000 bytes arrived and are kept"):
        download(address, tmp_path / "a.zip", BY_HAND)
    state |= {"content": archive_bytes(tmp_path, 1), "most": 10**9, "changed": "20210101000000"}
    download(address, tmp_path / "a.zip", BY_HAND)
    assert (tmp_path / "a.zip").read_bytes() == state["content"]
    assert state["asked"] == ASKED[kind]


# ---- unpacking ----


def test_an_unpacking_that_broke_off_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    archive = tmp_path / "p.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for name in ("Annotations/a.mat", "Images/a.JPEG"):
            opened.writestr(f"set/{name}", name)
    (tmp_path / "set").mkdir()
    move, moved = os.replace, []

    def once(source, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        move(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path)
    monkeypatch.undo()
    assert moved == [tmp_path / "set/Annotations"]
    assert half_unpacked(archive, tmp_path)
    unpack(archive, tmp_path)
    assert (tmp_path / "set/Images/a.JPEG").is_file()
    assert not half_unpacked(archive, tmp_path)


def test_archives_that_are_damaged_or_too_large_unpack_to_nothing(tmp_path):
    content = bytearray(archive_bytes(tmp_path, 0))
    content[1000] ^= 1
    (tmp_path / "damaged.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.zip: broken archive"):
        unpack(tmp_path / "damaged.zip", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "large.zip", "w") as archive:
        archive.writestr("a", b"")
        archive.infolist()[0].file_size = 2**31 - 2**20
        archive.infolist().extend([archive.infolist()[0]] * 2000)
    with pytest.raises(ValueError, match="needs about [0-9,.]+ GB of disk"):
        unpack(tmp_path / "large.zip", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc")
    with pytest.raises(ValueError, match="would leave the folder"):
        unpack(tmp_path / "link.zip", tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
