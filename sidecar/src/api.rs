//! What the sidecar answers: filters, operators, and whoever watches over it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use affinity::{
    SessionKey,
    wire::{self, CONTENT_TYPE, Claim, Cursor, NodesReply, OwnerReply, WatchQuery, WatchReply},
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    directory::Directory,
    metrics::Metrics,
    registry::Registry,
    store::{LARGEST_EPOCH, StoreError},
};

/// A claim is under 200 bytes.
const LARGEST_BODY: usize = 4 << 10;
/// The longest that a watch waits, whatever it asks for.
const LONGEST_WATCH: Duration = Duration::from_secs(30);

/// What the answers are made from.
pub(crate) struct Shared {
    pub(crate) directory: Arc<Directory>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) metrics: Arc<Metrics>,
    /// Cancelled when the process is to end.
    pub(crate) shutdown: CancellationToken,
}

/// Every route.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/owners/{key}", get(owner))
        .route("/v1/claims", post(claim))
        .route("/v1/watch", get(watch))
        .route("/v1/nodes", get(nodes))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .with_state(shared)
}

/// An answer that is a body of the wire.
fn encoded<T: serde::Serialize>(body: &T) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], wire::encode(body)).into_response()
}

fn unavailable(error: &StoreError) -> Response {
    tracing::warn!("{error}");
    (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()
}

async fn owner(State(shared): State<Arc<Shared>>, Path(key): Path<String>) -> Response {
    let key: SessionKey = match key.parse() {
        Ok(key) => key,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    match shared.directory.owner(key).await {
        Ok(owner) => encoded(&OwnerReply { owner }),
        Err(error) => unavailable(&error),
    }
}

async fn claim(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    // No epoch becomes so great by growing.
    let Some(claim) = wire::decode(&body).filter(|claim: &Claim| claim.expect < LARGEST_EPOCH) else {
        return (StatusCode::BAD_REQUEST, "the body is no claim\n").into_response();
    };
    match shared.directory.claim(claim).await {
        Ok(reply) => encoded(&reply),
        Err(error) => unavailable(&error),
    }
}

async fn watch(State(shared): State<Arc<Shared>>, Query(query): Query<WatchQuery>) -> Response {
    let deadline = Instant::now() + Duration::from_millis(query.wait_ms.into()).min(LONGEST_WATCH);
    let mut news = shared.directory.news();
    let mut memberships = shared.registry.membership();
    let _watching = shared.metrics.watching();
    loop {
        let membership = memberships.borrow_and_update().clone();
        news.borrow_and_update();
        let asked = Cursor { generation: query.generation, position: query.position };
        let (cursor, changes) = shared.directory.changes_since(asked);
        let reply = WatchReply {
            cursor,
            reset: changes.is_none(),
            changes: changes.unwrap_or_default(),
            membership: Some(membership.as_ref().clone()).filter(|nodes| nodes.digest() != query.membership),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let is_news = reply.reset || !reply.changes.is_empty() || reply.membership.is_some();
        if is_news || left.is_zero() || shared.shutdown.is_cancelled() {
            return encoded(&reply);
        }
        let something = async {
            tokio::select! {
                _ = news.changed() => {}
                _ = memberships.changed() => {}
                () = shared.shutdown.cancelled() => {}
            }
        };
        // Whether something came or time is up shows above.
        let _ = timeout(left, something).await;
    }
}

async fn nodes(State(shared): State<Arc<Shared>>) -> Json<NodesReply> {
    let sessions = shared.directory.sessions().await;
    Json(NodesReply { nodes: shared.registry.reports(sessions.as_ref()) })
}

/// Ready: every node was probed, the store can be reached, and the process is not about to end.
async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let problem = if shared.shutdown.is_cancelled() {
        Some("shutting down".to_owned())
    } else if !shared.registry.is_settled() {
        Some("not every node has been probed yet".to_owned())
    } else {
        shared.directory.ping().await.err().map(|error| error.to_string())
    };
    match problem {
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")).into_response(),
        None => "ready\n".into_response(),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let sessions = shared.directory.sessions().await;
    let nodes = shared.registry.reports(sessions.as_ref());
    let store_up = shared.directory.ping().await.is_ok();
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], shared.metrics.text(&nodes, store_up)).into_response()
}
