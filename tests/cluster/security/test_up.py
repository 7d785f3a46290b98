"""`longhaul cluster up`: what hosts are given lets them talk to each other, and is nobody else's to read."""

import contextlib
import http.server
import json
import socket
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from cluster.security import certificates, ray_environment, up
from cluster.security.listeners import Listener, owner_name, protection
from protocol.errors import ConfigError


def contexts(folder, identity, authority):
    """TLS as Ray sets it up: both ends show a certificate of the cluster."""
    for name, data in (("cert", identity.certificate), ("key", identity.key), ("ca", authority.certificate)):
        (folder / name).write_bytes(data)
    made = []
    for side in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(side)
        context.load_cert_chain(folder / "cert", folder / "key")
        context.load_verify_locations(folder / "ca")
        context.verify_mode = ssl.CERT_REQUIRED
        made.append(context)
    return made


@pytest.fixture
def serve():
    """A server that says hello under TLS; where it listens."""
    closing = []

    def serve(context):
        listening = socket.create_server(("127.0.0.1", 0))
        closing.append(listening)

        def answer():
            while True:
                try:
                    plain, _ = listening.accept()
                except OSError:
                    return
                try:
                    with context.wrap_socket(plain, server_side=True) as secured:
                        secured.sendall(b"hello")
                except OSError:
                    plain.close()

        threading.Thread(target=answer, daemon=True).start()
        return listening.getsockname()

    yield serve
    for listening in closing:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def said(context, address, name):
    with socket.create_connection(address, 60) as plain, context.wrap_socket(plain, server_hostname=name) as secured:
        return secured.recv(5)


def test_hosts_of_a_cluster_talk_and_a_stranger_does_not(tmp_path, serve):
    ours, theirs = certificates.generate(), certificates.generate()
    server, client = contexts(tmp_path, certificates.issue(ours.authority, ["10.0.0.1", "node-1"]), ours.authority)
    _, stranger = contexts(tmp_path, certificates.issue(theirs.authority, ["10.0.0.1"]), theirs.authority)
    _, impostor = contexts(tmp_path, certificates.issue(theirs.authority, ["10.0.0.1"]), ours.authority)
    address = serve(server)
    assert said(client, address, "10.0.0.1") == said(client, address, "node-1") == b"hello"
    with pytest.raises(ssl.SSLCertVerificationError):
        said(client, address, "10.0.0.2")  # a certificate is for its own host
    with pytest.raises(ssl.SSLCertVerificationError):
        said(stranger, address, "10.0.0.1")
    with pytest.raises(ssl.SSLError):
        said(impostor, address, "10.0.0.1")


def test_a_scan_tells_tls_curve_token_and_nothing_apart(tmp_path, serve, monkeypatch):
    from protocol.server_thread import ServerThread
    from protocol.sockets import Keys

    monkeypatch.setattr(Listener, "is_loopback", False)
    ours = certificates.generate()
    server, _ = contexts(tmp_path, certificates.issue(ours.authority, ["127.0.0.1"]), ours.authority)
    lax = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    lax.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    assert protection(Listener("x", *serve(server))) == "tls"
    assert protection(Listener("x", *serve(lax))) == "none"
    for keys, expected in ((Keys.generate(), "curve"), (None, "none")):
        thread = ServerThread(
            "tcp://127.0.0.1:*",
            keys,
            name="scanned",
            answer=None,
            look_around=lambda: None,
            look_every_s=60,
            on_failure=lambda: None,
        )
        assert protection(Listener("x", "127.0.0.1", int(thread.endpoint.rpartition(":")[2]))) == expected
        thread.close()
    with agent_of_ray() as port:
        assert protection(Listener("x", "127.0.0.1", port)) == "token"
    assert protection(Listener("x", "127.0.0.1", 1)).startswith("none (")  # nobody is there


@contextlib.contextmanager
def agent_of_ray():
    """HTTP that answers as Ray's agents answer who has no token; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_error(401)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server.server_port
        server.shutdown()


def test_owners_have_one_name_in_every_run():
    assert owner_name(["ray::ReplayBuffer.run"]) == owner_name(["ray::ReplayBuffer", ""]) == "ray::ReplayBuffer"
    assert owner_name(["/x/python3", "-u", "/y/ray/dashboard/dashboard.py", "--a"]) == "dashboard/dashboard.py"
    assert owner_name(["/x/python3", "-m", "ray.util.client.server"]) == "ray.util.client.server"
    assert owner_name(["/x/python3", "/y/launch.py", "--a"]) == "launch.py"
    assert owner_name(["/x/python3", "/x/longhaul", "run"]) == "longhaul"
    assert owner_name(["/x/python3", "-c", "print()", "a"]) == "python3"
    assert owner_name(["/y/raylet/raylet", "--z"]) == "raylet"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the cluster's credentials are."""
    monkeypatch.setenv("LONGHAUL_CLUSTER", str(tmp_path / "mine"))
    return tmp_path


def python_beside_a_ray_that_notes(folder):
    (folder / "bin").mkdir()
    note = 'json.dump({"arguments": sys.argv[1:], "environment": dict(os.environ)}, open(sys.argv[0] + ".note", "w"))'
    (folder / "bin" / "ray").write_text(f"#!{sys.executable}\nimport json, os, sys\n{note}\n")
    (folder / "bin" / "ray").chmod(0o755)
    return ["--python", str(folder / "bin" / "python"), "--there", str(folder / "there")]


