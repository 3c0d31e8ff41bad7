//! Web functions: which there are and under which names and ports ([`labels`], [`addresses`]), the requests to them
//! (by messages: [`exchange`]; as they are: to a user's server [`direct`], to an application [`native`]; for classes
//! with [`parameters`]), and the tokens that open those which are not for everybody
//! ([`tokens`]).

mod addresses;
mod direct;
mod exchange;
mod labels;
mod messages;
mod native;
mod parameters;
mod scope;
mod tokens;

pub(crate) use native::VARIABLE;
pub(crate) use tokens::random;

use crate::Control;
use evoke_core::{Error, FunctionId};
use evoke_proto::api;
use evoke_proto::web::{Begun, WebAddress, WebApps, WebEndpoint, WebHead};
use std::sync::Arc;

/// What control knows of web functions.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) addresses: addresses::Addresses,
    pub(crate) exchanges: exchange::Exchanges,
    pub(crate) line: direct::Line,
    pub(crate) native: native::Native,
    pub(crate) tokens: tokens::Tokens,
}

#[async_trait::async_trait]
impl WebApps for Control {
    fn endpoint(&self, address: &WebAddress) -> Option<WebEndpoint> {
        self.web.addresses.endpoint(address)
    }

    async fn admit(&self, endpoint: &WebEndpoint, key: &str, secret: &str) -> Result<bool, Error> {
        let live = self.registry.lock();
        let function = live.functions.get(&endpoint.function);
        let app = function.and_then(|function| live.apps.get(&function.app_id));
        Ok(app.is_some_and(|app| self.web.tokens.open(key, secret, app.row.environment_id)))
    }

    async fn begin(&self, endpoint: &WebEndpoint, head: WebHead) -> Result<Begun, Error> {
        if self.store.is_saturated() {
            // New work waits here, where it holds nothing that others need.
            self.store.room().await;
        }
        let me = self.me.upgrade().ok_or_else(shutting_down)?;
        let function = me.with_query(endpoint.function, &head.query).await?;
        let endpoint = &WebEndpoint { function, ..endpoint.clone() };
        if let Some(port) = self.server_port(endpoint.function, &endpoint.method) {
            return me.begin_direct(endpoint.function, port).await.map(Begun::Direct);
        }
        if let Some(begun) = me.begin_native(endpoint, &head).await? {
            return Ok(begun);
        }
        let args = scope::arguments(&head, self.is_proxied(endpoint.function, &endpoint.method));
        me.begin_web(endpoint, &head, args).map(Begun::Messages)
    }
}

impl Control {
    /// Whether requests go through the container's own proxy to a server of the user's.
    fn is_proxied(&self, function: FunctionId, method: &str) -> bool {
        self.registry.function(function).is_some_and(|function| {
            let definition = &function.definition.function;
            let config = match method {
                "" => definition.webhook_config.as_ref(),
                method => definition.method_definitions.get(method).and_then(|m| m.webhook_config.as_ref()),
            };
            config.is_some_and(|config| config.r#type() == api::WebhookType::WebServer)
        })
    }

    /// What the gateway needs of control.
    pub fn web_apps(self: &Arc<Self>) -> Arc<dyn WebApps> {
        self.clone()
    }
}

fn shutting_down() -> Error {
    Error::new(evoke_core::ErrorCode::Unavailable, "The server is shutting down")
}
