//! How many requests are worked on at once: whoever asks for more is to leave the sidecar alone for a while.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse, Response},
};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Semaphore;

pub(crate) struct Limit {
    places: Semaphore,
    refused: Counter,
}

impl Limit {
    /// A limit that counts whom it refuses.
    pub(crate) fn new(most: u32, refused: &Counter) -> Arc<Self> {
        Arc::new(Self { places: Semaphore::new(most as usize), refused: refused.clone() })
    }
}

/// Lets a request pass if there is a place for it.
pub(crate) async fn within(State(limit): State<Arc<Limit>>, request: Request, next: Next) -> Response {
    match limit.places.try_acquire() {
        Ok(_place) => next.run(request).await,
        // It is not said in the log: whoever asks too much would fill it.
        Err(_) => {
            limit.refused.inc();
            (StatusCode::SERVICE_UNAVAILABLE, "too many requests at once (--most-requests)\n").into_response()
        }
    }
}
