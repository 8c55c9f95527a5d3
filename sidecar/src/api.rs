//! What the sidecar answers: filters, operators, and whoever watches over it.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant, SystemTime},
};

use affinity::{
    NodeId, NodeState, SessionKey,
    plan::{plan, plan_newcomer},
    wire::{
        self, CONTENT_TYPE, Claim, ClaimReply, Cursor, Explanation, LeaseRequest, MoveReply, NodeReport,
        NodesReply, Origin, OwnerReply, RevokeReply, Sessions, SessionsReply, WatchQuery, WatchReply,
    },
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    directory::Directory,
    lasting::Lasting,
    limit::{Limit, within},
    metrics::Metrics,
    orm_cache::OrmCache,
    registry::Registry,
    sessions::{self, Brought, Carriers},
    store::{Drain, EndedBy, LARGEST_EPOCH, StoreError},
    terminal,
    token::Tokens,
};

/// The most sessions that are moved at once; each is under 60 bytes of JSON.
pub(crate) const MOST_MOVED: usize = 64;
/// How many may ask for readiness and metrics at once.
const MOST_WATCHING: u32 = 32;
/// The longest lease of scheduled jobs, in milliseconds: as `mooring cron` can be told.
const LONGEST_LEASE_MS: u64 = 3_600_000;
/// The longest name of who asks for it.
const LONGEST_NAME: usize = 128;
/// The longest that a watch waits, whatever it asks for.
const LONGEST_WATCH: Duration = Duration::from_secs(30);

/// What the answers are made from.
pub(crate) struct Shared {
    pub(crate) directory: Arc<Directory>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) carriers: Carriers,
    pub(crate) orm_cache: Option<Arc<OrmCache>>,
    /// What whoever asks must show, if anything.
    pub(crate) tokens: Option<Arc<Tokens>>,
    /// How many requests are worked on at once, and how many wait for changes.
    pub(crate) most_requests: u32,
    /// Cancelled when the process is to end.
    pub(crate) shutdown: CancellationToken,
}

impl Shared {
    /// The nodes as an operator sees them.
    fn reports(&self) -> Vec<NodeReport> {
        let mut nodes = self.registry.reports();
        for (id, carried) in self.carriers.reports() {
            if let Some(node) = nodes.iter_mut().find(|node| node.id == id) {
                node.carried = Some(carried);
            }
        }
        nodes
    }
}

/// Every route.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let limit = |most| {
        let limit = Limit::new(most, &shared.metrics.requests_refused);
        middleware::from_fn_with_state(limit, within)
    };
    // Those who wait for changes take nobody's place who asks.
    let waiting = Router::new().route("/v1/watch", get(watch)).layer(limit(shared.most_requests));
    let asking = Router::new()
        .route("/v1/owners/{key}", get(owner))
        .route("/v1/claims", post(claim))
        .route("/v1/sessions/revoke", post(revoke))
        .route("/v1/cron", post(lease))
        .route("/v1/cache", get(orm_cache))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{id}/drain", post(drain))
        .route("/v1/nodes/{id}/undrain", post(undrain))
        .route("/v1/nodes/{id}/sessions", get(sessions))
        .route("/v1/nodes/{id}/move", post(move_sessions))
        .route("/v1/explanations/{key}", get(explain))
        .layer(limit(shared.most_requests));
    // Where the store dawdles they take few places too.
    let watched = Router::new()
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .layer(limit(MOST_WATCHING));
    let mut guarded = waiting.merge(asking);
    if shared.tokens.is_some() {
        guarded = guarded.layer(middleware::from_fn_with_state(Arc::clone(&shared), check_token));
    }
    guarded.route("/healthz", get(|| async { "alive\n" })).merge(watched).with_state(shared)
}

/// An answer that is a body of the wire.
fn encoded<T: serde::Serialize>(body: &T) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], wire::encode(body)).into_response()
}

