//! Where web functions are reached. Each has a label, and each label a port of its own that stays the same over
//! restarts and redeployments, so that an address works without any DNS. Ports are opened while something of
//! their label is live.

use super::labels::{Label, Standing, Wanted, label};
use crate::registry::{App, Function, Live, PinnedVersion};
use crate::{Control, WORKSPACE, stored};
use evoke_core::ports::WEB as PORTS;
use evoke_core::{Error, ErrorCode, FunctionId};
use evoke_proto::web::{WebAddress, WebEndpoint};
use evoke_proto::{Status, api};
use evoke_store::{Grade, WebPortRow, WebWrite};
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Tries to find a port that nobody else has, before giving up.
const TRIES_MAX: usize = 200;

/// Labels, their ports and what is behind them.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    known: Mutex<Known>,
    /// Held while ports are chosen, opened and closed.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    endpoints: HashMap<String, WebEndpoint>,
    /// The same by the domains of their authors' own, in lower case.
    domains: HashMap<String, WebEndpoint>,
    ports: HashMap<String, u16>,
    labels: HashMap<u16, String>,
    open: BTreeSet<u16>,
}

impl Addresses {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is at an address.
    pub(crate) fn endpoint(&self, address: &WebAddress) -> Option<WebEndpoint> {
        let known = self.known();
        let label = match address {
            WebAddress::Port(port) => known.labels.get(port)?.as_str(),
            WebAddress::Host(host) => match known.domains.get(host) {
                Some(endpoint) => return Some(endpoint.clone()),
                None => host.split_once('.').map_or(host.as_str(), |(first, _)| first),
            },
        };
        known.endpoints.get(label).cloned()
    }

    fn port(&self, label: &str) -> Option<u16> {
        self.known().ports.get(label).copied()
    }

    /// Whether a label is somebody else's at this moment.
    fn is_others(&self, label: &str, function: FunctionId) -> bool {
        self.known().endpoints.get(label).is_some_and(|endpoint| endpoint.function != function)
    }
}

/// A web function or method of a definition.
struct Named<'a> {
    /// Empty for the definition itself.
    method: &'a str,
    label: Label,
    requires_proxy_auth: bool,
    domains: &'a [api::CustomDomainConfig],
    /// Whether it is a server of the user's, which clients are told of in another place.
    is_server: bool,
}

impl Control {
    /// What is stored of ports, at start.
    pub(crate) async fn load_web(&self) -> Result<(), Status> {
        let rows = self.store.web().ports().await.map_err(stored)?;
        {
            let mut known = self.web.addresses.known();
            for row in rows {
                known.labels.insert(row.port, row.label.clone());
                known.ports.insert(row.label, row.port);
            }
        }
        self.web.tokens.replace(self.store.web().tokens().await.map_err(stored)?);
        Ok(())
    }

    /// Looks anew at what is live: which labels there are, and which ports are open. What cannot be opened is
    /// logged: an app lives on without its address.
    pub(crate) async fn sync_web(&self) {
        let _turn = self.web.addresses.turn.lock().await;
        let (endpoints, domains) = self.endpoints();
        let wanted: Vec<String> = endpoints.keys().cloned().collect();
        {
            let mut known = self.web.addresses.known();
            (known.endpoints, known.domains) = (endpoints, domains);
        }
        let mut open = BTreeSet::new();
        for label in wanted {
            match self.open_port(&label).await {
                Ok(port) => {
                    open.insert(port);
                }
                Err(error) => tracing::error!(%label, %error, "a web function has no port"),
            }
        }
        let close: Vec<u16> = {
            let mut known = self.web.addresses.known();
            let close = known.open.difference(&open).copied().collect();
            known.open = open;
            close
        };
        for port in close {
            self.web_listeners.close(port).await;
        }
    }