def test_a_host_gets_its_credentials_and_starts_ray_with_them(place, capsys):
    ssh = place / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$1" >>{place}/reached; [ "$1" != me@10.0.0.3 ] || exit 7\nshift; exec $1\n')
    ssh.chmod(0o755)
    more = [*python_beside_a_ray_that_notes(place), "--ssh", str(ssh), "--flags=--labels=pool=sandbox"]
    assert up.up(["me@10.0.0.1", "10.0.0.2", *more], "up") == 0
    assert (place / "reached").read_text().split() == ["me@10.0.0.1", "10.0.0.2"]
    noted = json.loads((place / "bin" / "ray.note").read_text())
    assert "--address=10.0.0.1:6379" in noted["arguments"] and "--labels=pool=sandbox" in noted["arguments"]
    told = {name: noted["environment"][name] for name in ray_environment.environment("")}
    assert told == ray_environment.environment(str(place / "there"))
    assert {path.name: path.stat().st_mode & 0o077 for path in (place / "there").iterdir()} == dict.fromkeys(
        ("token", "authority.pem", "host.pem", "host.key"), 0
    )
    assert certificates.names_of((place / "there" / "host.pem").read_bytes())[0] == "10.0.0.2"
    ray_environment.check_certificate(told, "10.0.0.2")
    assert up.up(["me@10.0.0.3", "--join", "10.0.0.1", *more], "up") == 1
    assert "me@10.0.0.3: ssh ended with 7" in capsys.readouterr().err


def test_what_is_printed_does_the_same_and_shows_no_secret(place, capsys):
    assert up.up(["10.0.0.1", *python_beside_a_ray_that_notes(place)], "up") == 0
    printed = capsys.readouterr().out
    script = place / "mine" / "10.0.0.1.sh"
    assert f"ssh 10.0.0.1 sh -s < {script}" in printed and script.stat().st_mode & 0o077 == 0
    token = (place / "mine" / "token").read_text()
    assert token not in printed and "PRIVATE" not in printed
    subprocess.run(["sh", "-s"], input=script.read_bytes(), check=True, timeout=60)
    assert (place / "there" / "token").read_text().strip() == token
    first = (place / "mine" / "authority.pem").read_bytes()
    assert up.up(["10.0.0.2", "--join", "10.0.0.1", "--there", "x"], "up") == 0
    assert (place / "mine" / "authority.pem").read_bytes() == first  # one cluster, however many calls


def test_joining_without_credentials_is_refused(place, capsys):
    assert up.up(["10.0.0.2", "--join", "10.0.0.1"], "up") == 2
    assert "has no credentials of a cluster to join" in capsys.readouterr().err


def test_a_run_uses_what_was_set_up_and_leaves_what_the_user_chose(place):
    (place / "mine").mkdir()
    (place / "mine" / "host.pem").touch()
    variables = {"RAY_AUTH_TOKEN_PATH": "/elsewhere"}
    ray_environment.adopt(variables)
    assert variables["RAY_USE_TLS"] == "1" and variables["RAY_AUTH_TOKEN_PATH"] == "/elsewhere"
    own = {"RAY_USE_TLS": "0"}
    ray_environment.adopt(own)
    assert own == {"RAY_USE_TLS": "0"}


def test_a_certificate_that_others_would_refuse_is_named(place, monkeypatch):
    authority = certificates.generate().authority
    there = place / "there"
    there.mkdir()
    variables = ray_environment.environment(str(there))
    with pytest.raises(ConfigError, match=r"no such file, and Ray's TLS is on"):
        ray_environment.check_certificate(variables, "")
    identity = certificates.issue(authority, ["10.0.0.1"])
    (there / "host.key").write_bytes(identity.key)
    (there / "authority.pem").write_bytes(authority.certificate)
    (there / "host.pem").write_text("not one")
    with pytest.raises(ConfigError, match="is no certificate with names"):
        ray_environment.check_certificate(variables, "")
    (there / "host.pem").write_bytes(identity.certificate)
    ray_environment.check_certificate(variables, "10.0.0.1")
    with pytest.raises(
        ConfigError, match=r"is for 10\.0\.0\.1, 127\.0\.0\.1, localhost, but others reach .* 10\.0\.0\.9"
    ):
        ray_environment.check_certificate(variables, "10.0.0.9")
    monkeypatch.setattr(certificates, "_DAYS", -0.01)
    (there / "host.pem").write_bytes(certificates.issue(authority, ["10.0.0.1"]).certificate)
    with pytest.raises(ConfigError, match="this host's certificate ended on"):
        ray_environment.check_certificate(variables, "10.0.0.1")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "takes commands from anybody"),
        ({"RAY_AUTH_MODE": "token"}, "carries the run's keys in clear text"),
        ({"RAY_USE_TLS": "1"}, "takes commands from anybody"),
    ],
)
def test_a_ray_that_strangers_reach_is_refused(variables, words):
    with pytest.raises(ConfigError, match=words) as caught:
        ray_environment.check_protection(variables, ["127.0.0.1", "10.0.0.1"], trusted=False)
    assert "10.0.0.1" in str(caught.value) and "127.0.0.1" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    ray_environment.check_protection(variables, ["10.0.0.1"], trusted=True)
    ray_environment.check_protection(variables, ["127.0.0.1", "localhost", "::1"], trusted=False)


def test_a_protected_ray_is_taken():
    ray_environment.check_protection({"RAY_AUTH_MODE": "token", "RAY_USE_TLS": "1"}, ["10.0.0.1"], trusted=False)


def test_an_authority_is_good_for_a_year():
    ends = x509.load_pem_x509_certificate(certificates.generate().authority.certificate).not_valid_after_utc
    assert timedelta(days=364) < ends - datetime.now(UTC) < timedelta(days=366)
