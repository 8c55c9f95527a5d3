//! People at a real Odoo.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use futures::{SinkExt, StreamExt};
use hyper::{Method, header};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::browser::{Answer, Browser, Connections};

/// An open websocket.
pub type Websocket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The name under which people know this Odoo.
pub const HOST: &str = "odoo.example";

/// Somebody with a browser. A proxy in front tells their address, and that they came by HTTPS.
#[derive(Clone)]
pub struct Person {
    browser: Browser,
    server: SocketAddr,
    /// Their address.
    pub address: String,
}

impl Person {
    /// Somebody who comes in at `server`.
    pub fn new(connections: &Connections, server: SocketAddr, address: String) -> Self {
        Self { browser: Browser::new(connections.clone(), server), server, address }
    }

    /// Their session id, empty without a session.
    pub fn sid(&self) -> &str {
        self.browser.sid.as_deref().unwrap_or_default()
    }

    /// What the proxy in front adds, and the name they asked for.
    fn told(&self) -> [(&'static str, &str); 3] {
        [("host", HOST), ("x-forwarded-for", &self.address), ("x-forwarded-proto", "https")]
    }

    /// GET.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn get(&mut self, path: &str) -> Result<Answer> {
        let told = self.clone();
        self.browser.request(Method::GET, path, &told.told(), "").await
    }

    /// POST.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn post(&mut self, path: &str, kind: &str, body: String) -> Result<Answer> {
        let told = self.clone();
        let headers = [&told.told()[..], &[("content-type", kind)]].concat();
        self.browser.request(Method::POST, path, &headers, body).await
    }

    /// Logs in as the administrator, by the form.
    ///
    /// # Errors
    /// If that is refused.
    pub async fn log_in(&mut self) -> Result<Answer> {
        let page = self.get("/web/login").await?;
        let text = page.text();
        let token = text.split("name=\"csrf_token\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
        let token = token.with_context(|| format!("no csrf_token in the login page ({})", page.status))?;
        let form = format!("csrf_token={token}&login=admin&password=admin&redirect=/web");
        let answer = self.post("/web/login", "application/x-www-form-urlencoded", form).await?;
        let inside = answer.status == 303 && !answer.header("location").contains("/web/login");
        ensure!(inside, "the login answered {} {}", answer.status, answer.text());
        Ok(answer)
    }

    /// What Odoo tells a browser of its session; null if nobody is logged in.
    ///
    /// # Errors
    /// If there is no such answer.
    pub async fn session_info(&mut self) -> Result<Value> {
        let body = json!({"jsonrpc": "2.0", "method": "call", "params": {}}).to_string();
        let answer = self.post("/web/session/get_session_info", "application/json", body).await?;
        let mut answer: Value = serde_json::from_slice(&answer.body)
            .with_context(|| format!("{}: {}", answer.status, answer.text()))?;
        Ok(answer["result"].take())
    }

    /// Opens a websocket, where people come in or at `server`, and has it answer a ping.
    ///
    /// # Errors
    /// If the handshake is not answered with 101 and the session's cookie, or Odoo closes the websocket.
    pub async fn websocket(&self, server: Option<SocketAddr>) -> Result<Websocket> {
        // Without a user agent Odoo does not ask which version the browser's script has.
        let url = format!("ws://{}/websocket", server.unwrap_or(self.server));
        let mut request = url.into_client_request()?;
        let headers = request.headers_mut();
        for (name, value) in self.told() {
            headers.insert(name, value.parse()?);
        }
        headers.insert(header::ORIGIN, format!("https://{HOST}").parse()?);
        headers.insert(header::COOKIE, format!("session_id={}", self.sid()).parse()?);
        let exchange = async {
            let (mut socket, response) = tokio_tungstenite::connect_async(request).await?;
            ensure!(response.status() == 101, "the handshake got {}", response.status());
            let cookie = response.headers().get(header::SET_COOKIE).and_then(|value| value.to_str().ok());
            let same =
                cookie.is_some_and(|cookie| cookie.starts_with(&format!("session_id={};", self.sid())));
            ensure!(same, "the handshake set {cookie:?}");
            let subscribe = json!({"event_name": "subscribe", "data": {"channels": [], "last": 0}});
            socket.send(Message::text(subscribe.to_string())).await?;
            socket.send(Message::Ping("hi".into())).await?;
            while let Some(frame) = socket.next().await {
                match frame? {
                    Message::Pong(_) => return Ok(socket),
                    Message::Close(frame) => bail!("Odoo closed the websocket: {frame:?}"),
                    _ => {}
                }
            }
            bail!("the websocket ended")
        };
        tokio::time::timeout(Duration::from_secs(30), exchange).await.context("no answer in time")?
    }
}
