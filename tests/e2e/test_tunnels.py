"""Tunnels: ports of containers that are reached from outside, with TLS and without, for as long as they are wanted."""

from support.client import Client
from support.server import Server

PROGRAM = """
import os
import signal
import socket
import ssl
import time

app = modal.App("tunnels")


@app.function(timeout=120)
def echo(queue, port, dies):
    import threading

    def serve(listener):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"got " + connection.recv(1000))

    listener = socket.create_server(("0.0.0.0", port))
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    refused = ""
    with modal.forward(port, unencrypted=True) as tunnel, modal.forward(9000, h2_enabled=True) as other:
        try:
            with modal.forward(port):
                pass
        except modal.exception.InvalidError as error:
            refused = str(error)
        queue.put([tunnel.tls_socket, tunnel.tcp_socket, other.tls_socket, refused])
        queue.get(timeout=60, partition="end")
        if dies:
            os._exit(1)
    return "closed"


@app.function(block_network=True)
def alone():
    try:
        with modal.forward(8000):
            return "opened"
    except modal.exception.Error as error:
        return str(error)


def ask(address, context=None):
    with socket.create_connection(address, timeout=30) as connection:
        if context:
            connection = context.wrap_socket(connection, server_hostname=address[0])
        connection.sendall(b"hello")
        return connection.recv(1000).decode()


def closes(address):
    # The port is closed soon after its container ended.
    for _ in range(200):
        try:
            socket.create_connection(address, timeout=30).close()
        except ConnectionRefusedError:
            return True
        time.sleep(0.05)
    return False


@app.local_entrypoint()
def main():
    trusting = ssl.create_default_context(cafile=AUTHORITY)
    http2 = ssl.create_default_context(cafile=AUTHORITY)
    http2.set_alpn_protocols(["h2"])
    report("alone", alone.remote())
    with modal.Queue.ephemeral() as queue:
        call = echo.spawn(queue, 8000, False)
        tls, tcp, other, refused = queue.get(timeout=60)
        report("refused", refused)
        report("answers", [ask(tls, trusting), ask(tcp)])
        try:
            report("untrusted", ask(tls, ssl.create_default_context()))
        except ssl.SSLError as error:
            report("untrusted", type(error).__name__)
        with socket.create_connection(other, timeout=30) as connection:
            report("alpn", http2.wrap_socket(connection, server_hostname=other[0]).selected_alpn_protocol())
        os.kill(SERVER_PID, signal.SIGKILL)
        report("after", [ask(tls, trusting), ask(tcp)])
        queue.put(1, partition="end")
        report("ended", call.get())
        report("closed", [closes(tls), closes(tcp), closes(other)])
        call = echo.spawn(queue, 8002, True)
        tls, tcp, *_ = queue.get(timeout=60)
        report("again", ask(tcp))
        queue.put(1, partition="end")
        report("died", [closes(tls), closes(tcp)])
        call.cancel(terminate_containers=True)
"""


def test_ports_of_containers_are_reached_from_outside(client: Client, server: Server) -> None:
    names = f"AUTHORITY, SERVER_PID = {str(server.data / 'tls' / 'authority.pem')!r}, {server.status()['server_pid']}\n"
    # The authority is made with the first tunnel.
    run = client.program(
        """
        app = modal.App("first-tunnel")

        @app.function()
        def once():
            with modal.forward(8000) as tunnel:
                return tunnel.url

        @app.local_entrypoint()
        def main():
            report("url", once.remote())
        """,
        timeout_s=120,
    ).ok()
    assert run["url"].startswith("https://127.0.0.1:"), run["url"]
    run = client.program(names + PROGRAM, timeout_s=180).ok()
    assert "no network" in run["alone"] and "block_network" in run["alone"]
    assert run["refused"] == "Port 8000 is already forwarded"
    assert run["answers"] == ["got hello"] * 2 and run["after"] == ["got hello"] * 2 and run["again"] == "got hello"
    assert run["untrusted"] == "SSLCertVerificationError"
    assert run["alpn"] == "h2"
    assert run["ended"] == "closed" and run["closed"] == [True] * 3 and run["died"] == [True] * 2
