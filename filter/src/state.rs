//! What the contexts of one VM have in common.

use core::cell::{Cell, RefCell};
use std::collections::VecDeque;

use affinity::{
    SessionKey,
    wire::{Change, Claim, ClaimReply, Cursor, Origin},
};

use crate::{
    board::Board,
    config::Config,
    metrics::{Metrics, Share, count},
    owners::{CHANGE_TTL_MS, CLAIM_TTL_MS, Holding, OwnerTable},
    router::Router,
    sidecar::Sidecar,
};

/// Claims that wait for a sidecar to come back. Whoever logs in while it is away must be found where
/// they are when it returns.
const WAITING_CLAIMS: usize = 4096;

pub(crate) struct State {
    pub(crate) config: Config,
    pub(crate) board: Board,
    pub(crate) sidecar: Option<Sidecar>,
    pub(crate) metrics: Metrics,
    pub(crate) router: RefCell<Router>,
    pub(crate) waiting_claims: RefCell<VecDeque<Claim>>,
    /// The time of the last tick: a clock that costs no hostcall.
    pub(crate) now_ms: Cell<u64>,
    /// The changes that this VM has applied.
    pub(crate) cursor: Cell<Cursor>,
    /// The era ([`Progress::era`](crate::board::Progress::era)) of what this VM knows.
    pub(crate) era: Cell<u64>,
    owners: RefCell<OwnerTable>,
    entries: Share,
}

impl State {
    pub(crate) fn new(config: Config, now_ms: u64) -> Self {
        let token = config.sidecar_token.as_ref().map(|token| token.header());
        let cluster = config.sidecar_cluster.clone();
        let sidecar = cluster.map(|name| Sidecar::new(name, token, config.sidecar_timeout()));
        let board = Board::new(config.sidecar_cluster.as_deref().unwrap_or_default());
        // After a VM was replaced, the others already know better than the configuration.
        let nodes = sidecar.as_ref().and_then(|_| board.nodes()).unwrap_or_else(|| config.nodes.clone());
        let progress = board.progress().progress;
        Self {
            sidecar,
            metrics: Metrics::define(),
            router: RefCell::new(Router::new(nodes)),
            waiting_claims: RefCell::default(),
            now_ms: Cell::new(now_ms),
            cursor: Cell::new(progress.cursor),
            era: Cell::new(progress.era),
            owners: RefCell::new(OwnerTable::new(config.table_entries)),
            entries: Share::default(),
            board,
            config,
        }
    }

    /// What this VM, or another of this Envoy, knows of a session.
    pub(crate) fn known(&self, key: &SessionKey) -> Option<Holding> {
        let own = self.owners.borrow_mut().get(key);
        own.filter(|holding| self.is_fresh(holding)).or_else(|| {
            let shared = self.board.recall(key, self.era.get());
            if let Some(holding) = shared {
                self.owners.borrow_mut().set(*key, holding);
            }
            shared.or(own)
        })
    }

    /// Whether to believe a holding without asking again.
    pub(crate) fn is_fresh(&self, holding: &Holding) -> bool {
        holding.expires_ms > self.now_ms.get()
    }

    /// Remembers a holding, for the other VMs too if it names an owner, unless better is known.
    /// Returns what is known then.
    pub(crate) fn learn(&self, key: SessionKey, holding: Holding) -> Holding {
        let now = self.now_ms.get();
        let mut owners = self.owners.borrow_mut();
        if let Some(known) = owners.get(&key).filter(|known| !holding.supersedes(known, now)) {
            return known;
        }
        owners.set(key, holding);
        if holding.owner.is_some() {
            self.board.record(&key, &holding, self.era.get(), now);
        }
        holding
    }

    /// Remembers whom the sidecar named as owner in answer to a claim.
    pub(crate) fn learn_claim(&self, key: SessionKey, reply: &ClaimReply) {
        let ClaimReply { owner, .. } = reply;
        self.learn(key, Holding::owned(owner.node.seed(), owner.epoch, self.now_ms.get(), CLAIM_TTL_MS));
    }

    /// Applies a change that the directory announced to this VM's table.
    pub(crate) fn apply(&self, change: &Change) {
        let (holding, mut owners) = (self.holding_of(change), self.owners.borrow_mut());
        let known = owners.get(&change.key);
        // That a session has no owner any more is said by the directory alone.
        if holding.owner.is_none() || known.is_none_or(|known| holding.supersedes(&known, self.now_ms.get()))
        {
            owners.set(change.key, holding);
        }
    }

    /// What a change means now.
    pub(crate) fn holding_of(&self, change: &Change) -> Holding {
        let now = self.now_ms.get();
        change.owner.as_ref().map_or_else(
            || Holding::nobody(now),
            |owner| Holding::owned(owner.node.seed(), owner.epoch, now, CHANGE_TTL_MS),
        )
    }

    /// Has what may be stale asked for again.
    pub(crate) fn reset(&self) {
        self.owners.borrow_mut().reset();
        count(&self.metrics.resets);
    }

    /// Lets this Envoy know an owner now, and the sidecar when it can be asked.
    pub(crate) fn claim_later(&self, claim: Claim) {
        let now = if self.sidecar.is_some() { self.now_ms.get() } else { u64::MAX };
        self.learn(claim.key, Holding::unconfirmed(claim.node.seed(), now));
        // By then nobody waits for the answer.
        let origin = match claim.origin {
            Origin::Entry { .. } => Origin::Visit,
            origin => origin,
        };
        let claim = Claim { origin, ..claim };
        if self.sidecar.is_some() {
            self.keep_claim(claim);
        }
    }

    /// Keeps a claim for when the sidecar is back.
    fn keep_claim(&self, claim: Claim) {
        let mut waiting = self.waiting_claims.borrow_mut();
        if waiting.len() >= WAITING_CLAIMS {
            waiting.pop_front();
            count(&self.metrics.claims_dropped);
        }
        waiting.push_back(claim);
    }

    /// Counts this VM's table no more.
    pub(crate) fn retire(&self) {
        self.entries.set(&self.metrics.table_entries, 0);
        self.metrics.flush();
    }

    pub(crate) fn flush_metrics(&self) {
        let entries = self.owners.borrow().len();
        self.entries.set(&self.metrics.table_entries, i64::try_from(entries).unwrap_or(i64::MAX));
        self.metrics.flush();
    }
}
