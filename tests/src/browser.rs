//! Browsers: clients that keep the session cookie as browsers do.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
pub use hyper::Method;
use hyper::{HeaderMap, Request, body::Bytes, header};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rand::{Rng, distr::Alphanumeric};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest},
};

/// How long any answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connections to a server, shared by any number of browsers.
pub type Connections = Client<HttpConnector, Full<Bytes>>;

/// Connections over HTTP/1.1, kept alive.
pub fn http1() -> Connections {
    Client::builder(TokioExecutor::new()).build_http()
}

/// Connections over HTTP/2 without TLS.
pub fn http2() -> Connections {
    Client::builder(TokioExecutor::new()).http2_only(true).build_http()
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value, empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The node that a stand-in says it is.
    pub fn node(&self) -> &str {
        self.header("x-standin-node")
    }

    /// Who the stand-in says is logged in.
    pub fn login(&self) -> &str {
        self.header("x-standin-login")
    }
}

/// One GET without a cookie.
///
/// # Errors
/// If there is no answer.
pub async fn get(server: SocketAddr, path: &str) -> Result<Answer> {
    let request = Request::get(format!("http://{server}{path}")).body(Full::default())?;
    send(&http1(), request).await
}

/// Sends one request.
///
/// # Errors
/// If there is no answer in time.
pub async fn send(connections: &Connections, request: Request<Full<Bytes>>) -> Result<Answer> {
    let exchange = async {
        let (parts, body) = connections.request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        anyhow::Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    };
    tokio::time::timeout(PATIENCE, exchange).await.context("no answer in time")?
}

/// Sends bytes as they are and returns all that comes back until the connection is closed.
///
/// # Errors
/// If it is not closed in time.
pub async fn raw(server: SocketAddr, request: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.context("no end in time")??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A session id as Odoo 18 and 19 make them, of random letters.
pub fn random_sid() -> String {
    rand::rng().sample_iter(Alphanumeric).take(84).map(char::from).collect()
}

/// A browser with its session cookie.
#[derive(Clone)]
pub struct Browser {
    connections: Connections,
    server: SocketAddr,
    /// The session id, if it has one.
    pub sid: Option<String>,
    /// Headers of every request.
    pub headers: Vec<(&'static str, String)>,
}

impl Browser {
    /// A browser without a session.
    pub fn new(connections: Connections, server: SocketAddr) -> Self {
        Self { connections, server, sid: None, headers: vec![] }
    }

    /// The same browser with other connections.
    #[must_use]
    pub fn over(&self, connections: Connections) -> Self {
        Self { connections, ..self.clone() }
    }

    /// The same browser, as it comes in elsewhere.
    #[must_use]
    pub fn at(&self, server: SocketAddr) -> Self {
        Self { server, ..self.clone() }
    }

    /// Sends a request with the cookie, and keeps the cookie that comes back.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.server));
        if let Some(sid) = &self.sid {
            request =
                request.header(header::COOKIE, format!("frontend_lang=en_US; session_id={sid}; tz=UTC"));
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = send(&self.connections, request.body(Full::new(body.into()))?).await?;
        self.keep_cookies(&answer.headers);
        Ok(answer)
    }

    /// GET.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn get(&mut self, path: &str) -> Result<Answer> {
        self.request(Method::GET, path, &[], Bytes::new()).await
    }

    /// Logs in as `login` by the form, as a person does.
    ///
    /// # Errors
    /// If that is refused.
    pub async fn log_in(&mut self, login: &str) -> Result<Answer> {
        let page = self.get("/web/login").await?.text();
        let token = page.split("name=\"csrf_token\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
        let token = token.with_context(|| format!("no csrf_token in the login page: {page}"))?;
        let form = format!("csrf_token={token}&login={login}&password=pw-{login}&redirect=/odoo");
        let kind = [("content-type", "application/x-www-form-urlencoded")];
        let answer = self.request(Method::POST, "/web/login", &kind, form).await?;
        ensure!(answer.status == 303 && answer.login() == login, "login answered {}", answer.status);
        Ok(answer)
    }

    /// Opens a websocket.
    ///
    /// # Errors
    /// If the handshake fails.
    pub async fn open_websocket(&mut self) -> Result<Websocket> {
        let mut request = format!("ws://{}/websocket?version=18.0-7", self.server).into_client_request()?;
        request.headers_mut().insert("origin", format!("http://{}", self.server).parse()?);
        for (name, value) in &self.headers {
            request.headers_mut().insert(*name, value.parse()?);
        }
        if let Some(sid) = &self.sid {
            request.headers_mut().insert(header::COOKIE, format!("session_id={sid}").parse()?);
        }
        let open = tokio_tungstenite::connect_async(request);
        let (socket, response) =
            tokio::time::timeout(PATIENCE, open).await.context("no answer in time")??;
        self.keep_cookies(response.headers());
        Ok(Websocket(socket))
    }

    /// Opens a websocket, says something and returns what comes back.
    ///
    /// # Errors
    /// If the handshake or the exchange fails.
    pub async fn websocket(&mut self, message: &str) -> Result<String> {
        self.open_websocket().await?.say(message).await
    }

    fn keep_cookies(&mut self, headers: &HeaderMap) {
        for value in headers.get_all(header::SET_COOKIE) {
            let pair = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
            if let Some(sid) = pair.strip_prefix("session_id=") {
                self.sid = Some(sid.to_owned()).filter(|sid| !sid.is_empty());
            }
        }
    }
}

/// An open websocket.
pub struct Websocket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Websocket {
    /// Says something and returns what comes back.
    ///
    /// # Errors
    /// If nothing does.
    pub async fn say(&mut self, message: &str) -> Result<String> {
        let exchange = async {
            self.0.send(Message::text(message)).await?;
            while let Some(frame) = self.0.next().await {
                if let Message::Text(text) = frame? {
                    return Ok(text.to_string());
                }
            }
            bail!("the websocket closed without an answer")
        };
        tokio::time::timeout(PATIENCE, exchange).await.context("no answer in time")?
    }
}

/// How often each thing occurs.
pub fn tally<T: Eq + std::hash::Hash>(things: impl IntoIterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    for thing in things {
        *counts.entry(thing).or_default() += 1;
    }
    counts
}
