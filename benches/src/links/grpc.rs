//! gRPC by tonic, as its generated code would call it, with JSON in the place of protocol buffers.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::client;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{self, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use super::{Add, Count, Counted, Link};

/// Writes one type and reads another.
#[derive(Debug)]
struct Json<T, U>(PhantomData<fn(T) -> U>);

impl<T, U> Default for Json<T, U> {
    fn default() -> Json<T, U> {
        Json(PhantomData)
    }
}

impl<T: Serialize + Send + 'static, U: DeserializeOwned + Send + 'static> Codec for Json<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = Json<T, U>;
    type Decoder = Json<T, U>;

    fn encoder(&mut self) -> Json<T, U> {
        Json::default()
    }

    fn decoder(&mut self) -> Json<T, U> {
        Json::default()
    }
}

impl<T: Serialize, U> Encoder for Json<T, U> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        serde_json::to_writer(into.writer(), &item).map_err(|error| Status::internal(error.to_string()))
    }
}

impl<T, U: DeserializeOwned> Decoder for Json<T, U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        serde_json::from_reader(from.reader()).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

#[derive(Debug, Clone, Default)]
struct Counting(Count);

impl UnaryService<Add> for Counting {
    type Response = Counted;
    type Future = std::future::Ready<Result<Response<Counted>, Status>>;

    fn call(&mut self, request: Request<Add>) -> Self::Future {
        std::future::ready(Ok(Response::new(self.0.add(request.get_ref()))))
    }
}

impl Service<http::Request<Body>> for Counting {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let counting = self.clone();
        Box::pin(async move { Ok(server::Grpc::new(Json::<Counted, Add>::default()).unary(counting, request).await) })
    }
}

/// Answers whoever calls, for ever.
pub async fn serve(listener: TcpListener) {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = Server::builder().serve_with_incoming(Counting::default(), incoming).await;
    served.expect("connections can be taken");
}

/// The end that asks.
#[derive(Debug, Clone)]
pub struct Grpc(Channel);

impl Grpc {
    /// Calls.
    ///
    /// # Panics
    /// If nobody is there.
    pub async fn connect(address: &str) -> Grpc {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("the address is one");
        Grpc(endpoint.tcp_nodelay(true).connect().await.expect("the other side listens"))
    }
}

impl Link for Grpc {
    async fn ask(&self, caller: usize) -> u64 {
        let mut grpc = client::Grpc::new(self.0.clone());
        grpc.ready().await.expect("the other side is there");
        let path = http::uri::PathAndQuery::from_static("/bench.Counting/Add");
        let reply = grpc.unary(Request::new(Add::of(caller)), path, Json::<Add, Counted>::default()).await;
        reply.expect("the other side answers").into_inner().count
    }
}
