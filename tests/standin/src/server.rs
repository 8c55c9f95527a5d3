//! The two ports.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use hyper::Version;
use hyper::header::{CONNECTION, DATE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use crate::node::{Node, Port};
use crate::{session, web};

/// Accepts connections for ever.
pub(crate) async fn run(node: Arc<Node>, port: Port, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(connection(node.clone(), port, stream, peer.ip()));
            }
            Err(error) => {
                // Out of file descriptors, most likely: some will be free in a moment.
                eprintln!("odoo-standin {}: accept failed: {error}", node.id);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn connection(node: Arc<Node>, port: Port, stream: TcpStream, peer: std::net::IpAddr) {
    // Without it an answer in two segments waits for the other side's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let node = node.clone();
        async move {
            let mut response = web::serve(node, port, peer, request).await;
            let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs_f64(session::now()));
            if let Ok(date) = HeaderValue::from_str(&date) {
                response.headers_mut().insert(DATE, date);
            }
            if port == Port::Http {
                *response.version_mut() = Version::HTTP_10;
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    // An error here is a client that went away.
    let _ = http1::Builder::new()
        .keep_alive(port == Port::Gevent)
        // As werkzeug writes them.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}
