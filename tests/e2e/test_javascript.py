"""The official JavaScript client: calls what is deployed, and uses Queues, secrets and volumes."""

import json
import shutil
import subprocess

import pytest
from support.client import Client

# The release that is tested; it needs Node 20 or newer.
PACKAGE = "modal@0.11.1"
NODE_MIN = 20

DEPLOYED = """
app = modal.App("from-javascript")

@app.function()
def describe(text, times=1):
    return {"text": text * times, "list": [1, 2.5, None, True], "bytes": b"ab"}

@app.function()
def refuse():
    raise ValueError("not today")

@app.function()
def slow():
    time.sleep(60)

@app.function()
def turned(data):
    return data[::-1]

@app.function()
def env():
    return [os.environ.get("FIRST"), os.environ.get("SECOND")]

@app.cls()
class Greeter:
    name: str = modal.parameter(default="plain")
    number: int = modal.parameter(default=4)

    @modal.method()
    def greet(self, word):
        return f"{word} {self.name} {self.number}"
"""

PROGRAM = """
import { ModalClient } from "modal";
const modal = new ModalClient();
const found = {};
const attempt = async (name, action) => {
  try { found[name] = await action(); } catch (error) { found[name] = `${error.constructor.name}: ${error.message}`; }
};
const named = (name) => modal.functions.fromName("from-javascript", name);

await attempt("call", async () => {
  const result = await (await named("describe")).remote(["ab"], { times: 2 });
  return { ...result, bytes: [...result.bytes] };
});
await attempt("spawn", async () => {
  const call = await (await named("describe")).spawn(["x"]);
  return (await (await modal.functionCalls.fromId(call.functionCallId)).get()).text;
});
await attempt("raises", async () => (await named("refuse")).remote());
await attempt("missing", () => named("nothing"));
await attempt("large", async () => {
  const data = new Uint8Array(5 << 20);
  data[0] = 7;
  const result = await (await named("turned")).remote([data]);
  return [result.length, result[result.length - 1]];
});
await attempt("timeout", async () => {
  const call = await (await named("slow")).spawn();
  try { return await call.get({ timeoutMs: 200 }); } finally { await call.cancel(); }
});
await attempt("class", async () => {
  const greeter = await modal.cls.fromName("from-javascript", "Greeter");
  const one = await greeter.instance({ name: "zed", number: 9 });
  const two = await greeter.withOptions({ timeoutMs: 60000 }).withConcurrency({ maxInputs: 4 }).instance();
  return [await one.method("greet").remote(["hi"]), await two.method("greet").remote(["ho"])];
});
await attempt("options", async () => {
  const secret = await modal.secrets.fromObject({ FIRST: "a" });
  return (await (await named("env")).withOptions({ secrets: [secret], env: { SECOND: "b" } }).instance()).remote();
});
await attempt("queue", async () => {
  const queue = await modal.queues.ephemeral();
  await queue.put(1);
  await queue.putMany([2, { three: 3 }]);
  const taken = [await queue.len(), await queue.get(), await queue.getMany(2)];
  await queue.put("far", { partition: "p" });
  const items = [];
  for await (const item of queue.iterate({ partition: "p", itemPollTimeoutMs: 100 })) items.push(item);
  queue.closeEphemeral();
  return [...taken, items];
});
await attempt("empty queue", async () => {
  const queue = await modal.queues.fromName("javascript-queue", { createIfMissing: true });
  try { return await queue.get({ timeoutMs: 100 }); } finally { await modal.queues.delete("javascript-queue"); }
});
await attempt("volume", async () => {
  const volume = await modal.volumes.fromName("javascript-volume", { createIfMissing: true });
  await modal.volumes.delete("javascript-volume");
  return volume.volumeId.slice(0, 3);
});
console.log(JSON.stringify(found));
modal.close();
"""


def node_version() -> int:
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return 0
    told = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return int(told.lstrip("v").split(".")[0])


@pytest.mark.skipif(node_version() < NODE_MIN, reason=f"needs node {NODE_MIN} or newer, and npm")
def test_the_javascript_client_calls_functions_and_uses_objects(client: Client) -> None:
    client.modal("deploy", str(client.write("deployed.py", DEPLOYED))).ok()
    # Without scripts: nothing of the package has to be compiled.
    client.start("npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE).end().ok()
    program = client.write("program.mjs", PROGRAM, prelude=False)
    run = client.start("node", str(program)).end().ok()
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["call"] == {"text": "abab", "list": [1, 2.5, None, True], "bytes": [97, 98]}
    assert found["spawn"] == "x"
    assert "not today" in found["raises"], found["raises"]
    assert found["missing"].startswith("NotFoundError"), found["missing"]
    assert found["large"] == [5 << 20, 7]
    assert found["timeout"].startswith("FunctionCallGetTimeoutError"), found["timeout"]
    assert found["class"] == ["hi zed 9", "ho plain 4"]
    assert found["options"] == ["a", "b"]
    assert found["queue"] == [3, 1, [2, {"three": 3}], ["far"]]
    assert found["empty queue"].startswith("QueueEmptyError"), found["empty queue"]
    assert found["volume"] == "vo-"
