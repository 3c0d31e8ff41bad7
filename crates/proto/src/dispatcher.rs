//! A [`Service`] made of handlers, one per RPC, tied to their messages by type.

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{Stream, StreamExt, TryStreamExt};
use prost::Message;
use std::future::Future;
use std::sync::Arc;

use crate::rpc::{ClientStreamMethod, Rpc, ServerStreamMethod, TABLE, UnaryMethod};
use crate::{BoxStream, CallContext, Reply, Service, Status};

type OneHandler = Box<dyn Fn(CallContext, Bytes) -> BoxFuture<'static, Result<Reply, Status>> + Send + Sync>;
type StreamHandler = Box<
    dyn Fn(CallContext, BoxStream<Result<Bytes, Status>>) -> BoxFuture<'static, Result<Reply, Status>>
        + Send
        + Sync,
>;

enum Handler {
    None,
    One(OneHandler),
    Stream(StreamHandler),
}

/// Decodes a request; a message that does not decode is the caller's mistake.
pub fn decode<M: Message + Default>(body: Bytes) -> Result<M, Status> {
    M::decode(body).map_err(|e| Status::invalid(format!("The request does not decode: {e}")))
}

/// Encodes a reply.
pub fn encode(message: &impl Message) -> Bytes {
    let mut buffer = BytesMut::with_capacity(message.encoded_len());
    // The buffer grows as needed, and running out of room is the only way to fail.
    let _ = message.encode(&mut buffer);
    buffer.freeze()
}

/// Serves the RPCs that have a handler and answers UNIMPLEMENTED by name for the others. Refuses callers
/// that the table does not admit.
#[derive(Clone)]
pub struct Dispatcher {
    handlers: Arc<[Handler]>,
}

/// Collects the handlers of a [`Dispatcher`].
///
/// ```
/// use evoke_proto::{Dispatcher, api};
/// let dispatcher = Dispatcher::builder()
///     .unary(api::rpc::AppStop, async |_context, _request: api::AppStopRequest| Ok(()))
///     .build();
/// assert_eq!(dispatcher.served().map(|rpc| rpc.name).collect::<Vec<_>>(), ["AppStop"]);
/// ```
pub struct DispatcherBuilder {
    handlers: Vec<Handler>,
}

impl Dispatcher {
    /// A builder without handlers.
    pub fn builder() -> DispatcherBuilder {
        DispatcherBuilder { handlers: TABLE.iter().map(|_| Handler::None).collect() }
    }

    /// The RPCs that have a handler, in the order of the table.
    pub fn served(&self) -> impl Iterator<Item = &'static Rpc> {
        TABLE.iter().filter(|rpc| !matches!(self.handlers[rpc.index], Handler::None))
    }
}

impl DispatcherBuilder {
    /// Adds the handler of an RPC with one request and one reply.
    #[must_use]
    pub fn unary<M, F, Fut>(mut self, _method: M, handler: F) -> Self
    where
        M: UnaryMethod,
        F: Fn(CallContext, M::Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<M::Reply, Status>> + Send + 'static,
    {
        self.handlers[M::RPC.index] = Handler::One(Box::new(move |context, body| {
            // Decoding happens here so that the handler's future holds no copy of the body.
            let future = decode(body).map(|request| handler(context, request));
            Box::pin(async move { Ok(Reply::Unary(encode(&future?.await?))) })
        }));
        self
    }

    /// Adds the handler of an RPC with one request and one reply that also wants the request's bytes, to keep
    /// fields that this server does not know.
    #[must_use]
    pub fn unary_with_body<M, F, Fut>(mut self, _method: M, handler: F) -> Self
    where
        M: UnaryMethod,
        F: Fn(CallContext, M::Request, Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<M::Reply, Status>> + Send + 'static,
    {
        self.handlers[M::RPC.index] = Handler::One(Box::new(move |context, body| {
            let future = decode(body.clone()).map(|request| handler(context, request, body));
            Box::pin(async move { Ok(Reply::Unary(encode(&future?.await?))) })
        }));
        self
    }

    /// Adds the handler of an RPC with one request and a stream of replies.
    #[must_use]
    pub fn server_stream<M, F, Fut, S>(mut self, _method: M, handler: F) -> Self
    where
        M: ServerStreamMethod,
        F: Fn(CallContext, M::Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S, Status>> + Send + 'static,
        S: Stream<Item = Result<M::Reply, Status>> + Send + 'static,
    {
        self.handlers[M::RPC.index] = Handler::One(Box::new(move |context, body| {
            let future = decode(body).map(|request| handler(context, request));
            Box::pin(async move {
                let replies = future?.await?;
                Ok(Reply::Stream(replies.map_ok(|reply| encode(&reply)).boxed()))
            })
        }));
        self
    }

    /// Adds the handler of an RPC with a stream of requests and one reply.
    #[must_use]
    pub fn client_stream<M, F, Fut>(mut self, _method: M, handler: F) -> Self
    where
        M: ClientStreamMethod,
        F: Fn(CallContext, BoxStream<Result<M::Request, Status>>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<M::Reply, Status>> + Send + 'static,
    {
        self.handlers[M::RPC.index] = Handler::Stream(Box::new(move |context, body| {
            let future = handler(context, body.map(|item| item.and_then(decode)).boxed());
            Box::pin(async move { Ok(Reply::Unary(encode(&future.await?))) })
        }));
        self
    }

    /// The dispatcher.
    pub fn build(self) -> Dispatcher {
        Dispatcher { handlers: self.handlers.into() }
    }
}

#[async_trait::async_trait]
impl Service for Dispatcher {
    async fn call(&self, context: CallContext, body: Bytes) -> Result<Reply, Status> {
        context.rpc.authorize(&context.principal)?;
        match &self.handlers[context.rpc.index] {
            Handler::One(handler) => handler(context, body).await,
            Handler::Stream(handler) => {
                handler(context, futures::stream::once(async { Ok(body) }).boxed()).await
            }
            Handler::None => Err(Status::unimplemented(context.rpc.name)),
        }
    }

    async fn call_streaming(
        &self,
        context: CallContext,
        mut body: BoxStream<Result<Bytes, Status>>,
    ) -> Result<Reply, Status> {
        context.rpc.authorize(&context.principal)?;
        match &self.handlers[context.rpc.index] {
            Handler::Stream(handler) => handler(context, body).await,
            Handler::One(handler) => {
                let only = body.next().await.ok_or_else(|| Status::invalid("The request is empty"))??;
                handler(context, only).await
            }
            Handler::None => Err(Status::unimplemented(context.rpc.name)),
        }
    }
}
