"""Web functions: every kind of them, driven by plain HTTP clients, across restarts and redeployments."""

import asyncio
import http.client
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from support.client import Client
from support.server import Server
from support.waits import wait_until

KINDS = """
image = modal.Image.debian_slim().pip_install("fastapi==0.115.12")
app = modal.App("web-kinds", secrets=[modal.Secret.from_dict({"EVOKE_LEAN": "LEAN_WAYS"})])


@app.function(image=image)
@modal.fastapi_endpoint(docs=True)
def greet(name: str = "you"):
    return {"hello": name}


@app.function(image=image)
@modal.concurrent(max_inputs=100)
@modal.asgi_app()
def raw():
    import asyncio
    import os

    seen = []

    async def socket(scope, receive, send):
        assert (await receive())["type"] == "websocket.connect"
        if scope["path"] == "/refuse":
            await send({"type": "websocket.close"})
            return
        chosen = "two" if "two" in scope["subprotocols"] else None
        await send({"type": "websocket.accept", "subprotocol": chosen, "headers": [(b"x-mine", b"1")]})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                seen.append(["socket left", message["code"]])
                return
            text = message.get("text")
            if text == "close":
                await send({"type": "websocket.close", "code": 4321, "reason": "as asked"})
            elif text == "raise":
                raise ValueError("in a socket")
            elif text is not None:
                await send({"type": "websocket.send", "text": text})
            else:
                await send({"type": "websocket.send", "bytes": message["bytes"]})

    async def respond(send, body, status=200, headers=()):
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": body})

    async def application(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                scope["state"]["begun"] = scope["state"].get("begun", 0) + 1
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        if scope["type"] == "websocket":
            await socket(scope, receive, send)
            return
        path = scope["path"]
        if path == "/scope":
            kept = {k: scope[k] for k in ("type", "method", "path", "http_version", "scheme")}
            kept["query"] = scope["query_string"].decode()
            kept["state"] = scope["state"]
            kept["raw_path"] = scope["raw_path"].decode()
            kept["spec"], kept["trailers"] = scope["asgi"], "http.response.trailers" in scope["extensions"]
            kept["client"] = scope["client"][0]
            kept["ids"] = [modal.current_input_id(), modal.current_function_call_id()]
            kept["headers"] = [[k.decode(), v.decode()] for k, v in scope["headers"]]
            await respond(send, json.dumps(kept).encode(), 201, [(b"x-one", b"1"), (b"x-one", b"2")])
        elif path == "/length":
            total = 0
            while True:
                message = await receive()
                total += len(message.get("body", b""))
                if not message.get("more_body"):
                    break
            await respond(send, str(total).encode())
        elif path == "/large":
            await respond(send, b"x" * int(scope["query_string"]))
        elif path == "/events":
            kind = (b"content-type", b"text/event-stream")
            await send({"type": "http.response.start", "status": 200, "headers": [kind]})
            for n in range(4):
                await send({"type": "http.response.body", "body": b"data: %d\\n\\n" % n, "more_body": True})
                await asyncio.sleep(0.5)
            await send({"type": "http.response.body", "body": b""})
        elif path == "/endless":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            while (await receive())["type"] != "http.disconnect":
                pass
            seen.append("left")
        elif path == "/generator":
            from starlette.responses import StreamingResponse

            async def forever():
                try:
                    while True:
                        yield b"begun"
                        await asyncio.sleep(0.1)
                finally:
                    seen.append("generator ended")

            await StreamingResponse(forever())(scope, receive, send)
        elif path == "/seen":
            await respond(send, json.dumps(seen).encode())
        elif path == "/raise":
            raise ValueError("on purpose")
        elif path == "/raise-late":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            raise ValueError("too late for a status")
        elif path == "/split":
            await respond(send, b"", 200, [(b"x-one", b"1\\r\\nx-two: 2")])
        elif path == "/hang":
            seen.append(modal.current_function_call_id())
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
        elif path == "/knock":
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", 64088)
            except OSError:
                await respond(send, b"nobody")
                return
            writer.write(b"GET /sleep?0 HTTP/1.1\\r\\nevoke-request: wrong - in-1 fc-1 1.1 - 0\\r\\n\\r\\n")
            try:
                said = await reader.read()
            except ConnectionError:
                said = b""
            writer.close()
            await respond(send, said or b"cut off")
        elif path == "/die":
            os._exit(3)
        elif path == "/sleep":
            await asyncio.sleep(float(scope["query_string"]))
            await respond(send, b"slept")
        else:
            await respond(send, b"nothing here", 404)

    return application


@app.function()
@modal.wsgi_app(custom_domains=["shop.example.com"])
def wsgi():
    def application(environ, start_response):
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("content-type", "text/plain")])
        return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {environ['QUERY_STRING']} {len(body)}".encode()]

    return application


@app.function()
@modal.web_server(8000)
def files():
    import subprocess

    subprocess.Popen(["python", "-m", "http.server", "8000", "--bind", "0.0.0.0", "--directory", "/etc"])


@app.cls()
class Counter:
    @modal.enter()
    def begin(self):
        self.count = 0

    @modal.wsgi_app(label="counts")
    def count(self):
        def application(environ, start_response):
            self.count += 1
            start_response("200 OK", [])
            return [str(self.count).encode()]

        return application

    @modal.method()
    def plain(self):
        return "a method beside it"


@app.cls()
class Bound:
    name: str = modal.parameter()
    count: int = modal.parameter(default=10)

    @modal.wsgi_app()
    def shown(self):
        def application(environ, start_response):
            start_response("200 OK", [])
            return [f"{self.name} {self.count + 1} {environ['QUERY_STRING']}".encode()]

        return application

    @modal.method()
    def container(self):
        return f"{self.name} {self.count}"


@app.cls(image=image, max_containers=1)
class Pages:
    @modal.enter()
    def begin(self):
        self.count = 0

    @modal.wsgi_app(label="pages-one")
    def one(self):
        def application(environ, start_response):
            self.count += 1
            start_response("200 OK", [])
            return [f"one {self.count} {modal.current_input_id()[:3]}".encode()]

        return application

    @modal.fastapi_endpoint(label="pages-two")
    def two(self):
        self.count += 1
        return f"two {self.count}"


@app.function(timeout=3)
@modal.asgi_app()
def bounded():
    import asyncio

    async def application(scope, receive, send):
        if scope["type"] == "lifespan":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(float(scope["query_string"]))
        await send({"type": "http.response.body", "body": b"in time"})

    return application


@app.function()
@modal.asgi_app()
def alone():
    import asyncio

    running = 0

    async def application(scope, receive, send):
        nonlocal running
        if scope["type"] == "lifespan":
            return
        running += 1
        most = running
        await asyncio.sleep(0.3)
        most = max(most, running)
        running -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(most).encode()})

    return application


@app.function()
@modal.wsgi_app(requires_proxy_auth=True)
def guarded():
    def application(environ, start_response):
        start_response("200 OK", [])
        return [str(environ.get("HTTP_MODAL_SECRET")).encode()]

    return application


@app.function()
def from_inside(url: str):
    import urllib.request

    own = modal.Function.from_name("web-kinds", "wsgi").get_web_url()
    return [urllib.request.urlopen(address + "/inside?a=1", b"12345").read().decode() for address in (url, own)]
"""


