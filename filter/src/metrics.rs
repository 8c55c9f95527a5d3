//! What the filter counts. VMs count in their own memory and write on ticks, so that a request costs
//! no hostcall. Envoy shows the sum of all VMs as `wasmcustom.mooring_…`.

use core::cell::Cell;

use crate::host::{self, MetricKind};

macro_rules! metrics {
    ($($(#[doc = $doc:literal])* $field:ident = $kind:ident $name:literal;)*) => {
        /// One cell a metric; what is in it is added to Envoy's on the next tick.
        #[derive(Default)]
        pub(crate) struct Metrics {
            ids: [Option<u32>; [$($name),*].len()],
            $($(#[doc = $doc])* pub(crate) $field: Cell<i64>,)*
        }

        impl Metrics {
            /// Defines all metrics, so that they are there from the start.
            pub(crate) fn define() -> Self {
                let ids = [$((MetricKind::$kind, $name)),*]
                    .map(|(kind, name)| host::metric(kind, name));
                Self { ids, ..Self::default() }
            }

            /// Adds up what came since the last time.
            pub(crate) fn flush(&self) {
                for (id, cell) in self.ids.iter().zip([$(&self.$field),*]) {
                    let amount = cell.take();
                    if let (Some(id), true) = (id, amount != 0) {
                        host::add_to_metric(*id, amount);
                    }
                }
            }
        }
    };
}

metrics! {
    /// Requests sent to the owner of their session.
    to_owner = Counter "mooring_requests_to_owner";
    /// Requests of sessions without an owner, sent home.
    to_home = Counter "mooring_requests_to_home";
    /// Requests sent to another node because the owner is down.
    to_standby = Counter "mooring_requests_to_standby";
    /// Requests without a session, placed by the client's address.
    by_address = Counter "mooring_requests_by_address";
    /// Requests sent home because the sidecar could not be asked for the owner.
    unasked = Counter "mooring_requests_unasked";
    /// Requests for which no node was known, left to Envoy.
    nowhere = Counter "mooring_requests_without_nodes";
    /// Responses that another node than the chosen one gave.
    elsewhere = Counter "mooring_responses_from_elsewhere";
    /// Owners looked up in the sidecar.
    lookups = Counter "mooring_sidecar_lookups";
    /// Look-ups that failed or took too long.
    lookup_failures = Counter "mooring_sidecar_lookup_failures";
    /// Sessions claimed in the sidecar.
    claims = Counter "mooring_sidecar_claims";
    /// Sessions claimed for another node before a request, because their owner is down.
    takeovers = Counter "mooring_takeovers";
    /// Claims that failed or took too long; they are made again later.
    claim_failures = Counter "mooring_sidecar_claim_failures";
    /// Claims that were given up because too many waited.
    claims_dropped = Counter "mooring_sidecar_claims_dropped";
    /// Answers to the long poll.
    polls = Counter "mooring_sidecar_polls";
    /// Long polls that failed.
    poll_failures = Counter "mooring_sidecar_poll_failures";
    /// Times that changes may have been missed and the table was emptied.
    resets = Counter "mooring_table_resets";
    /// Sessions in the tables of all VMs.
    table_entries = Gauge "mooring_table_entries";
}

/// Adds one.
pub(crate) fn count(metric: &Cell<i64>) {
    metric.set(metric.get() + 1);
}

/// A gauge that each VM adds its own part to.
#[derive(Default)]
pub(crate) struct Share(Cell<i64>);

impl Share {
    /// Makes this VM's part of `gauge` be `value`.
    pub(crate) fn set(&self, gauge: &Cell<i64>, value: i64) {
        gauge.set(gauge.get() + value - self.0.replace(value));
    }
}

/// How long ago the last good poll was: the same for all VMs, so it is written and not added.
pub(crate) struct PollAge(Option<u32>);

impl PollAge {
    pub(crate) fn define() -> Self {
        Self(host::metric(MetricKind::Gauge, "mooring_sidecar_poll_age_seconds"))
    }

    pub(crate) fn record(&self, seconds: u64) {
        if let Some(id) = self.0 {
            host::set_metric(id, seconds);
        }
    }
}
