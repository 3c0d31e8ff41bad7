//! The world: what exists, the events that are due, and the run of one seed.

use crate::clients::Client;
use crate::containers::Container;
use crate::random::Random;
use crate::script::{Behaviour, Script};
use crate::server::{Batch, Release};
use evoke_core::{InputId, TaskId, UnixMs};
use evoke_engine::{Engine, PollRequest, WorkerId};
use evoke_store::Db;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What was played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// A hash over everything that happened.
    pub trace: u64,
    /// Events.
    pub events: u64,
    /// Inputs that were acknowledged.
    pub inputs: u64,
    /// Runs of inputs in containers.
    pub runs: u64,
    /// Containers started.
    pub containers: u64,
    /// Times the server was killed.
    pub crashes: u64,
    /// Simulated milliseconds until everything had ended.
    pub took_ms: u64,
}

/// Something that happens at a time.
#[derive(Debug)]
pub(crate) enum Event {
    Client(usize),
    /// A client's request was not answered for long.
    ClientTimeout {
        client: usize,
        request: u64,
    },
    Commit,
    /// An answer arrives; it may be lost if its server is gone.
    Answer {
        epoch: u64,
        release: Box<Release>,
    },
    Container(TaskId, Act),
    Tick,
    /// The server's waiting poll asks again.
    Repoll(TaskId),
    Crash,
    Restart,
    Adopt {
        epoch: u64,
    },
    LoseWorker,
    WorkerBack(WorkerId),
    Jump,
    Redeploy,
    StopApp,
    DropConnection,
    StopTask,
}

/// Something that happens in or to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Executed,
    Ready,
    FailsToStart,
    Poll,
    Done(InputId, u32),
    Put(u64),
    Heartbeat,
    Exit { code: Option<i32>, signal: Option<i32>, oom: bool },
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) script: Script,
    pub(crate) now: UnixMs,
    /// How far the server's clock is ahead.
    pub(crate) skew_ms: u64,
    events: BTreeMap<(UnixMs, u64), Event>,
    next_event: u64,
    pub(crate) db: Db,
    pub(crate) engine: Option<Engine>,
    pub(crate) epoch: u64,
    pub(crate) tick_at: Option<UnixMs>,
    pub(crate) commit_scheduled: bool,
    pub(crate) uncommitted: VecDeque<Batch>,
    pub(crate) polls: BTreeMap<TaskId, PollRequest>,
    /// Answers stored with their effects, by client and request.
    pub(crate) answered: BTreeMap<(usize, u64), Release>,
    pub(crate) in_flight: BTreeSet<(usize, u64)>,
    pub(crate) clients: Vec<Client>,
    pub(crate) containers: BTreeMap<TaskId, Container>,
    pub(crate) lost_workers: BTreeSet<WorkerId>,
    /// Runs of each input: container and counted failures before it.
    pub(crate) runs: BTreeMap<InputId, Vec<(TaskId, u32)>>,
    pub(crate) behaviours: BTreeMap<InputId, Behaviour>,
    pub(crate) app_stopped: bool,
    pub(crate) summary: Summary,
    pub(crate) log: bool,
}

/// Once faults stop everything must have ended after so long: the longest timeout, retried as often as may
/// be, with starts that fail between.
const LIVENESS_MS: u64 = 4 * 60 * 60 * 1000;
/// No seed has so many events unless something spins.
const EVENTS_MAX: u64 = 400_000;
/// The time at which every world begins.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// Plays one seed.
pub fn run(seed: u64) -> Result<Summary, String> {
    let mut world = World::new(seed, std::env::var_os("EVOKE_SIM_LOG").is_some())?;
    world.play().map_err(|text| {
        format!(
            "seed {seed}, after {} events, at {} ms: {text}\n\
             run it again with: EVOKE_SIM_SEED={seed} EVOKE_SIM_LOG=1 cargo test -p evoke-sim one_seed -- --nocapture",
            world.summary.events,
            world.now.0 - EPOCH_MS
        )
    })
}

impl World {
    fn new(seed: u64, log: bool) -> Result<Self, String> {
        let mut random = Random::new(seed);
        let script = Script::new(&mut random);
        let mut world = World {
            random,
            script,
            now: UnixMs(EPOCH_MS),
            skew_ms: 120_000,
            events: BTreeMap::new(),
            next_event: 0,
            db: Db::open_in_memory().map_err(|e| format!("opening the store: {e}"))?,
            engine: None,
            epoch: 0,
            tick_at: None,
            commit_scheduled: false,
            uncommitted: VecDeque::new(),
            polls: BTreeMap::new(),
            answered: BTreeMap::new(),
            in_flight: BTreeSet::new(),
            clients: Vec::new(),
            containers: BTreeMap::new(),
            lost_workers: BTreeSet::new(),
            runs: BTreeMap::new(),
            behaviours: BTreeMap::new(),
            app_stopped: false,
            summary: Summary::default(),
            log,
        };
        world.schedule_script();
        Ok(world)
    }