def _urls(output: str) -> dict[str, str]:
    """The addresses that a deployment printed, by function."""
    found = re.findall(r"(?:Function (\w+)\s*│?\s*└── |(\w+\.\w+) -> )(http://\S+)", output.replace("│", ""))
    return {function or method: url for function, method, url in found}


def _get(url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    try:
        request = urllib.request.Request(url, data, headers or {})
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


# The ways that a request takes to an application, and what switches them on.
WAYS = {"messages": "transport,start,inputs", "native": "transport,start,inputs,web"}


@pytest.fixture(scope="module", params=list(WAYS))
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def urls(module_client: Client, way: str) -> Iterator[dict[str, str]]:
    program = "import json\nimport modal\n" + KINDS.replace("LEAN_WAYS", WAYS[way])
    path = module_client.write("kinds.py", program)
    printed = module_client.modal("deploy", str(path), timeout_s=300).ok().stdout
    urls = _urls(printed)
    # The first request to a container says which way it takes.
    assert _get(urls["raw"] + "/sleep?0") == (200, "slept")
    yield urls
    module_client.modal("app", "stop", "web-kinds", "--yes").ok()


def test_every_kind_answers(urls: dict[str, str], client: Client) -> None:
    assert _get(urls["greet"] + "?name=bob") == (200, '{"hello":"bob"}')
    assert _get(urls["greet"] + "/docs")[0] == 200
    assert _get(urls["wsgi"] + "/a/b?c=d", b"body") == (200, "POST /a/b c=d 4")
    status, listing = _get(urls["files"])
    assert status == 200 and "Directory listing" in listing, listing
    # By the domain of its author's own, at any port of the server.
    for at in ("greet", "files"):
        assert _get(urls[at] + "/x", headers={"Host": "Shop.example.com"}) == (200, "GET /x  0")
    assert [_get(urls["Counter.count"])[1] for _ in range(3)] == ["1", "2", "3"], "one container serves them all"
    run = client.program(
        f"""
        @modal.App("asks").local_entrypoint()
        def main():
            wsgi = modal.Function.from_name("web-kinds", "wsgi")
            report("url", wsgi.get_web_url())
            report("inside", modal.Function.from_name("web-kinds", "from_inside").remote({urls["wsgi"]!r}))
            report("method", modal.Cls.from_name("web-kinds", "Counter")().plain.remote())
            try:
                wsgi.remote()
            except modal.exception.InvalidError as error:
                report("refused", str(error))
        """
    ).ok()
    assert run["url"] == urls["wsgi"]
    assert run["inside"] == ["POST /inside a=1 5"] * 2, "the address holds inside of containers, too"
    assert run["method"] == "a method beside it" and "webhook" in run["refused"]


def test_classes_take_their_parameters_from_the_query(urls: dict[str, str], client: Client) -> None:
    url = urls["Bound.shown"]
    assert _get(url + "?name=a%20b&x=1") == (200, "a b 11 name=a%20b&x=1")
    assert _get(url + "?count=-2&name=c") == (200, "c -1 count=-2&name=c")
    status, said = _get(url)
    assert status == 400 and "`name`" in said and "?name=" in said, said
    status, said = _get(url + "?name=c&count=many")
    assert status == 400 and "`count`" in said and "whole number" in said, said
    run = client.program(
        """
        @modal.App("binds").local_entrypoint()
        def main():
            bound = modal.Cls.from_name("web-kinds", "Bound")
            report("same", bound(name="a b").container.remote())
        """
    ).ok()
    assert run["same"] == "a b 10"


def test_requests_and_responses_pass_unchanged(urls: dict[str, str], way: str) -> None:
    raw = urlsplit(urls["raw"])
    connection = http.client.HTTPConnection(raw.hostname or "", raw.port, timeout=60)
    connection.request("PATCH", "/scope?a=1&b=%20", b"", {"X-Mine": "yes", "X-Forwarded-For": "6.6.6.6"})
    response = connection.getresponse()
    scope = json.loads(response.read())
    assert response.status == 201 and response.headers.get_all("x-one") == ["1", "2"]
    headers = [tuple(pair) for pair in scope.pop("headers")]
    input_id, call_id = scope.pop("ids")
    assert input_id.startswith("in-") and call_id.startswith("fc-")
    assert scope.pop("trailers") == (way == "messages"), "the way that was asked for was taken"
    assert scope == {
        "state": {"begun": 1},
        "raw_path": "/scope",
        "spec": {"version": "3.0", "spec_version": "2.3"},
        "client": "127.0.0.1",
        "type": "http",
        "method": "PATCH",
        "path": "/scope",
        "http_version": "1.1",
        "scheme": "http",
        "query": "a=1&b=%20",
    }
    assert ("x-mine", "yes") in headers and ("host", raw.netloc) in headers
    ours = [name for name, _ in headers if name.startswith("evoke") or name in ("transfer-encoding", "connection")]
    assert not ours, "what the gateway and the container say to each other stays theirs"
    # The connection is kept, and a body of many pieces arrives whole.
    pieces = [b"x" * 700_000] * 40
    connection.request("POST", "/length", iter(pieces), {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert connection.getresponse().read() == b"28000000"
    connection.request("GET", "/large?9000000")
    assert len(connection.getresponse().read()) == 9_000_000
    connection.request("GET", "/events")
    response = connection.getresponse()
    begun, arrived = time.monotonic(), []
    while line := response.readline():
        if line.startswith(b"data"):
            arrived.append(time.monotonic() - begun)
    assert len(arrived) == 4 and arrived[-1] - arrived[0] > 1.0, f"events come as they are made: {arrived}"
    connection.close()


def test_a_client_that_leaves_is_noticed(urls: dict[str, str]) -> None:
    raw = urlsplit(urls["raw"])
    for path, said in (("/endless", "left"), ("/generator", "generator ended")):
        connection = http.client.HTTPConnection(raw.hostname or "", raw.port, timeout=60)
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.read(5) == b"begun"
        response.close()
        connection.close()
        seen = urls["raw"] + "/seen"
        wait_until(lambda seen=seen, said=said: said in _get(seen)[1], f"the application learns of it: {path}", 20)


def test_websockets_pass_both_ways(urls: dict[str, str]) -> None:
    import aiohttp

    async def talk() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(urls["raw"] + "/socket", protocols=["one", "two"]) as ws:
                assert ws.protocol == "two"
                await ws.send_str("grüße")
                assert await ws.receive_str() == "grüße"
                large = bytes(range(256)) * 7_000
                await ws.send_bytes(large)
                assert await ws.receive_bytes() == large
                await ws.ping()
                await ws.send_str("close")
                closed = await ws.receive()
                assert (closed.type, closed.data, closed.extra) == (aiohttp.WSMsgType.CLOSE, 4321, "as asked")
            async with session.ws_connect(urls["raw"] + "/socket") as ws:
                await ws.send_str("x")
                assert await ws.receive_str() == "x"
                await ws.close(code=4000)
            async with session.ws_connect(urls["raw"] + "/socket") as ws:
                await ws.send_bytes(b"x" * (3 << 20))
                assert (await ws.receive()).data == 1009, "a message may have 2 MiB"
            async with session.ws_connect(urls["raw"] + "/socket") as ws:
                await ws.send_str("raise")
                assert (await ws.receive()).data == 1011, "a failure closes it"
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(urls["raw"] + "/refuse")
            assert refused.value.status == 403

    asyncio.run(talk())
    seen = urls["raw"] + "/seen"
    wait_until(lambda: '["socket left", 4000]' in _get(seen)[1], "the code of a client reaches the application", 20)


def test_applications_of_a_class_share_its_container(urls: dict[str, str]) -> None:
    assert _get(urls["Pages.one"]) == (200, "one 1 in-")
    assert _get(urls["Pages.two"]) == (200, '"two 2"')
    assert _get(urls["Pages.one"]) == (200, "one 3 in-")


def test_only_the_gateway_is_served(urls: dict[str, str], way: str) -> None:
    assert _get(urls["raw"] + "/knock") == (200, "cut off" if way == "native" else "nobody")


def test_code_that_takes_one_request_at_a_time_gets_no_more(urls: dict[str, str]) -> None:
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(_get, [urls["alone"]] * 6)) == {(200, "1")}


def test_a_request_can_be_cancelled(urls: dict[str, str], client: Client) -> None:
    with ThreadPoolExecutor(1) as pool:
        hangs = pool.submit(_get, urls["raw"] + "/hang")
        seen = urls["raw"] + "/seen"
        wait_until(lambda: '"fc-' in _get(seen)[1], "the application says which call it is", 20)
        call = re.findall(r'"(fc-\w+)"', _get(seen)[1])[-1]
        client.program(
            f"""
            @modal.App("cancels").local_entrypoint()
            def main():
                modal.FunctionCall.from_id({call!r}).cancel()
            """
        ).ok()
        status, said = hangs.result()
    assert status == 502 and call in said, said
    wait_until(lambda: "cancelled" in _get(seen)[1], "its code is cancelled and its container lives", 20)


def test_a_request_ends_in_its_time(urls: dict[str, str]) -> None:
    assert _get(urls["bounded"] + "?0.1") == (200, "in time")
    begun = time.monotonic()
    with pytest.raises(http.client.HTTPException):
        _get(urls["bounded"] + "?100")
    assert time.monotonic() - begun < 20
    assert _get(urls["bounded"] + "?0.1") == (200, "in time"), "another container takes over"


def test_failures_are_answers(urls: dict[str, str], server: Server, client: Client) -> None:
    assert _get(urls["raw"] + "/raise")[0] == 500
    assert _get(urls["raw"] + "/split")[0] == 500, "a header is one header"
    with pytest.raises(http.client.HTTPException):
        _get(urls["raw"] + "/raise-late")
    logs = client.modal("app", "logs", "web-kinds").ok().stdout
    assert "ValueError: on purpose" in logs and "ValueError: too late for a status" in logs, logs
    status, text = _get(urls["raw"] + "/die")
    assert status == 500, text
    assert _get(urls["raw"] + "/sleep?0") == (200, "slept"), "another container takes over"
    port = urlsplit(server.client_env()["MODAL_SERVER_URL"]).port
    by_name = {"Host": f"main--web-kinds-wsgi.localhost:{port}"}
    assert _get(f"http://127.0.0.1:{port}/x", headers=by_name) == (200, "GET /x  0")
    assert _get(f"http://127.0.0.1:{port}/x", headers={"Host": "main--nobody.localhost"})[0] in (401, 404)


def test_a_guarded_function_takes_its_tokens_only(urls: dict[str, str], client: Client) -> None:
    made = client.program(
        """
        @modal.App("tokens").local_entrypoint()
        def main():
            token = modal.Workspace.from_context().proxy_tokens.create(name="for tests")
            report("token", [token.token_id, token.token_secret])
        """
    ).ok()["token"]
    assert made[0].startswith("wk-") and made[1].startswith("ws-")
    pair = {"Modal-Key": made[0], "Modal-Secret": made[1]}
    assert _get(urls["guarded"])[0] == 401
    assert _get(urls["guarded"], headers={**pair, "Modal-Secret": "ws-wrong"})[0] == 401
    assert _get(urls["guarded"], headers=pair) == (200, "None"), "the secret is not passed on"
    client.program(
        f"""
        @modal.App("tokens").local_entrypoint()
        def main():
            tokens = modal.Workspace.from_context().proxy_tokens
            assert {made[0]!r} in [token.token_id for token in tokens.list()]
            tokens.delete({made[0]!r})
        """
    ).ok()
    assert _get(urls["guarded"], headers=pair)[0] == 401


def test_addresses_outlive_the_server(urls: dict[str, str], server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        cut_off = pool.submit(_get_or_error, urls["raw"] + "/sleep?20")
        time.sleep(1)
        server.kill_server()
        assert cut_off.result() is None, "its connection ended with the server"
    assert _get(urls["raw"] + "/sleep?0") == (200, "slept")
    assert _get(urls["wsgi"] + "/again") == (200, "GET /again  0")
    server.kill_server(away_s=2)
    assert _get(urls["wsgi"] + "/again") == (200, "GET /again  0")


def _get_or_error(url: str) -> tuple[int, str] | None:
    try:
        return _get(url)
    except (OSError, http.client.HTTPException):
        return None


VERSIONS = """
app = modal.App("web-versions")

@app.function()
@modal.concurrent(max_inputs=20)
@modal.asgi_app()
def which():
    import asyncio

    async def application(scope, receive, send):
        if scope["type"] == "lifespan":
            return
        await asyncio.sleep(0.2)
        await send({{"type": "http.response.start", "status": 200, "headers": []}})
        await send({{"type": "http.response.body", "body": b"{version}"}})

    return application
"""


def test_a_redeployment_under_load_fails_no_request(client: Client) -> None:
    def deploy(version: int) -> str:
        path = client.write("versions.py", VERSIONS.format(version=version))
        return _urls(client.modal("deploy", str(path)).ok().stdout)["which"]

    url = deploy(1)
    assert _get(url) == (200, "1")
    answers: list[tuple[int, str]] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            answers.append(_get(url))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert deploy(2) == url, "the address stays"
    wait_until(lambda: _get(url) == (200, "2"), "the new version answers", 30)
    stop.set()
    for thread in threads:
        thread.join()
    assert {answer for answer in answers} == {(200, "1"), (200, "2")}, set(answers)
    client.modal("app", "stop", "web-versions", "--yes").ok()
    wait_until(lambda: _get_or_error(url) is None, "a stopped app has no address", 20)


SERVERS = """
app = modal.App("web-servers")

SERVER = '''
import http.server, os, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/slow":
            time.sleep(3)
        body = f"VERSION_HERE {os.environ['MODAL_TASK_ID']}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
'''


def begin():
    import subprocess
    import sys

    return subprocess.Popen([sys.executable, "-c", SERVER])


@app.server(port=8000, unauthenticated=True, scaledown_window=2, exit_grace_period=10)
class Plain:
    @modal.enter()
    def enter(self):
        self.program = begin()

    @modal.exit()
    def leave(self):
        print("the server was let go", flush=True)
        self.program.terminate()


@app.server(port=8000)
class Guarded:
    @modal.enter()
    def enter(self):
        self.program = begin()
"""


def test_servers_are_reached_as_they_are(client: Client, server: Server) -> None:
    def deploy(version: int) -> None:
        path = client.write("servers.py", SERVERS.replace("VERSION_HERE", str(version)))
        client.modal("deploy", str(path)).ok()

    deploy(1)
    found = client.program(
        """
        @modal.App("asks-servers").local_entrypoint()
        def main():
            report("urls", [modal.Server.from_name("web-servers", name).get_url() for name in ("Plain", "Guarded")])
        """
    ).ok()["urls"]
    plain, guarded = found
    status, first = _get(plain)
    assert (status, first.split()[0]) == (200, "1"), first
    assert _get(plain) == (200, first), "the same container answers"
    assert _get(guarded)[0] == 401, "a server is guarded unless it says otherwise"
    server.kill_server()
    assert _get(plain) == (200, first), "its container outlives the platform's server"
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(_get, plain + "/slow")
        time.sleep(0.5)
        deploy(2)
        wait_until(lambda: _get(plain)[1].startswith("2"), "new requests go to new code", 30)
        assert under_way.result() == (200, first), "what was under way is finished by old code"
    wait_until(lambda: "let go" in client.modal("app", "logs", "web-servers").ok().stdout, "idle ones end", 30)
    client.modal("app", "stop", "web-servers", "--yes").ok()
