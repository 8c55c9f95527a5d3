//! One HTTP/1.1 request to a node or a sidecar, over TCP or a Unix socket.

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response, client::conn::http1, header, http::request::Builder};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use crate::cli::Listen;

/// The most that is read of an answer.
const LONGEST_ANSWER: usize = 16 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("cannot connect: {0}")]
    Connect(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] hyper::http::Error),
    #[error("the answer broke off or is too long: {0}")]
    Body(String),
}

/// The answer to a request.
pub(crate) async fn send(
    server: &Listen,
    request: Builder,
    body: Bytes,
) -> Result<Response<Bytes>, ClientError> {
    let request = request
        .header(header::USER_AGENT, concat!("mooring/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close");
    match server {
        Listen::Tcp(address) => {
            let request = request.header(header::HOST, address.to_string()).body(Full::new(body))?;
            exchange(TcpStream::connect(address).await?, request).await
        }
        Listen::Unix(socket) => {
            let request = request.header(header::HOST, "mooring").body(Full::new(body))?;
            exchange(UnixStream::connect(socket).await?, request).await
        }
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect().await;
        let body = body.map_err(|error| ClientError::Body(error.to_string()))?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    // The connection is driven beside the exchange and ends with it.
    tokio::pin!(connection);
    tokio::select! {
        answer = exchange => answer,
        Err(error) = &mut connection => Err(error.into()),
    }
}
