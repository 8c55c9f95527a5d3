//! The lease of scheduled jobs in a store that lives in this process. Redis decides alike, in Lua.

use std::time::{Duration, Instant};

use affinity::wire::{LeaseHolder, LeaseReply, LeaseRequest};

/// Who has the lease, and since when that is remembered.
#[derive(Debug)]
pub(super) struct Lease {
    since: Instant,
    /// The token and name of who has it, and until when.
    held: Option<(u64, String, Instant)>,
}

impl Lease {
    /// Nobody is known to have it.
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, held: None }
    }

    /// See [`Store::lease`](super::Store::lease).
    pub(super) fn ask(&mut self, request: &LeaseRequest, now: Instant) -> LeaseReply {
        let lasts = Duration::from_millis(request.for_ms);
        let by_other = self.present(now).is_some_and(|(token, ..)| *token != request.token);
        if by_other || (!lasts.is_zero() && !self.may_begin(request, lasts, now)) {
            return LeaseReply { granted: false, holder: self.holder(now) };
        }
        self.held = now.checked_add(lasts).map(|end| (request.token, request.name.clone(), end));
        LeaseReply { granted: true, holder: self.holder(now) }
    }

    /// Who has it now.
    pub(super) fn holder(&self, now: Instant) -> Option<LeaseHolder> {
        let (_, name, end) = self.present(now)?;
        let left = end.saturating_duration_since(now);
        Some(LeaseHolder { name: name.clone(), left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX) })
    }

    fn present(&self, now: Instant) -> Option<&(u64, String, Instant)> {
        self.held.as_ref().filter(|(.., end)| *end > now)
    }

    fn may_begin(&self, request: &LeaseRequest, lasts: Duration, now: Instant) -> bool {
        request.held || self.present(now).is_some() || now.saturating_duration_since(self.since) >= lasts
    }
}
