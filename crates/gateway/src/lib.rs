//! The way in: every connection from clients and from containers ends here.
//!
//! One listener carries gRPC (the platform's RPCs), blob uploads and downloads, and a page per app. Who asks
//! is decided by where a connection arrives ([`Identity`]) and, on the public listener, by the token that a
//! request shows ([`Authenticator`]). Blobs and pages are reached by signed addresses ([`UrlSigner`]) and
//! need no token. Requests for web functions, on listeners of their own ([`WebIngress::serve`]) or by the host
//! that they name on the others, are relayed to the functions' applications.
//!
//! Tunnels ([`serve_tunnel`]) lead to ports of containers, by TLS under certificates of a [`LocalAuthority`].
//!
//! Entry points: [`Ingress::serve`] and [`WebIngress::serve`] for listeners, [`Platform`] for what is not gRPC. The pieces behind it
//! come in as traits: [`evoke_proto::Service`], [`BlobStore`], [`VolumeStore`], [`PageData`],
//! [`evoke_proto::web::WebApps`].

mod accept;
mod authenticate;
mod blobs;
mod connection;
mod ingress;
mod origin;
mod pages;
mod preface;
mod routes;
mod sign;
mod tls;
mod tunnels;
mod volumes;
mod web;
mod wire;

pub use authenticate::{Authenticator, WorkspaceToken};
pub use blobs::{BlobStore, BlobWriter};
pub use ingress::{Identity, Ingress, Listener};
pub use pages::{
    AppPage, AppRow, CallRow, ContainerRow, FunctionRow, ImagePage, LayerRow, LogLine, PackageRow, PageData,
    size, utc,
};
pub use routes::{HttpBody, HttpRoutes, Platform};
pub use sign::UrlSigner;
pub use tls::LocalAuthority;
pub use tunnels::serve_tunnel;
pub use volumes::VolumeStore;
pub use web::{WebIngress, WebLimits};
