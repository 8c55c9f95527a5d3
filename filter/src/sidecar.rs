//! Calls to the sidecar, and when not to make them.

use core::{cell::Cell, time::Duration};

use affinity::{
    SessionKey,
    wire::{self, Claim, WatchQuery},
};

use crate::host::{self, Refused};

/// The shortest and the longest time to leave a failing sidecar alone.
const SHORTEST_PAUSE_MS: u64 = 250;
const LONGEST_PAUSE_MS: u64 = 4_000;

/// The sidecar as one VM sees it.
pub(crate) struct Sidecar {
    cluster: String,
    /// The `authorization` header, if the sidecar wants one.
    authorization: Option<String>,
    timeout: Duration,
    failures: Cell<u32>,
    paused_until_ms: Cell<u64>,
}

impl Sidecar {
    pub(crate) fn new(cluster: String, authorization: Option<String>, timeout: Duration) -> Self {
        Self { cluster, authorization, timeout, failures: Cell::default(), paused_until_ms: Cell::default() }
    }

    /// Whether it is worth asking. After a failure it is left alone for a while, each time longer:
    /// requests must not wait again and again for somebody who is not there.
    pub(crate) fn is_worth_asking(&self, now_ms: u64) -> bool {
        let left = self.paused_until_ms.get().saturating_sub(now_ms);
        // No pause is as long as that: the clock was put back since it began.
        left == 0 || left > LONGEST_PAUSE_MS
    }

    pub(crate) fn answered(&self) {
        self.failures.set(0);
        self.paused_until_ms.set(0);
    }

    pub(crate) fn failed(&self, now_ms: u64) {
        // Many calls may be under way when it fails; they count as one failure.
        if self.is_worth_asking(now_ms) {
            let pause = SHORTEST_PAUSE_MS << self.failures.get().min(8);
            self.paused_until_ms.set(now_ms + pause.min(LONGEST_PAUSE_MS));
            self.failures.set(self.failures.get().saturating_add(1));
        }
    }

    /// Asks who owns `key`; the answer comes to the context that asks.
    pub(crate) fn look_up(&self, key: &SessionKey) -> Result<u32, Refused> {
        self.call("GET", &format!("/v1/owners/{key}"), &[], self.timeout)
    }

    /// Claims a session; the answer comes to the context that asks.
    pub(crate) fn claim(&self, claim: &Claim) -> Result<u32, Refused> {
        self.call("POST", "/v1/claims", &wire::encode(claim), self.timeout)
    }

    /// Asks for changes; the answer comes when there are some, or after `wait_ms`.
    pub(crate) fn watch(&self, query: &WatchQuery) -> Result<u32, Refused> {
        let WatchQuery { generation, position, membership, wait_ms } = *query;
        let path = format!(
            "/v1/watch?generation={generation}&position={position}&membership={membership}&wait_ms={wait_ms}"
        );
        let patience = Duration::from_millis(u64::from(wait_ms)) + Duration::from_secs(3);
        self.call("GET", &path, &[], patience)
    }

    fn call(&self, method: &str, path: &str, body: &[u8], timeout: Duration) -> Result<u32, Refused> {
        let mut headers = vec![(":method", method), (":path", path), (":authority", "mooring")];
        if let Some(authorization) = &self.authorization {
            headers.push(("authorization", authorization));
        }
        if !body.is_empty() {
            headers.push(("content-type", wire::CONTENT_TYPE));
        }
        host::call(&self.cluster, &headers, body, timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_sidecar_is_left_alone_longer_and_longer() {
        let sidecar = Sidecar::new("mooring".into(), None, Duration::from_millis(250));
        let mut now = 1_000;
        let mut pauses = vec![];
        for _ in 0..8 {
            assert!(sidecar.is_worth_asking(now));
            sidecar.failed(now);
            sidecar.failed(now);
            let pause = (0..).find(|wait| sidecar.is_worth_asking(now + wait)).unwrap();
            pauses.push(pause);
            now += pause;
        }
        assert_eq!(pauses, [250, 500, 1_000, 2_000, 4_000, 4_000, 4_000, 4_000]);
        sidecar.answered();
        sidecar.failed(now);
        assert!(sidecar.is_worth_asking(now + 250));
        sidecar.failed(now + 3_600_000);
        assert!(sidecar.is_worth_asking(now), "the clock was put back");
    }
}
