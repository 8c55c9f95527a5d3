//! File descriptors: how many there are, and for what.
//!
//! Whoever connects uses one up. A quarter at least stays for what the sidecar itself must open: Redis, probes,
//! the disk.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connections to the ORM cache at once, at most; each has one question at a time, so that no more wait either.
const MOST_CACHE_CONNECTIONS: u64 = 512;
/// Connections for those who ask for health and metrics, and who are idle, beside one for each request.
const IDLE: u64 = 64;
/// Where the kernel sets no limit.
const NO_LIMIT: u64 = 1 << 20;

/// How many may come in at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Connections over which filters and operators ask, all listeners together.
    pub(crate) connections: usize,
    /// Requests that are worked on, and as many that wait for changes.
    pub(crate) requests: u32,
    /// Connections to the ORM cache.
    pub(crate) cache_connections: usize,
}

impl Bounds {
    /// What is wanted, or what there are descriptors for.
    fn within(descriptors: u64, most_requests: u32) -> Self {
        let connections = (u64::from(most_requests) * 2 + IDLE).min(descriptors / 2).max(2);
        // Never so many that who works on requests, or waits for changes, leaves no connection to others.
        let spare = IDLE.min(connections / 2);
        let requests = u64::from(most_requests).min((connections - spare) / 2).max(1);
        let cache_connections = MOST_CACHE_CONNECTIONS.min(descriptors / 4).max(1);
        let number = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        Self {
            connections: number(connections),
            requests: u32::try_from(requests).unwrap_or(most_requests),
            cache_connections: number(cache_connections),
        }
    }

    /// Raises this process's soft limit to the hard one, and divides it.
    pub(crate) fn raise(most_requests: u32) -> Self {
        let limit = getrlimit(Resource::Nofile);
        let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
        // Only where it is lower: a service manager that set both may forbid the call.
        let is_raised = limit.current != limit.maximum && setrlimit(Resource::Nofile, wanted).is_ok();
        let descriptors = if is_raised { limit.maximum } else { limit.current }.unwrap_or(NO_LIMIT);
        let bounds = Self::within(descriptors, most_requests);
        if bounds.requests < most_requests {
            tracing::warn!(
                "{descriptors} open files (ulimit -n) are enough for {} connections and {} requests at once, \
                 not for the {most_requests} of --most-requests",
                bounds.connections,
                bounds.requests,
            );
        }
        bounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_descriptors_stay_and_some_connections_too() {
        let of = |descriptors, requests| {
            let Bounds { connections, requests, cache_connections } = Bounds::within(descriptors, requests);
            (connections, requests, cache_connections)
        };
        assert_eq!(of(524_288, 4_096), (8_256, 4_096, 512));
        assert_eq!(of(1_024, 4_096), (512, 224, 256));
        assert_eq!(of(1_024, 1), (66, 1, 256));
        assert_eq!(of(64, 4_096), (32, 8, 16));
        for descriptors in (0..70_000).step_by(7) {
            for most in [1, 2, 100, 4_096, 1_000_000] {
                let (connections, requests, cache) = of(descriptors, most);
                assert!(requests >= 1 && requests <= most);
                if descriptors >= 8 {
                    assert!(connections + cache <= descriptors as usize * 3 / 4, "{descriptors}");
                    assert!(2 * (requests as usize) < connections, "{descriptors} {most}");
                }
            }
        }
    }
}