    /// Every live web function by its label, and by its own domains. Of two with one label the app that was made last has it.
    fn endpoints(&self) -> (HashMap<String, WebEndpoint>, HashMap<String, WebEndpoint>) {
        let live = self.registry.lock();
        let mut apps: Vec<&App> = live.apps.values().filter(|app| !app.stopping).collect();
        apps.sort_by_key(|app| app.row.id);
        let (mut endpoints, mut domains) = (HashMap::new(), HashMap::new());
        for app in apps {
            for function in app.reachable(&live) {
                for named in named(&live, app, &function.definition.function, function.pinned.as_deref()) {
                    let endpoint = WebEndpoint {
                        function: function.id,
                        method: named.method.to_owned(),
                        label: named.label.text.clone(),
                        requires_proxy_auth: named.requires_proxy_auth,
                    };
                    for domain in named.domains {
                        let name = domain.name.trim_end_matches('.').to_ascii_lowercase();
                        domains.insert(name, endpoint.clone());
                    }
                    endpoints.insert(named.label.text, endpoint);
                }
            }
        }
        (endpoints, domains)
    }

    /// The port of a label, open. Its own if that is free, else another from now on.
    async fn open_port(&self, label: &str) -> Result<u16, Error> {
        let own = self.web.addresses.port(label);
        if let Some(port) = own {
            if self.web.addresses.known().open.contains(&port) || self.web_listeners.open(port).await? {
                return Ok(port);
            }
            tracing::warn!(%label, port, "another program has the port of a web function, which gets a new one");
        }
        for port in candidates(label) {
            let taken = self.web.addresses.known().labels.contains_key(&port);
            if taken || !self.web_listeners.open(port).await? {
                continue;
            }
            let row = WebPortRow { label: label.to_owned(), port, used_at: self.now() };
            self.submit(vec![WebWrite::Port(row).into()], Grade::Synced).await?;
            let mut known = self.web.addresses.known();
            if let Some(before) = own {
                known.labels.remove(&before);
            }
            known.ports.insert(label.to_owned(), port);
            known.labels.insert(port, label.to_owned());
            return Ok(port);
        }
        let text = format!("no free port was found between {} and {}", PORTS.start(), PORTS.end());
        Err(Error::new(ErrorCode::ResourceExhausted, text))
    }

    /// The address of a label for whoever reached this server by `origin`. Opens its port, because people try
    /// what they are shown.
    async fn web_url(&self, origin: &str, label: &str) -> Result<String, Status> {
        let _turn = self.web.addresses.turn.lock().await;
        let port = self.open_port(label).await?;
        self.web.addresses.known().open.insert(port);
        Ok(self.urls.web(origin, label, port))
    }

    /// Completes what clients get of a function that is being made with its addresses.
    pub(crate) async fn show_urls(
        &self,
        origin: &str,
        app: &App,
        id: FunctionId,
        metadata: &mut api::FunctionHandleMetadata,
        function: &mut api::Function,
    ) -> Result<(), Status> {
        let found: Vec<(String, Label, bool)> = {
            let live = self.registry.lock();
            let named = named(&live, app, function, None).into_iter();
            named.map(|named| (named.method.to_owned(), named.label, named.is_server)).collect()
        };
        for (method, label, is_server) in found {
            let url = self.web_url(origin, &label.text).await?;
            let info = api::WebUrlInfo {
                truncated: label.truncated,
                label_stolen: self.web.addresses.is_others(&label.text, id),
                ..Default::default()
            };
            match (method.as_str(), function.method_definitions.get_mut(&method)) {
                ("", _) if is_server => function.flash_service_urls = vec![url.clone()],
                ("", _) => (function.web_url, function.web_url_info) = (url.clone(), Some(info)),
                (_, Some(definition)) => {
                    (definition.web_url, definition.web_url_info) = (url.clone(), Some(info))
                }
                (_, None) => {}
            }
            show(metadata, &method, is_server, url);
        }
        Ok(())
    }

