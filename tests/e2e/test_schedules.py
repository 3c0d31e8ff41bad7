"""Functions that run by themselves, in deployed apps alone."""

import itertools
import time

from support.client import Client
from support.server import Server
from support.waits import wait_until

TICKING = """
app = modal.App("{name}")

@app.function(schedule={schedule})
def tick():
    print("tick", VERSION, time.time(), os.environ["MODAL_TASK_ID"], flush=True)

VERSION = {version}
"""


def _deploy(client: Client, name: str, schedule: str, version: int = 1) -> None:
    path = client.write(f"{name}.py", TICKING.format(name=name, schedule=schedule, version=version))
    client.modal("deploy", str(path)).ok()


def _ticks(client: Client, app: str) -> list[str]:
    return [line for line in client.modal("app", "logs", app).ok().stdout.splitlines() if line.startswith("tick")]


def test_a_period_fires_until_the_app_is_stopped(client: Client, server: Server) -> None:
    _deploy(client, "ticking", "modal.Period(seconds=2)")
    wait_until(lambda: len(_ticks(client, "ticking")) >= 2, "it runs by itself", 40)
    # A killed server misses nothing twice and goes on.
    server.kill_server()
    seen = len(_ticks(client, "ticking"))
    wait_until(lambda: len(_ticks(client, "ticking")) >= seen + 2, "it goes on after a restart", 40)
    begun = [float(line.split()[2]) for line in _ticks(client, "ticking")]
    assert all(later - earlier > 0.5 for earlier, later in itertools.pairwise(begun)), begun
    containers = {line.split()[3] for line in _ticks(client, "ticking")}
    assert len(containers) == 1, "the container that is warm runs the next one too"
    shown = client.modal("app", "info", "ticking").ok().flat
    assert "Every 2 seconds" in shown, shown
    # A new version has the new code and the new schedule.
    _deploy(client, "ticking", "modal.Period(seconds=1)", version=2)
    wait_until(lambda: sum(" 2 " in line for line in _ticks(client, "ticking")) >= 2, "the new code runs", 40)
    _deploy(client, "ticking", "None", version=3)
    time.sleep(1)
    last = len(_ticks(client, "ticking"))
    time.sleep(3)
    assert len(_ticks(client, "ticking")) == last, "a deployment without a schedule ends it"
    _deploy(client, "ticking", "modal.Period(seconds=1)", version=4)
    wait_until(lambda: any(" 4 " in line for line in _ticks(client, "ticking")), "it is scheduled again", 40)
    client.modal("app", "stop", "ticking", "--yes").ok()
    time.sleep(1)
    last = len(_ticks(client, "ticking"))
    time.sleep(3)
    assert len(_ticks(client, "ticking")) == last, "a stopped app runs nothing"


def test_what_is_no_schedule_is_refused_when_it_is_deployed(client: Client) -> None:
    cases = {
        'modal.Cron("61 * * * *")': "malformed",
        'modal.Cron("0 0 30 2 *")': "never fires",
        'modal.Cron("* * * * *", timezone="Mars/Olympus")': "no time zone 'Mars/Olympus'",
        "modal.Period(hours=-1)": "negative",
    }
    for schedule, reason in cases.items():
        path = client.write("refused.py", TICKING.format(name="refused", schedule=schedule, version=1))
        run = client.modal("deploy", str(path)).failed()
        assert reason in run.flat and "'tick'" in run.flat, run.describe()


def test_only_deployed_apps_keep_schedules(client: Client, server: Server) -> None:
    run = client.program(
        """
        app = modal.App("ephemeral-ticks")

        @app.function(schedule=modal.Period(seconds=1))
        def tick():
            print("tick by itself")

        @app.local_entrypoint()
        def main():
            time.sleep(3)
        """
    ).ok()
    assert "tick by itself" not in run.output
    _deploy(client, "yearly", 'modal.Cron("0 6 1 1 *", timezone="America/New_York")')
    found = client.script('report("id", modal.App.lookup("yearly").app_id)').ok()
    explained = server.explain(found["id"])
    due = explained["functions"][0]["schedule"]["next_due_ms"]
    # Six o'clock in New York is eleven in UTC in winter.
    assert due / 1000 > time.time() and time.gmtime(due / 1000)[1:5] == (1, 1, 11, 0)
    client.modal("app", "stop", "yearly", "--yes").ok()