/// What the store left undone.
static UNDONE: LazyLock<Lasting> = LazyLock::new(|| Lasting::new("answering from the store"));

/// Notes that the store does all that is asked of it.
pub(crate) fn store_works() {
    UNDONE.works();
}

fn unavailable(error: &StoreError) -> Response {
    UNDONE.failed(error);
    (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()
}

fn bad(problem: impl std::fmt::Display) -> Response {
    (StatusCode::BAD_REQUEST, format!("{problem}\n")).into_response()
}

/// Lets pass who shows the token, if there is one.
async fn check_token(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    match &shared.tokens {
        Some(tokens) if !tokens.are_shown_by(shown) => {
            (StatusCode::UNAUTHORIZED, "the shared token is missing or wrong\n").into_response()
        }
        _ => next.run(request).await,
    }
}

async fn owner(State(shared): State<Arc<Shared>>, Path(key): Path<String>) -> Response {
    let key: SessionKey = match key.parse() {
        Ok(key) => key,
        Err(error) => return bad(error),
    };
    match shared.directory.owner(key).await {
        Ok(Some((owner, fresh_for))) => {
            let believe_s = u32::try_from(fresh_for.as_secs()).unwrap_or(u32::MAX);
            encoded(&OwnerReply { owner: Some(owner), believe_s })
        }
        Ok(None) => encoded(&OwnerReply { owner: None, believe_s: 0 }),
        Err(error) => unavailable(&error),
    }
}

async fn claim(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    // No epoch becomes so great by growing.
    let Some(claim) = wire::decode(&body).filter(|claim: &Claim| claim.expect < LARGEST_EPOCH) else {
        return bad("the body is no claim");
    };
    if let Err(refusal) = known(&shared, claim.node.as_str()) {
        return *refusal;
    }
    let membership = shared.registry.membership().borrow().clone();
    let store = shared.directory.store();
    if claim.origin == Origin::Failover {
        match sessions::may_take_over(store, &membership, &claim).await {
            Ok(true) => {}
            Ok(false) => return stays(&shared, &claim).await,
            Err(error) => return unavailable(&error),
        }
    }
    match shared.directory.claim(claim.clone()).await {
        Ok(reply) => {
            if !sessions::settled(store, &membership, &shared.carriers, &claim).await {
                shared.metrics.unsettled();
            }
            if reply.granted && reply.owner.epoch == 1 {
                shared.registry.begun(&reply.owner.node);
            }
            encoded(&reply)
        }
        Err(error) => unavailable(&error),
    }
}

/// A session stays with who owns it: elsewhere it would be lost.
async fn stays(shared: &Shared, claim: &Claim) -> Response {
    match shared.directory.store().owner(claim.key).await {
        Ok(Some(owner)) => encoded(&ClaimReply { granted: false, owner }),
        Ok(None) => unavailable(&StoreError::Unreachable("the session expired meanwhile".into())),
        Err(error) => unavailable(&error),
    }
}

async fn watch(State(shared): State<Arc<Shared>>, Query(query): Query<WatchQuery>) -> Response {
    let deadline = Instant::now() + Duration::from_millis(query.wait_ms.into()).min(LONGEST_WATCH);
    let mut news = shared.directory.news();
    let mut memberships = shared.registry.membership();
    let _watching = shared.metrics.watching();
    shared.registry.is_asked();
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

async fn orm_cache(State(shared): State<Arc<Shared>>) -> Response {
    match &shared.orm_cache {
        Some(cache) => Json(cache.report()).into_response(),
        None => (StatusCode::NOT_FOUND, "this sidecar has no ORM cache (--cache-socket)\n").into_response(),
    }
}

async fn nodes(State(shared): State<Arc<Shared>>) -> Json<NodesReply> {
    let store = shared.directory.store().ping().await.err().map(|error| error.report());
    let (cron, differences) = (shared.registry.cron(), shared.registry.differences());
    Json(NodesReply { nodes: shared.reports(), cron, store, differences })
}

/// Gives the lease of scheduled jobs to one who asks.
async fn lease(State(shared): State<Arc<Shared>>, Json(request): Json<LeaseRequest>) -> Response {
    if request.for_ms > LONGEST_LEASE_MS {
        return bad(format!("for_ms: expected {LONGEST_LEASE_MS} at most"));
    }
    // Operators get to see it.
    if !(1..=LONGEST_NAME).contains(&request.name.len()) || !terminal::is_plain(&request.name) {
        return bad(format!(
            "name: expected 1 to {LONGEST_NAME} bytes of plain text, as --name or the host has"
        ));
    }
    match shared.directory.store().lease(&request).await {
        Ok(reply) => Json(reply).into_response(),
        Err(error) => unavailable(&error),
    }
}

async fn drain(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    set_draining(&shared, &id, true).await
}

async fn undrain(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    set_draining(&shared, &id, false).await
}

async fn set_draining(shared: &Shared, id: &str, draining: bool) -> Response {
    let id = match known(shared, id) {
        Ok(id) => id,
        Err(refusal) => return *refusal,
    };
    let word = shared.registry.next_word(&id, draining, now_ms());
    match shared.directory.store().set_draining(&id, word).await {
        Ok(word) => set_draining_here(shared, &id, word).await,
        Err(error) => unavailable(&error),
    }
}

/// Reads back what the store was told: if nobody can, nobody acts by it.
async fn set_draining_here(shared: &Shared, id: &NodeId, word: Drain) -> Response {
    let told = shared.registry.told(shared.directory.loads());
    match shared.directory.store().roster(&told).await {
        Ok(roster) if roster.drains.get(id).is_some_and(|found| found.draining == word.draining) => {
            let draining = word.draining;
            shared.registry.hear_drain(id, word);
            shared.registry.take_in(roster, &told);
            tracing::info!(node = %id, "is {}", if draining { "drained" } else { "no longer drained" });
            StatusCode::NO_CONTENT.into_response()
        }
        Ok(_) => unavailable(&StoreError::Unreachable("another said the contrary in the same moment".into())),
        // The script that failed does not say which command it was.
        Err(error) => unavailable(&shared.directory.store().ping().await.err().unwrap_or(error)),
    }
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A node that is known here.
fn known(shared: &Shared, id: &str) -> Result<NodeId, Box<Response>> {
    let (status, problem) = match (shared.registry.knows(id), NodeId::new(id)) {
        (Some(true), Ok(id)) => return Ok(id),
        // Others may have registered it: whoever asks must ask again.
        (None, Ok(_)) => {
            let problem = "the nodes in the store were not heard of yet\n".to_owned();
            (StatusCode::SERVICE_UNAVAILABLE, problem)
        }
        _ => {
            let names: Vec<String> =
                shared.registry.reports().iter().map(|report| report.id.to_string()).collect();
            let problem = format!("there is no node of this name; there are: {}\n", names.join(", "));
            (StatusCode::NOT_FOUND, problem)
        }
    };
    Err(Box::new((status, problem).into_response()))
}

#[derive(serde::Deserialize)]
struct From {
    from: Option<String>,
}

async fn sessions(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(From { from }): Query<From>,
) -> Response {
    let id = match known(&shared, &id) {
        Ok(id) => id,
        Err(refusal) => return *refusal,
    };
    match shared.directory.store().list(from.as_deref()).await {
        Ok(page) => {
            let owned = page.sessions.into_iter().filter(|session| session.owner.node == id);
            let sessions = owned.map(|session| (session.key, session.owner.epoch)).collect();
            Json(SessionsReply { sessions, next: page.next }).into_response()
        }
        Err(error) => unavailable(&error),
    }
}

/// Hands sessions over to where a new one of the same key would go.
async fn move_sessions(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Json(sessions): Json<Sessions>,
) -> Response {
    let id = match known(&shared, &id) {
        Ok(id) => id,
        Err(refusal) => return *refusal,
    };
    let (membership, store) = (shared.registry.membership().borrow().clone(), shared.directory.store());
    let mut reply = MoveReply::default();
    for (key, expect) in sessions.into_iter().take(MOST_MOVED) {
        let places = plan_newcomer(&membership, key).places;
        let heir = places.first().and_then(|place| membership.nodes().get(*place));
        let heir = heir.filter(|heir| heir.state == NodeState::Active && heir.id != id);
        let is_its_own = match store.copy(key).await {
            Ok(copy) => copy.is_some_and(|copy| copy.owner.node == id && copy.owner.epoch == expect),
            Err(error) => return unavailable(&error),
        };
        let Some(heir) = heir.filter(|_| is_its_own).map(|heir| &heir.id) else {
            reply.left += 1;
            continue;
        };
        match sessions::bring(store, &membership, key, heir).await {
            Ok(Brought::There | Brought::Nothing) => {}
            Ok(Brought::Late) => {
                reply.left += 1;
                continue;
            }
            Err(error) => return unavailable(&error),
        }
        let claim = Claim { key, node: heir.clone(), expect, origin: Origin::Visit };
        match shared.directory.claim(claim).await {
            Ok(answer) if answer.granted => reply.moved += 1,
            Ok(_) => reply.left += 1,
            Err(error) => return unavailable(&error),
        }
    }
    Json(reply).into_response()
}

/// Ends sessions everywhere.
async fn revoke(State(shared): State<Arc<Shared>>, Json(keys): Json<Vec<SessionKey>>) -> Response {
    let mut reply = RevokeReply::default();
    let membership = shared.registry.membership().borrow().clone();
    for key in keys.into_iter().take(MOST_MOVED) {
        match sessions::end(shared.directory.store(), &membership, key, EndedBy::Operator, None).await {
            Ok(ended) => reply.revoked += u64::from(ended),
            Err(error) => return unavailable(&error),
        }
    }
    tracing::info!("{} sessions were revoked", reply.revoked);
    Json(reply).into_response()
}

async fn explain(State(shared): State<Arc<Shared>>, Path(key): Path<String>) -> Response {
    let key: SessionKey = match key.parse() {
        Ok(key) => key,
        Err(error) => return bad(error),
    };
    let owner = match shared.directory.owner(key).await {
        Ok(owner) => owner.map(|(owner, _)| owner),
        Err(error) => return unavailable(&error),
    };
    let membership = shared.registry.membership().borrow().clone();
    let plan = plan(&membership, key, owner.as_ref().map(|owner| owner.node.seed()));
    let nodes = plan.places.iter().filter_map(|place| membership.nodes().get(*place));
    let nodes = nodes.map(|node| node.id.clone()).collect();
    Json(Explanation { key, owner, nodes, reason: plan.reason.to_string() }).into_response()
}

/// Ready: every node was probed, the store can be reached and has the sessions that this sidecar carries,
/// and the process is not about to end. Lists that differ are only told: each change of the lists passes through
/// that, and to take all sidecars away would not make them agree.
async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let problem = if shared.shutdown.is_cancelled() {
        Some("shutting down".to_owned())
    } else if !shared.registry.is_settled() {
        Some("not every node has been probed yet".to_owned())
    } else if let Err(error) = shared.directory.store().ping().await {
        Some(error.to_string())
    } else {
        shared.carriers.unfinished()
    };
    match problem {
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")).into_response(),
        None => {
            let differences = shared.registry.differences();
            let warnings = differences.iter().map(|line| format!("warning: {}\n", terminal::plain(line)));
            format!("ready\n{}", warnings.collect::<String>()).into_response()
        }
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let nodes = shared.reports();
    let store_up = shared.directory.store().ping().await.is_ok();
    if let Some(cache) = &shared.orm_cache {
        cache.measure();
    }
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], shared.metrics.text(&nodes, store_up, shared.directory.cached()))
        .into_response()
}
