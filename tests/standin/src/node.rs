//! One node: its name, its sessions, and what it has answered so far.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::cli::Profile;
use crate::rotation::Keeper;

/// Which of Odoo's two ports a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// Prefork workers: HTTP/1.0, one request a connection.
    Http,
    /// The gevent process: HTTP/1.1 with keep-alive, websockets.
    Gevent,
}

impl Port {
    /// The value of X-Standin-Port.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Port::Http => "http",
            Port::Gevent => "gevent",
        }
    }
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) profile: Profile,
    pub(crate) keeper: Keeper,
    pub(crate) stats: Stats,
}

/// Counters since the start, except for `/standin/*`: a test can tell that nothing ran on a node.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    http: AtomicU64,
    gevent: AtomicU64,
    routes: Mutex<BTreeMap<&'static str, u64>>,
    /// Open websockets.
    pub(crate) websockets: AtomicU64,
}

impl Stats {
    /// Counts a request before it is answered.
    pub(crate) fn count(&self, port: Port, route: &'static str) {
        let total = match port {
            Port::Http => &self.http,
            Port::Gevent => &self.gevent,
        };
        total.fetch_add(1, Ordering::Relaxed);
        *self.routes.lock().unwrap_or_else(PoisonError::into_inner).entry(route).or_default() += 1;
    }
}

impl Node {
    /// The answer of `/standin/state`. Session ids are secrets, here as well.
    pub(crate) fn state(&self) -> Value {
        json!({
            "id": self.id,
            "profile": self.profile.number(),
            "requests": {
                "http": self.stats.http.load(Ordering::Relaxed),
                "gevent": self.stats.gevent.load(Ordering::Relaxed),
            },
            "routes": *self.stats.routes.lock().unwrap_or_else(PoisonError::into_inner),
            "websockets": self.stats.websockets.load(Ordering::Relaxed),
            "sessions": self.keeper.store.census(),
        })
    }
}