    fn schedule_script(&mut self) {
        let clients = std::mem::take(&mut self.script.clients);
        for (n, (function, at, ops)) in clients.into_iter().enumerate() {
            self.clients.push(Client::new(function, ops));
            self.after(at, Event::Client(n));
        }
        let end = self.script.faults_end_ms;
        let faults = [
            (self.script.crashes, 0),
            (self.script.worker_losses, 1),
            (self.script.jumps, 2),
            (self.script.redeploys, 3),
            (u64::from(self.script.stops_app), 4),
            (self.script.lost_answers / 10, 5),
            (self.script.task_stops, 6),
        ];
        for (times, kind) in faults {
            for _ in 0..times {
                let at = self.random.between(0, end);
                let event = match kind {
                    0 => Event::Crash,
                    1 => Event::LoseWorker,
                    2 => Event::Jump,
                    3 => Event::Redeploy,
                    4 => Event::StopApp,
                    5 => Event::DropConnection,
                    _ => Event::StopTask,
                };
                self.after(at, event);
            }
        }
    }

    /// Schedules an event so many milliseconds from now.
    pub(crate) fn after(&mut self, ms: u64, event: Event) {
        self.next_event += 1;
        self.events.insert((self.now.plus_ms(ms), self.next_event), event);
    }

    /// The time as the server's clock shows it.
    pub(crate) fn server_now(&self) -> UnixMs {
        self.now.plus_ms(self.skew_ms)
    }

    /// Whether bad things still happen.
    pub(crate) fn faulty(&self) -> bool {
        self.now.0 < EPOCH_MS + self.script.faults_end_ms
    }

    fn play(&mut self) -> Result<Summary, String> {
        self.start_server()?;
        let limit = UnixMs(EPOCH_MS + self.script.faults_end_ms + LIVENESS_MS);
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at;
            self.summary.events += 1;
            if self.log {
                eprintln!("{:>9} {event:?}", at.0 - EPOCH_MS);
            }
            self.trace(&format!("{} {event:?}", at.0));
            self.handle(event)?;
            self.schedule_tick();
            self.check_pools()?;
            if self.summary.events > EVENTS_MAX {
                return Err("something spins: too many events".into());
            }
            if self.now > limit {
                return Err(format!("not everything has ended in time: {}", self.what_is_left()));
            }
            if !self.faulty() && self.all_quiet() {
                break;
            }
        }
        self.check_end()?;
        self.summary.took_ms = self.now.0 - EPOCH_MS;
        Ok(self.summary)
    }

    /// Adds to the trace hash (FNV-1a).
    pub(crate) fn trace(&mut self, text: &str) {
        let mut hash = self.summary.trace ^ 0xcbf2_9ce4_8422_2325;
        for byte in text.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.summary.trace = hash;
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Client(n) => self.client_step(n),
            Event::ClientTimeout { client, request } => self.client_timeout(client, request),
            Event::Commit => self.commit(),
            Event::Answer { epoch, release } => {
                // What a dead server had sent may or may not have made it.
                if epoch == self.epoch || self.random.permille(500) {
                    return self.deliver(*release);
                }
                self.lose(*release);
                Ok(())
            }
            Event::Container(task, act) => self.container_act(task, act),
            Event::Tick => {
                self.tick_at = None;
                let now = self.server_now();
                if let Some(engine) = &mut self.engine {
                    let step = engine.tick(now);
                    self.take(step, |()| None);
                }
                Ok(())
            }
            Event::Repoll(task) => self.server_poll(task),
            Event::Crash => self.crash_server(),
            Event::Restart => self.start_server(),
            Event::Adopt { epoch } => self.adopt(epoch),
            Event::LoseWorker => self.lose_worker(),
            Event::WorkerBack(worker) => self.worker_back(worker),
            Event::Jump => {
                self.skew_ms = self.random.between(0, 240_000);
                Ok(())
            }
            Event::Redeploy => self.redeploy(),
            Event::StopApp => self.stop_app(),
            Event::DropConnection => self.drop_connection(),
            Event::StopTask => self.stop_some_task(),
        }
    }

    fn schedule_tick(&mut self) {
        let Some(deadline) = self.engine.as_ref().and_then(Engine::next_deadline) else { return };
        let at = UnixMs(deadline.0.saturating_sub(self.skew_ms)).max(self.now);
        if self.tick_at.is_none_or(|before| at < before) {
            self.tick_at = Some(at);
            self.after(at.since(self.now), Event::Tick);
        }
    }
}
