//! One HTTP/1.1 request to a node or a sidecar, over TCP or a Unix socket.

use axum::body::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, client::conn::http1, header};
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

/// The status and the body of the answer to `GET path`.
pub(crate) async fn get(server: &Listen, path: &str) -> Result<(StatusCode, Bytes), ClientError> {
    match server {
        Listen::Tcp(address) => {
            exchange(TcpStream::connect(address).await?, &address.to_string(), path).await
        }
        Listen::Unix(socket) => exchange(UnixStream::connect(socket).await?, "mooring", path).await,
    }
}

async fn exchange<S>(stream: S, host: &str, path: &str) -> Result<(StatusCode, Bytes), ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("mooring/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
        Ok((status, body.map_err(|error| ClientError::Body(error.to_string()))?.to_bytes()))
    };
    // The connection is driven beside the exchange and ends with it.
    tokio::pin!(connection);
    tokio::select! {
        answer = exchange => answer,
        Err(error) = &mut connection => Err(error.into()),
    }
}
