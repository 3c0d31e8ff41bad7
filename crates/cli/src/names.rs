//! Every environment variable that Evoke reads or sets, in one place.

/// The data folder, where `--data` is not given.
pub(crate) const EVOKE_DATA: &str = "EVOKE_DATA";
/// What to log and how much of it, as `tracing` filters are written: `info`, `evoke_worker=debug`.
pub(crate) const EVOKE_LOG: &str = "EVOKE_LOG";
/// The version of an app that is seen instead of the live one, as `ap-…@3`; set for the commands of `evoke bisect`.
pub(crate) const EVOKE_VIEW: &str = "EVOKE_VIEW";
/// The number of that version, likewise.
pub(crate) const EVOKE_VERSION: &str = "EVOKE_VERSION";
/// What the names begin with of variables that hold the addresses of that version's web functions.
pub(crate) const EVOKE_URL_PREFIX: &str = "EVOKE_URL_";
/// How the holder tells a server what to run with (JSON); not for people.
pub(crate) const EVOKE_LAUNCH: &str = "EVOKE__LAUNCH";
/// How the holder tells the privileged helper what it may touch (JSON); not for people.
pub(crate) const EVOKE_HELPER: &str = "EVOKE__HELPER";

/// Address of the server, for the official clients.
pub(crate) const MODAL_SERVER_URL: &str = "MODAL_SERVER_URL";
/// Public part of the token.
pub(crate) const MODAL_TOKEN_ID: &str = "MODAL_TOKEN_ID";
/// Secret part of the token.
pub(crate) const MODAL_TOKEN_SECRET: &str = "MODAL_TOKEN_SECRET";
/// The client's own settings file; ours is kept apart from that of a Modal account.
pub(crate) const MODAL_CONFIG_PATH: &str = "MODAL_CONFIG_PATH";
/// Set where a proxy is configured: the server is on this machine.
pub(crate) const MODAL_DISABLE_API_PROXY: &str = "MODAL_DISABLE_API_PROXY";
/// Other ways for a client to authenticate, which it refuses to mix with a token.
pub(crate) const MODAL_OAUTH: [&str; 4] = [
    "MODAL_OAUTH_REFRESH_TOKEN",
    "MODAL_OAUTH_CLIENT_ID",
    "MODAL_OAUTH_CLIENT_SECRET",
    "MODAL_OAUTH_JWT_KEY",
];

/// The user's active Python environment.
pub(crate) const VIRTUAL_ENV: &str = "VIRTUAL_ENV";
/// Where Python looks for modules before its own folders.
pub(crate) const PYTHONPATH: &str = "PYTHONPATH";
/// Who called sudo.
pub(crate) const SUDO_UID: &str = "SUDO_UID";
/// Who called pkexec.
pub(crate) const PKEXEC_UID: &str = "PKEXEC_UID";
/// Homes of user data, settings and caches.
pub(crate) const XDG_DATA_HOME: &str = "XDG_DATA_HOME";
/// See [`XDG_DATA_HOME`].
pub(crate) const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";
/// See [`XDG_DATA_HOME`].
pub(crate) const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
/// The user's folder.
pub(crate) const HOME: &str = "HOME";
/// Where a program that serves a file system says by which socket it wants its descriptor.
pub(crate) const FUSE_COMMFD: &str = evoke_runtime::fuse::SOCKET;
/// Names under which programs find the authorities that they trust.
pub(crate) const AUTHORITIES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];
/// Hosts that are reached without a proxy.
pub(crate) const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// Names under which a proxy may be configured.
pub(crate) const PROXIES: [&str; 6] =
    ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];

/// How the C library keeps memory in the server: few arenas, and what large buffers and freed memory at the
/// heap's end took goes back to the machine. The default holds on to hundreds of MiB after an image build.
pub(crate) const MALLOC: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "2"), ("MALLOC_MMAP_THRESHOLD_", "131072"), ("MALLOC_TRIM_THRESHOLD_", "1048576")];

/// The value of a variable; an empty one counts as not set.
pub(crate) fn read(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
