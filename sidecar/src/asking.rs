//! What the operator's commands ask of a sidecar.

use std::path::PathBuf;

use axum::body::Bytes;
use hyper::{Request, StatusCode, header, http::request::Builder};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    cli::{Asked, Listen},
    client::{self, ClientError},
    terminal,
    token::Token,
};

/// Why a command cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("no sidecar answers at {0} ({1}); is `mooring serve` running, and is --sidecar its --listen?")]
    NoSidecar(Listen, ClientError),
    #[error("{0} is not a sidecar of this version: it answers {1}")]
    NotASidecar(Listen, String),
    #[error("--token-file {0}: {1}")]
    Token(PathBuf, std::io::Error),
    #[error("the sidecar refuses: {0} (--token-file)")]
    Unauthorized(String),
    #[error("{0}")]
    Refused(String),
}

/// A sidecar that answers commands.
pub(crate) struct Sidecar {
    address: Listen,
    token: Option<Token>,
}

impl Sidecar {
    /// The sidecar that an operator named.
    ///
    /// # Errors
    /// If the token cannot be read.
    pub(crate) fn new(asked: &Asked) -> Result<Self, AskError> {
        let path = asked.token_file.as_ref();
        let token = path.map(|path| Token::read(path).map_err(|error| AskError::Token(path.clone(), error)));
        Ok(Self { address: asked.sidecar.clone(), token: token.transpose()? })
    }

    /// The answer to `GET path`.
    ///
    /// # Errors
    /// If nobody answers, or with something else; likewise of the next.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        self.read(&self.ask(Request::get(path), Bytes::new()).await?)
    }

    /// The answer to `POST path` with a body of JSON.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, AskError> {
        let body = serde_json::to_vec(body).unwrap_or_default();
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        self.read(&self.ask(request, body.into()).await?)
    }

    /// `POST path`, to which there is nothing to say.
    pub(crate) async fn tell(&self, path: &str) -> Result<(), AskError> {
        self.ask(Request::post(path), Bytes::new()).await.map(drop)
    }

    /// `GET path`, where only the status matters.
    pub(crate) async fn check(&self, path: &str) -> Result<(), AskError> {
        self.ask(Request::get(path), Bytes::new()).await.map(drop)
    }

    async fn ask(&self, mut request: Builder, body: Bytes) -> Result<Bytes, AskError> {
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token.header());
        }
        let answer = client::send(&self.address, request, body)
            .await
            .map_err(|error| AskError::NoSidecar(self.address.clone(), error))?;
        let (status, body) = (answer.status(), answer.into_body());
        let text = || terminal::plain(String::from_utf8_lossy(&body).trim());
        match status {
            StatusCode::UNAUTHORIZED => Err(AskError::Unauthorized(text())),
            // A path that is not there has no text.
            StatusCode::NOT_FOUND if body.is_empty() => {
                Err(AskError::NotASidecar(self.address.clone(), status.to_string()))
            }
            status if status.is_success() => Ok(body),
            _ => Err(AskError::Refused(text())),
        }
    }

    /// Reads an answer. Its texts may come from anybody who writes the store, and are going to a terminal.
    fn read<T: DeserializeOwned>(&self, body: &Bytes) -> Result<T, AskError> {
        let read = serde_json::from_slice(body).and_then(|mut answer| {
            make_plain(&mut answer);
            serde_json::from_value(answer)
        });
        read.map_err(|error| AskError::NotASidecar(self.address.clone(), terminal::plain(&error.to_string())))
    }
}

fn make_plain(answer: &mut Value) {
    match answer {
        Value::String(text) if !terminal::is_plain(text) => *text = terminal::plain(text),
        Value::Array(values) => values.iter_mut().for_each(make_plain),
        Value::Object(fields) => fields.values_mut().for_each(make_plain),
        _ => {}
    }
}
