//! The server process: started by the holder, runs as the service user, replaced when it dies.
//!
//! Its stdin is the descriptor store, its stdout takes one line when it serves. It ends with success only when
//! it was asked to end; the holder starts another after any other end.

use crate::data_folder::DataFolder;
use crate::hand_out::{self, HandOut};
use crate::launch::{HELPER_SOCKET, LOCAL_LISTENER, Launch, PUBLIC_LISTENER, READY_LINE};
use crate::names;
use crate::privileges::raise_open_files;
use crate::serve::{Inherited, Roles};
use crate::token::Token;
use anyhow::{Context, Result, ensure};
use evoke_core::SystemEntropy;
use evoke_runtime::HelperRuntime;
use evoke_runtime::fdstore::FdStoreClient;
use rustix::process::{DumpableBehavior, Signal};
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// What is logged where `EVOKE_LOG` is not set.
const LOG_DEFAULT: &str = "warn";
/// Threads that run tasks; the work is input and output, so a few serve any machine.
const WORKER_THREADS_MAX: usize = 8;

/// Runs the verb.
pub(crate) fn run() -> Result<ExitCode> {
    let launch = Launch::from_environment()?;
    ensure!(!rustix::process::geteuid().is_root(), "a server never runs as root; start it with `evoke up`");
    // Were the holder to die without a word, the kernel tells us.
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).context("watching the holder")?;
    // Secrets in memory are for nobody else who runs as this user.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("closing the memory to others")?;
    if !holder_lives(&launch) {
        return Ok(ExitCode::FAILURE);
    }
    // It was executed by way of a descriptor, whose number would be its name.
    rustix::thread::set_name(c"evoke-server").context("naming the process")?;
    raise_open_files();
    start_logging()?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(WORKER_THREADS_MAX))
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    let ended = runtime.block_on(serve(launch));
    // Blocking work that is under way must not delay the end: all that counts is durable already.
    runtime.shutdown_background();
    ended.map(|()| ExitCode::SUCCESS)
}

/// Human-readable lines on stderr.
fn start_logging() -> Result<()> {
    let wanted = names::read(names::EVOKE_LOG).unwrap_or_else(|| LOG_DEFAULT.to_owned());
    let filter = tracing_subscriber::EnvFilter::try_new(&wanted)
        .with_context(|| format!("{} is not a filter: `{wanted}`", names::EVOKE_LOG))?;
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).init();
    Ok(())
}

fn holder_lives(launch: &Launch) -> bool {
    rustix::process::getppid().is_some_and(|pid| pid.as_raw_pid() as u32 == launch.holder_pid)
}

/// Takes over what the holder keeps, starts the roles, and serves until told to stop.
async fn serve(launch: Launch) -> Result<()> {
    // Before anything else, so that a stop during the start is not lost.
    let mut terminate = signal(SignalKind::terminate()).context("handling SIGTERM")?;
    let socket: OwnedFd =
        std::io::stdin().as_fd().try_clone_to_owned().context("taking over the store's socket")?;
    let (store, initial) = FdStoreClient::connect(socket).await.context("connecting to the holder")?;
    let data = DataFolder::at(&launch.data);
    let (mut public, mut local, mut helper, mut kept) = (None, None, None, Vec::new());
    for (name, fd) in initial {
        match name.as_str() {
            PUBLIC_LISTENER => public = Some(TcpListener::from(fd)),
            LOCAL_LISTENER => local = Some(UnixListener::from(fd)),
            HELPER_SOCKET => helper = Some(fd),
            _ => kept.push((name, fd)),
        }
    }
    let local = local.context("the holder passed no local socket")?;
    let helper = helper.context("the holder passed no socket to the helper")?;
    let token = Token::load_or_make(&data.token_file(), &mut SystemEntropy::default())?;
    let roles = Roles::start(Inherited {
        launch: launch.clone(),
        public: public.context("the holder passed no public listener")?,
        runtime: Arc::new(HelperRuntime::connect(helper).context("connecting to the helper")?),
        store,
        kept,
        token: token.clone(),
    })
    .await?;

    let stop = Arc::new(Notify::new());
    let hand_out = HandOut::new(launch.clone(), token, roles.insight(), Arc::clone(&stop));
    let local = hand_out::listen(local, hand_out)?;
    std::io::stdout()
        .write_all(READY_LINE)
        .and_then(|()| std::io::stdout().flush())
        .context("saying ready")?;

    tokio::select! {
        _ = terminate.recv() => {}
        () = stop.notified() => {}
        () = roles.doomed() => {
            tracing::error!("ending, so that another server takes over from what is stored");
            std::process::exit(1);
        }
    }
    if !holder_lives(&launch) {
        // Containers lose their sockets with the holder and end by themselves; nobody is left to stop for.
        tracing::error!("the holder is gone; ending");
        std::process::exit(1);
    }
    roles.stop().await;
    local.abort();
    Ok(())
}
