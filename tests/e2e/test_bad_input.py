"""Bad input: each gets a clear error that names the mend, and harms nothing else."""

import signal
import sys

import pytest
from support.client import Client
from support.server import Server
from support.waits import wait_until

HEALTHY = """
app = modal.App("healthy")

@app.function()
def one():
    return 1

@app.local_entrypoint()
def main():
    report("one", one.remote())
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def broken(:\n    pass\n", "SyntaxError"),
        ("import a_module_that_is_nowhere\n", "a_module_that_is_nowhere"),
        ('app = modal.App("x")\n', "no entrypoints"),
        ("x = 1\n", "no entrypoints"),
    ],
    ids=["syntax", "import", "nothing to run", "no app"],
)
def test_a_broken_file_is_told_before_anything_starts(client: Client, text: str, says: str) -> None:
    run = client.program(text).failed()
    assert says.lower() in run.flat.lower(), run.describe()


def test_a_file_that_is_not_there(client: Client) -> None:
    run = client.modal("run", "nowhere.py").failed()
    assert "nowhere.py" in run.flat


def test_an_error_on_import_inside_the_container_only(client: Client) -> None:
    run = client.program(
        """
        app = modal.App("import-inside")

        if not modal.is_local():
            import a_module_that_is_nowhere

        @app.function()
        def never():
            return 1

        @app.local_entrypoint()
        def main():
            report("never", attempt(never.remote))
        """
    ).ok()
    found = run["never"]
    assert "a_module_that_is_nowhere" in found["error"] + run.output, run.describe()
    assert found["seconds"] < 30


def test_what_does_not_exist_is_not_found_by_its_name(client: Client) -> None:
    program = client.write(
        "lookups.py",
        """
        def with_image(image):
            app = modal.App("no-image")
            app.function(image=image, serialized=True)(abs)
            with app.run():
                pass

        report("function", attempt(lambda: modal.Function.from_name("no-such-app", "f").remote()))
        report("class", attempt(lambda: modal.Cls.from_name("no-such-app", "C")().f.remote()))
        report("image", attempt(with_image, modal.Image.from_id("im-0000000000000000000000")))
        report("secret", attempt(lambda: modal.Secret.from_name("no-such-secret").hydrate()))
        report("call", attempt(lambda: modal.FunctionCall.from_id("fc-0000000000000000000000").get()))
        report("no id", attempt(lambda: modal.FunctionCall.from_id("fc-what?").get()))
        """,
    )
    run = client.start(sys.executable, str(program)).end().ok()
    for name, mentions in (
        ("function", "no-such-app"),
        ("class", "no-such-app"),
        ("image", "im-0000000000000000000000"),
        ("secret", "no-such-secret"),
        ("call", "fc-0000000000000000000000"),
    ):
        assert "NotFoundError" in run[name]["kinds"], (name, run[name])
        assert mentions in run[name]["error"], (name, run[name])
    assert "error" in run["no id"], run["no id"]


def test_a_pickled_function_needs_the_python_that_pickled_it(client: Client) -> None:
    program = client.write(
        "pickled.py",
        """
        import modal.client
        metadata = modal.client._get_metadata

        def two():
            return 2

        class Three:
            @modal.method()
            def three(self):
                return 3

        def run(call, client=None):
            app = modal.App("pickled")
            function = app.function(serialized=True)(two)
            model = app.cls(serialized=True)(Three)
            with app.run(client=client):
                return call(function, model)

        report("same", run(lambda function, model: [function.remote(), model().three.remote()]))
        # This interpreter, said to be another.
        modal.client._get_metadata = lambda *args: metadata(*args) | {"x-modal-python-version": "3.99.1"}
        token = os.environ["MODAL_TOKEN_ID"], os.environ["MODAL_TOKEN_SECRET"]
        report("other", attempt(run, lambda *_: None, modal.Client.from_credentials(*token)))
        """,
    )
    run = client.start(sys.executable, str(program)).end().ok()
    assert run["same"] == [2, 3]
    error = run["other"]["error"]
    assert "InvalidError" in run["other"]["kinds"]
    assert "serialized by Python 3.99" in error and 'python_version="3.99"' in error


def test_a_function_that_the_app_lacks(client: Client) -> None:
    client.write("healthy.py", HEALTHY)
    run = client.modal("run", "healthy.py::nothing_like_it").failed()
    assert "nothing_like_it" in run.flat


def test_an_argument_that_cannot_be_sent(client: Client) -> None:
    run = client.program(
        """
        app = modal.App("unpicklable")

        @app.function()
        def take(x):
            return 1

        @app.local_entrypoint()
        def main():
            import threading
            report("lock", attempt(take.remote, threading.Lock()))
            report("in a map", attempt(lambda: list(take.map([1, threading.Lock()]))))
            report("too many", attempt(take.remote, 1, 2, 3))
            report("after", take.remote(1))
        """
    ).ok()
    assert "pickle" in run["lock"]["error"].lower(), run["lock"]
    assert "pickle" in run["in a map"]["error"].lower(), run["in a map"]
    assert "TypeError" in run["too many"]["kinds"]
    assert run["after"] == 1


def test_what_this_machine_cannot_give_fails_at_once_and_leaves_the_rest_alone(client: Client) -> None:
    run = client.program(
        """
        app = modal.App("too-much")

        @app.function(gpu="H100")
        def on_gpu():
            return 1

        @app.function(memory=10_000_000)
        def with_memory():
            return 1

        @app.function(cpu=4000.0)
        def with_cores():
            return 1

        @app.function()
        def plain():
            return 1

        @app.local_entrypoint()
        def main():
            report("on_gpu", attempt(on_gpu.remote))
            report("with_memory", attempt(with_memory.remote))
            report("with_cores", attempt(with_cores.remote))
            report("plain", attempt(plain.remote))
        """
    ).ok()
    for name, words in (("on_gpu", ("H100", "gpu")), ("with_memory", ("MiB", "memory")), ("with_cores", ("core",))):
        found = run[name]
        assert "error" in found and found["seconds"] < 5, (name, found)
        for word in words:
            assert word.lower() in found["error"].lower(), (name, found)
    assert run["plain"]["value"] == 1


def test_a_base_that_nobody_can_supply_says_what_was_tried(client: Client) -> None:
    run = client.program(
        """
        image = modal.Image.from_registry("registry.invalid/no/such:image")
        app = modal.App("no-base", image=image)

        @app.function()
        def never():
            return 1

        @app.local_entrypoint()
        def main():
            never.remote()
        """
    ).failed()
    assert "registry.invalid/no/such" in run.flat, run.describe()


@pytest.mark.parametrize("wrong", ["MODAL_TOKEN_SECRET", "MODAL_TOKEN_ID"])
def test_a_wrong_token_says_how_to_get_the_right_one(client: Client, wrong: str) -> None:
    text = {"MODAL_TOKEN_SECRET": "as-wrong", "MODAL_TOKEN_ID": "ak-wrong"}[wrong]
    run = client.program(HEALTHY, env={wrong: text}).failed()
    assert "evoke env" in run.flat, run.describe()
    assert client.env["MODAL_TOKEN_SECRET"] not in run.output


def test_a_client_that_vanishes_takes_its_containers_with_it(client: Client, server: Server) -> None:
    process = client.start_program(
        """
        app = modal.App("vanishing")

        @app.function()
        def wait(seconds):
            print("inside", flush=True)
            time.sleep(seconds)

        @app.local_entrypoint()
        def main():
            wait.remote(600)
        """
    )
    process.wait_for_text("inside")
    process.kill()
    # It said nothing, so the server finds out by its silence: a minute, as SPECIFICATION has it.
    wait_until(lambda: server.status()["containers"] == 0, "the app was stopped", 100)
    assert client.program(HEALTHY).ok()["one"] == 1


def test_an_interrupted_run_ends_its_app_at_once(client: Client, server: Server) -> None:
    process = client.start_program(
        """
        app = modal.App("interrupted")

        @app.function()
        def wait(seconds):
            print("inside", flush=True)
            time.sleep(seconds)

        @app.local_entrypoint()
        def main():
            wait.remote(600)
        """
    )
    process.wait_for_text("inside")
    process.signal(signal.SIGINT)
    process.end(30)
    wait_until(lambda: server.status()["containers"] == 0, "no container is left", 40)


def test_bytes_that_are_no_protocol_harm_nothing(client: Client, server: Server) -> None:
    program = client.write(
        "noise.py",
        """
        import http.client, socket, urllib.parse

        address = urllib.parse.urlparse(os.environ["MODAL_SERVER_URL"])
        where = (address.hostname, address.port)
        method = "/modal.client.ModalClient/AppCreate"

        def raw(data):
            try:
                with socket.create_connection(where, 10) as connection:
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(65536)
            except OSError as error:
                # It may hang up at any byte; it must not keep the line open and say nothing.
                assert not isinstance(error, TimeoutError), error

        raw(os.urandom(4096))
        raw(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + os.urandom(4096))
        raw(b"GET / HTTP/1.1\\r\\n")
        connection = http.client.HTTPConnection(*where, timeout=10)
        connection.request("POST", method, b"\\x00\\xff\\xff\\xff\\xff", {"content-type": "application/grpc"})
        report("status", connection.getresponse().status)
        report("done", True)
        """,
    )
    run = client.start(sys.executable, str(program)).end().ok()
    assert run["done"]
    assert server.status()["up"]
    assert client.program(HEALTHY).ok()["one"] == 1