    /// A function's handle, with the addresses by which whoever came by `origin` reaches it.
    pub(crate) fn handle(
        &self,
        live: &Live,
        origin: &str,
        function: &Function,
    ) -> api::FunctionHandleMetadata {
        let mut metadata = function.metadata.clone();
        for (method, is_server, url) in self.urls_of(live, origin, function) {
            show(&mut metadata, &method, is_server, url);
        }
        metadata
    }

    /// A function's settings, likewise.
    pub(crate) fn data_with_urls(&self, live: &Live, origin: &str, function: &Function) -> api::FunctionData {
        let mut data = function.definition.data.clone();
        for (method, is_server, url) in self.urls_of(live, origin, function) {
            match (method.as_str(), data.method_definitions.get_mut(&method)) {
                ("", _) if is_server => data.flash_service_urls = vec![url],
                ("", _) => data.web_url = url,
                (_, Some(definition)) => definition.web_url = url,
                (_, None) => {}
            }
        }
        data
    }

    fn urls_of(&self, live: &Live, origin: &str, function: &Function) -> Vec<(String, bool, String)> {
        let Some(app) = live.apps.get(&function.app_id) else { return Vec::new() };
        let known = self.web.addresses.known();
        let pinned = function.pinned.as_deref();
        let named = named(live, app, &function.definition.function, pinned).into_iter();
        let urls = named.filter_map(|named| {
            let port = known.ports.get(&named.label.text)?;
            let url = self.urls.web(origin, &named.label.text, *port);
            Some((named.method.to_owned(), named.is_server, url))
        });
        urls.collect()
    }
}

/// Puts an address where clients look for it in a handle.
fn show(metadata: &mut api::FunctionHandleMetadata, method: &str, is_server: bool, url: String) {
    match (method, metadata.method_handle_metadata.get_mut(method)) {
        ("", _) if is_server => metadata.experimental_flash_urls = vec![url],
        ("", _) => metadata.web_url = url,
        (_, Some(handle)) => handle.web_url = url,
        (_, None) => {}
    }
}

/// The web functions of a definition: itself, or methods of its class.
fn named<'a>(
    live: &Live,
    app: &App,
    function: &'a api::Function,
    pinned: Option<&PinnedVersion>,
) -> Vec<Named<'a>> {
    let environment = live.environments.values().find(|environment| environment.id == app.row.environment_id);
    let name = match &app.row.name {
        Some(name) => name,
        None => &app.row.description,
    };
    let standing = Standing {
        workspace: WORKSPACE,
        environment: environment.map_or("", |environment| &environment.settings.webhook_suffix),
        app: name,
        ephemeral: matches!(
            app.state(),
            api::AppState::Ephemeral | api::AppState::Detached | api::AppState::DetachedDisconnected
        ),
        version: pinned.map(|pinned| pinned.version),
    };
    let one = |method: &'a str, name: &str, config: &'a Option<api::WebhookConfig>| {
        let config = config.as_ref()?;
        let label = label(standing, name, &Wanted::from(config));
        let requires_proxy_auth = config.requires_proxy_auth;
        Some(Named { method, label, requires_proxy_auth, domains: &config.custom_domains, is_server: false })
    };
    if let Some(http) = function.http_config.as_ref().filter(|_| function.is_server) {
        let label = label(standing, &function.function_name, &Wanted::default());
        return vec![Named {
            method: "",
            label,
            requires_proxy_auth: !http.unauthenticated,
            domains: &[],
            is_server: true,
        }];
    }
    let itself = one("", &function.function_name, &function.webhook_config);
    let methods = function
        .method_definitions
        .iter()
        .filter_map(|(name, method)| one(name, &method.function_name, &method.webhook_config));
    itself.into_iter().chain(methods).collect()
}

/// Ports for a label, in an order that is its own.
fn candidates(label: &str) -> impl Iterator<Item = u16> {
    let digest = Sha256::digest(label.as_bytes());
    let start = u16::from_be_bytes([digest[0], digest[1]]);
    let count = PORTS.end() - PORTS.start() + 1;
    (0..TRIES_MAX as u16).map(move |step| PORTS.start() + start.wrapping_add(step) % count)
}
